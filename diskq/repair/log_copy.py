"""The logs of a damaged store, copied with their holes. For salvage; imported on demand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TypeAlias

from ..base.model import LANE_BITS, SalvagedTopic, TopicSettings
from ..format.layout import (
    DELETED_TOPIC,
    GAP_KEY,
    U64,
)
from ..format.lmdb_pages import Snapshot
from ..format.rows import TopicRow, decode_topic, new_topic
from ..format.segment import LOG_KEY, Segment
from ..storage.engine import Engine
from ..storage.environment import Database
from .holes import fillers
from .hollow import hollow_segment
from .remains import DAMAGE, Remains

Put: TypeAlias = tuple[Database, bytes, bytes]
_MAX_LOST = 1_000_000  # more cannot be missing: the number is damaged


class LogCopy:
    """The segments of a damaged store on their way to the engine of a new one."""

    def __init__(self, remains: Remains, engine: Engine) -> None:
        self.remains = remains
        self.engine = engine
        self.lost: dict[int, int] = {}  # messages, by topic
        self.ends: dict[tuple[int, int], int] = {}  # by topic and lane, how far it is copied

    def log_rows(self, items: Iterator[tuple[bytes, bytes]]) -> Iterator[Put]:
        """The sound segments of a log, and purged messages in place of the others."""
        for key, value in items:
            try:
                segment = Segment(key, value)
            except DAMAGE as error:
                self.remains.findings.append(str(error))
                continue
            topic_id, first = LOG_KEY.unpack(key)
            if (DELETED_TOPIC, topic_id) in self.remains.deleted:
                continue
            row = self.topic(topic_id)
            place = topic_id, first >> LANE_BITS
            row.next += [0] * (place[1] + 1 - len(row.next))
            end = self.ends.get(place, min(first, self.remains.floors.get(place, first)))
            if end > first:
                self.remains.findings.append(
                    f"two segments have offset {first} of topic {topic_id}"
                )
                continue
            yield from self._missing(topic_id, end, first, segment.put_at_ns)
            kept, lost = hollow_segment(key, value, segment)
            yield self._placed(topic_id, key, kept, segment.count, segment.put_at_ns)
            self.remains.findings += lost
            self.lost[topic_id] += len(lost)

    def newer_segments(self, searched: Snapshot) -> Iterator[tuple[bytes, bytes]]:
        """All that any page has of the messages behind those that were copied. All in memory."""
        self.remains.findings.append(
            "the latest commit may be lost: all pages were searched for newer messages, and how"
            " many more there were is not known"
        )
        found: dict[bytes, bytes] = {}
        for key, value in searched.scan():
            with suppress(*DAMAGE):
                segment = Segment(key, value)
                place = LOG_KEY.unpack(key)[0], segment.first >> LANE_BITS
                row = self.remains.topics.get(place[0])
                known = row.offset(place[1]) if row and place[1] < len(row.next) else 0
                end = self.ends.get(place, 0 if self.remains.rowless else known)
                if segment.first >= self.remains.holes.past(place[0], end):
                    found[key] = value
        yield from sorted(found.items())

    def rest_of_logs(self) -> Iterator[Put]:
        """The gap between the last messages found and the end of each lane."""
        for topic_id, row in self.remains.topics.items():
            for lane in range(len(row.next)):
                place = topic_id, lane
                end = self.ends.get(place, self.remains.floors.get(place, row.offset(lane)))
                lost = self.remains.holes.lost(topic_id, end, row.offset(lane))
                if end > row.offset(lane) or lost > _MAX_LOST:
                    row.next[lane] = end - (lane << LANE_BITS)
                yield from self._missing(topic_id, end, row.offset(lane), row.last_put_ns)

    def topic(self, topic_id: int) -> TopicRow:
        """The topic's row, with counters that start from 0; a new row if it is lost."""
        if topic_id not in self.remains.topics:
            name = f"salvaged-{topic_id}"
            self.remains.topics[topic_id] = TopicRow(new_topic(name, TopicSettings()))
        row = self.remains.topics[topic_id]
        if topic_id not in self.lost:
            self.lost[topic_id] = row.stored = row.segments = row.bytes = row.scheduled = 0
            row.gaps = 0
        return row

    def _missing(self, topic_id: int, first: int, stop: int, put_at_ns: int) -> Iterator[Put]:
        """The rows of gaps between two offsets, and purged messages in place of what is lost there;
        too many would make a gap, too. Before all that is stored there are no gaps."""
        place, gap = (topic_id, first >> LANE_BITS), -1
        for hole in self.remains.holes.between(topic_id, first, stop):
            if hole.lost and hole.stop - hole.first <= _MAX_LOST:
                yield from self._purged(topic_id, hole.first, hole.stop, put_at_ns)
                gap = -1
            elif place in self.ends:
                self.lost[topic_id] += hole.stop - hole.first if hole.lost else 0
                self.remains.topics[topic_id].gaps += gap < 0
                gap = hole.first if gap < 0 else gap  # two that touch are one
                yield (
                    self.engine.state,
                    GAP_KEY.pack(b"O", topic_id, gap),
                    U64.pack(hole.stop),
                )

    def _purged(self, topic_id: int, first: int, stop: int, put_at_ns: int) -> Iterator[Put]:
        for key, value, count in fillers(topic_id, first, stop, put_at_ns):
            yield self._placed(topic_id, key, value, count, put_at_ns)
            self.lost[topic_id] += count

    def _placed(self, topic_id: int, key: bytes, value: bytes, count: int, put_at_ns: int) -> Put:
        row, first = self.topic(topic_id), LOG_KEY.unpack(key)[1]
        self.ends[topic_id, first >> LANE_BITS] = first + count
        row.stored += count
        row.segments += 1
        row.bytes += len(value)
        row.last_put_ns = max(row.last_put_ns, put_at_ns)
        return self.engine.log(topic_id), key, value

    def report(self, restarted: dict[int, list[str]]) -> list[SalvagedTopic]:
        """Numbers of each topic; `restarted` are the names of groups, by topic."""
        return [
            SalvagedTopic(
                decode_topic(row.config).name,
                row.stored - self.lost[topic_id],
                self.lost[topic_id],
                row.scheduled,
                tuple(restarted.get(topic_id, ())),
            )
            for topic_id, row in self.remains.topics.items()
        ]
