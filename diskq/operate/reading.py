"""Looking at the messages of a topic without taking them: those stored, and as they are put.
Imported on demand.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

from ..base import check, limits
from ..base.clock import NS
from ..base.model import LogMessage
from ..delivery import positions, scheduling
from ..format.lanes import lane_start
from ..format.segment import is_purged
from ..storage.handle import Handle
from ..storage.tx import Tx
from ..tables import log, schedule
from ..tables.log import Log, Stored, cut, parts_of
from ..tables.refs import TopicRef

if TYPE_CHECKING:
    from ..base.options import Start


_END = 2**64  # behind every offset


def read(
    handle: Handle,
    topic: TopicRef,
    start: Start,
    stop: Start | None,
    limit: int | None,
    reverse: bool,
) -> Iterator[LogMessage]:
    """See Topic.read."""
    left = _END if limit is None else check.count("limit", limit, 0, _END)
    ranges = _ranges(handle, topic, start, stop)
    for low, high in ranges[::-1] if reverse else ranges:
        at = high if reverse else low
        while left and (found := _page(handle, topic, at, low, high, reverse)):
            kept = [_log_message(each) for each in found if not is_purged(each.record, each.flags)]
            yield from kept[:left]
            left -= min(left, len(kept))
            at = found[-1].offset + (not reverse)


def _ranges(
    handle: Handle, topic: TopicRef, start: Start, stop: Start | None
) -> list[tuple[int, int]]:
    """First offsets, and those behind the last, of what is between two places: of all lanes
    together between offsets, else of each lane."""
    offsets = [
        each if isinstance(each, (str, datetime)) else check.count(what, each, 0, _END)
        for what, each in (("start", start), ("stop", _END if stop is None else stop))
    ]
    low, high = offsets
    if isinstance(low, int) and isinstance(high, int):
        return [(low, high)]

    def find(tx: Tx) -> list[tuple[int, int]]:
        row, source = log.load(tx, topic.id, topic.name), Log(tx, topic.id)
        lanes = [lane_start(lane) for lane in range(len(row.next) + 1)]
        ends: list[list[int]] = []
        for what, place in (("start", low), ("stop", high)):
            if isinstance(place, int):
                spans = pairwise(lanes)
                ends.append([min(max(place, lane), behind) for lane, behind in spans])
            else:
                ends.append(positions.resolve(source, row, place, what))
        return list(zip(*ends, strict=True))

    return handle.read(find)


def _page(
    handle: Handle, topic: TopicRef, at: int, low: int, high: int, reverse: bool
) -> list[Stored]:
    """The messages of one segment, of those between two offsets that are before or behind `at`."""
    low, high = (low, at) if reverse else (at, high)

    def page(tx: Tx) -> list[Stored]:
        log.load(tx, topic.id, topic.name)
        source = Log(tx, topic.id)
        segment = source.before(high) if reverse else next(source.segments(low), None)
        found = cut(segment, low, high) if segment else []
        return found[::-1] if reverse else found

    return handle.read(page) if low < high else []


def _log_message(stored: Stored) -> LogMessage:
    body, key, headers, _ = parts_of(stored)
    return LogMessage(stored.offset, body, key, headers, stored.put.put_at_ns)


def offset_at(handle: Handle, topic: TopicRef, when_ns: int) -> int:
    """See Topic.offset_at."""

    def find(tx: Tx) -> int:
        row = log.load(tx, topic.id, topic.name)
        return Log(tx, topic.id).offset_at(row, 0, when_ns)

    return handle.read(find)


def follow(
    handle: Handle, topic: TopicRef, start: Start, timeout: float | None
) -> Iterator[LogMessage]:
    """See Topic.follow."""

    def begin(tx: Tx) -> list[int]:
        row = log.load(tx, topic.id, topic.name)
        return positions.resolve_start(Log(tx, topic.id), row, start, "start")

    return _follow(handle, topic, handle.read(begin), timeout)


def _follow(
    handle: Handle, topic: TopicRef, cursor: list[int], timeout: float | None
) -> Iterator[LogMessage]:
    last = time.monotonic()
    while True:
        slots = handle.engine.own_slots()
        seen = slots.watch(topic.id, room=False)
        handle.engine.check_place()
        wait = _promote(handle, topic)
        lanes = handle.read(lambda tx: len(log.load(tx, topic.id, topic.name).next))
        cursor += [lane_start(lane) for lane in range(len(cursor), lanes)]
        for lane, at in enumerate(cursor):
            for message in read(handle, topic, at, lane_start(lane + 1), None, False):
                yield message
                cursor[lane] = message.offset + 1
                last = time.monotonic()
        if timeout is not None:
            wait = min(wait, last + timeout - time.monotonic())
            if wait <= 0:
                return
        slots.wait_for_topic(topic.id, seen, wait)


def _promote(handle: Handle, topic: TopicRef) -> float:
    """Give offsets to what is due; seconds until there is more to do, at most WAIT_SECONDS."""
    engine = handle.engine

    def seconds(tx: Tx) -> float:
        if not log.load(tx, topic.id, topic.name).scheduled:
            return limits.WAIT_SECONDS
        left_ns = schedule.next_due(tx, topic.id) - engine.clock.wall_ns()
        return min(left_ns / NS, limits.WAIT_SECONDS)

    def promote(tx: Tx) -> None:
        row = log.load(tx, topic.id, topic.name)
        if row.scheduled:
            scheduling.promote(Log(tx, topic.id), row)

    while (wait := engine.read(seconds)) <= 0:
        handle.commit(promote)
    return wait
