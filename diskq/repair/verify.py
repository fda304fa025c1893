"""Check every invariant of a store: for users, for tests and for tools. Imported on demand.

LMDB can end a process that reads damaged pages, so the pages are checked first, without LMDB. For a
store that may be damaged, `main` runs in a child process; see fitness.py.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from ..base.clock import Clock
from ..base.errors import Busy, Corrupt, NotAStore, ReadOnly
from ..base.limits import BUSY_SECONDS, MIB, NOWAIT_SECONDS
from ..base.model import Finding
from ..host import files
from ..storage.engine import Engine
from ..storage.environment import translating
from ..storage.readers import is_used
from ..storage.tx import Tx
from . import fitness
from .invariants import broken_invariants
from .pages import check_pages

_LARGE_BYTES = 256 * MIB


def findings(engine: Engine) -> list[Finding]:
    """Everything that is wrong in the store; a large one is read in a child process,
    because a process has one read transaction open at a time.

    Raises: StoreMoved if the path holds another store; DiskqError.
    """
    path, identity = engine.path, engine.identity
    with translating(path):
        files.check_identity(path, identity)
        if os.stat(os.path.join(path, files.DATA)).st_size < _LARGE_BYTES:
            found = check_store(engine)
        else:
            lines = fitness.check_in_child(path, identity)
            found = [Finding(*line.partition(": ")[::2]) for line in lines]
        files.check_identity(path, identity)
    return found


def check_store(engine: Engine) -> list[Finding]:
    """Everything that is wrong in a store; empty if it is sound."""
    return engine.read(_check_snapshot)


def _check_snapshot(tx: Tx) -> list[Finding]:
    """Pages first: if they are sound, LMDB can read them. While the snapshot is open, no commit
    uses a page again that a later one has."""
    pages = [Finding("store", problem) for problem in check_pages(tx.engine.path)]
    return pages or list(broken_invariants(tx))


def main(path: str, device: str = "", inode: str = "") -> list[str]:
    """The findings of a suspect store, one per line: of the one whose data file has this identity,
    or of whatever is there."""

    with translating(path):
        identity = (int(device), int(inode)) if device else files.identity_of(path)
        found = [Finding("store", problem) for problem in check_pages(path)]
        try:
            if not found or is_used(path):  # pages change meanwhile: it takes a snapshot to tell
                found = _check_suspect(path)
        except (Corrupt, NotAStore) as error:  # it was a store, for its path is known as one
            found = [Finding("store", str(error))]
        files.check_identity(path, identity)
    return ["\t".join(finding) for finding in found]


def _check_suspect(path: str) -> list[Finding]:
    """Check a store that nobody may have open here. Beside a writer that does not go on, all but
    what only a writer reads."""
    engine = Engine(path, files.identity_of(path), readonly=False, clock=Clock())
    try:
        engine.open(time.monotonic() + NOWAIT_SECONDS)
    except Busy:
        engine = Engine(path, engine.identity, readonly=True, clock=Clock())
        engine.open(time.monotonic() + BUSY_SECONDS)
    found = check_store(engine)
    with suppress(_Undo, Busy, ReadOnly):
        engine.commit(_read_free_list, time.monotonic() + NOWAIT_SECONDS)
    return found


class _Undo(Exception):
    """Ends a transaction without a trace."""


def _read_free_list(tx: Tx) -> None:
    """Ask for more pages than are free in one place: LMDB reads its whole list of free pages."""
    tx.put(b"~", bytes(4 * MIB))
    raise _Undo
