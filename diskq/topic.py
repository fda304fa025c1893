"""Topic: a named append-only log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from . import admin, check, log, stats
from .admin import Start
from .codec import LANE, Packed, decode_record, pack_messages
from .engine import Tx
from .errors import NotFound
from .group import Group
from .log import Log, Stored, cut
from .model import Backoff, LogMessage, Outgoing, Receipt, Receipts, TopicStats

if TYPE_CHECKING:
    from .store import Store


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
        first, commit_id = self._append(pack_messages([check.message(message)]))
        return Receipt(first, commit_id)

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
        count = sum(run.count for run in packed)

        def operation(tx: Tx) -> tuple[int, int]:
            row = log.load(tx, self.id, self.name)
            tx.engine.need_room(tx, size)
            first = Log(tx, database, self.id).append(row, packed)
            log.store(tx, self.id, row)
            log.wake_groups(tx, row, count)
            return first, tx.commit_id

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

        `start`: where a new group begins: "earliest" stored message, "latest" (only what comes), an
        offset, or a datetime. `lease_seconds` (30): how long a consumer may handle a message.
        `max_deliveries` (5): failed deliveries until a message is dead. `backoff`
        (Backoff(1, 2, 300)): how long a failed message waits. `max_in_flight` (no bound): messages
        leased at once.

        Raises: ConfigConflict if the group has other settings, NotFound, ReadOnly, Closed.
        """
        check.name("group", name)
        engine = self.store.engine
        given = {
            "lease_seconds": lease_seconds,
            "max_deliveries": max_deliveries,
            "backoff": backoff,
            "max_in_flight": max_in_flight,
        }
        if engine.readonly:
            return self._existing_group(name)
        database = engine.log(self.id)

        def operation(tx: Tx) -> int:
            source = Log(tx, database, self.id)
            return admin.make_group(tx, source, self.name, name, start, **given)

        return Group(self, name, self.store.commit(operation))

    def _existing_group(self, name: str) -> Group:
        for group in self.groups():
            if group.name == name:
                return group
        raise NotFound(f"topic {self.name!r} has no group {name!r}", topic=self.name, group=name)

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
        at = check.count("start", start, 0, 2**56)
        end = 2**56 if stop is None else check.count("stop", stop, 0, 2**56)
        left = 2**56 if limit is None else check.count("limit", limit, 0, 2**56)
        while left and (found := self.store.engine.read(lambda tx: self._page(tx, at, end))):  # noqa: B023
            for offset, record, flags, put_at_ns in found[:left]:
                body, key, headers, _ = decode_record(record, flags)
                yield LogMessage(offset, body, key, headers, put_at_ns)
            left = max(left - len(found), 0)
            at = found[-1].offset + 1

    def _page(self, tx: Tx, start: int, stop: int) -> list[Stored]:
        stop = min(stop, log.load(tx, self.id, self.name).next[LANE])
        source = Log(tx, self.store.engine.log(self.id), self.id)
        segment = next(source.segments(start), None) if start < stop else None
        return cut(segment, start, stop) if segment else []

    def stats(self) -> TopicStats:
        """The topic and its groups in numbers, from one snapshot; the same cost with any backlog.

        Raises: NotFound, Closed.
        """

        def snapshot(tx: Tx) -> TopicStats:
            log.load(tx, self.id, self.name)
            return stats.topic_stats(tx, self.id)

        return self.store.engine.read(snapshot)

    def __repr__(self) -> str:
        return f"<Topic {self.name}>"
