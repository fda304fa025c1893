"""A process's connection to a store: LMDB's environment, its databases, and the shared file.

It is opened once, and again in a forked child on first use: no environment crosses a fork. The
connection also remembers what helps the next transaction; a child forgets that.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable

import lmdb

from ..base import errors, guard, limits
from ..base.clock import Clock
from ..format.rows import Meta
from ..format.segment import Segment
from ..host.process import HERE
from ..host.slots import Slots
from .environment import Database, open_databases
from .hands import Hands
from .location import Location
from .opened import Fitness, Opened


class LogIsClosed(Exception):
    """An operation needs a log that is not open yet: open it, and run the operation again."""

    def __init__(self, topic_id: int) -> None:
        super().__init__(topic_id)
        self.topic_id = topic_id


class Connection:
    """The open parts of a store in one process. Transactions see it as `tx.engine`."""

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
        self.location = Location(path, identity)
        self.check_place = self.location.check
        self.identity = identity
        self.readonly = readonly
        self._fitness = fitness  # checks before each opening; None for a store that is suspect
        self.clock = clock
        self.users: set[object] = set()
        self._env: lmdb.Environment | None = None
        self.members: Slots | None = None  # the processes that are alive, if that can be told
        self._opened: Opened | None = None  # in a child at first the parent's
        self._pid = HERE[0] = os.getpid()
        self.closing = False
        self._crossed = False  # a fork did, while a transaction was open
        self._forks = 0
        self._begin(self)

    def _begin(self, owner: Connection) -> None:
        """Make what each process has for itself, for `owner`."""
        self._opening = guard.new_lock()
        self.read_lock = guard.new_lock()  # held by a read, and while no read may be open
        self.snapshot: lmdb.Transaction[bytes] | None = None  # of the read
        self.leave: Callable[[], object] = int  # gives back the turn to write
        self.logs: dict[int, Database] = {}
        # By topic, the segment that was read last; see tables/log.py.
        self.segments: dict[int, tuple[int, Segment]] = {}
        self.looked_ns: dict[int, int] = {}  # by group, when a get looked for dead consumers
        self.hands: dict[int, Hands] = defaultdict(Hands)  # by group, what this process handles
        self.trimmed: dict[int, int] = {}  # by topic, the offset from which the next trim goes on

    @property
    def path(self) -> str:
        """The directory of the store."""
        return self.location.path

    # Opening

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
        self.reserve = limits.MIN_RESERVE_BYTES  # bytes kept for settling; see reserve.py
        self.looked = False  # at the room: the first put does
        if opened.members is not None and not self.readonly:
            self.slots = opened.members
            self.leave = self.slots.turns.leave
        self._adopt(opened)

    def _adopt(self, opened: Opened) -> None:
        self.state, self.held, self.schedule, self.dedup = opened.databases
        self.main, self.meta, self.members = opened.main, opened.meta, opened.members
        self.keep_reading = opened.keep_reading
        self.drop_dead_readers = opened.drop_dead_readers
        self._env = opened.env  # last: now other threads may use it

    @property
    def is_open(self) -> bool:
        """Whether it was opened, in this process or in its parent, and not closed."""
        return not self.closing and (self._env is not None or self._forks > 0)

    def live(self) -> lmdb.Environment:
        """The environment, opened again in a forked child; for the thread that writes or reads."""
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

    def join(self) -> None:
        """Show other processes that the store is in use, once it is known to be sound."""
        if self._opened is not None:
            self._opened.join()

    def used_elsewhere(self) -> bool:
        """Whether another process, or another opening, uses the store."""
        return self._opened is not None and self._opened.used_elsewhere()

    def _end(self) -> None:
        """Close all that is open; may be called again."""
        opened = self._opened
        if opened is not None and not self._crossed:
            opened.close()
        self._env = self.members = None
        self.leave = int

    # The map

    def set_map_size(self, env: lmdb.Environment, size: int) -> None:
        """Resize the map; 0: to the size that another process gave it. The caller holds the lock of
        the reads. If the process may not map so much, LMDB has lost the map that it had: the
        environment is opened again."""
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

    def handles(self) -> dict[bytes, Database]:
        """The databases that are open, by name."""
        known = {b"state": self.state, b"held": self.held, b"schedule": self.schedule}
        logs = {_log_name(topic_id): handle for topic_id, handle in self.logs.items()}
        return {**known, b"dedup": self.dedup, **logs}

    def open_log(self, txn: lmdb.Transaction[bytes], topic_id: int) -> Database:
        """For Tx: a log that is not open. A read transaction opens it for itself only.

        Raises: LogIsClosed in a write transaction.
        """
        if txn is not self.snapshot:
            raise LogIsClosed(topic_id)
        try:
            return self.live().open_db(_log_name(topic_id), txn, create=False)
        except (lmdb.NotFoundError, lmdb.ReadonlyError):
            return None

    def add_log(self, env: lmdb.Environment, topic_id: int) -> None:
        """Open the log of a topic, for the thread that leads."""
        self.logs[topic_id] = self._open(env, _log_name(topic_id))[0]

    def log_in(self, env: lmdb.Environment, topic_id: int) -> Database:
        """The log of a topic in a store that is open for reading only; None if it is not there."""
        return self._open(env, _log_name(topic_id))[0]

    def _open(self, env: lmdb.Environment, *names: bytes) -> list[Database]:
        """Open databases, as who leads, and while nobody reads: a handle that is opened in a
        transaction has a number that another transaction may give to another one."""
        return guard.run_alone(
            self.read_lock, lambda: open_databases(env, *names, create=not self.readonly)
        )


def _log_name(topic_id: int) -> bytes:
    return b"log.%d" % topic_id if topic_id < limits.MAX_LOG_DATABASES else b"log"
