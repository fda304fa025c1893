"""The only user of lmdb: opens and creates environments, and owns the one door for writing.

Every change of a store is `engine.commit(operation)`, every look `engine.read(operation)`: a
function of a Tx that checks first and writes after. It may run more than once (the map grew, or
another operation of a shared commit failed), so it keeps its effects inside the Tx. No user code,
sleep or unbounded loop belongs into one: LMDB's write lock has no timeout and everybody waits.

What LMDB wants (lmdb.h, "Caveats"), and where it is met:

- one environment per directory and process: `open_engine` shares them;
- a write transaction stays on its thread: `commit` begins and ends it under `_writer`;
- no environment crosses a fork: a fork waits for both locks, the child opens anew on first use.
  `max_spare_txns` stays 0, for a spare one keeps a reader slot that the child would free;
- no transaction is open while the map is resized: both locks are held.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import lmdb

from . import files, limits
from .clock import Clock
from .codec import FORMAT_VERSION, META_KEY, Meta, Segment, format_version, new_meta
from .errors import (
    Closed,
    Corrupt,
    DiskFailed,
    DiskqError,
    Full,
    NotAStore,
    NotFound,
    ReadOnly,
    Unsupported,
    WrongFormat,
)
from .slots import Slots

T = TypeVar("T")
Database = Any  # py-lmdb's handle has no public type
_TOKEN_BITS = 22  # more than MAX_SHARED_COMMIT * MAX_GET_MESSAGES tokens of one commit


class Tx:
    """One transaction: the state database's get, put and delete, and what goes with a commit."""

    __slots__ = ("after", "commit_id", "delete", "engine", "get", "granted", "lmdb", "put", "wakes")

    def __init__(self, engine: Engine, txn: lmdb.Transaction[bytes]) -> None:
        self.engine = engine
        self.lmdb = txn
        self.get = txn.get
        self.put = txn.put
        self.delete = txn.delete
        self.commit_id = txn.id() + engine.meta.commit_base
        self.granted = 0  # messages leased in this transaction
        self.wakes: dict[int, int] = {}
        self.after: list[Callable[[], None]] = []  # to be called once this is committed

    def cursor(self, database: Database = None) -> lmdb.Cursor[bytes]:
        """A cursor over `state` or another database, for this transaction only."""
        return self.lmdb.cursor(database)

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

    def next_tokens(self, count: int) -> int:
        """The first of `count` tokens that were never given out before and never will be again."""
        first = (self.commit_id << _TOKEN_BITS) + self.granted
        self.granted += count
        return first

    def wake(self, group: int, count: int) -> None:
        """After the commit, wake up to `count` consumers blocked on the group."""
        self.wakes[group] = self.wakes.get(group, 0) + count


class _Pending:
    """An operation on its way through a shared commit."""

    __slots__ = ("done", "error", "operation", "result")

    def __init__(self, operation: Callable[[Tx], Any]) -> None:
        self.operation = operation
        self.done = False
        self.error: Exception | None = None
        self.result: Any = None


