"""Settling ends a delivery: ack, nack, release, reject.

    leased --ack--> gone
      |--release, holder died--> ready, in its old place; or, with a delay, waiting
      |--fail (nack, deadline passed, died while handling it)--> waiting
      '--fail (reject, max_deliveries reached)--> dead

All functions run inside one transaction. Taking, which begins a delivery, is in take.py.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..base import limits
from ..base.clock import nanoseconds
from ..base.errors import Full, LeaseLost
from ..base.model import Failure
from ..format.held_row import HeldRow
from ..format.layout import HELD, PREFETCHED, RETURNED, SOLO
from ..format.lease_row import LeaseRow
from ..format.segment import is_purged
from ..storage.environment import full
from ..storage.hands import Lease
from ..storage.reserve import room_of
from ..tables import held, leases
from ..tables.group_tx import GroupTx
from . import key_order


def fence(group: GroupTx, lease: Lease, offsets: Sequence[int]) -> LeaseRow:
    """The row of a lease, which holds all of these messages. Every settle and every extension
    passes this check.

    Raises: LeaseLost.
    """
    row = leases.find(group.tx, group.id, lease)
    for offset in offsets:
        if row is None or not row.holds(offset):
            raise LeaseLost(
                f"the lease of message {offset} in group {group.place.group!r} was lost: it was"
                " taken back, and is done again by others or gone; drop this work",
                topic=group.place.topic,
                group=group.place.group,
                offset=offset,
                token=lease.token + offset - lease.first,
            )
    assert row is not None
    return row


def ack(group: GroupTx, lease: Lease, offsets: Sequence[int]) -> None:
    """Let messages of one lease leave the group. Raises: LeaseLost."""
    row = fence(group, lease, offsets)
    for offset in offsets:
        row.settled |= 1 << offset - row.first
    if row.flags & HELD:
        held.remove(group, row.first)
    _update(group, lease, row)
    group.row.acked += len(offsets)
    unlease(group, len(offsets))
    for offset in offsets if lease.keys else ():
        key_order.pass_on(group, lease.keys.get(offset))


def fail(
    group: GroupTx,
    lease: Lease,
    offset: int,
    cause: str,
    name: str,
    error: str,
    delay_ns: int | None,
) -> None:
    """Note that a delivery to the consumer `name` failed; see take_out. Raises: LeaseLost, Full."""
    row = fence(group, lease, [offset])
    if not take_out(group, row, offset, cause, name, error, delay_ns):
        raise no_room(group)
    _update(group, lease, row)


def take_out(
    group: GroupTx,
    row: LeaseRow,
    offset: int,
    cause: str,
    name: str,
    error: str,
    delay_ns: int | None = None,
) -> bool:
    """Take a message that failed out of its lease. It waits `delay_ns` (default: the backoff), or
    is dead if it was rejected or failed `max_deliveries` times. The caller updates the lease's row.
    Returns False, and changes nothing, if there is no room for a copy of the message."""
    message = load_message(group, row, offset)
    if is_purged(message.record, message.flags):
        _leave(group, row, offset)
        group.row.purged += 1
        held.remove(group, offset)
        key_order.free_key(group, offset, message)
        return True
    now, room = group.clock.wall_ns(), room_of(group.tx)
    most = limits.SHORT_HISTORY_BYTES if room.short else limits.MAX_HISTORY_BYTES
    message.note(Failure(now, cause, name, error[: limits.MAX_ERROR_CHARS]), most)
    kept = bool(row.flags & HELD) or cause == "crashed"
    if not room.take(message.size, kept=kept):
        return False
    _leave(group, row, offset)
    message.failures += 1
    if cause == "crashed":
        message.flags |= SOLO
    elif cause != "expired":  # a handler lived on, so it is no suspect any more
        message.flags &= ~SOLO
    group.row.failed += 1
    if cause == "reject" or message.failures >= group.settings.max_deliveries:
        held.bury(group, offset, message, now)
        key_order.free_key(group, offset, message)
    else:
        if delay_ns is None:
            delay_ns = group.settings.backoff.delay_ns(message.failures)
        held.wait(group, offset, message, now + delay_ns)
        group.tx.wake(group.id, 1)
    return True


def load_message(group: GroupTx, row: LeaseRow, offset: int) -> HeldRow:
    """A leased message as a row of `held`, wherever it is stored."""
    if row.flags & HELD:
        message = held.load(group.tx, group.id, offset)
    else:
        _, record, flags, put = group.log.read(offset, offset + 1)[0]
        message = HeldRow(record, flags, *put)
    message.flags |= row.flags & SOLO
    return message


def release(group: GroupTx, lease: Lease, offset: int, delay_ns: int = 0) -> None:
    """Give one message back, uncharged: to its old place, or to wait for `delay_ns`.

    Raises: LeaseLost; Full, with a delay.
    """
    row = fence(group, lease, [offset])
    if delay_ns:
        _put_off(group, row, offset, delay_ns)
    elif row.unsettled == 1:
        release_all(group, row)
        return
    else:
        _leave(group, row, offset)
        leases.insert(group, LeaseRow(offset, 1))
        group.row.ready += 1
    _update(group, lease, row)
    group.tx.wake(group.id, 1)


def _put_off(group: GroupTx, row: LeaseRow, offset: int, delay_ns: int) -> None:
    message = load_message(group, row, offset)
    if not room_of(group.tx).take(message.size, kept=bool(row.flags & HELD)):
        raise no_room(group)
    message.flags |= RETURNED
    _leave(group, row, offset)
    held.wait(group, offset, message, group.clock.wall_ns() + delay_ns)


def release_owned(group: GroupTx, owner: int | None) -> None:
    """Give back, uncharged, all that a consumer holds; with None, all that any consumer holds."""
    for row in list(leases.leased(group)):
        if owner is None or row.owner == owner:
            release_all(group, row)


def release_all(group: GroupTx, row: LeaseRow, suspects: Collection[int] = ()) -> None:
    """Give back the unsettled messages of a lease. The `suspects` among them are delivered alone
    from now on; a message that was a suspect before stays one."""
    if row.flags & HELD and row.unsettled:
        message = held.load(group.tx, group.id, row.first)
        suspect = bool(row.flags & SOLO) or row.first in suspects
        held.give_back(group, row.first, message, suspect=suspect)
        _leave(group, row, row.first)
        group.tx.wake(group.id, 1)
    leases.give_back(group, row, suspects)


def extend(group: GroupTx, lease: Lease, offset: int, seconds: float | None) -> None:
    """Give a lease a new deadline; None: the group's `lease_seconds` from now. Raises: LeaseLost.

    The key of its row changes with the deadline. Threads that share the lease may settle in this
    commit, or in the next one.
    """
    row = fence(group, lease, [offset])
    _move(group, lease, row, nanoseconds(seconds or group.settings.lease_seconds))


def is_old(group: GroupTx, lease: Lease) -> bool:
    """Whether less than two thirds of the time of a lease are left."""
    return 3 * (lease.deadline_ns - group.clock.monotonic_ns()) < 2 * lease.lasts_ns


def unlease(group: GroupTx, count: int) -> None:
    """Count messages that left a lease. Wakes consumers that max_in_flight, or a suspect, held
    back."""
    group.row.leased -= count
    if group.hands.held_up:
        group.hands.held_up = False
        group.tx.wake(group.id, limits.MAX_CONSUMERS)
    most = group.settings.max_in_flight
    if most is not None and group.row.leased + count >= most:
        group.tx.wake(group.id, count)


def no_room(group: GroupTx) -> Full:
    """The error of a verb that finds no room for a copy."""
    return full(group.tx.engine.path, "what is left of its room is kept for acks")


def _move(group: GroupTx, lease: Lease, row: LeaseRow, duration_ns: int) -> None:
    leases.move(group, row, group.clock.monotonic_ns() + duration_ns)
    lease.moved_ns, lease.lasts_ns = row.deadline_ns, duration_ns
    group.tx.at_commit(lease, "deadline_ns", row.deadline_ns)


def _update(group: GroupTx, lease: Lease, row: LeaseRow) -> None:
    """Store a lease's row after a message left it. The rest of a prefetched lease is handled after
    that message, and gets its time in the same commit."""
    if row.flags & PREFETCHED and row.unsettled and is_old(group, lease):
        _move(group, lease, row, nanoseconds(group.settings.lease_seconds))
    else:
        leases.update(group, row)


def _leave(group: GroupTx, row: LeaseRow, offset: int) -> None:
    """Let a message leave its lease, whose row the caller stores."""
    row.settled |= 1 << offset - row.first
    unlease(group, 1)
