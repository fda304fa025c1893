"""Segments that every group of a topic has settled are deleted, wherever they stand."""

from __future__ import annotations

from ..base import limits
from ..format.lanes import Cursor, lane_start
from ..format.lease_row import decode_lease
from ..format.rows import TopicRow, decode_topic
from ..tables import group_tx, leases
from ..tables.log import Log


def trim_settled(log: Log, row: TopicRow, start: int | None = None) -> tuple[int, int]:
    """Delete segments that every group has settled, if the topic does not keep them; see
    retention.trim."""
    config = decode_topic(row.config)
    if config.settings.retention != "interest" or not config.groups:
        return 0, 0
    places = log.tx.engine.trimmed
    begin = free = places.get(log.topic_id, 0) if start is None else start
    gone, left = 0, limits.MAX_TRIM_SEGMENTS
    needed, go_on = _needed(log, row, free)
    for first, stop in needed:
        if first > free:
            before = row.segments
            gone += log.trim(row, free, first, left)
            left -= before - row.segments
            if not left:
                go_on = free
                break
        free = max(free, stop)
    places[log.topic_id] = go_on
    if start is None and begin and not go_on and left:
        around, go_on = trim_settled(log, row, 0)
        gone += around
    return gone, go_on


def _needed(log: Log, row: TopicRow, start: int) -> tuple[list[tuple[int, int]], int]:
    """Runs of offsets, from `start` on and in order, of which a group needs a message; and the
    offset up to which they are complete, 0: to the end. This looks at every lease, since leases are
    stored by deadline, but decodes only some."""
    tx = log.tx
    spans: list[tuple[int, int, bytes, bytes]] = []
    unread = row.offsets
    for group_id in decode_topic(row.config).groups:
        group = group_tx.load(tx, group_id, "")
        unread = Cursor(map(min, unread, group.offsets))
        spans += (span for span in leases.spans(tx, group_id) if span[1] > start)
    needed = [(offset, lane_start(lane + 1)) for lane, offset in enumerate(unread)]
    for first, _, key, value in sorted(spans):
        if len(needed) > limits.MAX_TRIM_RUNS and first > start:
            return sorted([run for run in needed if run[0] < first] + [(first, first)]), first
        needed += decode_lease(key, value).runs()
    return sorted(needed), 0