class Engine:
    """One LMDB environment of this process, shared by all its stores on the same directory."""

    state: Database
    held: Database
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
        self._failed: DiskFailed | None = None
        self._reset()
        if not suspect:
            files.check_data(path)
        self._open()

    def _reset(self) -> None:
        self._writer = threading.Lock()
        self._reader = threading.Lock()
        self._queue: deque[_Pending] = deque()
        self._logs: dict[int, Database] = {}
        self.segments: dict[int, Segment] = {}  # by topic, the one read last: they are immutable

    # The two doors

    def commit(self, operation: Callable[[Tx], T]) -> T:
        """Run `operation` in a write transaction; durable as the store says when this returns.

        Threads that arrive while another one commits share the next commit. If an operation of a
        shared commit raises, all of them are run again, each in a commit of its own.
        """
        pending = _Pending(operation)
        self._queue.append(pending)
        with self._writer:
            if not pending.done:
                self._commit_batch(self._drain(pending))
        if pending.error is not None:
            raise pending.error
        return pending.result  # type: ignore[no-any-return]

    def read(self, operation: Callable[[Tx], T]) -> T:
        """Run `operation` in a read transaction: one consistent snapshot, nobody is held up.

        One at a time per process, and brief: a long one keeps freed pages from being reused.
        """
        with self._reader:
            for _ in range(8):
                env = self._live()
                try:
                    with env.begin(self.state) as txn:
                        return operation(Tx(self, txn))
                except lmdb.MapResizedError:
                    env.set_mapsize(0)
                except lmdb.ReadersFullError:
                    env.reader_check()
                except lmdb.Error as error:
                    raise self._translate(error) from error
        raise Unsupported(f"store {self.path} has {limits.MAX_READERS} readers, the most it can")

    def _drain(self, own: _Pending) -> list[_Pending]:
        batch = [own]
        while self._queue and len(batch) < limits.MAX_SHARED_COMMIT:
            pending = self._queue.popleft()
            if pending is not own:
                batch.append(pending)
        return batch

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
        """All operations in one transaction, in order; nothing is changed if this raises."""
        if self._failed is not None:
            raise self._failed
        if self.readonly:
            raise ReadOnly(f"store {self.path} was opened read-only; open it with readonly=False")
        for _ in range(64):
            env = self._live()
            txn = None
            try:
                txn = env.begin(self.state, write=True)
                txn_id = txn.id()
                tx = Tx(self, txn)
                for pending in batch:
                    pending.result = pending.operation(tx)
                txn.commit()
                return self._finish(batch, tx)
            except lmdb.MapResizedError:
                self._resize(env, 0)
            except lmdb.MapFullError as error:
                _abort(txn)
                if not self._grow(env):
                    raise self._full("its memory map cannot grow") from error
            except lmdb.Error as error:
                _abort(txn)
                raise self._translate(error, writing=True) from error
            except BaseException:
                # An interrupt may come between the commit and what marks it as done.
                if txn is not None and env.info()["last_txnid"] >= txn_id:
                    self._finish(batch, tx)
                _abort(txn)
                raise
        raise self._full("its memory map was filled as fast as it grew")

    def _finish(self, batch: list[_Pending], tx: Tx) -> None:
        for pending in batch:
            pending.done = True
        for group, count in tx.wakes.items():
            self.slots.wake(group, tx.commit_id, count)
        for call in tx.after:
            call()

    # Room

    def need_room(self, tx: Tx, size: int) -> None:
        """Refuse a put of `size` bytes that would touch the room kept for settling.

        It looks at the file and the disk once per sixteenth of that room only.

        Raises: Full.
        """
        self._unchecked += size + limits.PAGE_BYTES
        if self._unchecked < self._reserve // 16:
            return
        info = self._live().info()
        limit = self.meta.max_bytes or info["map_size"]
        high_water = (info["last_pgno"] + 1) * limits.PAGE_BYTES
        wanted = size + self._reserve
        if high_water + wanted > limit and self.used_bytes(tx) + wanted > limit:
            raise self._full(f"it may have {limit} bytes, {self._reserve} of them for settling")
        disk = os.statvfs(self.path)
        if disk.f_bavail * disk.f_frsize < wanted and self.used_bytes(tx) + wanted > high_water:
            raise self._full(f"its disk has less than {wanted} bytes left")
        self._unchecked = 0

    def used_bytes(self, tx: Tx) -> int:
        """Bytes of the file in use. LMDB's own list of free pages is not counted, nor what an open
        reader still pins; the room kept for settling is meant to be larger than both."""
        pages = 2
        env = self._live()
        for name in env.dbs(tx.lmdb):
            stat = tx.lmdb.stat(env.open_db(name, tx.lmdb, create=False))
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return pages * limits.PAGE_BYTES

    def info(self) -> dict[str, int]:
        """LMDB's figures: map_size, last_pgno, last_txnid, and `oldest_reader`, its txn id."""
        with self._reader:
            env = self._live()
            info = dict(env.info())
            lines = [line.split() for line in env.readers().splitlines()[1:]]
        pinned = [int(line[2]) for line in lines if len(line) == 3 and line[2].isdigit()]
        info["oldest_reader"] = min(pinned, default=info["last_txnid"])
        info["readers"] = len(pinned)
        return info

    def _grow(self, env: lmdb.Environment) -> bool:
        """Let the map grow; False if it cannot. Another process may have grown it already."""
        before = env.info()["map_size"]
        self._resize(env, 0)
        if env.info()["map_size"] > before:
            return True
        try:
            self._resize(env, 2 * before)
        except lmdb.Error:
            return False
        return True

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
            with self._writer:
                database = self._logs[topic_id] = self._open_databases([name])[0]
        return database

    def _open_databases(self, names: list[bytes]) -> list[Database]:
        """Open databases in an explicit transaction: without one, py-lmdb waits for LMDB's write
        lock while it holds the GIL."""
        env = self._live()
        try:
            with env.begin(write=not self.readonly) as txn:
                return [self._open_database(env, name, txn) for name in names]
        except lmdb.Error as error:
            raise self._translate(error) from error

    def _open_database(self, env: lmdb.Environment, name: bytes, txn: Any) -> Database:
        try:
            return env.open_db(name, txn, create=not self.readonly)
        except lmdb.NotFoundError:
            return None

    # Opening, closing, forking

    def _open(self) -> None:
        """Open the environment as the durability inside of it wants: never mixed, see storage."""
        self._open_as("commit")
        if self.meta.durability != "commit":
            self._live().close()
            self._open_as(self.meta.durability)
        if not self.readonly:
            self.slots = Slots(os.path.join(self.path, files.SLOTS))
            if self.meta.next_group >= limits.WAKE_WORDS:
                self.slots.share_words()
        limit = self.meta.max_bytes or self._live().info()["map_size"]
        self._reserve = min(max(limit // 16, limits.MIN_RESERVE_BYTES), limits.MAX_RESERVE_BYTES)
        self._unchecked = self._reserve  # the first put looks

    def _open_as(self, durability: str) -> None:
        self._env = env = _open_environment(self.path, durability, readonly=self.readonly)
        try:
            env.reader_check()
            with env.begin() as txn:
                state = self._open_database_if_there(env, b"state", txn)
                row = None if state is None else txn.get(META_KEY, db=state)
            self._check_meta(row)
            self.state, self.held = self._open_databases([b"state", b"held"])
        except BaseException as error:
            env.close()
            self._env = None
            if isinstance(error, lmdb.Error):
                raise self._translate(error) from error
            raise

    def _open_database_if_there(self, env: lmdb.Environment, name: bytes, txn: Any) -> Database:
        try:
            return env.open_db(name, txn, create=False)
        except lmdb.NotFoundError:
            return None

    def _check_meta(self, row: bytes | None) -> None:
        if row is None:
            raise NotAStore(f"{self.path} is an LMDB environment, but not a diskq store")
        found = format_version(row)
        if found != FORMAT_VERSION:
            raise WrongFormat(
                f"store {self.path} has format version {found}, this diskq reads version"
                f" {FORMAT_VERSION}; use the version of diskq that wrote it",
                found=found,
                supported=FORMAT_VERSION,
            )
        self.meta = Meta(row)

    def _live(self) -> lmdb.Environment:
        """The environment, opened anew in a forked child. Called with one of the locks held."""
        if self._env is None:
            if self._inherited is None:
                raise Closed(f"store {self.path} is closed; open it again")
            self._inherited.close()
            self._inherited = None
            self._open()
        assert self._env is not None
        return self._env

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
        self._inherited = self._env or self._inherited
        self._env = None
        self.generation += 1
        self._reset()

    # Errors

    def _full(self, why: str) -> Full:
        return Full(
            f"store {self.path} is full: {why}; consume messages, or give it more room",
            path=self.path,
        )

    def _translate(self, error: lmdb.Error, *, writing: bool = False) -> DiskqError:
        """The diskq error for an LMDB error."""
        code = getattr(error, "code", 0)
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return self._full("its disk has no room left")
        if writing and (code == errno.EIO or isinstance(error, lmdb.PanicError)):
            self._failed = DiskFailed(
                f"writing to {self.path} failed ({error}); check the disk, reopen the store and"
                " run 'diskq verify'"
            )
            return self._failed
        return translate(error, self.path)


def translate(error: lmdb.Error, path: str) -> DiskqError:
    """The diskq error for an LMDB error that says nothing about room."""
    code = getattr(error, "code", 0)
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ReadOnly(f"store {path} is not writable for this user; it needs read and write")
    if isinstance(error, lmdb.LockError):
        return Unsupported(
            f"store {path} is used from another PID namespace, where LMDB's reader table cannot"
            " work; use it from one container only"
        )
    if isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError)):
        return Corrupt(f"store {path} is damaged ({error}); restore it from a backup")
    if isinstance(error, lmdb.VersionMismatchError):
        return WrongFormat(f"{path} was written by another version of LMDB ({error})")
    return DiskqError(f"store {path}: {error}")


