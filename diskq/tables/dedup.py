"""Receipts of puts with a `dedup_id`, kept for the topic's `dedup_seconds`.

    dedup   topic, bucket, zeros            when the bucket was begun; as below, with other zeros
    dedup   topic, bucket, digest of id     wall_ns u64, elapsed_ns u64, boot u16, commit id u64,
                                            offset or due_ns u64, number + 1 of a scheduled message,
                                            or 0: u64

Buckets are numbered: a put begins the next bucket when the last one was begun a window ago, so two
buckets hold all ids of the window, side by side in the file. No bucket is named after a time, since
a clock may be wrong and the window may change: each row has the time of its put, and is stale once
that is a window ago. A put removes a few stale rows, a trim some, and a put that finds the store
full as many as it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from struct import Struct
from typing import NamedTuple

from ..base import limits, ondemand
from ..base.clock import Stamp, nanoseconds
from ..format.decoding import unpacked
from ..format.layout import DEDUP_KEY, ID_KEY, U32
from ..format.rows import TopicRow, decode_topic
from ..storage.tx import Tx
from . import ages

ROW = Struct(">QQHQQQ")
_ROOM_BYTES = 144  # of a row on a page that is two thirds full
_BEGUN = bytes(16)  # in the place of a digest
_MAX_BUCKETS = 1_000  # looked at: more are there only if the window was a moment, and is long now


class Row(NamedTuple):
    """A put: `place` is its offset; or, if `number` is not 0, when the message is due, and `number`
    is one more than its number in the schedule."""

    put: Stamp
    commit_id: int
    place: int
    number: int


def digest_of(dedup_id: str) -> bytes:
    """The stored form of an id."""
    return ondemand.hashlib.blake2b(dedup_id.encode(), digest_size=16).digest()


def decode(value: bytes) -> Row:
    """A row from its value. Raises: Corrupt."""
    wall_ns, elapsed_ns, boot, *rest = unpacked(ROW, value)
    return Row(Stamp(wall_ns, wall_ns, elapsed_ns, boot), *rest)


def room_for(tx: Tx, count: int) -> list[int]:
    """The room that the rows of `count` ids take, as sizes of pages. Ids come in no order, so pages
    are split, and a large batch copies all pages of the database. A batch cannot use the pages that
    the batch before it copied (mdb.c, mdb_page_alloc), so all pages are there twice, a third of
    `max_bytes` of them over the bound."""
    size, most = count * _ROOM_BYTES, tx.engine.meta.max_bytes // 3
    if most and 2 * count * limits.PAGE_BYTES > most:
        pages = min(tx.lmdb.stat(tx.engine.dedup)["leaf_pages"], count)
        size += max(2 * pages * limits.PAGE_BYTES - most, 0)
    return [limits.PAGE_BYTES - 1] * -(-size // limits.PAGE_BYTES)


class Ids:
    """The ids of a topic within one transaction."""

    def __init__(self, tx: Tx, topic_id: int, row: TopicRow) -> None:
        self.tx = tx
        self.topic_id = topic_id
        self._now = ages.Now(tx)
        self.window_ns = nanoseconds(decode_topic(row.config).settings.dedup_seconds)

    @cached_property
    def _buckets(self) -> list[tuple[int, bool]]:
        """The buckets that may have an id of the window, latest first, and whether each of them
        takes no more ids; at least one."""
        return list(islice(self._recent(), _MAX_BUCKETS)) or [(0, True)]

    def find(self, digest: bytes) -> Row | None:
        """The row of the first put with this id, if that was within the window."""
        for bucket, _ in self._buckets:
            value = self._get(bucket, digest)
            if value is not None:
                row = decode(value)
                if self._now.age_ns(row.put) < self.window_ns:
                    return row
        return None

    def note(self, digest: bytes, place: int, number: int | None) -> None:
        """Remember a put: its offset, or the time when it is due and its number."""
        _, wall_ns, elapsed_ns, boot = self._now.stamp(0)
        when = wall_ns, elapsed_ns, boot, self.tx.commit_id
        bucket, over = self._buckets[0]
        if over:
            bucket += 1
            self._buckets.insert(0, (bucket, False))
            self._put(bucket, _BEGUN, ROW.pack(*when, 0, 0))
        numbered = 0 if number is None else number + 1
        self._put(bucket, digest, ROW.pack(*when, place, numbered))

    def forget(self, limit: int, *, everywhere: bool = False) -> int:
        """Remove up to `limit` stale rows; returns how many. `everywhere`: also those behind a row
        that is still needed, before the window gets longer."""
        found = list(islice(self._stale(everywhere), limit))
        for key in found:
            self.tx.lmdb.delete(key, db=self.tx.engine.dedup)
        return len(found)

    def _stale(self, everywhere: bool = False) -> Iterator[bytes]:
        """Keys of stale rows: the oldest ones up to the first row that is still needed, or all."""
        for key, value in self.tx.scan(U32.pack(self.topic_id), database=self.tx.engine.dedup):
            if self._now.age_ns(decode(value).put) >= self.window_ns:
                yield key
            elif not everywhere:
                return

    def _recent(self) -> Iterator[tuple[int, bool]]:
        cursor = self.tx.lmdb.cursor(self.tx.engine.dedup)
        bucket = 2**64 - 1
        while True:
            at_end = not cursor.set_range(DEDUP_KEY.pack(self.topic_id, bucket, _BEGUN))
            found = cursor.last() if at_end else cursor.prev()
            key = cursor.key() if found else b""
            if key[: U32.size] != U32.pack(self.topic_id):
                return
            bucket = unpacked(DEDUP_KEY, key)[1]
            over = self._is_over(bucket)
            yield bucket, over
            if over:  # the ones before it were over when it was begun
                return

    def _is_over(self, bucket: int) -> bool:
        """Whether a bucket was begun a window ago; the row that says so may be removed by then."""
        value = self._get(bucket, _BEGUN)
        return value is None or self._now.age_ns(decode(value).put) >= self.window_ns

    def _get(self, bucket: int, digest: bytes) -> bytes | None:
        key = DEDUP_KEY.pack(self.topic_id, bucket, digest)
        return self.tx.lmdb.get(key, db=self.tx.engine.dedup)

    def _put(self, bucket: int, digest: bytes, value: bytes) -> None:
        key = DEDUP_KEY.pack(self.topic_id, bucket, digest)
        self.tx.lmdb.put(key, value, db=self.tx.engine.dedup)


def forget(tx: Tx, limit: int = limits.MAX_FORGOTTEN_IDS) -> int:
    """Remove up to `limit` stale rows of all topics; returns how many."""
    removed = 0
    for ids in _topics(tx):
        removed += ids.forget(limit - removed)
        if removed == limit:
            break
    return removed


def has_stale(tx: Tx) -> bool:
    """Whether `forget` would remove something."""
    return any(next(ids._stale(), None) is not None for ids in _topics(tx))


def _topics(tx: Tx) -> Iterator[Ids]:
    """The topics that have ids."""
    cursor = tx.lmdb.cursor(tx.engine.dedup)
    topic_id = 0
    while topic_id < 2**32 and cursor.set_range(U32.pack(topic_id)):
        topic_id = unpacked(U32, cursor.key()[: U32.size])[0]
        data = tx.get(ID_KEY.pack(b"T", topic_id))
        if data is not None:  # otherwise it is being deleted
            yield Ids(tx, topic_id, TopicRow(data))
        topic_id += 1
