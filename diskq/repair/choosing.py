"""Choose the commit of a damaged store from which salvage goes on."""

from __future__ import annotations

import os

from ..base import errors
from ..format.layout import (
    META_KEY,
)
from ..format.lmdb_pages import Snapshot, snapshots
from ..format.meta_page import META_BYTES, meta_pages


def state_of(file: int) -> tuple[object, ...]:
    """Some properties of a data file, of which any commit changes one."""
    status = os.fstat(file)
    return status.st_size, status.st_mtime_ns, meta_pages(os.pread(file, META_BYTES, 0))


def choose(file: int) -> tuple[Snapshot, Snapshot | None]:
    """The state to go on from: of those that can be read a sound one, then a late one. If that is
    not the latest, also the latest, whose pages may hold newer messages.

    Raises: Corrupt.
    """
    found = snapshots(file)
    if not found:
        raise errors.Corrupt("both of its meta pages are damaged, nothing can be found")
    wrong = [each.check() for each in found]
    damaged = [bool(each) for each in wrong]
    lost = [META_KEY not in _state(each) for each in snapshots(file)]
    best = min(range(len(found)), key=lambda at: (lost[at], damaged[at], at))
    searched = lost[best] or best > 0 or len(found) < 2
    snapshot = snapshots(file)[best]
    snapshot.findings = [each for each in wrong[best] if "free pages" in each]  # not walked again
    return snapshot, snapshots(file)[0] if searched else None


def _state(snapshot: Snapshot) -> dict[bytes, bytes]:
    tree = snapshot.databases().get(b"state")
    return {} if tree is None else dict(snapshot.items(b"state", tree))
