"""Rows of a damaged store, as far as they can be read. For salvage; imported on demand."""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress

from ..base import check, errors
from ..base.model import LANE_BITS
from ..format.layout import (
    GAP_KEY,
    HELD,
    ID_KEY,
    META_KEY,
    TIME_KEY,
    U32,
)
from ..format.lease_row import decode_lease
from ..format.lmdb_pages import Snapshot
from ..format.rows import GroupRow, TopicRow, decode_group, decode_topic
from .holes import Holes

DAMAGE = (errors.DiskqError, ValueError, LookupError, TypeError, struct.error)


class Remains:
    """The rows of a damaged store that can be read, and everything that is wrong with others."""

    def __init__(self, snapshot: Snapshot, searched: Snapshot | None) -> None:
        self.snapshot = snapshot
        self.searched = searched
        self.findings = snapshot.findings
        self.databases = snapshot.databases()
        self.state = dict(self.items(b"state"))
        self.logs = {name: self.items(name) for name in self.databases if name[:3] == b"log"}
        self.topics: dict[int, TopicRow] = {}
        self.groups: dict[int, GroupRow] = {}
        self.deleted = {(key[1], U32.unpack(key[2:])[0]) for key, _ in self.state_rows(b"X", 6)}
        self.broken: set[int] = set()  # groups
        self.floors: dict[tuple[int, int], int] = {}  # by topic and lane, the first one needed
        self.holes = Holes()
        self.rowless = META_KEY not in self.state  # no tree leads to the row of the store
        if self.rowless:
            self._take_rows()
        self._read_topics()
        self._read_groups()

    def items(self, name: bytes) -> Iterator[tuple[bytes, bytes]]:
        tree = self.databases.get(name)
        return iter(()) if tree is None else self.snapshot.items(name, tree)

    def _take_rows(self) -> None:
        """No tree leads to the rows of the store: take the latest ones of topics, and the names of
        groups, from whatever page they are on."""
        self.findings.append("no tree leads to the rows of the store: all its pages were searched")
        for key, value in self.searched.scan() if self.searched else ():
            if len(key) == ID_KEY.size:
                with suppress(*DAMAGE):
                    if key[:1] == b"T":
                        rows = self.state.get(key, value), value
                        self.state[key] = max(rows, key=lambda data: TopicRow(data).last_put_ns)
                    elif key[:1] == b"G":
                        self.state[key] = value
                        self.broken.add(ID_KEY.unpack(key)[1])
            elif len(key) == GAP_KEY.size and key[:1] == b"O":
                self.state[key] = max(self.state.get(key, value), value)  # a gap only grows

    def state_rows(self, kind: bytes, size: int) -> Iterator[tuple[bytes, bytes]]:
        for key, value in self.state.items():
            if key[:1] == kind and len(key) == size:
                yield key, value

    def _read_topics(self) -> None:
        names: set[str] = set()
        for key, value in self.state_rows(b"T", ID_KEY.size):
            with self.noting("a topic"):
                row = TopicRow(value)
                config = decode_topic(row.config)
                if len(row.next) != config.settings.priorities or config.name in names:
                    raise ValueError(f"the row of {config.name!r} does not add up")
                names.add(check.name("topic", config.name))
                self.topics[ID_KEY.unpack(key)[1]] = row
        self._miss(b"N", 1, self.topics)
        for key, value in sorted(self.state_rows(b"O", GAP_KEY.size)):
            with self.noting("a log"):
                self.holes.add(key, value)

    def _read_groups(self) -> None:
        """The groups, and in each lane how far back one of them still needs messages."""
        for key, value in self.state_rows(b"G", ID_KEY.size):
            with self.noting("a group"):
                row = GroupRow(value)
                config = decode_group(row.config)
                check.name("group", config.name)
                if config.topic_id in self.topics:
                    self.groups[ID_KEY.unpack(key)[1]] = row
        self._miss(b"H", ID_KEY.size, self.groups)
        for key, value in self.state_rows(b"L", TIME_KEY.size):
            with self.noting("a lease"):
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
            with self.noting(f"the name {name!r}"):
                if key[:1] == kind and U32.unpack(value)[0] not in there:
                    raise LookupError("its row is lost")

    def _need(self, group_id: int, offset: int) -> None:
        if group_id in self.groups:
            topic_id = decode_group(self.groups[group_id].config).topic_id
            place = topic_id, offset >> LANE_BITS
            self.floors[place] = min(offset, self.floors.get(place, offset))

    @contextmanager
    def noting(self, where: str) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            self.findings.append(f"{where}: {error}")
