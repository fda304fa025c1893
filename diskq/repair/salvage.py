"""Out of a damaged store, a sound one with all that is still to be had. Imported on demand.

The damaged file is read as bytes, see pages.py. Messages have a checksum: they are copied if it is
right and they can be decoded. Offsets are kept: a message that is missing or lost becomes a purged
one, so that what groups know of offsets stays true. Rows without a checksum are copied and then
checked by how they add up; a group that does not starts at the oldest message. Gaps of the log are
kept: what is missing without such a row is lost.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import TypeAlias

from ..base import check, errors, limits
from ..base.clock import Clock
from ..base.model import LANE_BITS, Salvaged, SalvagedTopic, TopicSettings
from ..format.decoding import unpacked
from ..format.layout import (
    COPY,
    DEDUP_KEY,
    DELETED_TOPIC,
    FORMAT_VERSION,
    GAP_KEY,
    HELD,
    ID_KEY,
    KEY_KEY,
    META_KEY,
    TIME_KEY,
    U32,
    U64,
)
from ..format.lease_row import decode_lease
from ..format.lmdb_pages import Snapshot, snapshots
from ..format.meta_page import META_BYTES, meta_pages
from ..format.rows import GroupRow, Meta, TopicRow, decode_group, decode_topic, new_meta, new_topic
from ..format.segment import LOG_KEY, Segment
from ..host import files
from ..storage.creation import COPIED, building, create_in, later
from ..storage.engine import Engine
from ..storage.environment import Database, translating
from ..storage.readers import is_used
from ..storage.registry import is_open
from ..storage.tx import Tx
from ..tables import catalog, dedup, gaps, log
from ..tables.log import Log
from . import verify
from .check_group import check_group
from .holes import Holes, fillers
from .hollow import hollow_held, hollow_segment, sound_scheduled
from .regroup import restart_group

Put: TypeAlias = tuple[Database, bytes, bytes]
_WRONG = (errors.DiskqError, ValueError, LookupError, TypeError, struct.error)
_MAX_LOST = 1_000_000  # more cannot be missing: the number is damaged
_BATCH_BYTES = 16 * limits.MIB


def salvage(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Salvaged:
    """Copy what is sound of the store at `source`, which nobody may use meanwhile, to a new store
    at `target`, complete or not at all. The old one is read as bytes and not changed; no lease is
    valid in the new one, which has the permissions of the old one.

    Raises: NotFound, NotAStore, Corrupt (nothing is left), Unsupported (it is in use), Full (the
    disk of `target`), DiskFailed, NoPermission, ReadOnly.
    """
    old, new = files.absolute(source), files.absolute(target)
    with translating(old):
        if not files.is_store(old):
            raise errors.NotFound(f"there is no store at {old}; check the path")
        if is_open(old):
            raise errors.Unsupported(f"store {old} is open in this process; close it first")
        if is_used(old):
            raise errors.Unsupported(f"store {old} is in use; end its users first")
        file = files.open_regular(os.path.join(old, files.DATA), os.O_RDONLY)
    try:
        with translating(new):
            if files.is_store(new):
                raise errors.NotAStore(f"{new} exists; choose a new path for what is salvaged")
        with building(new, source=old) as place:
            with translating(old):
                before, chosen = _state_of(file), _choose(file)
            outcome = _Salvage(*chosen, place).run()
            with translating(old):
                if _state_of(file) != before:  # by a process whose locks do not reach here
                    raise errors.Unsupported(
                        f"store {old} was changed while it was read; end its users first"
                    )
        return outcome
    finally:
        os.close(file)


def _state_of(file: int) -> tuple[object, ...]:
    """Some properties of a data file, of which any commit changes one."""
    status = os.fstat(file)
    return status.st_size, status.st_mtime_ns, meta_pages(os.pread(file, META_BYTES, 0))


def _choose(file: int) -> tuple[Snapshot, Snapshot | None]:
    """The state to go on from: of those that can be read a sound one, then a late one. If that is
    not the latest, also the latest, whose pages are to be searched for newer messages.

    Raises: Corrupt.
    """
    found = snapshots(file)
    if not found:
        raise errors.Corrupt("both of its meta pages are damaged, nothing can be found")
    wrong = [each.check() for each in found]
    damaged = [bool(each) for each in wrong]
    lost = [META_KEY not in _state(each) for each in snapshots(file)]
    best = min(range(len(found)), key=lambda at: (lost[at], damaged[at], at))
    searched = lost[best] or best > 0 or len(found) < 2
    snapshot = snapshots(file)[best]
    snapshot.findings = [each for each in wrong[best] if "free pages" in each]  # not walked again
    return snapshot, snapshots(file)[0] if searched else None


def _state(snapshot: Snapshot) -> dict[bytes, bytes]:
    tree = snapshot.databases().get(b"state")
    return {} if tree is None else dict(snapshot.items(b"state", tree))


class _Salvage:
    """The way from a snapshot to a store that is being built in `place`."""

    engine: Engine
    rowless: bool  # no tree leads to the row of the store

    def __init__(self, snapshot: Snapshot, searched: Snapshot | None, place: str) -> None:
        self.snapshot = snapshot
        self.searched = searched
        self.place = place
        self.findings = snapshot.findings
        self.databases = snapshot.databases()
        self.state = dict(self._items(b"state"))
        self.logs = {name: self._items(name) for name in self.databases if name[:3] == b"log"}
        self.topics: dict[int, TopicRow] = {}
        self.groups: dict[int, GroupRow] = {}
        self.deleted = {(key[1], U32.unpack(key[2:])[0]) for key, _ in self._state_rows(b"X", 6)}
        self.broken: set[int] = set()  # groups
        self.lost: dict[int, int] = {}  # messages, by topic
        self.floors: dict[tuple[int, int], int] = {}  # by topic and lane, the first one needed
        self.ends: dict[tuple[int, int], int] = {}  # the same, how far it is copied
        self.holes = Holes()

    def run(self) -> Salvaged:
        self.rowless = META_KEY not in self.state
        if self.rowless:
            self._take_rows()
        self._read_topics()
        self._read_groups()
        self._create()
        self.engine = Engine(
            self.place, files.identity_of(self.place), readonly=False, clock=Clock()
        )
        try:
            self.engine.open(time.monotonic() + limits.BUSY_SECONDS)
            for name in sorted(self.logs):
                self._put_all(self._log_rows(self.logs[name]))
            if self.searched is not None:
                self._put_all(self._log_rows(self._newer_segments(self.searched)))
            if self.rowless and not self.ends:
                raise errors.Corrupt("no message of diskq is in it")
            self._put_all(self._rest_of_logs())
            self._put_all(self._group_rows())
            self._put_all(self._topic_rows())
            self.engine.commit(self._write_heads)
            restarted = self.engine.commit(self._restart_groups)
            self.findings += map("\t".join, verify.check_store(self.engine))
            return Salvaged(self._report(restarted), self.findings)
        finally:
            self.engine.close()

    # What there is

    def _items(self, name: bytes) -> Iterator[tuple[bytes, bytes]]:
        tree = self.databases.get(name)
        return iter(()) if tree is None else self.snapshot.items(name, tree)

    def _take_rows(self) -> None:
        """No tree leads to the rows of the store: take the latest ones of topics, and the names of
        groups, from whatever page they are on."""
        self.findings.append("no tree leads to the rows of the store: all its pages were searched")
        for key, value in self.searched.scan() if self.searched else ():
            if len(key) == ID_KEY.size:
                with suppress(*_WRONG):
                    if key[:1] == b"T":
                        rows = self.state.get(key, value), value
                        self.state[key] = max(rows, key=lambda data: TopicRow(data).last_put_ns)
                    elif key[:1] == b"G":
                        self.state[key] = value
                        self.broken.add(ID_KEY.unpack(key)[1])
            elif len(key) == GAP_KEY.size and key[:1] == b"O":
                self.state[key] = max(self.state.get(key, value), value)  # a gap only grows

    def _newer_segments(self, searched: Snapshot) -> Iterator[tuple[bytes, bytes]]:
        """All that any page has of the messages behind those that were copied. All in memory."""
        self.findings.append(
            "the latest commit may be lost: all pages were searched for newer messages, and how"
            " many more there were is not known"
        )
        found: dict[bytes, bytes] = {}
        for key, value in searched.scan():
            with suppress(*_WRONG):
                segment = Segment(key, value)
                place = LOG_KEY.unpack(key)[0], segment.first >> LANE_BITS
                row = self.topics.get(place[0])
                known = row.offset(place[1]) if row and place[1] < len(row.next) else 0
                end = self.ends.get(place, 0 if self.rowless else known)
                if segment.first >= self.holes.past(place[0], end):
                    found[key] = value
        yield from sorted(found.items())

    def _state_rows(self, kind: bytes, size: int) -> Iterator[tuple[bytes, bytes]]:
        for key, value in self.state.items():
            if key[:1] == kind and len(key) == size:
                yield key, value

    def _read_topics(self) -> None:
        names: set[str] = set()
        for key, value in self._state_rows(b"T", ID_KEY.size):
            with self._noting("a topic"):
                row = TopicRow(value)
                config = decode_topic(row.config)
                if len(row.next) != config.settings.priorities or config.name in names:
                    raise ValueError(f"the row of {config.name!r} does not add up")
                names.add(check.name("topic", config.name))
                self.topics[ID_KEY.unpack(key)[1]] = row
        self._miss(b"N", 1, self.topics)
        for key, value in sorted(self._state_rows(b"O", GAP_KEY.size)):
            with self._noting("a log"):
                self.holes.add(key, value)

    def _read_groups(self) -> None:
        """The groups, and in each lane how far back one of them still needs messages."""
        for key, value in self._state_rows(b"G", ID_KEY.size):
            with self._noting("a group"):
                row = GroupRow(value)
                config = decode_group(row.config)
                check.name("group", config.name)
                if config.topic_id in self.topics:
                    self.groups[ID_KEY.unpack(key)[1]] = row
        self._miss(b"H", ID_KEY.size, self.groups)
        for key, value in self._state_rows(b"L", TIME_KEY.size):
            with self._noting("a lease"):
                lease = decode_lease(key, value)
                if not lease.flags & HELD:
                    self._need(ID_KEY.unpack_from(key)[1], lease.next_unsettled)
        for group_id, group in self.groups.items():
            for offset in group.offsets:
                self._need(group_id, offset)

    def _miss(self, kind: bytes, name_at: int, there: Container[int]) -> None:
        """Note the names whose topics or groups are not there."""
        for key, value in self.state.items():
            name = key[name_at:].decode(errors="replace")
            with self._noting(f"the name {name!r}"):
                if key[:1] == kind and U32.unpack(value)[0] not in there:
                    raise LookupError("its row is lost")

    def _need(self, group_id: int, offset: int) -> None:
        if group_id in self.groups:
            topic_id = decode_group(self.groups[group_id].config).topic_id
            place = topic_id, offset >> LANE_BITS
            self.floors[place] = min(offset, self.floors.get(place, offset))

    @contextmanager
    def _noting(self, where: str) -> Iterator[None]:
        try:
            yield
        except _WRONG as error:
            self.findings.append(f"{where}: {error}")

    # The log

    def _log_rows(self, items: Iterator[tuple[bytes, bytes]]) -> Iterator[Put]:
        """The sound segments of a log, and purged messages in place of the others."""
        for key, value in items:
            try:
                segment = Segment(key, value)
            except _WRONG as error:
                self.findings.append(str(error))
                continue
            topic_id, first = LOG_KEY.unpack(key)
            if (DELETED_TOPIC, topic_id) in self.deleted:
                continue
            row = self._topic(topic_id)
            place = topic_id, first >> LANE_BITS
            row.next += [0] * (place[1] + 1 - len(row.next))
            end = self.ends.get(place, min(first, self.floors.get(place, first)))
            if end > first:
                self.findings.append(f"two segments have offset {first} of topic {topic_id}")
                continue
            yield from self._missing(topic_id, end, first, segment.put_at_ns)
            kept, lost = hollow_segment(key, value, segment)
            yield self._placed(topic_id, key, kept, segment.count, segment.put_at_ns)
            self.findings += lost
            self.lost[topic_id] += len(lost)

    def _rest_of_logs(self) -> Iterator[Put]:
        """The gap between the last messages found and the end of each lane."""
        for topic_id, row in self.topics.items():
            for lane in range(len(row.next)):
                place = topic_id, lane
                end = self.ends.get(place, self.floors.get(place, row.offset(lane)))
                lost = self.holes.lost(topic_id, end, row.offset(lane))
                if end > row.offset(lane) or lost > _MAX_LOST:
                    row.next[lane] = end - (lane << LANE_BITS)
                yield from self._missing(topic_id, end, row.offset(lane), row.last_put_ns)

    def _topic(self, topic_id: int) -> TopicRow:
        """The topic's row, its counters to be counted anew; one of its own if it is lost."""
        if topic_id not in self.topics:
            name = f"salvaged-{topic_id}"
            self.topics[topic_id] = TopicRow(new_topic(name, TopicSettings()))
        row = self.topics[topic_id]
        if topic_id not in self.lost:
            self.lost[topic_id] = row.stored = row.segments = row.bytes = row.scheduled = 0
            row.gaps = 0
        return row

    def _missing(self, topic_id: int, first: int, stop: int, put_at_ns: int) -> Iterator[Put]:
        """The rows of gaps between two offsets, and purged messages in place of what is lost there;
        too many would make a gap, too. Before all that is stored there are no gaps."""
        place, gap = (topic_id, first >> LANE_BITS), -1
        for hole in self.holes.between(topic_id, first, stop):
            if hole.lost and hole.stop - hole.first <= _MAX_LOST:
                yield from self._purged(topic_id, hole.first, hole.stop, put_at_ns)
                gap = -1
            elif place in self.ends:
                self.lost[topic_id] += hole.stop - hole.first if hole.lost else 0
                self.topics[topic_id].gaps += gap < 0
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
        row, first = self._topic(topic_id), LOG_KEY.unpack(key)[1]
        self.ends[topic_id, first >> LANE_BITS] = first + count
        row.stored += count
        row.segments += 1
        row.bytes += len(value)
        row.last_put_ns = max(row.last_put_ns, put_at_ns)
        return self.engine.log(topic_id), key, value

    # The other rows

    def _group_rows(self) -> Iterator[Put]:
        """Leases, due times, keys and held messages of the groups that are there."""
        for kind, size in (
            (b"L", TIME_KEY.size),
            (b"D", TIME_KEY.size),
            (b"K", KEY_KEY.size),
        ):
            for key, value in self._state_rows(kind, size):
                if ID_KEY.unpack_from(key)[1] in self.groups:
                    yield self.engine.state, key, value
        for key, value in self._items(b"held"):
            with self._noting("held messages"):
                kept, lost = hollow_held(key, value)
                if U32.unpack_from(key)[0] in self.groups:
                    self.findings += lost
                    yield self.engine.held, key, kept

    def _topic_rows(self) -> Iterator[Put]:
        """Scheduled messages and receipts of the topics that are there."""
        for key, value in self._items(b"schedule"):
            with self._noting("scheduled messages"):
                message, topic_id = sound_scheduled(key, value), U32.unpack_from(key)[0]
                if topic_id in self.topics:
                    row = self._topic(topic_id)
                    row.next[message.lane]
                    row.scheduled += 1
                    row.numbered = max(row.numbered, message.number + 1)
                    yield self.engine.schedule, key, value
        for key, value in self._items(b"dedup"):
            with self._noting("receipts of dedup_ids"):
                dedup.decode(value)
                if unpacked(DEDUP_KEY, key)[0] in self.topics:
                    yield self.engine.dedup, key, value

    # The new store

    def _create(self) -> None:
        """An empty store, like the old one, whose tokens go on behind those of the old one."""
        meta = Meta(new_meta("commit", 0, os.urandom(16), COPY, Clock.wall_ns()))
        with self._noting("the row of the store"):
            old = Meta(self.state[META_KEY])
            if old.format_version == FORMAT_VERSION and old.durability < 3:
                meta = old
        meta.boot_id = COPY
        meta.commit_base = later(meta.commit_base + self.snapshot.txn_id, COPIED)
        create_in(self.place, meta.pack())

    def _put_all(self, puts: Iterator[Put]) -> None:
        """Write rows, in commits of bounded size."""
        while batch := list(_some(puts)):
            self.engine.commit(partial(_put_batch, batch=batch))

    def _write_heads(self, tx: Tx) -> None:
        """The rows of topics and groups, their names, and the ids to go on with."""
        meta = catalog.load_meta(tx)
        for topic_id, row in self.topics.items():
            self._topic(topic_id)
            config = decode_topic(row.config)
            ids = [at for at, group in self.groups.items() if self._topic_of(group) == topic_id]
            settings = config.settings._replace(priorities=len(row.next))
            row.config = config._replace(settings=settings, groups=tuple(ids)).encode()
            log.store(tx, topic_id, row)
            tx.put(b"N" + config.name.encode(), U32.pack(topic_id))
            meta.next_topic = max(meta.next_topic, topic_id + 1)
        for group_id, group in self.groups.items():
            name = decode_group(group.config).name
            topic_id = self._topic_of(group)
            group.ahead = gaps.ahead(tx, topic_id, self.topics[topic_id], group.offsets)
            tx.put(ID_KEY.pack(b"G", group_id), group.encode())
            tx.put(catalog.group_name(topic_id, name), U32.pack(group_id))
            meta.next_group = max(meta.next_group, group_id + 1)
        catalog.store_meta(tx, meta)

    @staticmethod
    def _topic_of(group: GroupRow) -> int:
        return decode_group(group.config).topic_id

    def _restart_groups(self, tx: Tx) -> dict[int, list[str]]:
        """Let the groups whose rows do not add up start again; their names, by topic."""
        restarted: dict[int, list[str]] = {}
        for group_id, group in self.groups.items():
            topic_id, name = decode_group(group.config)[:2]
            source, topic = Log(tx, topic_id), self.topics[topic_id]
            broken = group_id in self.broken
            findings = check_group(source, f"group {name}", group_id, topic, group)
            wrong = list(islice(findings, 3))
            if broken or wrong:
                self.findings += map("\t".join, wrong)
                restart_group(source, topic, group_id, group)
                restarted.setdefault(topic_id, []).append(name)
        return restarted

    def _report(self, restarted: dict[int, list[str]]) -> list[SalvagedTopic]:
        return [
            SalvagedTopic(
                decode_topic(row.config).name,
                row.stored - self.lost[topic_id],
                self.lost[topic_id],
                row.scheduled,
                tuple(restarted.get(topic_id, ())),
            )
            for topic_id, row in self.topics.items()
        ]


def _some(puts: Iterator[Put]) -> Iterator[Put]:
    size = 0
    for put in puts:
        yield put
        size += len(put[2])
        if size > _BATCH_BYTES:
            return


def _put_batch(tx: Tx, batch: list[Put]) -> None:
    for database, key, value in batch:
        tx.lmdb.put(key, value, db=database)
