"""Group: an independent reader of a topic, with its own position, leases and dead letters."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from . import admin, check, held, leases, limits, log, stats
from .codec import DEAD, GroupRow, HeldRow, decode_group, decode_record
from .consumer import Consumer
from .delivery import Place
from .engine import Tx
from .model import DeadLetter, GroupSettings, GroupStats

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
        if name is None:
            name = f"pid-{os.getpid()}"
        consumer = Consumer(self, check.name("consumer", name))
        self.topic.store.adopt(consumer)
        return consumer

    @property
    def settings(self) -> GroupSettings:
        """The stored settings."""
        return self.topic.store.engine.read(lambda tx: decode_group(self._row(tx).config).settings)

    def stats(self) -> GroupStats:
        """The group in numbers, from one snapshot; the same cost with any backlog."""

        def snapshot(tx: Tx) -> GroupStats:
            self._row(tx)
            return stats.group_stats(tx, log.load(tx, self.topic.id, self.topic.name), self.id)

        return self.topic.store.engine.read(snapshot)

    def dead(self, start: int = 0) -> Iterator[DeadLetter]:
        """The dead letters with offset `start` and above, by offset. Messages that die or are
        redriven meanwhile may or may not appear."""
        engine = self.topic.store.engine

        def page(tx: Tx) -> list[tuple[int, HeldRow]]:
            self._row(tx)
            rows = held.rows(tx, self.id, DEAD, start)
            return [row for row, _ in zip(rows, range(_PAGE), strict=False)]

        while found := engine.read(page):
            for offset, row in found:
                yield _dead_letter(offset, row)
            start = found[-1][0] + 1

    def redrive(self, limit: int | None = None, offsets: Sequence[int] | None = None) -> int:
        """Give dead letters back to this group, to be delivered at once with all deliveries anew:
        the first `limit` by offset, those at `offsets`, or all. Returns how many.

        Raises: NotFound if one of `offsets` is not dead; then none is given back.
        """
        engine = self.topic.store.engine
        if offsets is not None:
            chosen = [check.count("offset", offset, 0, 2**64 - 1) for offset in offsets]
            return self.topic.store.commit(lambda tx: self._revive(tx, chosen))
        left = self.stats().dead
        if limit is not None:
            left = min(left, check.count("limit", limit, 0, 2**63))
        count = 0
        while left and (
            done := self.topic.store.commit(lambda tx: self._revive(tx, self._first_dead(tx, left)))  # noqa: B023
        ):
            count += done
            left -= done
        return count

    def delete(self) -> None:
        """Remove the group with its position, waiting messages and dead letters. Its consumers get
        NotFound from now on; what only this group still needed leaves the log.

        Raises: NotFound.
        """
        admin.delete_group(self.topic.store, self.place())

    def place(self) -> Place:
        """The group as transactions address it."""
        database = self.topic.store.engine.log(self.topic.id)
        return Place(self.topic.id, self.topic.name, self.id, self.name, database)

    def _row(self, tx: Tx) -> GroupRow:
        return leases.load(tx, self.id, self.name)

    def _first_dead(self, tx: Tx, limit: int) -> list[int]:
        bound = range(min(limit, limits.MAX_REDRIVE_MESSAGES))
        return [row[0] for row, _ in zip(held.rows(tx, self.id, DEAD), bound, strict=False)]

    def _revive(self, tx: Tx, offsets: Sequence[int]) -> int:
        group = self._row(tx)
        now_ns = tx.engine.clock.wall_ns()
        for offset in offsets:
            row = held.find_dead(tx, self.id, offset)
            held.revive(tx, self.id, group, offset, row, now_ns)
        leases.store(tx, self.id, group)
        if offsets:
            tx.wake(self.id, len(offsets))
        return len(offsets)

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
