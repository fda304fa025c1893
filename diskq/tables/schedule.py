"""Messages that are put later: they have no offset yet, and hold nothing back.

    schedule   topic, due_ns, number   lane u8, flags u8, record

A get from the topic and a put into it first give the messages that are due their offsets, in order
of time, see delivery/scheduling.py. Their TTL and max_age count from when they were due, however
late that is noted, so the messages that were due at one time are a segment. The topic's row counts
scheduled messages: a topic without any pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..format.decoding import damaged, unpacked
from ..format.layout import SCHEDULE_KEY, U32, checked, unchecked
from ..format.rows import TopicRow, decode_topic
from ..format.segment import FLAGS
from ..storage.tx import Tx


class Scheduled(NamedTuple):
    """A scheduled message: when it is due, its number in the topic, and what is put then."""

    due_ns: int
    number: int
    lane: int
    flags: int
    record: bytes


def schedule_id(due_ns: int, number: int) -> str:
    """The public name of a scheduled message."""
    return f"{due_ns}-{number}"


def add(
    tx: Tx, topic_id: int, row: TopicRow, due_ns: int, lane: int, flags: int, record: bytes
) -> int:
    """Store a message until it is due; returns its number. The caller stores the topic's row."""
    number: int = row.numbered
    row.numbered += 1
    row.scheduled += 1
    key = SCHEDULE_KEY.pack(topic_id, due_ns, number)
    tx.lmdb.put(key, checked(bytes((lane, flags)) + record), db=tx.engine.schedule)
    tx.announced.add(topic_id)
    for group_id in decode_topic(row.config).groups:
        tx.wake(group_id, 1)  # one consumer then waits for it
    return number


def next_due(tx: Tx, topic_id: int) -> int:
    """When the first message is due; there must be one."""
    cursor = tx.lmdb.cursor(tx.engine.schedule)
    cursor.set_range(U32.pack(topic_id))
    return int(unpacked(SCHEDULE_KEY, cursor.key())[1])


def rows(tx: Tx, topic_id: int, due_ns: int = 0, number: int = 0) -> Iterator[Scheduled]:
    """The scheduled messages of a topic from a time and a number on, by time. Raises: Corrupt."""
    start = SCHEDULE_KEY.pack(topic_id, due_ns, number)
    for key, value in tx.scan(U32.pack(topic_id), start, tx.engine.schedule):
        yield decode(key, value)


def decode(key: bytes, value: bytes) -> Scheduled:
    """A message from its key and its value. Raises: Corrupt."""
    _, due_ns, number = unpacked(SCHEDULE_KEY, key)
    content = unchecked(value)
    if len(content) < 2 or content[1] not in FLAGS:
        raise damaged(f"the message scheduled as {schedule_id(due_ns, number)}")
    return Scheduled(due_ns, number, content[0], content[1], content[2:])


def remove(tx: Tx, topic_id: int, row: TopicRow, due_ns: int, number: int) -> bool:
    """Remove a message; returns whether it was there. The caller stores the topic's row."""
    key = SCHEDULE_KEY.pack(topic_id, due_ns, number)
    if not tx.lmdb.delete(key, db=tx.engine.schedule):
        return False
    row.scheduled -= 1
    return True
