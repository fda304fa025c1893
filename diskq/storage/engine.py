"""The one door for writing, and the one for reading, of a store's LMDB environment.

Every change is `engine.commit(operation)`, every look `engine.read(operation)`: a function of a Tx
that checks first and writes after. It may run more than once (the map grew, or another operation of
a shared commit failed), so it keeps its effects inside the Tx. No user code, sleep or unbounded
loop belongs into one: LMDB's write lock has no timeout and everybody waits for it.

What LMDB wants (lmdb.h, "Caveats"), and where it is met:

- one environment per directory and process: registry.py shares them;
- a write transaction stays on its thread: whoever leads begins and ends it, see door.py;
- no environment crosses a fork: registry.py waits until no transaction is open, the child opens
  anew on first use; a child that was forked in C is noticed by its pid;
- no transaction is open while the map is resized: the leader also has the reader's lock;
- nobody closes a descriptor of its lock file: programs do, so what that drops is held twice.
"""

from __future__ import annotations

import operator
import os
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import lmdb

from ..base import errors, guard, limits
from ..base.clock import Clock
from ..format.rows import Meta
from ..format.segment import Segment
from ..host import files
from ..host.process import HERE
from ..host.slots import Slots
from .commits import Call, Door
from .environment import FAULTS, Database, full, open_databases, translate
from .hands import Hands
from .opened import Fitness, Opened
from .tx import LogIsClosed, Tx, run_others

T = TypeVar("T")
_MOST_GROWTHS = 64  # of the map, by this process and others, in one commit
_LONG_READ_NS = 10_000_000  # a read that took longer is checked, see `_was_kept`


