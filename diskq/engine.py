"""The one door for writing, and the one for reading, of a store's LMDB environment.

Every change is `engine.commit(operation)`, every look `engine.read(operation)`: a function of a Tx
that checks first and writes after. It may run more than once (the map grew, or another operation of
a shared commit failed), so it keeps its effects inside the Tx. No user code, sleep or unbounded
loop belongs into one: LMDB's write lock has no timeout and everybody waits for it.

What LMDB wants (lmdb.h, "Caveats"), and where it is met:

- one environment per directory and process: registry.py shares them;
- a write transaction stays on its thread: `commit` begins and ends it under `_writer`;
- no environment crosses a fork: registry.py takes both locks, the child opens anew on first use;
- no transaction is open while the map is resized: both locks are held.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import lmdb

from . import errors, files, limits
from .clock import Clock
from .codec import DURABILITIES, FORMAT_VERSION, META_KEY, Meta, format_version
from .environment import (
    FAULTS,
    Database,
    adopting,
    full,
    open_databases,
    open_environment,
    read_row,
    translate,
)
from .hands import Hands
from .segment import Segment
from .slots import Slots

T = TypeVar("T")
TOKEN_BITS = 24  # of a token that number the deliveries of one commit


class Tx:
    """One transaction: get, put and delete of `state`, and what goes with the commit."""

    def __init__(self, engine: Engine, txn: lmdb.Transaction[bytes]) -> None:
        self.engine = engine
        self.lmdb = txn
        self.get = txn.get
        self.put = txn.put
        self.delete = txn.delete
        self.commit_id = txn.id() + engine.meta.commit_base
        self.tokens = self.commit_id << TOKEN_BITS  # the next one
        self.wakes: dict[int, int] = {}
        self.announced: set[int] = set()  # topics that got messages, or room: wake who watches
        self.after: list[Callable[[], None]] = []  # to be called once this is committed
        self.room: Any = None  # what it may copy, once somebody asked; see room.py

    def scan(
        self, prefix: bytes, start: bytes = b"", database: Database = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows of `state` or another database whose keys have this prefix, in key order, from the
        key `start` on. Change nothing in the database before the last row is taken."""
        cursor = self.lmdb.cursor(database)
        if cursor.set_range(start or prefix):
            for item in cursor:
                if not item[0].startswith(prefix):
                    return
                yield item

    @property
    def tokens_left(self) -> int:
        """How many tokens this commit can still give out."""
        return ((self.commit_id + 1) << TOKEN_BITS) - self.tokens

    def next_tokens(self, count: int) -> int:
        """The first of `count` tokens that were never given out before and never will be again."""
        self.tokens += count
        return self.tokens - count

    def wake(self, group: int, count: int) -> None:
        """After the commit, wake up to `count` consumers blocked on the group."""
        self.wakes[group] = self.wakes.get(group, 0) + count


class _Pending:
    """An operation on its way through a shared commit. Its thread waits at the gate, which opens
    once it is done, or is the first in the queue and has to commit for all."""

    __slots__ = ("done", "error", "gate", "operation", "result")

    def __init__(self, operation: Callable[[Tx], Any]) -> None:
        self.operation = operation
        self.gate = threading.Lock()
        self.gate.acquire()
        self.done = False
        self.error: Exception | None = None
        self.result: Any = None


