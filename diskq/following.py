"""Following a topic: its messages as they are put. Imported on demand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from . import admin, limits, log, schedule
from .clock import NS
from .engine import Tx
from .environment import Database
from .log import Log
from .model import LANE_BITS, LogMessage

if TYPE_CHECKING:
    from .admin import Start
    from .topic import Topic


def follow(topic: Topic, start: Start, timeout: float | None) -> Iterator[LogMessage]:
    """See Topic.follow."""
    database = topic.store.engine.log(topic.id)

    def begin(tx: Tx) -> list[int]:
        row = log.load(tx, topic.id, topic.name)
        return admin.positions(Log(tx, database, topic.id), row, start, "start")

    return _follow(topic, database, topic.store.engine.read(begin), timeout)


def _follow(
    topic: Topic, database: Database, cursor: list[int], timeout: float | None
) -> Iterator[LogMessage]:
    last = time.monotonic()
    while True:
        slots = topic.store.engine.slots
        seen = slots.watch(topic.id, room=False)
        wait = _promote(topic, database)
        lanes = topic.store.engine.read(lambda tx: len(log.load(tx, topic.id, topic.name).next))
        cursor += [lane << LANE_BITS for lane in range(len(cursor), lanes)]
        for lane, at in enumerate(cursor):
            for message in topic.read(at, (lane + 1) << LANE_BITS):
                yield message
                cursor[lane] = message.offset + 1
                last = time.monotonic()
        if timeout is not None:
            wait = min(wait, last + timeout - time.monotonic())
            if wait <= 0:
                return
        slots.wait_for_topic(topic.id, seen, wait)


def _promote(topic: Topic, database: Database) -> float:
    """Give offsets to what is due; seconds until there is more to do, at most WAIT_SECONDS."""
    engine = topic.store.engine

    def seconds(tx: Tx) -> float:
        if not log.load(tx, topic.id, topic.name).scheduled:
            return limits.WAIT_SECONDS
        left_ns = schedule.next_due(tx, topic.id) - engine.clock.wall_ns()
        return min(left_ns / NS, limits.WAIT_SECONDS)

    def promote(tx: Tx) -> None:
        row = log.load(tx, topic.id, topic.name)
        if row.scheduled:
            schedule.promote(Log(tx, database, topic.id), row)

    while (wait := engine.read(seconds)) <= 0:
        topic.store.commit(promote)
    return wait
