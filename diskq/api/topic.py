"""Topic: a named append-only log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Unpack

from ..base import check
from ..base.model import LogMessage, Outgoing, Receipt, ScheduledMessage, TopicSettings, TopicStats
from ..base.ondemand import lazy
from ..delivery import making, put
from ..storage.handle import Handle
from ..tables.refs import TopicRef
from .group import Group

if TYPE_CHECKING:
    from datetime import datetime

    from ..base.options import GroupChanges, PutOptions, Start, TopicChanges
    from ..operate import configure, purge, reading, scheduled, stats, trim
    from .store import Store
else:
    purge = lazy("operate.purge")
    reading = lazy("operate.reading")
    scheduled = lazy("operate.scheduled")
    configure = lazy("operate.configure")
    stats = lazy("operate.stats")
    trim = lazy("operate.trim")


class Topic:
    """A named append-only log; made by `Store.topic`. Safe across threads and after a fork."""

    def __init__(self, store: Store, name: str, topic_id: int) -> None:
        self.store = store
        self.name = name
        self.id = topic_id
        self.handle: Handle = store.handle  # for diskq's own use
        self.ref = TopicRef(topic_id, name)

    def put(
        self,
        body: bytes,
        *,
        block: bool = True,
        timeout: float | None = None,
        **options: Unpack[PutOptions],
    ) -> Receipt:
        """Append one message, or raise and append nothing. Durable when it returns.

        `key` (at most 1 KiB) and `headers` (at most 64, 64 KiB) travel with the body (16 MiB).
        `priority` (0, below the topic's `priorities`): higher ones are delivered first.
        `delay_seconds` or `at` (a datetime, local if naive): when it is put; until then it has no
        offset. `ttl_seconds`, from then on: it is not delivered after that. `dedup_id` (1 KiB): if
        one was put with the same within the topic's `dedup_seconds`, this stores nothing and
        returns that one's receipt with `duplicate=True`, even if it was cancelled.

        If the topic is full and discards new messages, wait for room, up to `timeout` seconds,
        None: without end. A full store or disk raises Full at once. `timeout` includes the wait for
        others that write to the store, which ends with Busy; without it that wait is bounded by the
        store's `busy_seconds`, and with `block=False` by 0.1 s.

        Raises: Full, Busy, MessageTooLarge, TypeError, ValueError, NotFound (the topic was
        deleted), StoreMoved, ReadOnly, Closed.
        """
        message = check.message(check.outgoing(body, options) if options else body)
        return self._put([message], block, timeout)[0]

    def put_many(
        self,
        messages: Iterable[bytes | Outgoing],
        *,
        block: bool = True,
        timeout: float | None = None,
    ) -> Sequence[Receipt]:
        """Append messages in one commit, all or none, in order. Durable when it returns. At most
        100,000 messages and 256 MiB. The receipts are in the same order.

        Raises: as `put`.
        """
        found = check.messages(messages)
        return self._put(found, block, timeout) if found else ()

    def _put(
        self, messages: Sequence[bytes | Outgoing], block: bool, timeout: float | None
    ) -> Sequence[Receipt]:
        if timeout is not None or not block:
            timeout = check.timeout(timeout) if block else 0
        return put.put(self.handle, self.ref, put.prepare(messages), timeout)

    # Scheduled messages, trim and purge

    def scheduled(self) -> Iterator[ScheduledMessage]:
        """The messages that have no offset yet, in order of time. Those that are scheduled or fall
        due meanwhile may or may not appear."""
        return scheduled.scheduled(self.handle, self.ref)

    def cancel(self, schedule_id: str) -> None:
        """Forget a scheduled message. Its `dedup_id` stays in use.

        Raises: NotFound if it got its offset already, was cancelled, or never was.
        """
        scheduled.cancel(self.handle, self.ref, schedule_id)

    def trim(self) -> int:
        """Delete the segments of which no group needs a message any more, wherever they stand, what
        is over the topic's bounds, and dedup ids whose window is over; returns how many messages.
        Puts and acks do the same now and then, a bounded part each time.

        Raises: NotFound, ReadOnly, Closed.
        """
        return trim.trim(self.handle, self.ref)

    def purge(self, *, before: Start | None = None, key: str | None = None) -> int:
        """Delete messages, whether groups are done with them or not: all, those `before` an offset
        or datetime, those with a `key`, or both. A consumer that handles one of them loses it,
        except that those with a key may still be acked. Waiting and parked ones go too; dead
        letters stay, and so does what is scheduled, unless all or its key goes. Returns how many
        left the log and the schedule; groups count theirs, of a key only when they get there.

        It takes several commits: if it is cut off, call it again.

        Raises: NotFound, ReadOnly, Closed, TypeError, ValueError.
        """
        return purge.purge(
            self.handle, self.ref, before, None if key is None else check.utf8("key", key)
        )

    @property
    def settings(self) -> TopicSettings:
        """The stored settings."""
        return configure.of_topic(self.handle, self.ref)

    def update(self, **settings: Unpack[TopicChanges]) -> TopicSettings:
        """Change settings; None takes a bound away. Returns all settings. `priorities` can only
        grow. A new `dedup_seconds` counts for what was put before, too; but an id that was
        forgotten stays so.

        Raises: ConfigConflict, NotFound, ReadOnly, TypeError, ValueError.
        """
        return configure.update_topic(self.handle, self.ref, settings)

    # Groups

    def group(
        self, name: str, *, start: Start = "earliest", **settings: Unpack[GroupChanges]
    ) -> Group:
        """The group of this name, made if need be. A setting that is None is what is stored, or
        for a new group the default.

        `start`: where a new group begins: at the "earliest" message stored, the "latest" (only what
        comes), an offset, not beyond the end, or a datetime. `lease_seconds` (30): how long a
        consumer may handle a message. `max_deliveries` (5): failed deliveries until a message is
        dead. `backoff` (Backoff(1, 2, 300)): how long a failed message waits. `ordering` ("none"):
        with "key", messages of one key are delivered one after the other, in order.
        `max_in_flight` (no bound): messages leased at once. `keep_expired` (False): what outlives
        its TTL is a dead letter.

        Raises: ConfigConflict if the group has other settings, NotFound, Full, ReadOnly, Closed.
        """
        check.name("group", name)
        found = self.handle.read(lambda tx: making.find_group(tx, self.id, name, settings))
        if found is None:
            found = self.handle.commit(
                lambda tx: making.make_group(tx, self.ref, name, start, settings)
            )
        return Group(self, name, found)

    def groups(self) -> list[Group]:
        """The topic's groups, by name."""
        found = self.handle.read(lambda tx: making.list_groups(tx, self.id))
        return [Group(self, name, group_id) for name, group_id in found]

    # Looking

    def read(
        self,
        start: Start = 0,
        stop: Start | None = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[LogMessage]:
        """Stored messages from `start` to before `stop`, at most `limit`, without taking them; with
        `reverse` the last ones first. Both take an offset, "earliest", "latest", which is the end
        when this begins, or a datetime, by when messages were put. Offsets of a higher priority are
        behind all lower ones. Messages that are trimmed meanwhile are left out; each step is
        a short transaction.

        Raises: Corrupt, NotFound, Closed, TypeError, ValueError.
        """
        return reading.read(self.handle, self.ref, start, stop, limit, reverse)

    def offset_at(self, when: datetime) -> int:
        """The offset of the first message of the lowest priority put at `when` or later, or the
        next one to be put.

        Raises: NotFound, Closed, TypeError, ValueError.
        """
        return reading.offset_at(self.handle, self.ref, check.wall_ns("when", when))

    def follow(
        self, start: Start = "latest", *, timeout: float | None = None
    ) -> Iterator[LogMessage]:
        """Messages as they are put, without taking them, from `start` on as in `group`. It ends
        when none came for `timeout` seconds, None: never. Messages that are trimmed before they
        were read are left out.

        Raises: ReadOnly (waiting needs the store's shared memory), StoreMoved, Corrupt, NotFound,
        Closed.
        """
        self.handle.check_writable()
        return reading.follow(self.handle, self.ref, start, check.timeout(timeout))

    def stats(self) -> TopicStats:
        """The topic and its groups in numbers, from one snapshot; the same cost with any backlog.

        Raises: NotFound, Closed.
        """
        return self.handle.read(lambda tx: stats.topic_stats(tx, *self.ref))

    def __repr__(self) -> str:
        return f"<Topic {self.name}>"
