"""Processes that use a store or have been reading for long, and the space that this keeps. Imported
on demand.

LMDB never uses a page again that a snapshot in use may need: the file grows while one stays open. A
read of diskq is over in a moment, or renews itself; so what is found here is a process that was
stopped in the middle of one, a `verify` or `backup` of a large store, or another program.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import lmdb

from ..base.limits import PAGE_BYTES
from ..format.lmdb_pages import snapshots
from ..host import files, locks

NOTICED_LAG = 100  # commits
_WORTH_A_LOOK = 10


class Reader(NamedTuple):
    """A process with an open read transaction, and how many commits there were since it began."""

    pid: int
    lag: int


def is_used(path: str) -> bool:
    """Whether another process has the store at `path` open: LMDB holds a lock then. Not to be asked
    by one that has it open itself, whose locks would end with this look."""
    name = os.path.join(path, files.LOCK)
    if not os.access(name, os.W_OK):
        return False  # it is not there, or nobody can use it
    with open(name, "rb") as file:
        return locks.is_locked(file.fileno(), 0)


def open_reads(env: lmdb.Environment) -> list[Reader]:
    """All open read transactions, those that began first first."""
    last = env.info()["last_txnid"]
    rows = (line.split() for line in env.readers().splitlines()[1:])
    found = (row for row in rows if len(row) == 3 and row[2].isdigit())
    return sorted((Reader(int(row[0]), last - int(row[2])) for row in found), key=lambda r: -r.lag)


def pinned_bytes(env: lmdb.Environment, path: str) -> int:
    """Bytes that were freed and cannot be used again yet, because somebody has been reading since
    before. Only who lags makes this worth a look at LMDB's list of free pages."""
    oldest = next(iter(open_reads(env)), Reader(0, 0))
    if oldest.lag < _WORTH_A_LOOK:
        return 0
    since = env.info()["last_txnid"] - oldest.lag
    name = os.path.join(path, files.DATA)
    with open(files.open_regular(name, os.O_RDONLY), "rb") as file:
        free = snapshots(file.fileno())[0].free_pages()
        return PAGE_BYTES * sum(len(pages) for txn_id, pages in free if txn_id >= since)


def blame(env: lmdb.Environment) -> str:
    """Of a store that is full: who keeps its space from being used again, if anybody does."""
    oldest = next(iter(open_reads(env)), Reader(0, 0))
    if oldest.lag < NOTICED_LAG:
        return ""
    return (
        f"; process {oldest.pid} has been reading for {oldest.lag} commits, and until it goes on or"
        " ends no freed space is used again"
    )
