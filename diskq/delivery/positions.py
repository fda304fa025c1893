"""Positions in a topic: what "earliest", "latest", an offset or a time mean in each lane."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import check
from ..format.lanes import Cursor, lane_of
from ..format.rows import TopicRow, decode_topic
from ..tables import gaps
from ..tables.log import Log

if TYPE_CHECKING:
    from ..base.options import Start


def resolve_start(log: Log, topic: TopicRow, start: Start, what: str) -> Cursor:
    """The cursor that a start means, which must not be beyond the end of the topic. `what` names
    the argument in errors.

    Raises: TypeError, ValueError.
    """
    cursor = resolve(log, topic, start, what)
    if isinstance(start, int):
        end = topic.offset(min(lane_of(start), len(cursor) - 1))
        if start > end:
            name = decode_topic(topic.config).name
            raise ValueError(f"offset {start} is beyond the end of topic {name!r}, which is {end}")
    return cursor


def resolve(log: Log, topic: TopicRow, start: Start, what: str) -> Cursor:
    """The cursor that a start means, wherever that is. With priorities, an offset stands for the
    time of its message in the other lanes.

    Raises: TypeError, ValueError.
    """
    lanes = range(len(topic.next))
    if start == "earliest":
        return Cursor(log.first(topic, lane) for lane in lanes)
    if start == "latest":
        return topic.offsets
    kinds = "'earliest', 'latest', an offset or a datetime"
    if isinstance(start, str):
        raise ValueError(f"{what} must be {kinds}, not {start!r}")
    if not isinstance(start, int):
        return _at_time(log, topic, check.wall_ns(what, start, kinds))
    offset = check.count(what, start, 0, 2**64 - 1)
    lane = min(lane_of(offset), lanes[-1])
    segment = next(log.segments(offset), None)
    in_lane = segment is not None and lane_of(segment.first) == lane
    when_ns = segment.put_at_ns if segment and in_lane else 2**63
    if offset < max(log.first(topic, lane), 1):  # before what is stored: before all of it
        when_ns = 0
    cursor = _at_time(log, topic, when_ns)
    here = min(max(offset, log.first(topic, lane)), topic.offset(lane))
    cursor[lane] = gaps.past(log.tx, log.topic_id, topic, here)
    return cursor


def _at_time(log: Log, topic: TopicRow, when_ns: int) -> Cursor:
    return Cursor(log.offset_at(topic, lane, when_ns) for lane in range(len(topic.next)))


def counters_at(log: Log, topic: TopicRow, cursor: Cursor) -> tuple[list[int], int]:
    """`next` and `ahead` of a group at a cursor."""
    return cursor.counts, gaps.ahead(log.tx, log.topic_id, topic, cursor)
