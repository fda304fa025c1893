"""Messages that are to be put later: they have no offset yet, and hold nothing back.

    schedule   topic, due_ns, number   lane u8, flags u8, record

Whoever takes from the topic or puts into it first gives those that are due their offsets, in order
of time. The topic's row counts them, so that a topic without any pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, takewhile
from typing import NamedTuple

from . import limits, log
from .codec import SCHEDULE_KEY, U32, TopicRow, checked, decode_topic, unchecked
from .log import Log
from .room import room_of
from .segment import pack_records
from .tx import Tx


class Planned(NamedTuple):
    """A scheduled message: when it is due, its number in the topic, and what is to be put."""

    due_ns: int
    number: int
    lane: int
    flags: int
    record: bytes


def schedule_id(due_ns: int, number: int) -> str:
    """The public name of a scheduled message."""
    return f"{due_ns}-{number}"


def add(source: Log, row: TopicRow, due_ns: int, lane: int, flags: int, record: bytes) -> int:
    """Store a message until it is due; returns its number. The caller stores the topic's row."""
    number: int = row.numbered
    row.numbered += 1
    row.scheduled += 1
    key = SCHEDULE_KEY.pack(source.topic_id, due_ns, number)
    tx = source.tx
    tx.lmdb.put(key, checked(bytes((lane, flags)) + record), db=tx.engine.schedule)
    tx.announced.add(source.topic_id)
    for group_id in decode_topic(row.config).groups:
        tx.wake(group_id, 1)  # one consumer is to wait for it
    return number


def promote(source: Log, row: TopicRow) -> None:
    """Put what is due, as much as one transaction should, and store the topic's row. Only if
    something is scheduled."""
    tx = source.tx
    now = tx.engine.clock.wall_ns()
    if next_due(tx, source.topic_id) > now:
        return
    found = takewhile(lambda each: each.due_ns <= now, rows(tx, source.topic_id))
    due: list[Planned] = []
    room = room_of(tx)
    for each in islice(found, limits.MAX_DUE_MESSAGES):
        # The first one has to move, or nobody would ever get it. It makes room where it was.
        if due and (room.low or room.spent or not room.take(len(each.record))):
            break
        if not due:
            room.take(len(each.record))
        due.append(each)
    for lane in sorted({each.lane for each in due}):
        mine = [each for each in due if each.lane == lane]
        flags = 0
        for each in mine:
            flags |= each.flags
        source.append(row, lane, pack_records([each.record for each in mine], flags))
    for each in due:
        remove(source, row, each.due_ns, each.number)
    log.store(tx, source.topic_id, row)


def next_due(tx: Tx, topic_id: int) -> int:
    """When the first one is due, if there is one."""
    cursor = tx.lmdb.cursor(tx.engine.schedule)
    cursor.set_range(U32.pack(topic_id))
    return int(SCHEDULE_KEY.unpack(cursor.key())[1])


def rows(tx: Tx, topic_id: int, due_ns: int = 0, number: int = 0) -> Iterator[Planned]:
    """The scheduled messages of a topic from these on, in order of time."""
    start = SCHEDULE_KEY.pack(topic_id, due_ns, number)
    for key, value in tx.scan(U32.pack(topic_id), start, tx.engine.schedule):
        _, due, its_number = SCHEDULE_KEY.unpack(key)
        lane, flags, *_ = content = unchecked(value)
        yield Planned(due, its_number, lane, flags, content[2:])


def remove(source: Log, row: TopicRow, due_ns: int, number: int) -> bool:
    """Forget a message, if it is there. The caller stores the topic's row."""
    key = SCHEDULE_KEY.pack(source.topic_id, due_ns, number)
    if not source.tx.lmdb.delete(key, db=source.tx.engine.schedule):
        return False
    row.scheduled -= 1
    return True
