"""The segment log of a topic: append, find, read, trim; and the topic's row.

Segments are immutable, and their keys are the topic and the first offset. A segment begins where
the one before it ends, or where the gap behind that one ends, see gaps.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..base import limits
from ..base.clock import Stamp
from ..base.errors import WAY_OUT, Corrupt, NotFound
from ..format.decoding import unpacked
from ..format.lanes import lane_of, lane_start
from ..format.layout import ID_KEY
from ..format.rows import TopicRow, decode_topic
from ..format.segment import (
    LOG_KEY,
    Packed,
    Parts,
    Segment,
    decode_record,
    encode_segment,
    head_of,
    pack_run,
)
from ..storage.tx import Tx
from . import ages, gaps

_CACHED_BYTES = 64 * limits.KIB  # larger segments are not kept for the next read


class Stored(NamedTuple):
    """A message as the log has it; `flags` tell how to decode the record."""

    offset: int
    record: bytes
    flags: int
    put: Stamp


class Head(NamedTuple):
    """A segment, without its messages."""

    first: int
    stop: int
    size: int
    put: Stamp


def load(tx: Tx, topic_id: int, name: str) -> TopicRow:
    """The row of a topic, which the caller may change and store.

    Raises: NotFound if the topic was deleted.
    """
    data = tx.get(ID_KEY.pack(b"T", topic_id))
    if data is None:
        raise NotFound(
            f"topic {name!r} does not exist any more; see store.topics() or 'diskq topic ls'",
            topic=name,
        )
    return TopicRow(data)


def store(tx: Tx, topic_id: int, row: TopicRow) -> None:
    """Write the topic's row back."""
    tx.put(ID_KEY.pack(b"T", topic_id), row.encode())