class Engine:
    """One LMDB environment of this process, shared by all its stores on the same directory."""

    state: Database
    held: Database
    schedule: Database
    dedup: Database
    main: Database
    meta: Meta
    slots: Slots

    def __init__(
        self,
        path: str,
        identity: tuple[int, int],
        *,
        readonly: bool,
        clock: Clock,
        fitness: Fitness | None = None,
    ) -> None:
        self._name(path)
        self.paths = {path: True}  # by which it was opened; in order
        self.identity = identity  # of the data file
        self.readonly = readonly
        self._fitness = fitness  # checks before each opening; None for a store that is suspect
        self.clock = clock
        self.users: set[object] = set()
        self._env: lmdb.Environment | None = None
        self.members: Slots | None = None  # who is alive, if that can be told
        self._opened: Opened | None = None  # in a child at first the parent's
        self._failed = ""
        self._pid = HERE[0] = os.getpid()
        self.closing = False
        self._crossed = False  # a fork did, while a transaction was open
        self._forks = 0
        self._begin(self)

    def _begin(self, owner: Engine) -> None:
        """What a process has of its own; for `owner`."""
        self._leave: Callable[[], object] = int  # gives back the turn to write
        self._door = Door(owner._transact, owner._clean)
        self._writer = self._door.lead  # who has it leads
        self._reader = guard.new_lock()
        self._opening = guard.new_lock()
        self._txn: lmdb.Transaction[bytes] | None = None  # of who leads
        self._snapshot: lmdb.Transaction[bytes] | None = None  # of who reads
        self._reading = False
        self.logs: dict[int, Database] = {}
        self.segments: dict[
            int, tuple[int, Segment]
        ] = {}  # by topic, the one read last; see log.py
        self.looked_ns: dict[int, int] = {}  # by group, when it was looked for dead consumers
        self.hands: dict[int, Hands] = defaultdict(Hands)  # by group, what this process has
        self.trimmed: dict[int, int] = {}  # by topic, the offset from which the next trim goes on

    @property
    def generation(self) -> int:
        """How often this process is a fork of the one that opened the store: what was made before
        belongs to another process."""
        if HERE[0] != self._pid:
            self.after_fork_in_child()
        return self._forks

    # The two doors

    def commit(
        self,
        operation: Callable[[Tx], T],
        until: float | None = None,
        busy_seconds: float = limits.BUSY_SECONDS,
    ) -> T:
        """Run `operation` in a write transaction; durable as the store says when this returns.

        Threads that arrive while another one commits share the next commit. If an operation of a
        shared commit raises, it is undone for all, and the others are run again without that one.
        Waits for others until a time of `time.monotonic()`, by default for `busy_seconds`.

        Raises: Busy, Reentered, StoreMoved, Closed, ReadOnly, DiskFailed, Full; nothing was
        changed.
        """
        if HERE[0] != self._pid:
            self.after_fork_in_child()
        if self._reader._is_owned():
            raise guard.reentered()
        try:
            result: T = self._door.enter(operation, until, busy_seconds)
            return result
        finally:
            if self.closing:
                self.close()

    def read(self, operation: Callable[[Tx], T]) -> T:
        """Run `operation` in a read transaction: one consistent snapshot, nobody is held up, and no
        writer is waited for.

        One at a time per process, and brief: a long one keeps freed pages from being reused.

        Raises: Reentered, Closed, Corrupt.
        """
        if HERE[0] != self._pid:
            self.after_fork_in_child()
        reader = self._reader
        if reader._is_owned() or (self._writer._is_owned() and not reader.acquire(False)):
            raise guard.reentered()  # to wait here could be to wait for each other
        try:
            guard.wait_for(reader)
            with reader:
                return self._read(operation)
        finally:
            if reader._is_owned():  # only a tracer can raise before the end of `with`
                self._end_snapshot()
                reader.release()
            if self.closing:
                self.close()

    def _read(self, operation: Callable[[Tx], T]) -> T:
        for _ in range(8):
            env = self.live()
            began_ns = time.monotonic_ns()
            try:
                self._reading = True
                self._keep_reading()
                self._snapshot = env.begin(self.state)
                result = operation(Tx(self, self._snapshot))
                if time.monotonic_ns() - began_ns < _LONG_READ_NS or self._was_kept(env):
                    return result
            except lmdb.MapResizedError:
                self._end_snapshot()
                self._set_size(env, 0)
            except lmdb.ReadersFullError:
                self.drop_dead_readers()
            except Exception as error:
                if self._snapshot is not None and not self._was_kept(env):
                    continue  # what it read was used again meanwhile
                if isinstance(error, FAULTS):
                    raise translate(error, self.path) from error
                raise
            finally:
                self._end_snapshot()
        raise errors.Unsupported(f"store {self.path} has {limits.MAX_READERS} readers, its limit")

    def _was_kept(self, env: lmdb.Environment) -> bool:
        """Whether the snapshot is still protected: without the lock, another process may have taken
        it for a dead one's, and what it saw may have been used again."""
        assert self._snapshot is not None
        txn_id = str(self._snapshot.id())
        rows = (line.split() for line in env.readers().splitlines()[1:])
        return any(row[0] == str(self._pid) and row[-1] == txn_id for row in rows)

    def _end_snapshot(self) -> None:
        snapshot = self._snapshot
        if snapshot is not None:
            snapshot.abort()
            self._snapshot = None
        self._reading = False

    def check_place(self) -> int:
        """Raise StoreMoved unless a path by which the store was opened has the data file that is
        open here; returns its size."""
        try:
            try:
                return files.check_data_file(self._data, self.identity)
            except errors.StoreMoved:
                if not self._has_moved_to_known():
                    raise
                return files.check_data_file(self._data, self.identity)
        except OSError as error:
            raise translate(error, self.path) from error

    def _has_moved_to_known(self) -> bool:
        for path in self.paths:
            with suppress(OSError):
                if files.identity_of(path) == self.identity:
                    self._name(path)
                    return True
        return False

    def _name(self, path: str) -> None:
        self.path, self._data = path, os.path.join(path, files.DATA)

    # Committing, as who leads

    def _transact(self, call: Call, claimed: list[Call]) -> None:
        """All operations in one transaction, in order, or none."""
        if self.readonly:
            raise errors.ReadOnly(f"store {self.path} is open read-only; open it for writing")
        door, env = self._door, self.live()
        turns, missing, grown = self.slots.turns, -1, 0
        while grown < _MOST_GROWTHS:
            try:
                door.unclean = True
                turns.take(call, self._check_usable)
                self._check_usable()
                self.check_place()
                if missing >= 0:
                    self.logs[missing] = self._open(env, _log_name(missing))[0]
                tx = self._run(env, call, door.claim(call, claimed))
                break
            except LogIsClosed as closed:
                missing = closed.topic_id
            except lmdb.MapResizedError:
                grown += 1
                self._resize(env, 0)
            except lmdb.MapFullError as error:
                grown += 1
                if not self._grow(env):
                    raise full(self.path, "its memory map cannot grow") from error
                env = self.live()
            except FAULTS as error:
                raise self._note_failure(error) from error
            finally:
                self._clean()  # the transaction, too, if something was raised while it ended
        else:
            raise full(self.path, "its memory map was filled as fast as it grew")
        turns.wake_next()
        if tx is not None and (tx.wakes or tx.announced or tx.after):
            self._tell(tx)

    def _run(self, env: lmdb.Environment, call: Call, others: list[Call]) -> Tx | None:
        """Run and commit; None if an operation of another thread failed, and nothing was done."""
        txn, pending = None, [True]  # a new one: of an attempt that fails it is never emptied
        try:
            txn = self._txn = env.begin(self.state, write=True)
            tx = Tx(self, txn)
            call.result = call.operation(tx)
            if others and not run_others(others, tx):
                return None
            for each in (call, *others):
                each.pending = pending
            # One call of C: what is committed is done, whatever is raised around it.
            any(map(operator.call, (txn.commit, pending.clear, *tx.marks)))
            return tx
        finally:
            if pending:
                if txn is not None:
                    txn.abort()
                self.segments.clear()  # it may have read what is not there now
            self._txn = None

    def _clean(self) -> None:
        """End what an interrupted leader has: its transaction and its turn."""
        txn = self._txn
        if txn is not None:
            txn.abort()  # nothing if it is committed
            self.segments.clear()
            self._txn = None
        self._leave()
        self._door.unclean = False

    def _check_usable(self) -> None:
        if self._failed:
            raise errors.DiskFailed(self._failed)
        if self.closing:
            raise errors.Closed(f"store {self.path} is closed; open it again")

    def _note_failure(self, error: Exception) -> errors.DiskqError:
        translated = translate(error, self.path)
        if isinstance(translated, errors.DiskFailed):
            self._failed = str(translated)
        return translated

    def _tell(self, tx: Tx) -> None:
        """Wake whoever waits for what is committed. It is done: nothing here may look as if not,
        and who is not woken looks again by itself."""
        try:
            for group, count in tx.wakes.items():
                self.slots.wake(group, tx.commit_id, count)
            for topic in tx.announced:
                self.slots.announce(topic, tx.commit_id)
            for call in tx.after:
                call()
        except OSError as error:
            if error.errno is None:  # not the system's word, but a handler's TimeoutError
                raise

    # Room

    def look(self, look: Callable[[lmdb.Environment], T]) -> T:
        """What the environment says of itself; for numbers."""
        return guard.run_alone(self._reader, lambda: look(self.live()))

    def _grow(self, env: lmdb.Environment) -> bool:
        """Let the map grow; False if it cannot. Another process may have grown it already."""
        before = env.info()["map_size"]
        self._resize(env, 0)
        if env.info()["map_size"] == before:
            with suppress(errors.Unsupported):
                self._resize(env, 2 * before)
        return self.live().info()["map_size"] != before

    def _resize(self, env: lmdb.Environment, size: int) -> None:
        guard.run_alone(self._reader, lambda: self._set_size(env, size))

    def _set_size(self, env: lmdb.Environment, size: int) -> None:
        """For who has the reader's lock. If the process may not map so much, LMDB has lost the map
        that it had: the environment is opened anew."""
        try:
            env.set_mapsize(size)
        except lmdb.Error as error:
            self._env = None
            self.logs.clear()
            assert self._opened is not None
            self._opened.open_again(time.monotonic() + limits.BUSY_SECONDS)
            self._adopt(self._opened)
            raise errors.Unsupported(
                f"this process may not map more of {self.path}; raise its limit of memory"
                " (ulimit -v)"
            ) from error

    # Databases

    def log(self, topic_id: int) -> Database:
        """As `Tx.log`, for use outside of a transaction; not to be called inside of an
        operation."""
        if HERE[0] != self._pid:
            self.after_fork_in_child()
        if topic_id not in self.logs:
            if self.readonly:
                return self._open(self.live(), _log_name(topic_id))[0]
            self.commit(lambda tx: tx.log(topic_id))
        return self.logs[topic_id]

    def handles(self) -> dict[bytes, Database]:
        """The databases that are open, by name."""
        known = {b"state": self.state, b"held": self.held, b"schedule": self.schedule}
        logs = {_log_name(topic_id): handle for topic_id, handle in self.logs.items()}
        return {**known, b"dedup": self.dedup, **logs}

    def open_log(self, tx: Tx, topic_id: int) -> Database:
        """For Tx: a log that is not open. A read transaction opens it for itself only."""
        if tx.lmdb is not self._snapshot:
            raise LogIsClosed(topic_id)
        try:
            return self.live().open_db(_log_name(topic_id), tx.lmdb, create=False)
        except (lmdb.NotFoundError, lmdb.ReadonlyError):
            return None

    def _open(self, env: lmdb.Environment, *names: bytes) -> list[Database]:
        """Open databases, as who leads, and while nobody reads: a handle that is opened in a
        transaction has a number that another transaction may give to another one."""
        return guard.run_alone(
            self._reader, lambda: open_databases(env, *names, create=not self.readonly)
        )

    # Opening, closing, forking

    def open(self, until: float) -> None:
        """Open the environment.

        Raises: NotAStore, Corrupt, WrongFormat, Unsupported, StoreMoved, Busy, Full; then nothing
        is open, and nothing was changed.
        """
        opened = self._opened = Opened(self.path, readonly=self.readonly, fitness=self._fitness)
        try:
            opened.open(self.clock, until)
            self.check_place()
        except BaseException:
            guard.surely(int, opened.close)
            raise
        self.reserve = limits.MIN_RESERVE_BYTES  # bytes kept for settling; see room.py
        self.looked = False  # at the room: the first put does
        if opened.members is not None and not self.readonly:
            self.slots = opened.members
            self._leave = self.slots.turns.leave
        self._adopt(opened)

    def _adopt(self, opened: Opened) -> None:
        self.state, self.held, self.schedule, self.dedup = opened.databases
        self.main, self.meta, self.members = opened.main, opened.meta, opened.members
        self._keep_reading = opened.keep_reading
        self.drop_dead_readers = opened.drop_dead_readers
        self._env = opened.env  # last: now others may use it

    @property
    def is_open(self) -> bool:
        """Whether it was opened, in this process or in its parent, and not closed."""
        return not self.closing and (self._env is not None or self._forks > 0)

    def live(self) -> lmdb.Environment:
        """The environment, opened anew in a forked child; for who leads or reads."""
        env = self._env
        return self._reopen() if env is None else env

    def _reopen(self) -> lmdb.Environment:
        def reopen() -> lmdb.Environment:
            if self._env is None:
                if not self.is_open:
                    raise errors.Closed(f"store {self.path} is closed; open it again")
                if self._crossed:
                    raise errors.Unsupported(
                        f"this process was forked while a thread of its parent was using"
                        f" {self.path}, in C or inside of that thread; nothing was changed: fork"
                        " with os.fork or multiprocessing, or open the store after the fork"
                    )
                self._end()  # closes the parent's environment
                self.open(time.monotonic() + limits.BUSY_SECONDS)
                self.join()
            assert self._env is not None
            return self._env

        return guard.run_alone(self._opening, reopen)

    def own_slots(self) -> Slots:
        """The slots of this process: opened anew, as all of it, in a forked child."""
        if HERE[0] != self._pid:
            self.after_fork_in_child()
        self.live()
        return self.slots

    def join(self) -> None:
        """Show others that somebody uses the store, once it is known to be sound."""
        if self._opened is not None:
            self._opened.join()

    def used_elsewhere(self) -> bool:
        """Whether another process, or another opening, uses the store."""
        return self._opened is not None and self._opened.used_elsewhere()

    def close(self) -> bool:
        """Close the environment; whoever still uses it gets Closed. Inside of another call of this
        thread that happens when that one ends: then this returns False. May be called again."""
        self.closing = True
        if self._writer._is_owned() or self._reader._is_owned():
            return False
        end = partial(guard.surely, int, self._end)
        guard.run_alone(self._writer, lambda: guard.run_alone(self._reader, end))
        return True

    def _end(self) -> None:
        """Close all that is open; may be called again."""
        opened = self._opened
        if opened is not None and not self._crossed:
            opened.close()
        self._env = self.members = None
        self._leave = int

    def abandon(self, slot: int, owner: int) -> None:
        """Let the consumer of this slot count as dead: it was not closed, but forgotten."""
        if self._env is not None and not self.readonly:
            self.slots.release(slot, owner, clean=False)

    def in_line(self) -> int:
        """How many calls of this process wait for the one that commits; for tests."""
        return self._door.in_line()

    def locks(self) -> list[Any]:
        """All locks of this store: a thread that holds them is alone with its transactions."""
        return [self._writer, self._reader, self._opening]

    def after_fork_in_child(self) -> None:
        """Keep the parent's environment only to close it before the own one is opened."""
        opened, here = self._opened, os.getpid()
        if here != self._pid:
            fresh = Engine.__new__(Engine)
            fresh._begin(self)
            fresh._crossed = self._crossed or self._reading or self._door.unclean
            fresh._env = fresh.members = None
            fresh._forks, fresh._pid = self._forks + 1, here
            if opened is not None:
                opened.drop_files()
            if os.getpid() != self._pid:  # no handler that used it came before this one call of C
                self.__dict__.update(fresh.__dict__)
        HERE[0] = here


def _log_name(topic_id: int) -> bytes:
    return b"log.%d" % topic_id if topic_id < limits.MAX_LOG_DATABASES else b"log"
