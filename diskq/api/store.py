"""Store: one directory with topics. `diskq.open` is where everything begins."""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn, TypeVar, Unpack

from ..base import check, guard, limits
from ..base.clock import Clock
from ..base.errors import Busy, Closed, ConfigConflict
from ..base.model import DURABILITIES, Finding, StoreStats
from ..base.ondemand import lazy
from ..delivery import making
from ..format.layout import COPY
from ..host import files
from ..storage.engine import Engine
from ..storage.handle import Handle
from ..storage.registry import close_engine, open_engine
from ..tables import catalog
from .consumer import Consumer
from .membership import Membership
from .queue import DEFAULT_GROUP, Queue
from .topic import Topic

if TYPE_CHECKING:
    from ..operate import boots, deletion, stats
    from ..repair import backup, fitness, verify
    from . import transaction
else:
    backup = lazy("repair.backup")
    boots = lazy("operate.boots")
    deletion = lazy("operate.deletion")
    fitness = lazy("repair.fitness")
    stats = lazy("operate.stats")
    transaction = lazy("api.transaction")
    verify = lazy("repair.verify")


if TYPE_CHECKING:
    from ..base.options import TopicChanges
    from .transaction import Transaction

T = TypeVar("T")


def open(  # noqa: A001 - diskq.open is to diskq what open is to files
    path: str | os.PathLike[str],
    *,
    durability: str | None = None,
    create: bool = True,
    readonly: bool = False,
    max_bytes: int | None = None,
    mode: int | None = None,
    busy_seconds: float | None = None,
    clock: Clock | None = None,
) -> Store:
    """Open the store in directory `path`; make it, complete or not at all, unless `create=False`.

    `durability` says what a power cut can undo: "commit" (a new store's) nothing that returned,
    "relaxed" at most the last commit, "process" anything, even damage it; kill -9 undoes nothing in
    any. `max_bytes` (at least 4 MiB, None: the disk) bounds a new store's file: puts raise Full
    before it is reached, settling goes on, copies of what fails may exceed it by half, from 64 MiB
    on by a quarter. Both are kept in the store; None takes what is stored.

    `mode` (None: 0o600) is the permissions of a new store's files, whatever the umask is, and its
    directory's with an x beside each r: 0o660 lets a group use the store. An existing store keeps
    its permissions; so does an empty directory that becomes a store.

    `busy_seconds` (30; 0: one attempt of at most 0.1 s; math.inf: without end): how long a call
    that changes something waits for other processes and threads that do; then it raises Busy.

    The same path may be opened more than once in a process, by its main interpreter. `clock` is for
    tests.

    Raises: NotFound, NotAStore, ConfigConflict, WrongFormat, Corrupt, NoPermission, ReadOnly,
    Unsupported, Full, Busy, StoreMoved, Reentered.
    """
    if durability not in (None, *DURABILITIES):
        raise ValueError(f"durability must be one of {', '.join(DURABILITIES)}, not {durability!r}")
    if max_bytes is not None:
        check.count("max_bytes", max_bytes, limits.MIN_STORE_BYTES, limits.TIB)
    busy = limits.BUSY_SECONDS
    if busy_seconds is not None:
        busy = check.seconds("busy_seconds", busy_seconds, 0, math.inf)
    if mode is not None:
        check.mode(mode)
    user = object()  # of the engine that all stores at this path share
    try:
        engine = open_engine(
            files.absolute(path),
            user,
            durability=durability or "commit",
            create=create,
            readonly=readonly,
            max_bytes=max_bytes or 0,
            mode=mode or files.PRIVATE,
            clock=clock or Clock(),
            busy_seconds=busy,
            fitness=fitness,
        )
        _check_equal(engine, "durability", durability, DURABILITIES[engine.meta.durability])
        _check_equal(engine, "max_bytes", max_bytes, engine.meta.max_bytes)
        if not engine.readonly:
            _catch_up(engine, time.monotonic() + busy)
        engine.join()
        return Store(Handle(engine, user, readonly=readonly, busy_seconds=busy))
    except BaseException:
        close_engine(user)
        raise


def _catch_up(engine: Engine, until: float) -> None:
    """Void the leases of the last boot; go on with a deletion that was cut off."""
    boot_id, noted = engine.clock.boot_id(), engine.meta.boot_id
    # In a container the system may tell another boot, or none. A boot ends all processes, though.
    other = boot_id != noted and (any(boot_id) or noted == COPY) and not engine.used_elsewhere()
    if other or engine.read(lambda tx: any(tx.scan(b"X"))):
        if other:
            engine.commit(lambda tx: boots.note_boot(tx, boot_id), until)
        with suppress(Busy):  # the next opening goes on
            deletion.sweep(engine, max(until - time.monotonic(), 0))


def _check_equal(engine: Engine, what: str, wanted: object, stored: object) -> None:
    if wanted is not None and wanted != stored:
        raise ConfigConflict(
            f"store {engine.path} has {what}={stored!r}, not {wanted!r}; leave it out to take what"
            " is stored"
        )


class Store:
    """One directory with topics; made by `diskq.open`. A context manager. Safe across threads, and
    in a child after fork."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle  # for diskq's own use
        self._consumers: weakref.WeakSet[Membership] = weakref.WeakSet()
        self._adopting = guard.new_lock()

    @property
    def engine(self) -> Engine:
        """For diskq's own use. Raises: Closed."""
        return self.handle.engine

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
        return self.engine.path

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
        return stats.store_stats(self.engine)

    def verify(self) -> Iterator[Finding]:
        """Check every invariant of the store, and yield what is wrong; nothing if it is sound.

        Reads all of it in one snapshot, and so keeps space from being reused while it runs. A large
        store is read by another process, so that this one's gets and puts go on.

        Raises: StoreMoved, Closed.
        """
        return iter(verify.findings(self.engine))

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
        engine = self.engine
        backup.copy_store(engine.path, engine.identity, files.absolute(path))

    def adopt(self, consumer: Consumer) -> None:
        """For diskq's own use: close this consumer with the store."""
        with self._adopting:
            self._consumers.add(consumer.member)

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