class Log:
    """One topic's log inside one transaction."""

    __slots__ = ("database", "topic_id", "tx")

    def __init__(self, tx: Tx, topic_id: int) -> None:
        self.tx = tx
        self.database = tx.log(topic_id)
        self.topic_id = topic_id

    def append(
        self, row: TopicRow, lane: int, packed: list[Packed], put: Stamp | None = None
    ) -> int:
        """Add segments behind the last offset of a lane, put now or at `put`, and wake consumers
        that wait for them; returns the first new offset. The caller stores the row."""
        if put is None:
            put = ages.Now(self.tx).stamp(row.last_put_ns)
        row.last_put_ns = put.put_at_ns
        first = offset = row.offset(lane)
        append = self.topic_id < limits.MAX_LOG_DATABASES and len(row.next) == 1
        for run in packed:
            key = LOG_KEY.pack(self.topic_id, offset)
            value = encode_segment(key, run, *put)
            self.tx.lmdb.put(key, value, append=append, db=self.database)
            offset += run.length
            row.bytes += len(value)
        row.next[lane] += offset - first
        row.stored += offset - first
        row.segments += len(packed)
        for group_id in decode_topic(row.config).groups:
            self.tx.wake(group_id, offset - first)
        self.tx.announced.add(self.topic_id)
        return first

    def read(self, first: int, stop: int, row: TopicRow | None = None) -> list[Stored]:
        """The messages from `first` to before `stop`, all of which must be there. With the topic's
        row, the segment that was read last is not read again.

        Raises: Corrupt.
        """
        found: list[Stored] = []
        while first < stop:
            found += self.read_run(first, stop, row)
            first = found[-1].offset + 1
        return found

    def read_run(self, first: int, stop: int, row: TopicRow | None = None) -> list[Stored]:
        """As `read`, but only the messages of the first segment."""
        cache = self.tx.engine.segments
        rewritten, segment = cache.get(self.topic_id, (0, None)) if row else (0, None)
        if (
            segment is None
            or not 0 <= first - segment.first < segment.count
            or (row and rewritten != row.rewritten)
        ):
            segment = next(self.segments(first), None)
            if segment is None or segment.first > first:
                raise Corrupt(
                    f"offset {first} of topic {self.topic_id} is missing from its log; run"
                    f" 'diskq verify', then {WAY_OUT}",
                    offset=first,
                )
            if row and segment.count > 1 and len(segment.data) <= _CACHED_BYTES:
                cache[self.topic_id] = row.rewritten, segment
        return cut(segment, first, stop)

    def first(self, row: TopicRow, lane: int) -> int:
        """The oldest offset still stored in a lane, its end if there is none."""
        end = row.offset(lane)
        if self.database is not None:
            cursor = self.tx.lmdb.cursor(self.database)
            if cursor.set_range(LOG_KEY.pack(self.topic_id, lane_start(lane))):
                topic_id, offset = unpacked(LOG_KEY, cursor.key())
                if topic_id == self.topic_id:
                    return min(int(offset), end)
        return end

    def offset_at(self, row: TopicRow, lane: int, when_ns: int) -> int:
        """The first offset of a lane put at `when_ns` or later, its end if there is none yet."""
        low, high = self.first(row, lane), row.offset(lane)
        while low < high:
            middle = (low + high) // 2
            segment = next(self.segments(middle), None)
            if segment is None or segment.first >= high or segment.put_at_ns >= when_ns:
                high = max(min(segment.first, middle), low) if segment else middle
            else:
                low = segment.first + segment.count
        return gaps.past(self.tx, self.topic_id, row, low)

    def segments(self, offset: int) -> Iterator[Segment]:
        """The segments in key order, from the one that has `offset`, or else the next one.

        Raises: Corrupt.
        """
        for key, value in self.items(offset):
            segment = Segment(key, value)
            if segment.first + segment.count > offset:
                yield segment

    def before(self, offset: int) -> Segment | None:
        """The last segment that has an offset below this one."""
        cursor = self.tx.lmdb.cursor(self.database)
        if self.database is None or not offset or not self._seek(cursor, offset - 1):
            return None
        segment = Segment(*cursor.item())
        return segment if segment.first < offset else None

    def items(self, offset: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of the segments, as `segments` returns them, but not checked."""
        if self.database is not None:
            cursor = self.tx.lmdb.cursor(self.database)
            if self._seek(cursor, offset):
                start = cursor.key()
                yield from self.tx.scan(start[:4], start, self.database)

    def heads(self, row: TopicRow, lane: int) -> Iterator[Head]:
        """The segments of a lane, in order, without their messages."""
        for key, value in self.items(lane_start(lane)):
            first: int = unpacked(LOG_KEY, key)[1]
            if first >= row.offset(lane):
                return
            if lane_of(first) == lane:
                count, put = head_of(value)
                yield Head(first, first + count, len(value), put)

    def trim(self, row: TopicRow, first: int, stop: int, limit: int) -> int:
        """Delete the segments between two offsets of a lane, at most `limit` of them, and note the
        gap they leave; returns how many messages were deleted. No group may need one of them."""
        deleted = 0
        front, begin, end = -1, first, first
        cursor = self.tx.lmdb.cursor(self.database)
        while limit and cursor.set_range(LOG_KEY.pack(self.topic_id, first)):
            topic_id, offset = unpacked(LOG_KEY, cursor.key())
            if topic_id != self.topic_id or offset >= stop:
                break
            value = cursor.value()
            count = head_of(value)[0]
            if offset + count > stop:
                break
            if not deleted:
                begin, front = offset, self.first(row, lane_of(offset))
            end = offset + count
            cursor.delete()
            row.stored -= count
            row.segments -= 1
            row.bytes -= len(value)
            deleted += count
            limit -= 1
        if begin == front:
            gaps.remove_below(self.tx, self.topic_id, row, self.first(row, lane_of(begin)))
        elif deleted:
            gaps.add(self.tx, self.topic_id, row, begin, end)
        return deleted

    def cut_below(self, row: TopicRow, lane: int, floor: int) -> int:
        """Delete what a lane has below an offset, at most MAX_TRIM_SEGMENTS; one of them may be
        cut. Returns how many messages went. The caller stores the row."""
        gone = self.trim(row, lane_start(lane), floor, limits.MAX_TRIM_SEGMENTS)
        segment = next(self.segments(floor), None)
        if segment is None or segment.first >= floor or lane_of(segment.first) != lane:
            return gone
        passed: int = floor - segment.first
        run = pack_run(list(segment.records(passed, segment.count)), segment.flags)
        self.replace(row, segment, floor, run)
        return gone + passed

    def replace(self, row: TopicRow, old: Segment, first: int, run: Packed) -> None:
        """Write a run in the place of a segment, maybe from a later offset on. The caller stores
        the row."""
        self.tx.lmdb.delete(LOG_KEY.pack(self.topic_id, old.first), db=self.database)
        key = LOG_KEY.pack(self.topic_id, first)
        value = encode_segment(key, run, *old.put)
        self.tx.lmdb.put(key, value, db=self.database)
        row.stored += run.length - old.count
        row.bytes += len(value) - len(old.data)
        row.rewritten += 1

    def _seek(self, cursor: Any, offset: int) -> bool:
        """Place the cursor on the last key that is not behind `offset`, or else on the next one."""
        wanted = LOG_KEY.pack(self.topic_id, offset)
        found = cursor.set_range(wanted)
        if found and cursor.key() == wanted:
            return True
        if cursor.prev() if found else cursor.last():
            if cursor.key()[:4] == wanted[:4]:
                return True
            found = cursor.next()
        elif found:
            cursor.first()
        return bool(found and cursor.key()[:4] == wanted[:4])


def cut(segment: Segment, first: int, stop: int) -> list[Stored]:
    """The messages of a segment from `first` to before `stop`, maybe none."""
    low = max(first - segment.first, 0)
    high = max(min(stop - segment.first, segment.count), 0)
    low = min(low, high)
    flags, put = segment.flags, segment.put
    return [
        Stored(offset, record, flags, put)
        for offset, record in enumerate(segment.records(low, high), segment.first + low)
    ]


def parts_of(message: Stored) -> Parts:
    """A message taken apart. Raises: Corrupt."""
    try:
        return decode_record(message.record, message.flags)
    except Corrupt as error:
        raise Corrupt(
            f"message {message.offset} cannot be decoded; {WAY_OUT}. To let a group pass it, seek"
            f" to {message.offset + 1}, or purge what is before that",
            offset=message.offset,
        ) from error
