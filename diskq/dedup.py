"""Receipts of puts with a `dedup_id`, kept for the topic's `dedup_seconds`.

    dedup   topic, since_ns, digest of the id   put_at_ns u64, commit id u64, offset or due_ns u64,
                                                number + 1 of a scheduled message, or 0: u64

A bucket has what was put within one window. The last two are looked at, older ones are removed a
few rows with each put, so there are never many more rows than two windows have had.
"""

from __future__ import annotations

from itertools import islice
from struct import Struct

from .clock import nanoseconds
from .codec import DEDUP_KEY, U32, TopicRow, decode_topic
from .log import Log
from .model import Receipt
from .schedule import schedule_id

ROW = Struct(">QQQQ")
_REMOVED = 4  # old rows, with each new one


def digest_of(dedup_id: str) -> bytes:
    """What is stored of an id."""
    from hashlib import blake2b  # slow to import, and only puts with an id pay

    return blake2b(dedup_id.encode(), digest_size=16).digest()


def find(source: Log, row: TopicRow, digest: bytes) -> Receipt | None:
    """The receipt of the first put with this id, if that was within the window."""
    window = _window(row)
    for bucket in (_bucket(source, row, window), _bucket(source, row, window) - window):
        if bucket >= 0:
            key = DEDUP_KEY.pack(source.topic_id, bucket, digest)
            data = source.tx.lmdb.get(key, db=source.tx.engine.dedup)
            if data is not None:
                put_at_ns, commit_id, place, number = ROW.unpack(data)
                if put_at_ns > source.now(row) - window:
                    name = schedule_id(place, number - 1) if number else None
                    return Receipt(None if number else place, True, name, commit_id)
    return None


def note(source: Log, row: TopicRow, digest: bytes, place: int, number: int | None) -> None:
    """Remember a put: its offset, or when it is due and its number."""
    tx, window = source.tx, _window(row)
    bucket = _bucket(source, row, window)
    value = ROW.pack(source.now(row), tx.commit_id, place, 0 if number is None else number + 1)
    tx.lmdb.put(DEDUP_KEY.pack(source.topic_id, bucket, digest), value, db=tx.engine.dedup)
    found = tx.scan(U32.pack(source.topic_id), database=tx.engine.dedup)
    for key in [key for key, _ in islice(found, _REMOVED)]:
        if DEDUP_KEY.unpack(key)[1] < bucket - window:
            tx.lmdb.delete(key, db=tx.engine.dedup)


def _window(row: TopicRow) -> int:
    return nanoseconds(decode_topic(row.config).settings.dedup_seconds)


def _bucket(source: Log, row: TopicRow, window: int) -> int:
    return source.now(row) // window * window
