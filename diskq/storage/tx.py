"""One transaction, as operations see it: rows of `state`, and what goes with the commit."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb

from ..base.errors import DiskqError
from .commits import Call
from .connection import Connection, LogIsClosed
from .environment import Database

TOKEN_BITS = 24  # of a token that number the deliveries of one commit
_HERE = str(Path(__file__).parent.parent)
_OF_OPERATIONS = (
    *(DiskqError, ValueError, TypeError, LookupError, OSError),
    *(struct.error, lmdb.Error),
)


_OF_THE_DOOR = (LogIsClosed, lmdb.MapFullError, lmdb.MapResizedError)


class Tx:
    """One transaction: get, put and delete of `state`, and what goes with the commit."""

    def __init__(self, engine: Connection, txn: lmdb.Transaction[bytes]) -> None:
        self.engine = engine
        self.lmdb = txn
        self.get = txn.get
        self.put = txn.put
        self.delete = txn.delete
        self.commit_id = txn.id() + engine.meta.commit_base
        self.tokens = self.commit_id << TOKEN_BITS  # the next one
        self.wakes: dict[int, int] = {}
        self.announced: set[int] = set()  # topics that got messages, or room: wake who watches
        self.room: Any = None  # what it may copy, once somebody asked; see room.py
        # Changes in memory that are true once this is committed: functions of C that return
        # nothing, so that they happen with the commit whatever is raised; see `at_commit`.
        self.marks: list[Callable[[], object]] = []
        self.after: list[Callable[[], None]] = []  # to be called soon after, if nothing prevents it

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

    def erase(self, prefix: bytes, limit: int, database: Database = None) -> int:
        """Remove up to `limit` rows whose keys have this prefix; returns how many."""
        keys = [key for key, _ in islice(self.scan(prefix, database=database), limit)]
        for key in keys:
            self.lmdb.delete(key, db=database or self.engine.state)
        return len(keys)

    @property
    def txn_id(self) -> int:
        """The number of the transaction in LMDB."""
        return int(self.lmdb.id())

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

    def log(self, topic_id: int) -> Database:
        """The log database of a topic: its own, or behind the first topics a shared one. None if it
        is not there, in a read transaction. In a write transaction it is made if need be."""
        database = self.engine.logs.get(topic_id)
        return self.engine.open_log(self.lmdb, topic_id) if database is None else database

    def at_commit(self, target: object, name: str, value: object) -> None:
        """Set an attribute in the moment in which this is committed, if it is."""
        self.marks.append(partial(setattr, target, name, value))


def run_others(calls: list[Call], tx: Tx) -> bool:
    """Run the operations of other threads in a transaction. False if one failed: its own thread
    runs that one, as the mark says, and the caller undoes the transaction."""
    for call in calls:
        try:
            call.result = call.operation(tx)
        except Exception as error:
            if not _is_of_operation(error, call.operation):
                raise
            call.alone = True
            return False
    return True


def _is_of_operation(error: Exception, operation: Callable[[Tx], object]) -> bool:
    """Whether an operation raised this, and not a signal handler or a time limit that came while it
    ran: those are raised by a frame that is not the operation's, or are of a kind that no operation
    of diskq raises."""
    if isinstance(error, _OF_THE_DOOR) or (isinstance(error, OSError) and error.errno is None):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_code.co_filename if trace is not None else _HERE
    if raised_in.startswith(_HERE):
        return isinstance(error, _OF_OPERATIONS)
    code = getattr(operation, "__code__", None)
    return code is not None and code.co_filename == raised_in
