"""Every invariant of a store, as a generator of findings: for tests, for tools and for users.

It reads all of a store in one snapshot and recounts what the commits counted. Of a damaged file,
LMDB itself can end the process; `files.check_in_child` survives that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from . import held, leases, stats
from .admin import DELETED_GROUP
from .codec import (
    BURIED,
    DEAD,
    HELD,
    HELD_KEY,
    ID_KEY,
    LEASED,
    LIVE,
    META_KEY,
    TIME_KEY,
    U32,
    WAITING,
    GroupRow,
    Meta,
    TopicRow,
    decode_group,
    decode_topic,
)
from .engine import Engine, Tx
from .environment import Database
from .errors import Corrupt
from .limits import MIB
from .log import Log
from .model import Finding
from .segment import LANE, LOG_KEY, Segment, count_in


def check_store(engine: Engine) -> list[Finding]:
    """Everything that is wrong in a store; empty if it is sound."""
    topics = engine.read(lambda tx: list(stats.topic_ids(tx)))
    logs = {topic_id: engine.log(topic_id) for _, topic_id in topics}
    return engine.read(lambda tx: list(_check(tx, logs)))


def main(path: str) -> int:
    """Print the findings of a suspect store, one per line; exit code 5 if there are any."""
    from .clock import Clock

    try:
        engine = Engine(path, readonly=False, clock=Clock(), suspect=True)
        found = check_store(engine)
        with suppress(_Undo):
            engine.commit(_read_free_list)
    except Corrupt as error:
        found = [Finding("store", str(error))]
    for finding in found:
        print("\t".join(finding))
    return 5 if found else 0


class _Undo(Exception):
    """Ends a transaction without a trace."""


def _read_free_list(tx: Tx) -> None:
    """Ask for more pages than are free in one place: LMDB reads its whole list of free pages."""
    tx.put(b"~", bytes(4 * MIB))
    raise _Undo


def _check(tx: Tx, logs: dict[int, Database]) -> Iterator[Finding]:
    topics = {ID_KEY.unpack(key)[1]: TopicRow(value) for key, value in tx.scan(b"T")}
    groups = {ID_KEY.unpack(key)[1]: GroupRow(value) for key, value in tx.scan(b"G")}
    yield from _check_names(tx, topics, groups)
    for topic_id, topic in topics.items():
        where = f"topic {decode_topic(topic.config).name}"
        log = Log(tx, logs.get(topic_id), topic_id)
        yield from _check_log(log, where, topic)
        first = log.first()
        for group_id in decode_topic(topic.config).groups:
            if group_id in groups:
                group = groups[group_id]
                place = f"{where}, group {decode_group(group.config).name}"
                yield from _check_group(tx, place, group_id, group)
                floor = leases.floor(tx, group_id, group)
                if not (topic.next[LANE] if first is None else first) <= floor:
                    yield Finding(place, f"needs offset {floor}, the log begins at {first}")
                if group.next[LANE] > topic.next[LANE]:
                    yield Finding(place, "its cursor is behind the end of the log")
    yield from _check_owners(tx, set(groups))


def _check_names(
    tx: Tx, topics: dict[int, TopicRow], groups: dict[int, GroupRow]
) -> Iterator[Finding]:
    """Names, rows and lists of ids tell the same."""
    data = tx.get(META_KEY)
    assert data is not None
    meta = Meta(data)
    if max(topics, default=0) >= meta.next_topic or max(groups, default=0) >= meta.next_group:
        yield Finding("store", "an id is in use that is still to be given out")
    named = {topic_id: name for name, topic_id in stats.topic_ids(tx)}
    rows = {topic_id: decode_topic(topic.config).name for topic_id, topic in topics.items()}
    if named != rows:
        yield Finding("store", f"topics by name {named}, by row {rows}")
    for topic_id, topic in topics.items():
        ids = decode_topic(topic.config).groups
        named = {group_id: name for name, group_id in stats.group_ids(tx, topic_id)}
        rows = {
            group_id: decode_group(group.config).name
            for group_id, group in groups.items()
            if decode_group(group.config).topic_id == topic_id
        }
        if named != rows or sorted(ids) != sorted(rows):
            yield Finding("store", f"groups by name {named}, by row {rows}, by topic {ids}")


def _check_log(log: Log, where: str, topic: TopicRow) -> Iterator[Finding]:
    """Segments are whole, dense, in order of time, and as many as the row counts."""
    stored = size = segments = last_ns = 0
    end = None
    for key, value in log.items():
        offset = LOG_KEY.unpack(key)[1]
        if end is not None and offset != end:
            yield Finding(where, f"offset {end} is missing, the next segment has {offset}")
        end = offset + count_in(value)
        stored += count_in(value)
        segments += 1
        size += len(value)
        try:
            segment = Segment(key, value)
        except Corrupt as error:
            yield Finding(where, str(error))
            continue
        ends = list(segment.ends)
        if not ends or ends != sorted(ends) or segment.start + ends[-1] != len(value):
            yield Finding(where, f"the segment at offset {offset} has wrong ends")
        if not last_ns <= segment.put_at_ns <= topic.last_put_ns:
            yield Finding(where, f"time goes back at offset {offset}")
        last_ns = segment.put_at_ns
    if end is not None and end != topic.next[LANE]:
        yield Finding(where, f"the log ends at {end}, its row says {topic.next[LANE]}")
    yield from _compare(
        where,
        messages=(topic.stored, stored),
        bytes=(topic.bytes, size),
        segments=(topic.segments, segments),
    )


def _check_group(tx: Tx, where: str, group_id: int, group: GroupRow) -> Iterator[Finding]:
    """Each message is in one place, and the counters are right."""
    taken: set[int] = set()
    ready = leased = 0
    leased_held = set()
    for row in leases.rows(tx, group_id):
        if row.settled >> row.count or not row.unsettled:
            yield Finding(where, f"the lease at {row.first} has nothing unsettled")
        ready += row.unsettled if not row.deadline_ns else 0
        leased += row.unsettled if row.deadline_ns else 0
        if row.flags & HELD:
            leased_held.add(row.first)
            continue
        for offset in row.offsets():
            if offset in taken or offset >= group.next[LANE]:
                yield Finding(where, f"the lease of {offset} overlaps another, or the cursor")
            taken.add(offset)
    waiting = dict(_due(tx, group_id))
    counts = {WAITING: 0, LEASED: 0, BURIED: 0}
    for kind in (LIVE, DEAD):
        for offset, message in held.rows(tx, group_id, kind):
            counts[message.state] += 1
            if offset in taken or offset >= group.next[LANE]:
                yield Finding(where, f"held message {offset} is leased too, or not read yet")
            taken.add(offset)
            if (message.state == BURIED) != (kind == DEAD):
                yield Finding(where, f"held message {offset} is among the wrong kind")
            if (waiting.get(offset) == message.due_ns) != (message.state == WAITING):
                yield Finding(where, f"held message {offset} and its due row disagree")
            if (offset in leased_held) != (message.state == LEASED):
                yield Finding(where, f"held message {offset} and its lease disagree")
    settled = group.acked + group.ready + group.leased + group.waiting + group.dead
    yield from _compare(
        where,
        ready=(group.ready, ready),
        leased=(group.leased, leased),
        leased_held=(len(leased_held), counts[LEASED]),
        waiting=(group.waiting, counts[WAITING]),
        due=(len(waiting), counts[WAITING]),
        dead=(group.dead, counts[BURIED]),
        passed=(sum(group.next), group.skipped + settled),
        delivered=(group.delivered, sum(group.next) - group.skipped + group.redelivered),
    )


def _due(tx: Tx, group_id: int) -> Iterator[tuple[int, int]]:
    for key, _ in tx.scan(ID_KEY.pack(b"D", group_id)):
        _, _, due_ns, offset = TIME_KEY.unpack(key)
        yield offset, due_ns


def _check_owners(tx: Tx, groups: set[int]) -> Iterator[Finding]:
    """Every row belongs to a group that exists, or is being deleted."""
    deleted = {(key[1], U32.unpack(key[2:])[0]) for key, _ in tx.scan(b"X")}
    groups |= {number for kind, number in deleted if kind == DELETED_GROUP}
    for prefix in (b"L", b"D"):
        for key, _ in tx.scan(prefix):
            if TIME_KEY.unpack(key)[1] not in groups:
                yield Finding("store", f"row {key!r} belongs to no group")
    for key, _ in tx.scan(b"", database=tx.engine.held):
        if HELD_KEY.unpack(key)[0] not in groups:
            yield Finding("store", f"held row {key!r} belongs to no group")


def _compare(where: str, **counts: tuple[int, int]) -> Iterator[Finding]:
    for what, (counted, found) in counts.items():
        if counted != found:
            yield Finding(where, f"{what} counted {counted}, found {found}")