def _abort(txn: Any) -> None:
    if txn is not None:
        with suppress(lmdb.Error):
            txn.abort()


def _open_environment(path: str, durability: str, *, readonly: bool = False) -> lmdb.Environment:
    """Open with the largest memory map that the process may have (ulimit -v)."""
    for map_bytes in limits.MAP_BYTES:
        try:
            return lmdb.open(
                path,
                map_size=map_bytes,
                readonly=readonly,
                create=False,
                mode=0o664,
                sync=durability != "process",
                metasync=durability == "commit",
                max_readers=limits.MAX_READERS,
                max_dbs=limits.MAX_LOG_DATABASES + 8,
                max_spare_txns=0,
                lib_version=0,
            )
        except lmdb.Error as error:
            if getattr(error, "code", 0) != errno.ENOMEM or map_bytes == limits.MAP_BYTES[-1]:
                raise translate(error, path) from error
    raise AssertionError("unreachable")


# All engines of this process, by the identity of their data file. LMDB breaks if an environment is
# opened twice in one process, so this is the one state the module has.
_engines: dict[tuple[int, int], Engine] = {}
_registry = threading.RLock()


def open_engine(
    path: str,
    *,
    durability: str | None,
    create: bool,
    readonly: bool,
    max_bytes: int | None,
    clock: Clock,
) -> Engine:
    """The engine of the store at `path`, created if need be; close it with `close_engine`."""
    with _registry:
        if not files.inspect(path).is_store:
            if not create or readonly:
                raise NotFound(f"there is no store at {path}; create it with diskq.open or a put")
            create_store(path, durability or "commit", max_bytes or 0, clock)
        status = os.stat(os.path.join(path, files.DATA))
        identity = status.st_dev, status.st_ino
        engine = _engines.get(identity)
        if engine is None:
            engine = _engines[identity] = Engine(path, readonly=readonly, clock=clock)
        elif engine.readonly and not readonly:
            raise Unsupported(f"{path} is open read-only in this process; close that one first")
        engine.users += 1
        return engine


