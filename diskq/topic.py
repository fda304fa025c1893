"""Topic: a named append-only log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from . import admin, check, log, stats
from .admin import Start
from .engine import Tx
from .environment import Database
from .group import Group
from .log import Log, Stored, cut
from .model import Backoff, LogMessage, Outgoing, Receipt, Receipts, TopicStats
from .segment import LANE, Packed, decode_record, pack_messages

if TYPE_CHECKING:
    from .store import Store

_END = 2**56  # behind every offset


class Topic:
    """A named append-only log; made by `Store.topic`. Safe across threads and after a fork."""

    def __init__(self, store: Store, name: str, topic_id: int) -> None:
        self.store = store
        self.name = name
        self.id = topic_id

    def put(
        self, body: bytes, *, key: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Receipt:
        """Append one message, or raise and append nothing. Durable when it returns.

        `key` (at most 1 KiB) and `headers` (at most 64, 64 KiB) travel with the body (16 MiB).

        Raises: Full, MessageTooLarge, TypeError, NotFound (the topic was deleted), Closed.
        """
        message = body if key is None and headers is None else Outgoing(body, key, headers)
        return Receipt(*self._append(pack_messages([check.message(message)])))

    def put_many(self, messages: Iterable[bytes | Outgoing]) -> Receipts:
        """Append messages in one commit, all or none, at consecutive offsets. Durable when it
        returns. At most 100,000 messages and 256 MiB.

        Raises: as `put`.
        """
        found = check.messages(messages)
        if not found:
            return Receipts(0, 0, 0)
        first, commit_id = self._append(pack_messages(found))
        return Receipts(first, len(found), commit_id)

    def _append(self, packed: list[Packed]) -> tuple[int, int]:
        database = self.store.engine.log(self.id)
        size = sum(len(run.content) for run in packed)

        def operation(tx: Tx) -> tuple[int, int]:
            tx.engine.need_room(tx, size)
            row = log.load(tx, self.id, self.name)
            return Log(tx, database, self.id).append(row, packed), tx.commit_id

        return self.store.commit(operation)

    def group(
        self,
        name: str,
        *,
        start: Start = "earliest",
        lease_seconds: float | None = None,
        max_deliveries: int | None = None,
        backoff: Backoff | None = None,
        max_in_flight: int | None = None,
    ) -> Group:
        """The group of this name, made if need be. A setting that is None is what is stored, or
        for a new group the default.

        `start`: where a new group begins: at the "earliest" message stored, the "latest" (only what
        comes), an offset, or a datetime. `lease_seconds` (30): how long a consumer may handle a
        message. `max_deliveries` (5): failed deliveries until a message is dead. `backoff`
        (Backoff(1, 2, 300)): how long a failed message waits. `max_in_flight` (no bound): messages
        leased at once.

        Raises: ConfigConflict if the group has other settings, NotFound, ReadOnly, Closed.
        """
        given: dict[str, object] = {
            "lease_seconds": lease_seconds,
            "max_deliveries": max_deliveries,
            "backoff": backoff,
            "max_in_flight": max_in_flight,
        }
        check.name("group", name)
        engine = self.store.engine
        found = engine.read(lambda tx: admin.find_group(tx, self.id, name, given))
        if found is None:
            database = engine.log(self.id)
            found = self.store.commit(
                lambda tx: admin.make_group(
                    tx, Log(tx, database, self.id), self.name, name, start, given
                )
            )
        return Group(self, name, found)

    def groups(self) -> list[Group]:
        """The topic's groups, by name."""
        found = self.store.engine.read(lambda tx: list(stats.group_ids(tx, self.id)))
        return [Group(self, name, group_id) for name, group_id in found]

    def read(
        self, start: int = 0, stop: int | None = None, *, limit: int | None = None
    ) -> Iterator[LogMessage]:
        """Stored messages from offset `start` to before `stop`, at most `limit`, without taking
        them. What is trimmed meanwhile is left out; each step is a short transaction of its own.

        Raises: Corrupt, NotFound, Closed.
        """
        at = check.count("start", start, 0, _END)
        end = _END if stop is None else check.count("stop", stop, 0, _END)
        left = _END if limit is None else check.count("limit", limit, 0, _END)
        database = self.store.engine.log(self.id)
        while found := self._page(database, at, end)[:left]:
            for offset, record, flags, put_at_ns in found:
                body, key, headers, _ = decode_record(record, flags)
                yield LogMessage(offset, body, key, headers, put_at_ns)
            left -= len(found)
            at = found[-1].offset + 1

    def _page(self, database: Database, start: int, stop: int) -> list[Stored]:
        def page(tx: Tx) -> list[Stored]:
            end = min(stop, log.load(tx, self.id, self.name).next[LANE])
            segment = next(Log(tx, database, self.id).segments(start), None)
            return cut(segment, start, end) if segment else []

        return self.store.engine.read(page)

    def stats(self) -> TopicStats:
        """The topic and its groups in numbers, from one snapshot; the same cost with any backlog.

        Raises: NotFound, Closed.
        """
        return self.store.engine.read(lambda tx: stats.topic_stats(tx, self.id, self.name))

    def __repr__(self) -> str:
        return f"<Topic {self.name}>"
