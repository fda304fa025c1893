"""A copy of a store that is in use. Imported on demand."""

from __future__ import annotations

import os
import sys

import lmdb

from . import apart, errors, files
from .codec import COPY, META_KEY, Meta
from .creation import COPIED, building, later, like, write_meta
from .environment import adopting, open_environment, read_row, translate


def copy_store(source: str, path: str) -> None:
    """Make a compact copy of a store at `path`, as of one commit: all of it, flushed, or nothing.

    In a process of its own: its read transaction is open all the while, and no other one may be,
    in the process that lets the map grow.

    Raises: NotAStore if something is at `path`; Full, DiskFailed, ReadOnly, NotFound.
    """
    if files.is_store(path):
        raise errors.NotAStore(f"{path} exists; choose a new path for the copy")
    with building(path) as place:
        ended = apart.run("backup:main", source, place, path)
        if ended.code:
            kind, _, text = ended.err.strip().rpartition("\n")[2].partition(": ")
            raise getattr(errors, kind, errors.DiskqError)(text or f"copying ended: {ended}")
        like(source, place)


def main(source: str, place: str, path: str) -> int:
    """Copy into an empty directory; an error is one line on stderr."""
    try:
        with open_environment(source, "commit", readonly=True) as env:
            adopting(env, lambda: env.copy(os.fsencode(place), compact=True))  # type: ignore[arg-type]
            last = env.info()["last_txnid"]
        with open_environment(place, "commit", readonly=False) as env:
            row = adopting(env, lambda: read_row(env, b"state", META_KEY))
            meta = Meta(row or b"")
            meta.boot_id, meta.commit_base = COPY, later(meta.commit_base + last, COPIED)
            write_meta(env, place, meta.pack())
    except (errors.DiskqError, OSError, lmdb.Error) as error:
        error = error if isinstance(error, errors.DiskqError) else translate(error, path)
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
