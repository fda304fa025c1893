"""Retention: messages leave a topic's log once all groups settled them, or over a bound.

- `trim` deletes the segments that no group needs any more, wherever they stand, and those over the
  topic's bounds;
- `make_room` does that before a put, or refuses the put.

A message that leaves the log leaves every group in the same commit, and counts there as dropped if
it was not settled. Each call does a bounded part, and deletes whole segments. Purges, which
operators ask for, are in operate/purge.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import islice, takewhile
from typing import TYPE_CHECKING, NamedTuple

from ..base import limits
from ..base.clock import Stamp, nanoseconds
from ..base.errors import Full, MessageTooLarge
from ..base.model import LANE_BITS, TopicSettings
from ..base.ondemand import lazy
from ..format.decoding import unpacked
from ..format.lease_row import decode_lease
from ..format.rows import TopicRow, decode_group, decode_topic
from ..format.segment import LOG_KEY, head_of
from ..storage.reserve import need_room
from ..tables import ages, group_tx, leases
from ..tables import log as logs
from ..tables.group_tx import GroupTx, Place
from ..tables.log import Log
from . import cursor

if TYPE_CHECKING:
    from ..tables import dedup
else:
    dedup = lazy("tables.dedup")


class Head(NamedTuple):
    """A segment, without its messages."""

    first: int
    stop: int
    size: int
    put: Stamp


def trim(log: Log, name: str, at: int | None = None) -> tuple[int, int]:
    """Delete some segments that no group needs or that are over a bound: from an offset on, or with
    None from where the last trim of this process ended, and around. Returns how many messages were
    deleted, and the offset from which to go on, 0 at the end. Group rows must be stored before."""
    row = logs.load(log.tx, log.topic_id, name)
    gone = _drop_old(log, row, 0, 0)
    settled, at = _trim_settled(log, row, at)
    if gone + settled:
        logs.store(log.tx, log.topic_id, row)
        log.tx.announced.add(log.topic_id)
    dedup.Ids(log.tx, log.topic_id, row).forget(limits.MAX_FORGOTTEN_IDS)
    return gone + settled, at


def forget_ids(log: Log, name: str) -> int:
    """Remove some dedup ids of a topic that a window has passed over; returns how many. Raises:
    NotFound."""
    row = logs.load(log.tx, log.topic_id, name)
    return dedup.Ids(log.tx, log.topic_id, row).forget(limits.MAX_FORGOTTEN_IDS)


def make_room(log: Log, name: str, row: TopicRow, count: int, size: int, *more: int) -> None:
    """Let `count` messages of `size` bytes fit, and `more` rows. The caller stores the topic's row.

    Raises: Full, with its `topic` if the topic is full; MessageTooLarge if they can never fit.
    """
    bounds = decode_topic(row.config).settings
    if bounds.max_messages or bounds.max_bytes or bounds.max_age_seconds:
        _check_fits(name, bounds, count, size)
        _drop_old(log, row, count, size)
        if _over(row, bounds, count, size):
            _trim_settled(log, row)
        if _over(row, bounds, count, size):
            raise Full(
                f"topic {name!r} is full: {row.stored} messages of {row.bytes} bytes are"
                " stored; consume messages, or raise its bounds",
                topic=name,
            )
    while True:
        try:
            need_room(log.tx, size, *more)
            return
        except Full:
            if dedup.has_stale(log.tx):  # they go first, see put.commit
                raise
            if bounds.discard != "old" or not _drop(log, row, _oldest(log, row), 16):
                raise


def _check_fits(name: str, bounds: TopicSettings, count: int, size: int) -> None:
    asked = ("messages", count, bounds.max_messages), ("bytes", size, bounds.max_bytes)
    for what, found, most in asked:
        if most and found > most:
            raise MessageTooLarge(
                f"a put of {found} {what} is over max_{what}={most} of topic {name!r}; split it, or"
                " raise the bound",
                size=found,
                limit=most,
            )


def _over(row: TopicRow, bounds: TopicSettings, count: int, size: int) -> bool:
    most, room = bounds.max_messages, bounds.max_bytes
    too_many = most is not None and row.stored + count > most
    return too_many or (room is not None and row.bytes + size > room)


def _drop_old(log: Log, row: TopicRow, count: int, size: int) -> int:
    """Drop the segments over the topic's age, and, if the topic prefers new messages, those in the
    way of `count` more with `size` bytes; returns how many messages were dropped."""
    bounds = decode_topic(row.config).settings
    gone = 0
    if bounds.max_age_seconds is not None:
        now, most = ages.Now(log.tx), nanoseconds(bounds.max_age_seconds)
        old = takewhile(lambda head: now.age_ns(head.put) >= most, _oldest(log, row))
        gone = _drop(log, row, old)
    if bounds.discard == "old" or bounds.retention == "limits":
        if bounds.retention == "interest" and _over(row, bounds, count, size):
            gone += _trim_settled(log, row)[0]
        while _over(row, bounds, count, size) and row.segments:
            gone += _drop(log, row, _in_the_way(log, row, count, size))
    return gone


def _in_the_way(log: Log, row: TopicRow, count: int, size: int) -> Iterator[Head]:
    """The oldest segments, up to the last one without which `count` messages more would fit."""
    bounds = decode_topic(row.config).settings
    messages = row.stored + count - (bounds.max_messages or 2**64)
    too_large = row.bytes + size - (bounds.max_bytes or 2**64)
    for head in _oldest(log, row):
        if messages <= 0 and too_large <= 0:
            return
        messages -= head.stop - head.first
        too_large -= head.size
        yield head


def _drop(log: Log, row: TopicRow, heads: Iterator[Head], most: int = 1 << 30) -> int:
    """Drop the first `most` segments; returns how many messages were dropped."""
    floors: list[int] = [lane << LANE_BITS for lane in range(len(row.next))]
    for head in islice(heads, min(most, limits.MAX_TRIM_SEGMENTS)):
        floors[head.first >> LANE_BITS] = head.stop
    gone = _remove_below(log, row, floors, "dropped")
    row.dropped += gone
    return gone


def _remove_below(log: Log, row: TopicRow, floors: Sequence[int], counter: str) -> int:
    """Delete the segments below these offsets, one of each lane, after their messages have left all
    groups; returns how many messages were deleted."""
    for group in groups_of(log, row):
        cursor.withdraw(group, floors, counter)
        group.store()
    most = limits.MAX_TRIM_SEGMENTS
    return sum(log.trim(row, lane << LANE_BITS, floor, most) for lane, floor in enumerate(floors))


def _trim_settled(log: Log, row: TopicRow, at: int | None = None) -> tuple[int, int]:
    """Delete segments that every group has settled, if the topic does not keep them; see `trim`."""
    config = decode_topic(row.config)
    if config.settings.retention != "interest" or not config.groups:
        return 0, 0
    places = log.tx.engine.trimmed
    start = free = places.get(log.topic_id, 0) if at is None else at
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
    if at is None and start and not go_on and left:
        around, go_on = _trim_settled(log, row, 0)
        gone += around
    return gone, go_on


def _needed(log: Log, row: TopicRow, at: int) -> tuple[list[tuple[int, int]], int]:
    """Where groups need messages of the log from an offset on, as first and stop offsets, in order;
    and the offset up to which that is complete, 0: to the end. This looks at every lease, since
    leases are stored by deadline, but decodes only some."""
    tx = log.tx
    spans: list[tuple[int, int, bytes, bytes]] = []
    unread = row.offsets
    for group_id in decode_topic(row.config).groups:
        group = group_tx.load(tx, group_id, "")
        unread = list(map(min, unread, group.offsets))
        spans += (span for span in leases.spans(tx, group_id) if span[1] > at)
    needed = [(offset, (lane + 1) << LANE_BITS) for lane, offset in enumerate(unread)]
    for first, _, key, value in sorted(spans):
        if len(needed) > limits.MAX_TRIM_RUNS and first > at:
            return sorted([run for run in needed if run[0] < first] + [(first, first)]), first
        needed += decode_lease(key, value).runs()
    return sorted(needed), 0


def groups_of(log: Log, topic: TopicRow) -> Iterator[GroupTx]:
    """The groups of a topic; the caller stores each one that it changes."""
    for group_id in decode_topic(topic.config).groups:
        row = group_tx.load(log.tx, group_id, "")
        name = decode_group(row.config).name
        yield GroupTx(log.tx, Place(log.topic_id, "", group_id, name), row)


def _oldest(log: Log, row: TopicRow) -> Iterator[Head]:
    """The segments of all lanes by time; those of one lane stay in order."""
    lanes = [heads_of(log, row, lane) for lane in range(len(row.next))]
    return merge(*lanes, key=lambda head: head.put.put_at_ns) if len(lanes) > 1 else lanes[0]


def heads_of(log: Log, row: TopicRow, lane: int) -> Iterator[Head]:
    """The segments of a lane, in order."""
    for key, value in log.items(lane << LANE_BITS):
        first: int = unpacked(LOG_KEY, key)[1]
        if first >= row.offset(lane):
            return
        if first >> LANE_BITS == lane:
            count, put = head_of(value)
            yield Head(first, first + count, len(value), put)
