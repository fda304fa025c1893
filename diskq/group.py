"""Group: an independent reader of a topic, with its own position, leases and dead letters."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Unpack

from . import admin, check, held, leases, limits, log, retention, stats
from .codec import DEAD, HeldRow, decode_group
from .consumer import Consumer
from .engine import Tx
from .log import Log
from .model import DeadLetter, GroupSettings, GroupStats, PendingMessage
from .segment import decode_record
from .settle import Place, Settling

if TYPE_CHECKING:
    from .admin import Start
    from .model import GroupChanges
    from .topic import Topic

_PAGE = 100  # dead letters fetched per read transaction


class Group:
    """An independent reader of a topic; made by `Topic.group`. Consumers of one group share its
    messages, each message going to one of them. Safe across threads, and usable after a fork."""

    def __init__(self, topic: Topic, name: str, group_id: int) -> None:
        self.topic = topic
        self.name = name
        self.id = group_id
        self._place = Place(topic.id, topic.name, group_id, name, None)

    def consumer(
        self, name: str | None = None, *, prefetch: int = 1, heartbeat: bool = False
    ) -> Consumer:
        """A new member of the group. `name` appears in `info` and in the history of messages; by
        default it is made of the process id. `prefetch` (1, at most 10,000): messages leased in one
        commit when one is wanted. `heartbeat`: a thread extends the leases of its messages for as
        long as the process lives.

        Raises: Unsupported if 1024 consumers of the store are alive, ReadOnly, Closed.
        """
        self.topic.store.check_writable()
        if name is None:
            name = f"pid-{os.getpid()}"
        check.name("consumer", name)
        check.count("prefetch", prefetch, 1, limits.MAX_GET_MESSAGES)
        if not isinstance(heartbeat, bool):
            raise TypeError(f"heartbeat must be bool, not {type(heartbeat).__name__}")
        consumer = Consumer(self, name, prefetch, heartbeat)
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
        group = Settling(tx, self._place)
        for offset in offsets:
            group.redrive(offset)
        group.store()
        return len(offsets)

    def forget_dead(self, offsets: Sequence[int]) -> None:
        """Remove these dead letters for good (at most 1,000).

        Raises: NotFound if one of them is not dead; then none is removed.
        """
        if len(offsets) > limits.MAX_REDRIVE_MESSAGES:
            raise ValueError(f"at most {limits.MAX_REDRIVE_MESSAGES} dead letters at once")
        chosen = [check.count("offset", offset, 0, 2**64 - 1) for offset in offsets]

        def forget(tx: Tx) -> None:
            group = Settling(tx, self._place)
            for offset in chosen:
                group.forget_dead(offset)
            group.store()

        self.topic.store.commit(forget)

    def seek(self, to: Start) -> None:
        """Let the group go on at "earliest", "latest", an offset, or the first message put at a
        datetime or later, whatever it did with those messages before. Whoever has a message leased
        loses it; what waits or is parked is forgotten, and so are dead letters from there on. One
        commit, which is long if very much waits.

        Raises: NotFound, ReadOnly, Closed, TypeError, ValueError.
        """
        from . import changes  # rarely needed, and a cron job pays for each import

        place = self.place()

        def operation(tx: Tx) -> None:
            group = Settling(tx, place)
            changes.seek(group, admin.positions(group.log, group.topic, to, "to"))
            group.store()
            retention.trim(Log(tx, place.database, place.topic_id), place.topic)

        self.topic.store.commit(operation)

    def fork(self, name: str) -> Group:
        """A new group that is where this one is, with the same settings: it has the cursor, and a
        copy of what waits, is parked or is dead. What is leased here is ready there. From then on
        they are independent.

        Raises: ConfigConflict if the name is in use, NotFound, ReadOnly, Closed.
        """
        from . import changes  # rarely needed, and a cron job pays for each import

        check.name("group", name)
        place = self.place()

        def operation(tx: Tx) -> int:
            return changes.fork_group(tx, Log(tx, place.database, place.topic_id), place, name)

        return Group(self.topic, name, self.topic.store.commit(operation))

    def pause(self) -> None:
        """Deliver nothing until `resume`; what is leased can be settled."""
        from . import changes  # rarely needed, and a cron job pays for each import

        self.topic.store.commit(lambda tx: changes.set_paused(tx, self._place, True))

    def resume(self) -> None:
        """Deliver again."""
        from . import changes  # rarely needed, and a cron job pays for each import

        self.topic.store.commit(lambda tx: changes.set_paused(tx, self._place, False))

    def update(self, **settings: Unpack[GroupChanges]) -> GroupSettings:
        """Change settings, for what is delivered from now on; None takes `max_in_flight` away.
        Returns all settings. `ordering` cannot change.

        Raises: ConfigConflict, NotFound, ReadOnly, TypeError, ValueError.
        """
        from . import changes  # rarely needed, and a cron job pays for each import

        return self.topic.store.commit(lambda tx: changes.update_group(tx, self._place, settings))

    def pending(self) -> list[PendingMessage]:
        """The leased messages, by the end of their leases, from one snapshot."""

        def snapshot(tx: Tx) -> list[PendingMessage]:
            return list(stats.pending(tx, self.id, self.name))

        return self.topic.store.engine.read(snapshot)

    def delete(self) -> None:
        """Remove the group with its position, waiting messages and dead letters. Its consumers get
        NotFound from now on; what only this group still needed leaves the log.

        Raises: NotFound.
        """
        from . import changes  # rarely needed, and a cron job pays for each import

        self.topic.store.check_writable()
        changes.delete_group(self.topic.store.engine, self.place())

    def place(self) -> Place:
        """The group and its topic's log, as transactions address them."""
        return self._place._replace(database=self.topic.store.engine.log(self.topic.id))

    def __repr__(self) -> str:
        return f"<Group {self.topic.name}/{self.name}>"


def _dead_letter(offset: int, row: HeldRow) -> DeadLetter:
    body, key, headers, _ = decode_record(row.record, row.flags)
    last = next(failure for failure in reversed(row.history) if failure.cause != "redriven")
    reason = {"reject": "rejected", "ttl": "expired"}.get(last.cause, "max_deliveries")
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
