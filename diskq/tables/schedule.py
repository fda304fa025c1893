"""Messages that are to be put later: they have no offset yet, and hold nothing back.

    schedule   topic, due_ns, number   lane u8, flags u8, record

Taking from the topic or putting into it first gives those that are due their offsets, in order of
time. Their TTL and max_age count from when they were due, however late that is noted, so what was
due at one time is a segment. The topic's row counts them: a topic without any pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, islice, takewhile
from typing import NamedTuple

from ..base import limits
from ..format.decoding import damaged, unpacked
from ..format.layout import SCHEDULE_KEY, U32, checked, unchecked
from ..format.rows import TopicRow, decode_topic
from ..format.segment import FLAGS, pack_records
from ..storage.reserve import room_of
from ..storage.tx import Tx
from . import ages, log
from .log import Log


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
    due.sort(key=_due_and_lane)  # stable: in a lane they stay in order
    for (due_ns, lane), group in groupby(due, key=_due_and_lane):
        if lane >= len(row.next):
            raise damaged(f"the lane of what is scheduled for {due_ns}")
        flags, records = 0, []
        for each in group:
            flags |= each.flags
            records.append(each.record)
        put = ages.due_stamp(due_ns, row.last_put_ns)
        source.append(row, lane, pack_records(records, flags), put)
    for each in due:
        remove(source, row, each.due_ns, each.number)
    log.store(tx, source.topic_id, row)


def _due_and_lane(message: Planned) -> tuple[int, int]:
    return message.due_ns, message.lane


def next_due(tx: Tx, topic_id: int) -> int:
    """When the first one is due, if there is one."""
    cursor = tx.lmdb.cursor(tx.engine.schedule)
    cursor.set_range(U32.pack(topic_id))
    return int(unpacked(SCHEDULE_KEY, cursor.key())[1])


def rows(tx: Tx, topic_id: int, due_ns: int = 0, number: int = 0) -> Iterator[Planned]:
    """The scheduled messages of a topic from these on, in order of time. Raises: Corrupt."""
    start = SCHEDULE_KEY.pack(topic_id, due_ns, number)
    for key, value in tx.scan(U32.pack(topic_id), start, tx.engine.schedule):
        yield decode(key, value)


def decode(key: bytes, value: bytes) -> Planned:
    """A row taken apart. Raises: Corrupt."""
    _, due_ns, number = unpacked(SCHEDULE_KEY, key)
    content = unchecked(value)
    if len(content) < 2 or content[1] not in FLAGS:
        raise damaged(f"the message scheduled as {schedule_id(due_ns, number)}")
    return Planned(due_ns, number, content[0], content[1], content[2:])


def remove(source: Log, row: TopicRow, due_ns: int, number: int) -> bool:
    """Forget a message, if it is there. The caller stores the topic's row."""
    key = SCHEDULE_KEY.pack(source.topic_id, due_ns, number)
    if not source.tx.lmdb.delete(key, db=source.tx.engine.schedule):
        return False
    row.scheduled -= 1
    return True
