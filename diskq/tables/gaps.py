"""The gaps of a topic's log: offsets of segments that were deleted because every group had settled
them, while an older message keeps its segment.

    state  'O' topic, first   the offset where the gap stops

A gap lies between two stored segments of a lane, or between the last segment and the end of the
lane. It never touches another gap, and no group's cursor is inside a gap or at its first offset.
The topic's row counts the gaps, so that a topic without any pays nothing; a group's row counts the
offsets in gaps ahead of its cursor. The callers store both rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..base.errors import Corrupt
from ..format.lanes import lane_of, lane_start
from ..format.layout import GAP_KEY, ID_KEY, U64
from ..format.rows import TopicRow
from ..storage.tx import Tx


def rows(tx: Tx, topic_id: int, start: int = 0, last: int = 2**64) -> Iterator[tuple[int, int]]:
    """First and stop offset of the gaps that begin at `start` to `last`, in order."""
    key = _key(topic_id, start)
    for item in tx.scan(key[: ID_KEY.size], key):
        gap = decode(*item)
        if gap[0] > last:
            return
        yield gap


def decode(key: bytes, value: bytes) -> tuple[int, int]:
    """First and stop offset of a gap. Raises: Corrupt."""
    if len(key) == GAP_KEY.size and len(value) == U64.size:
        _, _, first = GAP_KEY.unpack(key)
        (stop,) = U64.unpack(value)
        if first < stop and lane_of(first) == lane_of(stop - 1):
            return first, stop
    raise Corrupt(f"the gap {key!r} of a log is damaged; run 'diskq verify'")


def add(tx: Tx, topic_id: int, topic: TopicRow, first: int, stop: int) -> None:
    """Note that the segments between two offsets are deleted, in one row with gaps they touch."""
    before = _last(tx, topic_id, first)
    if before is not None and before[1] == first:
        first = before[0]
    for old_first, old_stop in list(rows(tx, topic_id, first, stop)):
        stop = max(stop, old_stop)
        _remove(tx, topic_id, topic, old_first)
    tx.put(_key(topic_id, first), U64.pack(stop))
    topic.gaps += 1


def remove_below(tx: Tx, topic_id: int, topic: TopicRow, front: int) -> None:
    """Remove the gaps of a lane before its oldest stored message: no group meets them."""
    if topic.gaps:
        lane_first = lane_start(lane_of(front))
        for first, _ in list(rows(tx, topic_id, lane_first, front - 1)):
            _remove(tx, topic_id, topic, first)


def past(tx: Tx, topic_id: int, topic: TopicRow, offset: int) -> int:
    """The offset, or the stop of the gap around it."""
    gap = _last(tx, topic_id, offset + 1) if topic.gaps else None
    return offset if gap is None else max(offset, gap[1])


def ahead(tx: Tx, topic_id: int, topic: TopicRow, cursor: Sequence[int]) -> int:
    """How many offsets are in gaps behind the positions of a cursor."""
    if not topic.gaps:
        return 0
    return sum(
        stop - first
        for lane, start in enumerate(cursor)
        for first, stop in rows(tx, topic_id, start, lane_start(lane + 1) - 1)
    )


def _last(tx: Tx, topic_id: int, offset: int) -> tuple[int, int] | None:
    """The last gap that begins below an offset."""
    key = _key(topic_id, offset)
    cursor = tx.lmdb.cursor()
    there = cursor.prev() if cursor.set_range(key) else cursor.last()
    if not there or cursor.key()[: ID_KEY.size] != key[: ID_KEY.size]:
        return None
    return decode(*cursor.item())


def _remove(tx: Tx, topic_id: int, topic: TopicRow, first: int) -> None:
    tx.delete(_key(topic_id, first))
    topic.gaps -= 1


def _key(topic_id: int, offset: int) -> bytes:
    return GAP_KEY.pack(b"O", topic_id, offset)
