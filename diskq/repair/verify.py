"""Every invariant of a store, as a generator of findings: for tests, for tools and for users.

It reads all of a store in one snapshot and recounts what the commits counted. LMDB can end a
process that reads damaged pages, so pages.py looks at them first; `fitness.check_in_child`
survives all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import TypeVar

from ..base.clock import Clock
from ..base.errors import Busy, Corrupt, NotAStore, ReadOnly
from ..base.limits import BUSY_SECONDS, MIB, NOWAIT_SECONDS
from ..base.model import LANE_BITS, Finding
from ..format.decoding import WRONG, unpacked
from ..format.layout import (
    BURIED,
    DEAD,
    DELETED_GROUP,
    HELD,
    ID_KEY,
    LIVE,
    META_KEY,
    PARKED,
    TIME_KEY,
    U32,
)
from ..format.rows import GroupRow, Meta, TopicRow, decode_group, decode_topic
from ..format.segment import LOG_KEY, Segment, head_of
from ..host import files
from ..storage.engine import Engine
from ..storage.environment import translating
from ..storage.readers import is_used
from ..storage.tx import TOKEN_BITS, Tx
from ..tables import catalog, gaps, held, key_owners, leases, schedule
from ..tables.log import Log
from . import contents, fitness
from .pages import check_pages

R = TypeVar("R", TopicRow, GroupRow)
_LARGE_BYTES = 256 * MIB


def findings(engine: Engine) -> list[Finding]:
    """Everything that is wrong in the store; a large one is read in a process of its own, because
    one read transaction at a time is open in each.

    Raises: StoreMoved if the path holds another store; DiskqError.
    """
    path, identity = engine.path, engine.identity
    with translating(path):
        files.check_identity(path, identity)
        if os.stat(os.path.join(path, files.DATA)).st_size < _LARGE_BYTES:
            found = check_store(engine)
        else:
            lines = fitness.check_in_child(path, identity)
            found = [Finding(*line.partition(": ")[::2]) for line in lines]
        files.check_identity(path, identity)
    return found


def check_store(engine: Engine) -> list[Finding]:
    """Everything that is wrong in a store; empty if it is sound."""
    return engine.read(_check_snapshot)


def _check_snapshot(tx: Tx) -> list[Finding]:
    """Pages first: if they are sound, LMDB can read them. While the snapshot is open, no commit
    uses a page again that a later one has."""
    pages = [Finding("store", problem) for problem in check_pages(tx.engine.path)]
    return pages or list(_check(tx))


def main(path: str, device: str = "", inode: str = "") -> list[str]:
    """The findings of a suspect store, one per line: of the one whose data file has this identity,
    or of whatever is there."""

    with translating(path):
        identity = (int(device), int(inode)) if device else files.identity_of(path)
        found = [Finding("store", problem) for problem in check_pages(path)]
        try:
            if not found or is_used(path):  # pages change meanwhile: it takes a snapshot to tell
                found = _check_suspect(path)
        except (Corrupt, NotAStore) as error:  # it was a store, for its path is known as one
            found = [Finding("store", str(error))]
        files.check_identity(path, identity)
    return ["\t".join(finding) for finding in found]


def _check_suspect(path: str) -> list[Finding]:
    """Check a store that nobody may have open here. Beside a writer that does not go on, all but
    what only a writer reads."""
    engine = Engine(path, files.identity_of(path), readonly=False, clock=Clock())
    try:
        engine.open(time.monotonic() + NOWAIT_SECONDS)
    except Busy:
        engine = Engine(path, engine.identity, readonly=True, clock=Clock())
        engine.open(time.monotonic() + BUSY_SECONDS)
    found = check_store(engine)
    with suppress(_Undo, Busy, ReadOnly):
        engine.commit(_read_free_list, time.monotonic() + NOWAIT_SECONDS)
    return found


class _Undo(Exception):
    """Ends a transaction without a trace."""


def _read_free_list(tx: Tx) -> None:
    """Ask for more pages than are free in one place: LMDB reads its whole list of free pages."""
    tx.put(b"~", bytes(4 * MIB))
    raise _Undo


def _check(tx: Tx) -> Iterator[Finding]:
    yield from contents.undecodable(tx)
    topics = _sound(tx, b"T", TopicRow, decode_topic)
    groups = _sound(tx, b"G", GroupRow, decode_group)
    yield from _guarded("store", _check_names(tx, topics, groups))
    for topic_id, topic in topics.items():
        where = f"topic {decode_topic(topic.config).name}"
        source = Log(tx, topic_id)
        yield from _guarded(where, _check_log(source, where, topic))
        yield from _guarded(where, _check_schedule(tx, where, topic_id, topic))
        for group_id in decode_topic(topic.config).groups:
            if group_id in groups:
                group = groups[group_id]
                place = f"{where}, group {decode_group(group.config).name}"
                yield from check_group(source, place, group_id, topic, group)
    yield from _guarded("store", _check_owners(tx, set(topics), set(groups)))


def _sound(
    tx: Tx, prefix: bytes, kind: Callable[[bytes], R], decode: Callable[[bytes], object]
) -> dict[int, R]:
    """The topics or groups, by id, whose rows can be decoded; the others are findings."""
    found: dict[int, R] = {}
    for key, value in tx.scan(prefix):
        with suppress(Corrupt):
            row = kind(value)
            decode(row.config)
            found[unpacked(ID_KEY, key)[1]] = row
    return found


def check_group(
    source: Log, where: str, group_id: int, topic: TopicRow, group: GroupRow
) -> Iterator[Finding]:
    """Everything that is wrong with a group."""
    yield from _guarded(where, _check_group(source, where, group_id, topic, group))
    yield from _guarded(where, _check_needs(source, where, group_id, topic, group))
    keyed = decode_group(group.config).settings.ordering == "key"
    yield from _guarded(where, _check_keys(source, where, group_id, keyed))


def _guarded(where: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """A row that cannot be read is a finding too."""
    try:
        yield from findings
    except (Corrupt, *WRONG) as error:
        yield Finding(where, str(error))


def _check_schedule(tx: Tx, where: str, topic_id: int, topic: TopicRow) -> Iterator[Finding]:
    """Scheduled messages are as many as the row counts, and can be put."""
    planned = 0
    for each in schedule.rows(tx, topic_id):
        planned += 1
        if each.lane >= len(topic.next) or each.number >= topic.numbered:
            yield Finding(where, f"what is scheduled for {each.due_ns} has no lane, or no number")
    yield from _compare(where, scheduled=(topic.scheduled, planned))


def _check_needs(
    source: Log, where: str, group_id: int, topic: TopicRow, group: GroupRow
) -> Iterator[Finding]:
    """All that a group needs of the log is there, and not more than there can be."""
    if len(group.next) != len(topic.next):
        yield Finding(where, f"it has {len(group.next)} lanes, its topic {len(topic.next)}")
        return
    first = [source.first(topic, lane) for lane in range(len(topic.next))]
    leased = (row.offsets() for row in leases.rows(source.tx, group_id) if not row.flags & HELD)
    for offset in chain(group.offsets, *leased):
        if offset < first[offset >> LANE_BITS]:
            yield Finding(where, f"needs offset {offset}, which was trimmed")
        if gaps.past(source.tx, source.topic_id, topic, offset) > offset:
            yield Finding(where, f"needs offset {offset}, which is in a gap of the log")
    if any(mine > end for mine, end in zip(group.next, topic.next, strict=True)):
        yield Finding(where, "its cursor is behind the end of the log")
    ahead = gaps.ahead(source.tx, source.topic_id, topic, group.offsets)
    yield from _compare(where, ahead=(group.ahead, ahead))


def _check_names(
    tx: Tx, topics: dict[int, TopicRow], groups: dict[int, GroupRow]
) -> Iterator[Finding]:
    """Names, rows and lists of ids tell the same."""
    data = tx.get(META_KEY)
    assert data is not None
    meta = Meta(data)
    if max(topics, default=0) >= meta.next_topic or max(groups, default=0) >= meta.next_group:
        yield Finding("store", "an id is in use that is still to be given out")
    named = {topic_id: name for name, topic_id in catalog.topic_ids(tx)}
    rows = {topic_id: decode_topic(topic.config).name for topic_id, topic in topics.items()}
    if named != rows:
        yield Finding("store", f"topics by name {named}, by row {rows}")
    for topic_id, topic in topics.items():
        ids = decode_topic(topic.config).groups
        named = {group_id: name for name, group_id in catalog.group_ids(tx, topic_id)}
        rows = {
            group_id: decode_group(group.config).name
            for group_id, group in groups.items()
            if decode_group(group.config).topic_id == topic_id
        }
        if named != rows or sorted(ids) != sorted(rows):
            yield Finding("store", f"groups by name {named}, by row {rows}, by topic {ids}")


def _check_log(source: Log, where: str, topic: TopicRow) -> Iterator[Finding]:
    """Segments are whole, dense but for the gaps, in order of time, and as many as the row counts.
    Each gap lies between two of them, or behind the last one."""
    stored = size = segments = 0
    known = dict(gaps.rows(source.tx, source.topic_id))
    yield from _compare(where, gaps=(topic.gaps, len(known)))
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
    yield from _compare(
        where,
        stored=(topic.stored, stored),
        bytes=(topic.bytes, size),
        segments=(topic.segments, segments),
    )


def _check_group(
    source: Log, where: str, group_id: int, topic: TopicRow, group: GroupRow
) -> Iterator[Finding]:
    """Each message is in one place, and the counters are right."""
    tx = source.tx

    def is_known(offset: int) -> bool:  # a held message may be in a gap ahead, after a seek back
        passed = _is_passed(group, offset)
        return passed or gaps.past(tx, source.topic_id, topic, offset) > offset

    newest = tx.lmdb.id() + catalog.load_meta(tx).commit_base  # the engine may know an older base
    taken: set[int] = set()
    ready = leased = 0
    leased_held = set()
    for row in leases.rows(tx, group_id):
        if row.settled >> row.count or not row.unsettled or row.token >> TOKEN_BITS > newest:
            yield Finding(where, f"the lease at {row.first} has nothing unsettled, or an odd token")
        ready += row.unsettled if not row.deadline_ns else 0
        leased += row.unsettled if row.deadline_ns else 0
        if row.flags & HELD:
            leased_held.add(row.first)
            continue
        for offset in row.offsets():
            if offset in taken or not _is_passed(group, offset):
                yield Finding(where, f"the lease of {offset} overlaps another, or the cursor")
            taken.add(offset)
    due = list(_due(tx, group_id))
    waiting = dict(due)
    live = dead = 0
    for kind in (LIVE, DEAD):
        for offset, message in held.rows(tx, group_id, kind):
            live += kind == LIVE
            dead += kind == DEAD
            if offset in taken or not is_known(offset):
                yield Finding(where, f"held message {offset} is leased too, or not read yet")
            taken.add(offset)
            if (message.state == BURIED) != (kind == DEAD):
                yield Finding(where, f"held message {offset} is among the wrong kind")
            places = (waiting.get(offset) == message.due_ns) + (offset in leased_held)
            if places != (kind == LIVE):
                yield Finding(where, f"held message {offset} has {places} due rows and leases")
    parked = [offset for _, offset, _ in key_owners.parked(tx, group_id)]
    if taken & set(parked) or not all(map(is_known, parked)):
        yield Finding(where, "a parked message is somewhere else too, or not read yet")
    here = group.ready + group.leased + group.waiting + group.parked + group.dead
    gone = group.acked + group.expired + group.dropped + group.purged
    yield from _compare(
        where,
        ready=(group.ready, ready),
        leased=(group.leased, leased),
        waiting=(group.waiting, live - len(leased_held)),
        due=(len(due), live - len(leased_held)),
        parked=(group.parked, len(parked)),
        dead=(group.dead, dead),
        passed=(sum(group.next), group.skipped + here + gone),
    )


def _is_passed(group: GroupRow, offset: int) -> bool:
    lane = offset >> LANE_BITS
    return lane < len(group.next) and offset < group.offset(lane)


def _check_keys(source: Log, where: str, group_id: int, keyed: bool) -> Iterator[Finding]:
    """Of each key one message is in flight, it has the key, and nothing is parked without one."""
    tx = source.tx
    found: dict[int, int] = {}
    in_flight = chain(_leased(source, group_id), _waiting(tx, group_id)) if keyed else ()
    for offset, record, flags in in_flight:
        key = key_owners.hash_of(record, flags)
        if key is not None and found.setdefault(key, offset) != offset:
            yield Finding(where, f"{offset} and {found[key]}, of one key, are both in flight")
    holders = dict(key_owners.holders(tx, group_id))
    if found != holders:
        yield Finding(where, f"the holders of keys are {holders}, those in flight are {found}")
    for key, offset, row in key_owners.parked(tx, group_id):
        its_key = key_owners.hash_of(row.record, row.flags)
        if key not in holders or its_key != key or row.state != PARKED:
            yield Finding(where, f"message {offset} is parked behind nobody")


def _leased(source: Log, group_id: int) -> Iterator[tuple[int, bytes, int]]:
    """Offset, record and flags of what is leased or ready, out of the log."""
    for lease in leases.rows(source.tx, group_id):
        if not lease.flags & HELD:
            for offset in lease.offsets():
                yield source.read(offset, offset + 1)[0][:3]


def _waiting(tx: Tx, group_id: int) -> Iterator[tuple[int, bytes, int]]:
    """The same of what waits, or is leased again."""
    for offset, row in held.rows(tx, group_id, LIVE):
        yield offset, row.record, row.flags


def _due(tx: Tx, group_id: int) -> Iterator[tuple[int, int]]:
    for key, _ in tx.scan(ID_KEY.pack(b"D", group_id)):
        _, _, due_ns, offset = unpacked(TIME_KEY, key)
        yield offset, due_ns


def _check_owners(tx: Tx, topics: set[int], groups: set[int]) -> Iterator[Finding]:
    """Every row belongs to a topic or group that exists, or is being deleted."""
    for key, _ in tx.scan(b"X"):
        (groups if key[1] == DELETED_GROUP else topics).add(U32.unpack(key[2:])[0])
    for prefix, owners in ((b"L", groups), (b"D", groups), (b"K", groups), (b"O", topics)):
        for key, _ in tx.scan(prefix):
            if U32.unpack_from(key, 1)[0] not in owners:
                yield Finding("store", f"row {key!r} belongs to nothing")
    engine = tx.engine
    for name, owners in ((engine.held, groups), (engine.schedule, topics), (engine.dedup, topics)):
        for key, _ in tx.scan(b"", database=name):
            if U32.unpack_from(key)[0] not in owners:
                yield Finding("store", f"row {key!r} belongs to nothing")


def _compare(where: str, **counts: tuple[int, int]) -> Iterator[Finding]:
    for what, (counted, found) in counts.items():
        if counted != found:
            yield Finding(where, f"{what} counted {counted}, found {found}")
