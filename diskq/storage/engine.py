"""The engine: one door for writing and one for reading, to a store's LMDB environment.

Every change is `engine.commit(operation)`, every look `engine.read(operation)`: a function of a Tx
that checks first and writes after. It may run more than once (the map grew, or another operation of
a shared commit failed), so it keeps its effects inside the Tx. No user code, sleep or unbounded
loop belongs in one: LMDB's write lock has no timeout and every writer waits for it.

The rules of LMDB (lmdb.h, "Caveats"), and where each is met:

- one environment per directory and process: registry.py shares engines;
- a write transaction stays on its thread: the thread that leads begins and ends it, see writes.py;
- no environment crosses a fork: registry.py waits until no transaction is open, the child opens
  the store again on first use; a child that was forked in C is noticed by its pid;
- no transaction is open while the map is resized: the leader also holds the lock of the reads;
- no descriptor of its lock file is closed: programs do close them, so what that drops is held
  twice, see opened.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import lmdb

from ..base import guard, limits
from ..host.process import HERE
from ..host.slots import Slots
from .connection import Connection
from .environment import Database
from .reads import Reads
from .tx import Tx
from .writes import Writes

T = TypeVar("T")


class Engine(Connection):
    """One LMDB environment of this process, shared by all its stores on the same directory."""

    def _begin(self, owner: Connection) -> None:
        super()._begin(owner)
        self.writes = Writes(owner)
        self.reads = Reads(owner, self.read_lock, self.writes.lock)

    def commit(
        self,
        operation: Callable[[Tx], T],
        until: float | None = None,
        busy_seconds: float = limits.BUSY_SECONDS,
    ) -> T:
        """Run `operation` in a write transaction; durable as the store says when this returns.

        Threads that arrive while another one commits share the next commit. If an operation of a
        shared commit raises, it is undone for all, and the others run again without that one.
        Waits for other writers until a time of `time.monotonic()`, by default for `busy_seconds`.

        Raises: Busy, Reentered, StoreMoved, Closed, ReadOnly, DiskFailed, Full; nothing was
        changed.
        """
        if HERE[0] != self._pid:
            self.after_fork_in_child()
        if self.read_lock._is_owned():
            raise guard.reentered()
        try:
            result: T = self.writes.run(operation, until, busy_seconds)
            return result
        finally:
            if self.closing:
                self.close()

    def read(self, operation: Callable[[Tx], T]) -> T:
        """Run `operation` in a read transaction: one consistent snapshot, which neither waits for a
        writer nor holds one up.

        One at a time per process, and brief: a long one keeps freed pages from being reused.

        Raises: Reentered, Closed, Corrupt.
        """
        if HERE[0] != self._pid:
            self.after_fork_in_child()
        try:
            return self.reads.run(operation)
        finally:
            if self.closing:
                self.close()

    def look(self, look: Callable[[lmdb.Environment], T]) -> T:
        """Ask the environment about itself; for numbers."""
        return guard.run_alone(self.read_lock, lambda: look(self.live()))

    def in_line(self) -> int:
        """How many calls of this process wait for the one that commits; for tests."""
        return self.writes.in_line()

    def log(self, topic_id: int) -> Database:
        """The log database of a topic, outside of a transaction; for tools and salvage."""
        if HERE[0] != self._pid:
            self.after_fork_in_child()
        if topic_id not in self.logs:
            if self.readonly:
                return self.log_in(self.live(), topic_id)
            self.commit(lambda tx: tx.log(topic_id))
        return self.logs[topic_id]

    def own_slots(self) -> Slots:
        """The slots of this process: opened again, as all of it, in a forked child."""
        if HERE[0] != self._pid:
            self.after_fork_in_child()
        self.live()
        return self.slots

    def abandon(self, slot: int, owner: int) -> None:
        """Let the consumer of this slot count as dead: it was not closed, but forgotten."""
        if self._env is not None and not self.readonly:
            self.slots.release(slot, owner, clean=False)

    # Closing, forking

    def close(self) -> bool:
        """Close the environment; a call that still uses it gets Closed. Inside of another call of
        this thread that happens when that one ends: then this returns False. May be called again.
        """
        self.closing = True
        if self.writes.lock._is_owned() or self.read_lock._is_owned():
            return False
        end = partial(guard.surely, int, self._end)
        guard.run_alone(self.writes.lock, lambda: guard.run_alone(self.read_lock, end))
        return True

    def locks(self) -> list[Any]:
        """All locks of this store: a thread that holds them is alone with its transactions."""
        return [self.writes.lock, self.read_lock, self._opening]

    @property
    def generation(self) -> int:
        """How often this process is a fork of the one that opened the store: what was made before
        belongs to another process."""
        if HERE[0] != self._pid:
            self.after_fork_in_child()
        return self._forks

    def after_fork_in_child(self) -> None:
        """Keep the parent's environment only to close it before this process opens its own."""
        opened, here = self._opened, os.getpid()
        if here != self._pid:
            fresh = Engine.__new__(Engine)
            fresh._begin(self)
            fresh._crossed = self._crossed or self.reads.active or self.writes.unclean
            fresh._env = fresh.members = None
            fresh._forks, fresh._pid = self._forks + 1, here
            if opened is not None:
                opened.drop_files()
            if os.getpid() != self._pid:  # no handler that used it came before this one call of C
                self.__dict__.update(fresh.__dict__)
        HERE[0] = here
