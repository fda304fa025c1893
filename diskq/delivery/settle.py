"""Settling ends a delivery: ack, nack, release, reject.

    leased --ack--> gone
      |--release, holder died--> ready, in its old place; or, with a delay, waiting
      |--fail (nack, deadline passed, died while handling it)--> waiting
      '--fail (reject, max_deliveries reached)--> dead

All functions run inside one transaction. Taking, which begins a delivery, is in take.py.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..base.clock import nanoseconds
from ..base.errors import LeaseLost
from ..format.layout import HELD, PREFETCHED, RETURNED, SOLO
from ..format.lease_row import LeaseRow
from ..storage.hands import Lease
from ..storage.reserve import room_of
from ..tables import held, leases
from ..tables.group_tx import GroupTx
from . import key_order, leaving


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
    leaving.unlease(group, len(offsets))
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
    """Note that a delivery to the consumer `name` failed; see leaving.take_out.

    Raises: LeaseLost, Full.
    """
    row = fence(group, lease, [offset])
    if not leaving.take_out(group, row, offset, cause, name, error, delay_ns):
        raise leaving.no_room(group)
    _update(group, lease, row)


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
        leaving.leave(group, row, offset)
        leases.insert(group, LeaseRow(offset, 1))
        group.row.ready += 1
    _update(group, lease, row)
    group.tx.wake(group.id, 1)


def _put_off(group: GroupTx, row: LeaseRow, offset: int, delay_ns: int) -> None:
    message = leaving.load_message(group, row, offset)
    if not room_of(group.tx).take(message.size, kept=bool(row.flags & HELD)):
        raise leaving.no_room(group)
    message.flags |= RETURNED
    leaving.leave(group, row, offset)
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
        leaving.leave(group, row, row.first)
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
