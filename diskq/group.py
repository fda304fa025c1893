"""Group: an independent reader of a topic, with its own position, leases and dead letters."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from . import admin, check, held, leases, limits, log, stats
from .codec import DEAD, HeldRow, decode_group
from .consumer import Consumer
from .delivery import Place
from .engine import Tx
from .model import DeadLetter, GroupSettings, GroupStats
from .segment import decode_record

if TYPE_CHECKING:
    from .topic import Topic

_PAGE = 100  # dead letters fetched per read transaction


class Group:
    """An independent reader of a topic; made by `Topic.group`. Consumers of one group share its
    messages, each message going to one of them. Safe across threads, and usable after a fork."""

    def __init__(self, topic: Topic, name: str, group_id: int) -> None:
        self.topic = topic
        self.name = name
        self.id = group_id

    def consumer(self, name: str | None = None) -> Consumer:
        """A new member of the group. `name` appears in `info` and in the history of messages; by
        default it is made of the process id.

        Raises: Unsupported if 1024 consumers of the store are alive, ReadOnly, Closed.
        """
        self.topic.store.check_writable()
        if name is None:
            name = f"pid-{os.getpid()}"
        consumer = Consumer(self, check.name("consumer", name))
        self.topic.store.adopt(consumer)
        return consumer

    @property
    def settings(self) -> GroupSettings:
        """The stored settings."""
        row = self.topic.store.engine.read(lambda tx: leases.load(tx, self.id, self.name))
        return decode_group(row.config).settings

    def stats(self) -> GroupStats:
        """The group in numbers, from one snapshot; the same cost with any backlog."""

        def snapshot(tx: Tx) -> GroupStats:
            topic = log.load(tx, self.topic.id, self.topic.name)
            return stats.group_stats(tx, topic, self.id, self.name)

        return self.topic.store.engine.read(snapshot)

    def dead(self, start: int = 0) -> Iterator[DeadLetter]:
        """The dead letters with offset `start` and above, by offset. Messages that die or are
        redriven meanwhile may or may not appear."""

        def page(tx: Tx) -> list[tuple[int, HeldRow]]:
            leases.load(tx, self.id, self.name)
            return list(islice(held.rows(tx, self.id, DEAD, start), _PAGE))

        while found := self.topic.store.engine.read(page):
            for offset, row in found:
                yield _dead_letter(offset, row)
            start = found[-1][0] + 1

    def redrive(self, limit: int | None = None, offsets: Sequence[int] | None = None) -> int:
        """Give dead letters back to this group, to be delivered at once with all deliveries anew:
        the first `limit` by offset, those at `offsets` (at most 1,000), or all. Returns how many.

        Raises: NotFound if one of `offsets` is not dead; then none is given back.
        """
        if offsets is not None:
            if limit is not None or len(offsets) > limits.MAX_REDRIVE_MESSAGES:
                most = limits.MAX_REDRIVE_MESSAGES
                raise ValueError(f"redrive takes a limit, or at most {most} offsets, not both")
            chosen = [check.count("offset", offset, 0, 2**64 - 1) for offset in offsets]
            return self.topic.store.commit(lambda tx: self._revive(tx, chosen))
        left = self.stats().dead
        if limit is not None:
            left = min(left, check.count("limit", limit, 0, 2**63))
        count = 0
        while count < left and (done := self._redrive_some(left - count)):
            count += done
        return count

    def _redrive_some(self, limit: int) -> int:
        bound = min(limit, limits.MAX_REDRIVE_MESSAGES)

        def operation(tx: Tx) -> int:
            first = islice(held.rows(tx, self.id, DEAD), bound)
            return self._revive(tx, [offset for offset, _ in first])

        return self.topic.store.commit(operation)

    def _revive(self, tx: Tx, offsets: Sequence[int]) -> int:
        row = leases.load(tx, self.id, self.name)
        for offset in offsets:
            held.revive(tx, self.id, row, offset, tx.engine.clock.wall_ns())
        leases.store(tx, self.id, row)
        if offsets:
            tx.wake(self.id, len(offsets))
        return len(offsets)

    def delete(self) -> None:
        """Remove the group with its position, waiting messages and dead letters. Its consumers get
        NotFound from now on; what only this group still needed leaves the log.

        Raises: NotFound.
        """
        self.topic.store.check_writable()
        admin.delete_group(self.topic.store.engine, self.place())

    def place(self) -> Place:
        """The group as transactions address it."""
        database = self.topic.store.engine.log(self.topic.id)
        return Place(self.topic.id, self.topic.name, self.id, self.name, database)

    def __repr__(self) -> str:
        return f"<Group {self.topic.name}/{self.name}>"


def _dead_letter(offset: int, row: HeldRow) -> DeadLetter:
    body, key, headers, _ = decode_record(row.record, row.flags)
    last = next(failure for failure in reversed(row.history) if failure.cause != "redriven")
    reason = "rejected" if last.cause == "reject" else "max_deliveries"
    return DeadLetter(
        offset=offset,
        body=body,
        key=key,
        headers=headers,
        put_at_ns=row.put_at_ns,
        dead_at_ns=row.due_ns,
        reason=reason,
        error=last.error,
        failures=row.failures,
        history=row.history,
    )
