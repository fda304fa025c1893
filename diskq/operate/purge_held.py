"""Purge messages that a group holds outside of the log."""

from __future__ import annotations

from ..delivery import key_order, leaving
from ..format.held_row import HeldRow
from ..format.lanes import Cursor
from ..format.layout import HELD, LIVE
from ..format.segment import PURGED, purged_record
from ..tables import held, key_owners, leases
from ..tables.group_tx import GroupTx
from .purge_scheduled import has_key


def withdraw_held(group: GroupTx, floors: Cursor, key: bytes | None = None) -> None:
    """Purge what has left the log below these offsets, all of it or that of one key."""

    def wanted(offset: int, message: HeldRow) -> bool:
        mine = key is None or has_key(message.record, message.flags, key)
        return mine and floors.has_passed(offset)

    for hashed, offset, message in list(key_owners.parked(group.tx, group.id)):
        if wanted(offset, message):
            key_owners.unpark(group, hashed, offset)
            group.row.purged += 1
    for offset, message in list(held.rows(group.tx, group.id, LIVE)):
        if not wanted(offset, message):
            continue
        if held.is_waiting(group.tx, group.id, offset, message):
            held.remove_live(group, offset, message)
            group.row.purged += 1
            key_order.free_key(group, offset, message)
        elif key is not None:  # who has it leased may still ack it
            message.record, message.flags = purged_record(key), message.flags | PURGED
            held.put(group, LIVE, offset, message)
    leased = (lease for lease in leases.leased(group) if lease.flags & HELD)
    for lease in [lease for lease in leased if key is None]:
        message = held.load(group.tx, group.id, lease.first)
        if wanted(lease.first, message):
            leases.remove(group, lease)
            held.remove(group, lease.first)
            leaving.unlease(group, 1)
            group.row.purged += 1
            key_order.free_key(group, lease.first, message)