def close_engine(engine: Engine) -> None:
    """Give an engine back; the last user closes it."""
    with _registry:
        engine.users -= 1
        if engine.users == 0:
            for identity in [key for key, value in _engines.items() if value is engine]:
                del _engines[identity]
            engine.close()


def create_store(path: str, durability: str, max_bytes: int, clock: Clock) -> None:
    """Create a store: it is there and complete, or not at all, whenever the power fails.

    LMDB flushes neither a new file's name nor, before its first commit, the file; so build it under
    another name, flush, rename, flush the parent.
    """
    path = os.path.abspath(path)
    parent, name = os.path.split(path)
    temporary = os.path.join(parent, f".{name}.{os.getpid()}.{os.urandom(4).hex()}")
    row = new_meta(durability, os.urandom(16), clock.boot_id(), clock.wall_ns(), max_bytes)
    try:
        os.mkdir(temporary)
        with lmdb.open(temporary, max_dbs=8, mode=0o664, lib_version=0) as env:
            with env.begin(write=True) as txn:
                env.open_db(b"held", txn)
                txn.put(META_KEY, row, db=env.open_db(b"state", txn))
            env.sync(True)
        files.flush(os.path.join(temporary, files.DATA))
        files.flush(temporary)
        try:
            os.rename(temporary, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another process was faster; its store is as good.
        files.flush(parent)
    except PermissionError as error:
        raise ReadOnly(f"no permission to create a store at {path}; choose another path") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Full(f"no room on the disk to create a store at {path}") from error
        raise DiskqError(f"cannot create a store at {path}: {error.strerror}") from error
    except lmdb.Error as error:
        raise translate(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _before_fork() -> None:
    _registry.acquire()
    for engine in _engines.values():
        engine.before_fork()


def _after_fork_in_parent() -> None:
    for engine in _engines.values():
        engine.after_fork_in_parent()
    _registry.release()


def _after_fork_in_child() -> None:
    for engine in _engines.values():
        engine.after_fork_in_child()
    _registry.release()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
