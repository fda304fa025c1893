"""Read transactions: one at a time in a process, each one consistent snapshot."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import lmdb

from ..base import errors, guard, limits
from .connection import Connection
from .environment import FAULTS, translate
from .tx import Tx

T = TypeVar("T")
_LONG_READ_NS = 10_000_000  # a read that took longer is checked, see `_was_kept`
_TRIES = 8


class Reads:
    """The reads of one engine in one process."""

    def __init__(self, engine: Connection, lock: Any, write_lock: Any) -> None:
        self._engine = engine
        self._lock = lock
        self._write_lock = write_lock
        self.active = False  # from before a snapshot is taken until after it ended

    def run(self, operation: Callable[[Tx], T]) -> T:
        """Run an operation in a read transaction.

        Raises: Reentered, Closed, Corrupt, Unsupported.
        """
        lock = self._lock
        if lock._is_owned() or (self._write_lock._is_owned() and not lock.acquire(False)):
            raise guard.reentered()  # to wait here could be to wait for each other
        try:
            guard.wait_for(lock)
            with lock:
                return self._run(operation)
        finally:
            if lock._is_owned():  # only a tracer can raise before the end of `with`
                self._end()
                lock.release()

    def _run(self, operation: Callable[[Tx], T]) -> T:
        engine = self._engine
        for _ in range(_TRIES):
            env = engine.live()
            began_ns = time.monotonic_ns()
            try:
                self.active = True
                engine.keep_reading()
                engine.snapshot = env.begin(engine.state)
                result = operation(Tx(engine, engine.snapshot))
                if time.monotonic_ns() - began_ns < _LONG_READ_NS or self._was_kept(env):
                    return result
            except lmdb.MapResizedError:
                self._end()
                engine.set_map_size(env, 0)
            except lmdb.ReadersFullError:
                engine.drop_dead_readers()
            except Exception as error:
                if engine.snapshot is not None and not self._was_kept(env):
                    continue  # the pages that it read were used again meanwhile
                if isinstance(error, FAULTS):
                    raise translate(error, engine.path) from error
                raise
            finally:
                self._end()
        raise errors.Unsupported(f"store {engine.path} has {limits.MAX_READERS} readers, its limit")

    def _was_kept(self, env: lmdb.Environment) -> bool:
        """Whether the snapshot is still protected: without the lock, another process may have taken
        it for a dead one's, and the pages that it read may have been used again."""
        snapshot = self._engine.snapshot
        assert snapshot is not None
        txn_id = str(snapshot.id())
        rows = (line.split() for line in env.readers().splitlines()[1:])
        return any(row[0] == str(os.getpid()) and row[-1] == txn_id for row in rows)

    def _end(self) -> None:
        snapshot = self._engine.snapshot
        if snapshot is not None:
            snapshot.abort()
            self._engine.snapshot = None
        self.active = False
