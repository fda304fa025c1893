"""Receipts of puts with a `dedup_id`, kept for the topic's `dedup_seconds`.

    dedup   topic, since_ns, digest of the id   put_at_ns u64, commit id u64, offset or due_ns u64,
                                                number + 1 of a scheduled message, or 0: u64

A bucket has what was put within one window, which may have been another one. Those that may have
something of this window are looked at, and rows that it has passed over are removed, a few with
each put, so there are never many more rows than two windows have had.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from struct import Struct

from . import limits, log
from .clock import nanoseconds
from .codec import DEDUP_KEY, U32, TopicRow, decode_topic
from .engine import Tx
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
    since = source.now(row) - _window(row)
    for bucket in _buckets(source):
        key = DEDUP_KEY.pack(source.topic_id, bucket, digest)
        data = source.tx.lmdb.get(key, db=source.tx.engine.dedup)
        if data is not None:
            put_at_ns, commit_id, place, number = ROW.unpack(data)
            if put_at_ns > since:
                name = schedule_id(place, number - 1) if number else None
                return Receipt(None if number else place, True, name, commit_id)
    return None


def _buckets(source: Log) -> Iterator[int]:
    """Those that are there, the latest first."""
    cursor = source.tx.lmdb.cursor(source.tx.engine.dedup)
    bucket = 2**64 - 1
    while True:
        behind = cursor.set_range(DEDUP_KEY.pack(source.topic_id, bucket, bytes(16)))
        key = cursor.key() if (cursor.prev() if behind else cursor.last()) else b""
        if key[: U32.size] != U32.pack(source.topic_id):
            return
        bucket = DEDUP_KEY.unpack(key)[1]
        yield bucket


def note(source: Log, row: TopicRow, digest: bytes, place: int, number: int | None) -> None:
    """Remember a put: its offset, or when it is due and its number."""
    tx, window = source.tx, _window(row)
    bucket = _bucket(source, row, window)
    value = ROW.pack(source.now(row), tx.commit_id, place, 0 if number is None else number + 1)
    tx.lmdb.put(DEDUP_KEY.pack(source.topic_id, bucket, digest), value, db=tx.engine.dedup)
    _forget(source, row, islice(_rows(source), _REMOVED))


def forget_of(tx: Tx, topic_id: int, name: str) -> int:
    """Remove what the window has passed over, a part of it; returns how many. Raises: NotFound."""
    source, row = Log(tx, None, topic_id), log.load(tx, topic_id, name)
    since = source.now(row) - _window(row)
    stale = (each for each in _rows(source) if ROW.unpack(each[1])[0] <= since)
    return _forget(source, row, islice(stale, limits.MAX_TRIM_SEGMENTS))


def _forget(source: Log, row: TopicRow, rows: Iterable[tuple[bytes, bytes]]) -> int:
    since = source.now(row) - _window(row)
    stale = [key for key, value in rows if ROW.unpack(value)[0] <= since]
    for key in stale:
        source.tx.lmdb.delete(key, db=source.tx.engine.dedup)
    return len(stale)


def _rows(source: Log) -> Iterator[tuple[bytes, bytes]]:
    return source.tx.scan(U32.pack(source.topic_id), database=source.tx.engine.dedup)


def _window(row: TopicRow) -> int:
    return nanoseconds(decode_topic(row.config).settings.dedup_seconds)


def _bucket(source: Log, row: TopicRow, window: int) -> int:
    return source.now(row) // window * window
