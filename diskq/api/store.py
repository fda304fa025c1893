"""Store: one directory with topics."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn, Unpack

from ..base import check, guard
from ..base.errors import Closed
from ..base.model import Finding, StoreStats
from ..base.ondemand import lazy
from ..delivery import making
from ..storage.handle import Handle
from ..tables import catalog
from .membership import Membership
from .queue import DEFAULT_GROUP, Queue
from .topic import Topic

if TYPE_CHECKING:
    from ..base.options import TopicChanges
    from ..operate import deletion, stats
    from ..repair import backup, verify
    from . import transaction
    from .transaction import Transaction
else:
    backup = lazy("repair.backup")
    deletion = lazy("operate.deletion")
    stats = lazy("operate.stats")
    transaction = lazy("api.transaction")
    verify = lazy("repair.verify")


class Store:
    """One directory with topics; made by `diskq.open`. A context manager. Safe across threads, and
    in a child after fork."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle  # for diskq's own use
        self._consumers: weakref.WeakSet[Membership] = weakref.WeakSet()
        self._adopting = guard.new_lock()

    @property
    def busy_seconds(self) -> float:
        """How long a call that changes something waits for other writers; may be set."""
        return self.handle.busy_seconds

    @busy_seconds.setter
    def busy_seconds(self, seconds: float) -> None:
        self.handle.busy_seconds = seconds

    @property
    def path(self) -> str:
        """The directory."""
        return self.handle.engine.path

    def topic(self, name: str, **settings: Unpack[TopicChanges]) -> Topic:
        """The topic of this name, made if need be, durably when this returns. A setting that is
        None is what is stored, or for a new topic the default.

        `retention` ("interest"): a message goes when every group is done with it, and stays while
        there is no group; with "limits" it stays until a bound takes it, the oldest first.
        `max_age_seconds`, `max_bytes`, `max_messages` (no bounds): what is older, or more, goes or
        is refused. `discard` ("new"): when the topic or the store is full, puts wait or raise Full
        (with "limits" only the store can be full); with "old" the oldest messages go, and their
        groups count them as dropped. `dedup_seconds` (120): how long a dedup_id is remembered.
        `priorities` (1, at most 10): lanes of the topic.

        Raises: ConfigConflict if the topic has other settings; ReadOnly or Full if it would have to
        be made; ValueError, TypeError, Closed.
        """
        check.name("topic", name)
        topic_id = self.handle.read(lambda tx: making.find_topic(tx, name, settings))
        if topic_id is None:
            topic_id = self.handle.commit(lambda tx: making.make_topic(tx, name, settings))
        return Topic(self, name, topic_id)

    def queue(self, name: str, **settings: Unpack[TopicChanges]) -> Queue:
        """The topic of this name and its group "default", made if need be: the simple face.

        Raises: as `topic`.
        """
        topic = self.topic(name, **settings)
        return Queue(topic, topic.group(DEFAULT_GROUP))

    def transaction(self) -> Transaction:
        """Settles and puts on any topics of the store, all in one commit; see there."""
        self.handle.check_writable()
        return transaction.Transaction(self.handle)

    def topics(self) -> list[Topic]:
        """All topics, by name."""
        found = self.handle.read(lambda tx: list(catalog.topic_ids(tx)))
        return [Topic(self, name, topic_id) for name, topic_id in found]

    def delete_topic(self, name: str) -> None:
        """Remove a topic with its groups, messages and dead letters. Its users get NotFound.

        Raises: NotFound, Closed.
        """
        self.handle.check_writable()
        deletion.delete_topic(self.handle, check.name("topic", name))

    def stats(self) -> StoreStats:
        """The store in numbers, from one snapshot; the same cost with any backlog."""
        return stats.store_stats(self.handle.engine)

    def verify(self) -> Iterator[Finding]:
        """Check every invariant of the store, and yield what is wrong; nothing if it is sound.

        Reads all of it in one snapshot, and so keeps space from being reused while it runs. A large
        store is read by another process, so that this one's gets and puts go on.

        Raises: StoreMoved, Closed.
        """
        return iter(verify.findings(self.handle.engine))

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Make a copy of the store at `path`, which must not exist: a store that is as this one was
        at one commit, compact, flushed, and there as a whole or not at all. Others go on meanwhile,
        but until it is done no page that they free is used again: the file may grow.

        In the copy no lease is valid, and its tokens are larger than any given out here. To
        restore it, put the directory in the place of the store while nobody uses that.

        The copy has the permissions of the store, and nobody else can read it before.

        Raises: NotAStore (something is at `path`), Full (its disk), NotFound, DiskFailed, Closed,
        StoreMoved (another store is at this one's path), NoPermission, ReadOnly.
        """
        engine = self.handle.engine
        backup.copy_store(engine.path, engine.identity, path)

    def adopt(self, member: Membership) -> None:
        """For diskq's own use: close this consumer with the store."""
        with self._adopting:
            self._consumers.add(member)

    def close(self) -> None:
        """Close the store's consumers, then the store. May be called twice, and by a signal
        handler; never waits for long."""
        self.handle.mark_closed()
        try:
            with self._adopting:
                consumers = list(self._consumers)
            for consumer in consumers:
                with suppress(Closed):
                    consumer.close()
        finally:
            self.handle.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "what belongs to a store cannot be pickled; pass its path, and open that in the other"
            " process"
        )

    def __repr__(self) -> str:
        return f"<Store {'closed' if self.handle.closed else self.path}>"
