"""Everything that is wrong with a topic: its log, and its scheduled messages."""

from __future__ import annotations

from collections.abc import Iterator

from ..base.errors import Corrupt
from ..base.model import LANE_BITS, Finding
from ..format.decoding import unpacked
from ..format.rows import TopicRow
from ..format.segment import LOG_KEY, Segment, head_of
from ..storage.tx import Tx
from ..tables import gaps, schedule
from ..tables.log import Log
from . import contents
from .counting import compare


def check_log(source: Log, where: str, topic: TopicRow) -> Iterator[Finding]:
    """Segments are whole, dense but for the gaps, in order of time, and as many as the row counts.
    Each gap lies between two of them, or behind the last one."""
    stored = size = segments = 0
    known = dict(gaps.rows(source.tx, source.topic_id))
    yield from compare(where, gaps=(topic.gaps, len(known)))
    ends: dict[int, int] = {}
    last_ns: dict[int, int] = {}
    for key, value in source.items():
        try:
            offset, count = unpacked(LOG_KEY, key)[1], head_of(value)[0]
        except Corrupt as error:
            yield Finding(where, str(error))
            continue
        lane = offset >> LANE_BITS
        end = ends.setdefault(lane, offset)
        if (end := known.pop(end, end)) != offset:
            yield Finding(where, f"offset {end} is missing, the next segment has {offset}")
        ends[lane] = offset + count
        stored += count
        segments += 1
        size += len(value)
        try:
            segment = Segment(key, value)
        except Corrupt as error:
            yield Finding(where, str(error))
            continue
        if not last_ns.get(lane, 0) <= segment.put_at_ns <= topic.last_put_ns:
            yield Finding(where, f"time goes back at offset {offset}")
        last_ns[lane] = segment.put_at_ns
        yield from contents.undecodable_records(where, segment)
    for lane, last in ends.items():
        end = known.pop(last, last)
        if lane >= len(topic.next) or end != topic.offset(lane):
            yield Finding(where, f"lane {lane} of the log ends at {end}, which its row denies")
    for first, stop in known.items():
        yield Finding(where, f"the gap from {first} to {stop} is not where segments are missing")
    yield from compare(
        where,
        stored=(topic.stored, stored),
        bytes=(topic.bytes, size),
        segments=(topic.segments, segments),
    )


def check_schedule(tx: Tx, where: str, topic_id: int, topic: TopicRow) -> Iterator[Finding]:
    """Scheduled messages are as many as the row counts, and can be put."""
    planned = 0
    for each in schedule.rows(tx, topic_id):
        planned += 1
        if each.lane >= len(topic.next) or each.number >= topic.numbered:
            yield Finding(where, f"what is scheduled for {each.due_ns} has no lane, or no number")
    yield from compare(where, scheduled=(topic.scheduled, planned))
