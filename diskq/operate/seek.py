"""Seek: let a group go on elsewhere in its topic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import limits
from ..base.model import SeekPreview
from ..delivery import positions, retention
from ..format.lanes import Cursor, lane_of, lane_start
from ..format.layout import DEAD
from ..format.rows import TopicRow
from ..storage.handle import Handle
from ..storage.tx import Tx
from ..tables import gaps, group_rows, held, log
from ..tables.group_tx import GroupTx, Place
from ..tables.log import Log

if TYPE_CHECKING:
    from ..base.options import Start


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
