"""Seek: let a group go on elsewhere in its topic. Fork: make another group that is where one is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..base import limits
from ..base.errors import ConfigConflict
from ..base.model import LANE_BITS, SeekPreview
from ..delivery import retention
from ..delivery.settle import Place, Settling
from ..format.layout import DEAD, HELD, KEY_KEY, LIVE, SOLO
from ..format.rows import TopicRow, decode_group, new_group
from ..storage.handle import Handle
from ..storage.reserve import room_of
from ..storage.tx import Tx
from ..tables import catalog, gaps, held, key_owners, leases, log
from ..tables.log import Log

if TYPE_CHECKING:
    from ..tables.catalog import Start


def seek_group(tx: Tx, at: Place, to: Start) -> None:
    """See Group.seek."""
    group = Settling(tx, at)
    topic = group.load_topic()
    _seek(group, topic, catalog.places(group.log, topic, to, "to"))
    group.store()
    retention.trim(group.log, at.topic)


def preview(handle: Handle, place: Place, to: Start) -> SeekPreview:
    """See Group.preview_seek."""

    def look(tx: Tx) -> SeekPreview:
        source, topic = Log(tx, place.topic_id), log.load(tx, place.topic_id, "")
        cursor = catalog.places(source, topic, to, "to")
        counts, ahead = catalog.position(source, topic, cursor)
        less = ahead > 0
        for lane, offset in enumerate(cursor):
            if isinstance(to, int) and to >> LANE_BITS == lane:
                less |= to < offset  # it was moved past what is gone
            else:
                less |= lane << LANE_BITS < offset == source.first(topic, lane)
        come = sum(topic.next) - sum(counts) - ahead
        return SeekPreview(come, less and to != "latest")

    return handle.read(look)


def _seek(group: Settling, topic: TopicRow, cursor: Sequence[int]) -> None:
    """Go on at these offsets, one of each lane: whoever has a message leased loses it, nothing
    waits or is parked any more, and dead letters that come again are forgotten."""
    tx, row = group.tx, group.row
    for lease in list(leases.rows(tx, group.id)):
        leases.forget(tx, group.id, lease)
    for offset, message in list(held.rows(tx, group.id, LIVE)):
        held.stop_waiting(tx, group.id, row, offset, message)
    for key, offset, _ in list(key_owners.parked(tx, group.id)):
        key_owners.unpark(tx, group.id, row, key, offset)
    for key, _ in list(key_owners.holders(tx, group.id)):
        tx.delete(KEY_KEY.pack(b"K", group.id, key))
    for offset, _ in list(held.rows(tx, group.id, DEAD)):
        stays = gaps.past(tx, group.at.topic_id, topic, offset) != offset
        if offset >= cursor[offset >> LANE_BITS] and not stays:
            held.drop(tx, group.id, offset, DEAD)
            row.dead -= 1
    row.ready = row.leased = 0
    row.next, row.ahead = catalog.position(group.log, topic, cursor)
    ended = row.acked + row.dead + row.expired + row.dropped + row.purged
    row.skipped = sum(row.next) - ended
    tx.wake(group.id, limits.MAX_CONSUMERS)


def fork_group(tx: Tx, at: Place, name: str) -> int:
    """Make a group that is where another one is: its cursor, what waits, is parked or is dead, and
    its settings. What is leased there is ready here. Returns its id.

    Raises: ConfigConflict if there is a group of this name, Full.
    """
    if tx.get(catalog.group_name(at.topic_id, name)) is not None:
        raise ConfigConflict(
            f"topic {at.topic!r} has a group {name!r} already; choose another name"
        )
    old = Settling(tx, at)
    config = decode_group(old.row.config)._replace(name=name, paused=False)
    group_id = catalog.add_group(
        old.log, old.load_topic(), name, new_group(config, old.row.next, old.row.ahead)
    )
    _copy(old, Settling(tx, at._replace(group_id=group_id, group=name)))
    return group_id


def _copy(group: Settling, other: Settling) -> None:
    """Copy all but the cursor and the totals to a new group. What is leased here is given back
    there, uncharged."""
    tx, copy = group.tx, other.row
    room = room_of(tx)
    for lease in [lease for lease in leases.rows(tx, group.id) if not lease.flags & HELD]:
        leases.grant(tx, other.id, leases.run_of(lease.offsets(), lease.flags & SOLO))
        copy.ready += lease.unsettled
    live, dead = (list(held.rows(tx, group.id, kind)) for kind in (LIVE, DEAD))
    parked = list(key_owners.parked(tx, group.id))
    for message in [each for _, each in (*live, *dead)] + [each for _, _, each in parked]:
        if not room.take(message.size):
            raise group.full()
    suspects = {each.offset for each in held.due_rows(tx, group.id) if each.suspect}
    suspects |= {each.first for each in leases.rows(tx, group.id) if each.flags & SOLO}
    for offset, message in live:
        message.flags |= SOLO if offset in suspects else 0
        held.wait(tx, other.id, copy, offset, message, message.due_ns)
    for key, offset, message in parked:
        key_owners.park(tx, other.id, copy, key, offset, message)
    for offset, message in dead:
        held.bury(tx, other.id, copy, offset, message, message.due_ns)
    for key, offset in list(key_owners.holders(tx, group.id)):
        key_owners.take(tx, other.id, key, offset)
    copy.skipped = sum(copy.next) - copy.ready - copy.waiting - copy.parked - copy.dead
    other.store()
