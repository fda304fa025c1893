"""Write transactions: a turn among all processes, then one commit for all threads that wait."""

from __future__ import annotations

import operator
from contextlib import suppress
from typing import Any

import lmdb

from ..base import errors, guard
from .commits import Call, Door
from .connection import Connection, LogIsClosed
from .environment import FAULTS, full, translate
from .tx import Tx, run_others

_MOST_GROWTHS = 64  # of the map, by this process and others, in one commit


class Writes:
    """The writes of one engine in one process. The thread that holds `lock` leads: it begins and
    ends the transaction, since a write transaction stays on its thread (lmdb.h, "Caveats")."""

    def __init__(self, engine: Connection) -> None:
        self._engine = engine
        self._door = Door(self._transact, self._clean)
        self.run = self._door.enter
        self.lock = self._door.lead
        self._failed = ""  # what the disk refused
        self._txn: lmdb.Transaction[bytes] | None = None  # of the thread that leads

    @property
    def unclean(self) -> bool:
        """Whether a transaction may be open."""
        return self._door.unclean

    def in_line(self) -> int:
        """How many calls of this process wait for the one that commits; for tests."""
        return self._door.in_line()

    def _transact(self, call: Call, claimed: list[Call]) -> None:
        """All operations in one transaction, in order, or none."""
        engine, door = self._engine, self._door
        if engine.readonly:
            raise errors.ReadOnly(f"store {engine.path} is open read-only; open it for writing")
        env = engine.live()
        turns, missing, grown = engine.slots.turns, -1, 0
        while grown < _MOST_GROWTHS:
            try:
                door.unclean = True
                turns.take(call, self._check_usable)
                self._check_usable()
                engine.check_place()
                if missing >= 0:
                    engine.add_log(env, missing)
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
                    raise full(engine.path, "its memory map cannot grow") from error
                env = engine.live()
            except FAULTS as error:
                raise self._note_failure(error) from error
            finally:
                self._clean()  # the transaction, too, if something was raised while it ended
        else:
            raise full(engine.path, "its memory map was filled as fast as it grew")
        turns.wake_next()
        if tx is not None and (tx.wakes or tx.announced or tx.after):
            self._tell(tx)

    def _run(self, env: lmdb.Environment, call: Call, others: list[Call]) -> Tx | None:
        """Run and commit; None if an operation of another thread failed, and nothing was done."""
        txn: Any = None
        pending = [True]  # a new one: of an attempt that fails it is never emptied
        try:
            txn = self._txn = env.begin(self._engine.state, write=True)
            tx = Tx(self._engine, txn)
            call.result = call.operation(tx)
            if others and not run_others(others, tx):
                return None
            for member in (call, *others):
                member.pending = pending
            # One call of C: what is committed is done, whatever is raised around it.
            any(map(operator.call, (txn.commit, pending.clear, *tx.marks)))
            return tx
        finally:
            if pending:
                if txn is not None:
                    txn.abort()
                self._engine.segments.clear()  # it may have read what is not there now
            self._txn = None

    def _clean(self) -> None:
        """End what an interrupted leader has: its transaction and its turn."""
        txn = self._txn
        if txn is not None:
            txn.abort()  # nothing if it is committed
            self._engine.segments.clear()
            self._txn = None
        self._engine.leave()
        self._door.unclean = False

    def _check_usable(self) -> None:
        if self._failed:
            raise errors.DiskFailed(self._failed)
        if self._engine.closing:
            raise errors.Closed(f"store {self._engine.path} is closed; open it again")

    def _note_failure(self, error: Exception) -> errors.DiskqError:
        translated = translate(error, self._engine.path)
        if isinstance(translated, errors.DiskFailed):
            self._failed = str(translated)
        return translated

    def _tell(self, tx: Tx) -> None:
        """Wake the threads that wait for what is committed. It is done: no error here may look as
        if it were not, and a thread that is not woken looks again by itself."""
        slots = self._engine.slots
        try:
            for group, count in tx.wakes.items():
                slots.wake(group, tx.commit_id, count)
            for topic in tx.announced:
                slots.announce(topic, tx.commit_id)
            for call in tx.after:
                call()
        except OSError as error:
            if error.errno is None:  # not the system's word, but a handler's TimeoutError
                raise

    def _grow(self, env: lmdb.Environment) -> bool:
        """Let the map grow; False if it cannot. Another process may have grown it already."""
        before = env.info()["map_size"]
        self._resize(env, 0)
        if env.info()["map_size"] == before:
            with suppress(errors.Unsupported):
                self._resize(env, 2 * before)
        return self._engine.live().info()["map_size"] != before

    def _resize(self, env: lmdb.Environment, size: int) -> None:
        engine = self._engine
        guard.run_alone(engine.read_lock, lambda: engine.set_map_size(env, size))
