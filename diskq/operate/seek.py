"""Seek: let a group go on elsewhere in its topic. Fork: make another group that is where one is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import limits
from ..base.errors import ConfigConflict
from ..base.model import SeekPreview
from ..delivery import leaving, making, positions, retention
from ..format.lanes import Cursor, lane_of, lane_start
from ..format.layout import DEAD, HELD, LIVE, SOLO
from ..format.rows import TopicRow, decode_group, new_group
from ..storage.handle import Handle
from ..storage.reserve import room_of
from ..storage.tx import Tx
from ..tables import catalog, gaps, group_rows, held, key_owners, leases, log
from ..tables.group_tx import GroupTx, Place
from ..tables.log import Log

if TYPE_CHECKING:
    from ..delivery.positions import Start


def seek_group(tx: Tx, at: Place, to: Start) -> None:
    """See Group.seek."""
    group = GroupTx(tx, at)
    topic = group.load_topic()
    _seek(group, topic, positions.resolve_start(group.log, topic, to, "to"))
    group.store()
    retention.trim(group.log, at.topic)


def preview(handle: Handle, place: Place, to: Start) -> SeekPreview:
    """See Group.preview_seek."""

    def look(tx: Tx) -> SeekPreview:
        source, topic = Log(tx, place.topic_id), log.load(tx, place.topic_id, "")
        cursor = positions.resolve_start(source, topic, to, "to")
        counts, ahead = positions.counters_at(source, topic, cursor)
        less = ahead > 0
        for lane, offset in enumerate(cursor):
            if isinstance(to, int) and lane_of(to) == lane:
                less |= to < offset  # it was moved past what is gone
            else:
                less |= lane_start(lane) < offset == source.first(topic, lane)
        come = sum(topic.next) - sum(counts) - ahead
        return SeekPreview(come, less and to != "latest")

    return handle.read(look)


def _seek(group: GroupTx, topic: TopicRow, cursor: Cursor) -> None:
    """Let a group go on at a cursor. All leases are lost, nothing waits or is parked any more, and
    dead letters that come again are removed."""
    tx, row = group.tx, group.row
    group_rows.clear(group)
    for offset, _ in list(held.rows(tx, group.id, DEAD)):
        stays = gaps.past(tx, group.place.topic_id, topic, offset) != offset
        if not cursor.has_passed(offset) and not stays:
            held.remove_dead(group, offset)
    row.next, row.ahead = positions.counters_at(group.log, topic, cursor)
    ended = row.acked + row.dead + row.expired + row.dropped + row.purged
    row.skipped = sum(row.next) - ended
    tx.wake(group.id, limits.MAX_CONSUMERS)


def fork_group(tx: Tx, at: Place, name: str) -> int:
    """Make a group that is where another one is: its cursor, what waits, is parked or is dead, and
    its settings. What is leased there is ready here. Returns its id.

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
    """Copy all but the cursor and the totals to a new group. What is leased here is given back
    there, uncharged."""
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
