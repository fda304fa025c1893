"""A message leaves its lease, because its delivery failed, it was settled, or it was taken away."""

from __future__ import annotations

from ..base import limits
from ..base.errors import Full
from ..base.model import Failure
from ..format.held_row import HeldRow
from ..format.layout import HELD, SOLO
from ..format.lease_row import LeaseRow
from ..format.segment import is_purged
from ..storage.environment import full
from ..storage.reserve import room_of
from ..tables import held
from ..tables.group_tx import GroupTx
from . import key_order


def load_message(group: GroupTx, row: LeaseRow, offset: int) -> HeldRow:
    """A leased message as a row of `held`, wherever it is stored."""
    if row.flags & HELD:
        message = held.load(group.tx, group.id, offset)
    else:
        _, record, flags, put = group.log.read(offset, offset + 1)[0]
        message = HeldRow(record, flags, *put)
    message.flags |= row.flags & SOLO
    return message


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
        leave(group, row, offset)
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
    leave(group, row, offset)
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


def leave(group: GroupTx, row: LeaseRow, offset: int) -> None:
    """Let a message leave its lease, whose row the caller stores."""
    row.settled |= 1 << offset - row.first
    unlease(group, 1)


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
