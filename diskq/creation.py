"""Creating a store, new, as a backup or out of a damaged one: it is there and complete, or not at
all. Imported on demand."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import lmdb

from . import files, limits
from .clock import Clock
from .codec import DURABILITIES, META_KEY, Meta, new_meta
from .environment import is_out_of_room, translate
from .errors import Full, NotAStore

FORGOTTEN, COPIED = 1 << 24, 1 << 28  # commits that one may have made meanwhile
_LATEST = 1 << 39  # of 40 bits that a token has for the commit: the year 2037
_YEAR_2020 = 1_577_836_800
_SURELY_DEAD_SECONDS = 60
_FILES = files.DATA, files.LOCK, files.SLOTS, files.BOOT
_LOCK_BYTES = 64 * (limits.MAX_READERS + 2)  # mdb.c, MDB_reader and MDB_txninfo


def create_store(path: str, durability: str, max_bytes: int, clock: Clock) -> None:
    """Create an empty store, unless another process is faster: its store is as good."""
    row = new_meta(durability, max_bytes, os.urandom(16), clock.boot_id(), clock.wall_ns())
    with suppress(NotAStore), building(path) as place:
        create_in(place, row)


@contextmanager
def building(path: str) -> Iterator[str]:
    """Build a store in the directory that this gives, which becomes `path` at the end, whenever the
    power fails: there is all of it, or nothing.

    LMDB flushes neither a new file's name nor, before its first commit, the file; so build it under
    another name, flush, rename, flush the parent.

    Raises: NotAStore if something is at `path` already; Full, DiskFailed, ReadOnly.
    """
    path = os.path.abspath(path)
    parent, name = os.path.split(path)
    place = os.path.join(parent, f".{name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        _sweep(parent)
        os.mkdir(place)
        _allocate_lock(os.path.join(place, files.LOCK))
        yield place
        for each in sorted(os.listdir(place)):
            _flush(os.path.join(place, each))
        _flush(place)
        try:
            os.rename(place, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise NotAStore(f"{path} exists; choose a new path") from error
        finally:
            _flush(parent)
    except (OSError, lmdb.Error, Full) as error:
        translated = error if isinstance(error, Full) else translate(error, path)
        if isinstance(translated, Full) or is_out_of_room(error, place):  # nothing to consume yet
            text = f"there is no room for a store at {path}; free some, or choose another disk"
            raise Full(text) from error
        raise translated from error
    finally:
        with suppress(OSError):
            _remove(place)


def _sweep(parent: str) -> None:
    """Remove what those left who were killed while they built a store here."""
    for entry in os.listdir(parent):
        found = re.fullmatch(r"\..+\.(\d+)\.[0-9a-f]{8}", entry)
        if found and not os.path.exists(f"/proc/{found[1]}"):
            with suppress(OSError):  # others look, too
                place = os.path.join(parent, entry)
                inside = os.listdir(place)
                last = max(os.stat(os.path.join(place, each)).st_mtime for each in [".", *inside])
                if {*inside} <= {*_FILES} and last < time.time() - _SURELY_DEAD_SECONDS:
                    _remove(place)  # the process may be of another PID namespace, and alive


def create_in(place: str, row: bytes) -> None:
    """Make an empty store in an empty directory."""
    with lmdb.open(
        os.fsencode(place),
        max_dbs=8,
        max_readers=limits.MAX_READERS,
        mode=0o664,
        lib_version=0,
    ) as env:
        write_meta(env, place, row)


def write_meta(env: lmdb.Environment, place: str, row: bytes) -> None:
    """Write the row of a store that is being built, and what it needs besides."""
    with env.begin(write=True) as txn:
        for database in (b"held", b"schedule", b"dedup"):
            env.open_db(database, txn)
        txn.put(META_KEY, row, db=env.open_db(b"state", txn))
    meta = Meta(row)
    if DURABILITIES[meta.durability] == "process":
        with open(os.path.join(place, files.BOOT), "w", encoding="ascii") as file:
            file.write(meta.boot_id.hex())


def later(commit_id: int, apart: int) -> int:
    """A commit id to go on from where commits may be forgotten, or made again elsewhere: in a copy
    of a store that goes on too, and after a power cut where nothing is flushed. Tokens are made of
    commit ids, and must not repeat. Nobody makes a thousand commits a second for years, so the
    milliseconds since 2020 are ahead of what is forgotten, whatever was copied of copies before."""
    elapsed = int((time.time() - _YEAR_2020) * 1000)
    return max(commit_id + apart, min(elapsed, _LATEST))  # a clock may be wrong


def _flush(path: str) -> None:
    """Flush a file or directory to its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _allocate_lock(path: str) -> None:
    """Make LMDB's lock file, with all its blocks, before LMDB maps it: on a full disk, touching a
    hole in it would end the process with SIGBUS."""
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, _LOCK_BYTES)


def like(source: str, place: str) -> None:
    """Give a copy of a store the permissions of the store."""
    for name in ("", *_FILES):
        old, new = os.path.join(source, name), os.path.join(place, name)
        if os.path.exists(old) and os.path.exists(new):
            os.chmod(new, os.stat(old).st_mode & 0o7777)


def _remove(path: str) -> None:
    """Remove a store, if it is there."""
    for name in (*_FILES, ""):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(path, name)) if name else os.rmdir(path)
