"""A topic's bounds: the oldest segments are dropped while the topic is over them."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import islice, takewhile

from ..base import limits
from ..base.clock import nanoseconds
from ..base.model import TopicSettings
from ..format.lanes import Cursor, lane_of, lane_start
from ..format.rows import TopicRow, decode_group, decode_topic
from ..tables import ages, group_tx
from ..tables.group_tx import GroupTx, Place
from ..tables.log import Head, Log
from . import cursor
from .settled import trim_settled


def is_over(row: TopicRow, bounds: TopicSettings, count: int, size: int) -> bool:
    """Whether a topic would be over its bounds with `count` more messages of `size` bytes."""
    most, room = bounds.max_messages, bounds.max_bytes
    too_many = most is not None and row.stored + count > most
    return too_many or (room is not None and row.bytes + size > room)


def drop_old(log: Log, row: TopicRow, count: int, size: int) -> int:
    """Drop the segments over the topic's age, and, if the topic prefers new messages, those in the
    way of `count` more with `size` bytes; returns how many messages were dropped."""
    bounds = decode_topic(row.config).settings
    gone = 0
    if bounds.max_age_seconds is not None:
        now, most = ages.Now(log.tx), nanoseconds(bounds.max_age_seconds)
        old = takewhile(lambda head: now.age_ns(head.put) >= most, oldest(log, row))
        gone = drop(log, row, old)
    if bounds.discard == "old" or bounds.retention == "limits":
        if bounds.retention == "interest" and is_over(row, bounds, count, size):
            gone += trim_settled(log, row)[0]
        while is_over(row, bounds, count, size) and row.segments:
            gone += drop(log, row, _in_the_way(log, row, count, size))
    return gone


def _in_the_way(log: Log, row: TopicRow, count: int, size: int) -> Iterator[Head]:
    """The oldest segments, as many as are in the way of `count` messages more of `size` bytes."""
    bounds = decode_topic(row.config).settings
    messages = row.stored + count - (bounds.max_messages or 2**64)
    too_large = row.bytes + size - (bounds.max_bytes or 2**64)
    for head in oldest(log, row):
        if messages <= 0 and too_large <= 0:
            return
        messages -= head.stop - head.first
        too_large -= head.size
        yield head


def drop(log: Log, row: TopicRow, heads: Iterator[Head], most: int = 1 << 30) -> int:
    """Drop the first `most` segments; returns how many messages were dropped."""
    floors = Cursor.at_start(len(row.next))
    for head in islice(heads, min(most, limits.MAX_TRIM_SEGMENTS)):
        floors[lane_of(head.first)] = head.stop
    gone = _remove_below(log, row, floors, "dropped")
    row.dropped += gone
    return gone


def _remove_below(log: Log, row: TopicRow, floors: Cursor, counter: str) -> int:
    """Delete the segments below these offsets, one of each lane, after their messages have left all
    groups; returns how many messages were deleted."""
    for group in groups_of(log, row):
        cursor.withdraw(group, floors, counter)
        group.store()
    most = limits.MAX_TRIM_SEGMENTS
    return sum(log.trim(row, lane_start(lane), floor, most) for lane, floor in enumerate(floors))


def oldest(log: Log, row: TopicRow) -> Iterator[Head]:
    """The segments of all lanes by time; those of one lane stay in order."""
    lanes = [log.heads(row, lane) for lane in range(len(row.next))]
    return merge(*lanes, key=lambda head: head.put.put_at_ns) if len(lanes) > 1 else lanes[0]


def groups_of(log: Log, topic: TopicRow) -> Iterator[GroupTx]:
    """The groups of a topic; the caller stores each one that it changes."""
    for group_id in decode_topic(topic.config).groups:
        row = group_tx.load(log.tx, group_id, "")
        name = decode_group(row.config).name
        yield GroupTx(log.tx, Place(log.topic_id, "", group_id, name), row)