class Engine:
    """One LMDB environment of this process, shared by all its stores on the same directory."""

    state: Database
    held: Database
    schedule: Database
    dedup: Database
    meta: Meta
    slots: Slots

    def __init__(self, path: str, *, readonly: bool, clock: Clock, suspect: bool = False) -> None:
        self.path = path
        self.readonly = readonly
        self.clock = clock
        self.users = 0
        self.generation = 0  # counts forks: what was made before one belongs to another process
        self._env: lmdb.Environment | None = None
        self._inherited: lmdb.Environment | None = None
        self._failed: errors.DiskqError | None = None
        self._reset()
        if not suspect:
            files.check_data(path)
            if os.path.exists(os.path.join(path, files.BOOT)):
                from .verify import check_boot

                check_boot(path, clock.boot_id())
        self._open()
        boot = os.path.join(path, files.BOOT)
        if DURABILITIES[self.meta.durability] == "process" and not (
            suspect or os.path.exists(boot)
        ):
            self.close()
            raise errors.Corrupt(
                f"{boot} is missing, and nobody knows whether the power failed; make an empty file"
                " of this name, and the store is checked when it is opened"
            )

    def _reset(self) -> None:
        self._writer = threading.Lock()
        self._reader = threading.Lock()
        self._opening = threading.Lock()
        self._queue_lock = threading.Lock()
        self._queue: list[_Pending] = []  # the first one's thread commits for all
        self._logs: dict[int, Database] = {}
        self.segments: dict[
            int, tuple[int, Segment]
        ] = {}  # by topic, the one read last; see log.py
        self.looked_ns: dict[int, int] = {}  # by group, when it was looked for dead consumers
        self.hands: dict[int, Hands] = defaultdict(Hands)  # by group, what this process has

    # The two doors

    def commit(self, operation: Callable[[Tx], T]) -> T:
        """Run `operation` in a write transaction; durable as the store says when this returns.

        Threads that arrive while another one commits share the next commit. If an operation of a
        shared commit raises, all of them are run again, each in a commit of its own.
        """
        pending = _Pending(operation)
        with self._queue_lock:
            self._queue.append(pending)
            leading = self._queue[0] is pending
        try:
            if not leading:
                pending.gate.acquire()
                leading = not pending.done
            if leading:
                with self._writer:
                    self._commit_batch(self._queue[: limits.MAX_SHARED_COMMIT])
        finally:
            if leading or not pending.done:
                self._leave(pending)
        if pending.error is not None:
            raise pending.error
        return pending.result  # type: ignore[no-any-return]

    def _leave(self, pending: _Pending) -> None:
        """Take an operation out of the queue, done or interrupted. The first one lets go of all
        that were done with it, and then the next one is the first."""
        with self._queue_lock:
            if not self._queue or self._queue[0] is not pending:
                if pending in self._queue:
                    self._queue.remove(pending)
                return
            done = [other for other in self._queue if other.done and other is not pending]
            self._queue = [other for other in self._queue if not other.done]
            if self._queue and self._queue[0] is pending:
                del self._queue[0]
            for other in done + self._queue[:1]:
                other.gate.release()

    def read(self, operation: Callable[[Tx], T]) -> T:
        """Run `operation` in a read transaction: one consistent snapshot, nobody is held up.

        One at a time per process, and brief: a long one keeps freed pages from being reused.
        """
        with self._reader:
            for _ in range(8):
                env = self.live()
                try:
                    with env.begin(self.state) as txn:
                        return operation(Tx(self, txn))
                except lmdb.MapResizedError:
                    env.set_mapsize(0)
                except lmdb.ReadersFullError:
                    env.reader_check()
                except FAULTS as error:
                    raise translate(error, self.path) from error
        raise errors.Unsupported(f"store {self.path} has {limits.MAX_READERS} readers, its limit")

    def _commit_batch(self, batch: list[_Pending]) -> None:
        try:
            self._transact(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].error = error
                batch[0].done = True
                return
            for pending in batch:
                self._commit_batch([pending])

    def _transact(self, batch: list[_Pending]) -> None:
        """All operations in one transaction, in order, or none."""
        if self._failed is not None:
            raise self._failed
        if self.readonly:
            raise errors.ReadOnly(f"store {self.path} is open read-only; open it for writing")
        for _ in range(64):
            env = self.live()
            self.slots.begin_writing()
            try:
                tx = self._run(env, batch)
                break
            except lmdb.MapResizedError:
                self._resize(env, 0)
            except lmdb.MapFullError as error:
                if not self._grow(env):
                    raise full(self.path, "its memory map cannot grow") from error
            except FAULTS as error:
                translated = translate(error, self.path)
                if isinstance(translated, errors.DiskFailed):
                    self._failed = translated
                raise translated from error
            finally:
                self.slots.end_writing()
        else:
            raise full(self.path, "its memory map was filled as fast as it grew")
        if tx.wakes or tx.announced or tx.after:
            self._tell(tx)

    def _tell(self, tx: Tx) -> None:
        for group, count in tx.wakes.items():
            self.slots.wake(group, tx.commit_id, count)
        for topic in tx.announced:
            self.slots.announce(topic, tx.commit_id)
        for call in tx.after:
            call()

    def _run(self, env: lmdb.Environment, batch: list[_Pending]) -> Tx:
        txn = env.begin(self.state, write=True)
        txn_id = txn.id()
        try:
            tx = Tx(self, txn)
            for pending in batch:
                pending.result = pending.operation(tx)
            txn.commit()
        except BaseException:
            if env.info()["last_txnid"] >= txn_id:  # the interrupt came behind the commit
                _mark_done(batch)
                raise
            with suppress(lmdb.Error):
                txn.abort()
            self.segments.clear()  # it may have read what is not there now
            raise
        _mark_done(batch)
        return tx

    # Room

    def look(self, look: Callable[[lmdb.Environment], T]) -> T:
        """What the environment says of itself; for numbers."""
        with self._reader:
            return look(self.live())

    def _grow(self, env: lmdb.Environment) -> bool:
        """Let the map grow; False if it cannot. Another process may have grown it already."""
        before = env.info()["map_size"]
        self._resize(env, 0)
        if env.info()["map_size"] == before:
            with suppress(lmdb.Error):
                self._resize(env, 2 * before)
        return env.info()["map_size"] != before

    def _resize(self, env: lmdb.Environment, size: int) -> None:
        with self._reader:
            env.set_mapsize(size)

    # Databases

    def log(self, topic_id: int) -> Database:
        """The log database of a topic: its own, or behind the first topics a shared one. None if
        it is not there and the store is read-only. Not to be called inside of an operation."""
        database = self._logs.get(topic_id)
        if database is None:
            name = b"log.%d" % topic_id if topic_id < limits.MAX_LOG_DATABASES else b"log"
            with self._writer, self._reader:
                database = self._logs[topic_id] = self._open_databases(self.live(), name)[0]
        return database

    def _open_databases(self, env: lmdb.Environment, *names: bytes) -> list[Database]:
        if not self.readonly:
            self.slots.begin_writing()
        try:
            create = not self.readonly
            return adopting(env, lambda: open_databases(env, *names, create=create))
        except lmdb.Error as error:
            raise translate(error, self.path) from error
        finally:
            if not self.readonly:
                self.slots.end_writing()

    # Opening, closing, forking

    def _open(self) -> None:
        """Open the environment as the durability inside of it wants: modes must not be mixed."""
        if not self.readonly:
            self.slots = Slots(os.path.join(self.path, files.SLOTS))
        try:
            self._env = self._open_as("commit")
        except BaseException:
            if not self.readonly:
                self.slots.close()
            raise
        durability = DURABILITIES[self.meta.durability]
        if durability != "commit" or f" {os.getpid()} " in self._env.readers():
            self._env.close()  # with the rows that a dead process of this pid left among readers
            self._env = self._open_as(durability)
        if not self.readonly and self.meta.next_group + self.meta.next_topic >= limits.WAKE_WORDS:
            self.slots.share_words()
        self.reserve = limits.MIN_RESERVE_BYTES  # bytes kept for settling; see room.py
        self.looked = False  # at the room: the first put does

    def _open_as(self, durability: str) -> lmdb.Environment:
        env = open_environment(self.path, durability, readonly=self.readonly)
        try:
            env.reader_check()
            self._check_meta(adopting(env, lambda: read_row(env, b"state", META_KEY)))
            names = b"state", b"held", b"schedule", b"dedup"
            self.state, self.held, self.schedule, self.dedup = self._open_databases(env, *names)
        except FAULTS as error:
            env.close()
            raise translate(error, self.path) from error
        except BaseException:
            env.close()
            raise
        return env

    def _check_meta(self, row: bytes | None) -> None:
        if row is None:
            raise errors.NotAStore(f"{self.path} is an LMDB environment, but not a diskq store")
        found = format_version(row)
        if found != FORMAT_VERSION:
            raise errors.WrongFormat(
                f"store {self.path} has format version {found}, this diskq reads version"
                f" {FORMAT_VERSION}; use the version of diskq that wrote it",
                found=found,
                supported=FORMAT_VERSION,
            )
        self.meta = Meta(row)

    def live(self) -> lmdb.Environment:
        """The environment, opened anew in a forked child; for who holds one of the locks."""
        if self._env is None:
            with self._opening:
                if self._env is None:
                    self._reopen()
        return self._env  # type: ignore[return-value]

    def _reopen(self) -> None:
        if self._inherited is None:
            raise errors.Closed(f"store {self.path} is closed; open it again")
        if not self.readonly:
            self.slots.close()
        self._inherited.close()
        self._inherited = None
        self._open()

    def close(self) -> None:
        """Close the environment; whoever still uses it gets Closed."""
        with self._writer, self._reader:
            env = self._env or self._inherited
            if self._env is not None and not self.readonly:
                self.slots.close()
            self._env = self._inherited = None
            if env is not None:
                env.close()

    def abandon(self, slot: int) -> None:
        """Let the consumer of this slot count as dead: it was not closed, but forgotten."""
        if self._env is not None and not self.readonly:
            self.slots.release(slot, clean=False)

    def before_fork(self) -> None:
        """Let no transaction of another thread cross the fork."""
        self._writer.acquire()
        self._reader.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._reader.release()
        self._writer.release()

    def after_fork_in_child(self) -> None:
        """Keep the parent's environment only to close it before the own one is opened."""
        self._inherited, self._env = self._env or self._inherited, None
        self.generation += 1
        self._reset()


def _mark_done(batch: list[_Pending]) -> None:
    for pending in batch:
        pending.done = True
