"""The holes of a damaged log: gaps, of which a row tells, and lost messages. For salvage; imported
on demand."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from ..format.layout import ID_KEY
from ..format.segment import LOG_KEY, PURGED, RICH, encode_segment, pack_run, purged_record
from ..tables import gaps

_RUN = 1_000  # purged messages in a segment


class Hole(NamedTuple):
    """Offsets of which no message is stored; `lost` unless a row says that all groups settled
    them."""

    first: int
    stop: int
    lost: bool


def fillers(
    topic_id: int, first: int, stop: int, put_at_ns: int
) -> Iterator[tuple[bytes, bytes, int]]:
    """Keys and values of segments of purged messages from one offset to another, and how many."""
    for at in range(first, stop, _RUN):
        count = min(_RUN, stop - at)
        key = LOG_KEY.pack(topic_id, at)
        run = pack_run([purged_record(None)] * count, RICH | PURGED)
        yield key, encode_segment(key, run, put_at_ns), count


class Holes:
    """The gaps that rows of a damaged store tell of. Each row may be wrong."""

    def __init__(self) -> None:
        self._gaps: dict[int, list[tuple[int, int]]] = {}  # by topic, in order

    def add(self, key: bytes, value: bytes) -> None:
        """Take a row; they come in order of their keys. Raises: Corrupt."""
        self._gaps.setdefault(ID_KEY.unpack_from(key)[1], []).append(gaps.decode(key, value))

    def past(self, topic_id: int, offset: int) -> int:
        """The offset, or the stop of the gap that begins there."""
        return max([offset, *(stop for _, stop in self._begin_in(topic_id, offset, offset + 1))])

    def between(self, topic_id: int, first: int, stop: int) -> Iterable[Hole]:
        """The holes from one offset to another, where nothing is stored."""
        for gap, gap_stop in self._begin_in(topic_id, first, stop):
            if first <= gap and gap_stop <= stop:  # else it covers what is stored, or another one
                if first < gap:
                    yield Hole(first, gap, lost=True)
                yield Hole(gap, gap_stop, lost=False)
                first = gap_stop
        if first < stop:
            yield Hole(first, stop, lost=True)

    def lost(self, topic_id: int, first: int, stop: int) -> int:
        """How many messages are lost from one offset to another, where nothing is stored."""
        holes = self.between(topic_id, first, stop)
        return sum(hole.stop - hole.first for hole in holes if hole.lost)

    def _begin_in(self, topic_id: int, first: int, stop: int) -> Iterator[tuple[int, int]]:
        known = self._gaps.get(topic_id, [])
        at, end = (bisect_left(known, (offset, 0)) for offset in (first, stop))
        return islice(known, at, end)
