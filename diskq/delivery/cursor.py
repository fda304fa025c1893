"""A group's cursor moves on: over messages, over gaps, and over what leaves the log."""

from __future__ import annotations

from ..format.lanes import Cursor
from ..format.layout import HELD
from ..format.lease_row import LeaseRow
from ..tables import gaps, leases
from ..tables.group_tx import GroupTx
from . import key_order, leaving


def advance(group: GroupTx, lane: int, to: int) -> int:
    """Move the cursor in a lane on to an offset, past the gaps before it and one that begins there;
    returns how many messages it passed."""
    row, start, gone = group.row, group.row.offset(lane), 0
    for first, stop in gaps.rows(group.tx, group.place.topic_id, start) if row.ahead else ():
        if first > to:
            break
        to = max(to, stop)
        gone += stop - first
    row.next[lane] += to - start
    row.ahead -= gone
    row.skipped += gone
    return to - start - gone


def withdraw(group: GroupTx, floors: Cursor, counter: str) -> None:
    """Take the messages that `floors` has passed from the group, and add them to a
    counter of its row; leases of them are lost. The messages must still be in the log."""
    row, gone = group.row, 0
    for lane, floor in enumerate(floors):
        gone += advance(group, lane, max(floor, row.offset(lane)))
    in_log = (lease for lease in leases.rows(group.tx, group.id) if not lease.flags & HELD)
    for lease in [lease for lease in in_log if floors.has_passed(lease.next_unsettled)]:
        gone += _withdraw_from(group, lease, floors)
    setattr(row, counter, getattr(row, counter) + gone)


def _withdraw_from(group: GroupTx, lease: LeaseRow, floors: Cursor) -> int:
    lost = [offset for offset in lease.offsets() if floors.has_passed(offset)]
    for offset in lost:
        if group.keyed:
            key_order.free_key(group, offset, leaving.load_message(group, lease, offset))
        lease.settled |= 1 << offset - lease.first
    leases.update(group, lease)
    if lease.deadline_ns:
        leaving.unlease(group, len(lost))
    else:
        group.row.ready -= len(lost)
    return len(lost)
