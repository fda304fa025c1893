"""Purge by key: of each message with the key, only the key is left in its rewritten segment.

That keeps offsets dense, and tells a group which message may go on.
"""

from __future__ import annotations

from itertools import islice

from ..base import limits
from ..delivery.bounds import groups_of
from ..format.lanes import Cursor, lane_of
from ..format.rows import TopicRow
from ..format.segment import PURGED, RICH, Segment, is_purged, pack_run, purged_record
from ..tables import log as logs
from ..tables.log import Log
from .purge_held import withdraw_held
from .purge_scheduled import erase_scheduled, has_key


def purge_key(
    log: Log, name: str, floors: Cursor, key: bytes, start: int
) -> tuple[int, int | None]:
    """Purge what of one key is below these offsets, in some segments from `start` on. Returns how
    many messages went, and where to go on, if anywhere. A message that a consumer is handling right
    now is purged only in the log: it may still ack it, but it does not come again."""
    row = logs.load(log.tx, log.topic_id, name)
    gone = erase_scheduled(log, row, limits.MAX_TRIM_SEGMENTS, key)
    at: int | None = None
    if gone == limits.MAX_TRIM_SEGMENTS:
        at = start  # first all of the schedule: what falls due may go to a lane passed already
    else:
        for segment in list(islice(log.segments(start), limits.MAX_PURGE_SEGMENTS)):
            gone += _purge_from(log, row, segment, floors[lane_of(segment.first)], key)
            at = segment.first + segment.count
    if at is None:  # the log has none any more, so nobody copies another one
        for group in groups_of(log, row):
            withdraw_held(group, floors, key)
            group.store()
    logs.store(log.tx, log.topic_id, row)
    log.tx.announced.add(log.topic_id)
    return gone, at


def _purge_from(log: Log, row: TopicRow, segment: Segment, floor: int, key: bytes) -> int:
    if not segment.flags & RICH:
        return 0
    records = list(segment.records(0, segment.count))
    hits = [
        at
        for at, record in enumerate(records)
        if segment.first + at < floor
        and has_key(record, segment.flags, key)
        and not is_purged(record, segment.flags)
    ]
    for at in hits:
        records[at] = purged_record(key)
    if hits:
        purged = pack_run(records, segment.flags | PURGED)
        log.replace(row, segment, segment.first, purged)
    return len(hits)
