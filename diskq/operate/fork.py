"""Fork: make another group that is where a group is, and a copy of its held messages."""

from __future__ import annotations

from ..base.errors import ConfigConflict
from ..delivery import leaving, making
from ..format.layout import DEAD, HELD, LIVE, SOLO
from ..format.rows import decode_group, new_group
from ..storage.reserve import room_of
from ..storage.tx import Tx
from ..tables import catalog, held, key_owners, leases
from ..tables.group_tx import GroupTx, Place


def fork_group(tx: Tx, at: Place, name: str) -> int:
    """Make a group with the cursor, the settings, and a copy of the waiting, parked and dead
    messages of another one. Messages that are leased there are ready here. Returns its id.

    Raises: ConfigConflict if there is a group of this name, Full.
    """
    if catalog.find_group(tx, at.topic_id, name) is not None:
        raise ConfigConflict(
            f"topic {at.topic!r} has a group {name!r} already; choose another name"
        )
    old = GroupTx(tx, at)
    config = decode_group(old.row.config)._replace(name=name, paused=False)
    group_id = making.add_group(
        old.log, old.load_topic(), name, new_group(config, old.row.next, old.row.ahead)
    )
    _copy(old, GroupTx(tx, at._replace(group_id=group_id, group=name)))
    return group_id


def _copy(group: GroupTx, other: GroupTx) -> None:
    """Copy all but the cursor and the totals to a new group. Messages that are leased here are
    ready there, uncharged."""
    tx, copy = group.tx, other.row
    room = room_of(tx)
    for lease in [lease for lease in leases.rows(tx, group.id) if not lease.flags & HELD]:
        leases.insert(other, leases.run_of(lease.offsets(), lease.flags & SOLO))
        copy.ready += lease.unsettled
    live, dead = (list(held.rows(tx, group.id, kind)) for kind in (LIVE, DEAD))
    parked = list(key_owners.parked(tx, group.id))
    for message in [each for _, each in (*live, *dead)] + [each for _, _, each in parked]:
        if not room.take(message.size):
            raise leaving.no_room(group)
    suspects = {each.offset for each in held.due_rows(tx, group.id) if each.suspect}
    suspects |= {each.first for each in leases.rows(tx, group.id) if each.flags & SOLO}
    for offset, message in live:
        message.flags |= SOLO if offset in suspects else 0
        held.wait(other, offset, message, message.due_ns)
    for key, offset, message in parked:
        key_owners.park(other, key, offset, message)
    for offset, message in dead:
        held.bury(other, offset, message, message.due_ns)
    for key, offset in list(key_owners.holders(tx, group.id)):
        key_owners.take(other, key, offset)
    copy.skipped = sum(copy.next) - copy.ready - copy.waiting - copy.parked - copy.dead
    other.store()
