"""Creating a store: it is there and complete, or not at all. Imported on demand."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

import lmdb

from . import files, limits
from .clock import Clock
from .codec import META_KEY, new_meta
from .environment import translate


def create_store(path: str, durability: str, max_bytes: int, clock: Clock) -> None:
    """Create a store: it is there and complete, or not at all, whenever the power fails.

    LMDB flushes neither a new file's name nor, before its first commit, the file; so build it under
    another name, flush, rename, flush the parent.
    """
    path = os.path.abspath(path)
    parent, name = os.path.split(path)
    temporary = os.path.join(parent, f".{name}.{os.getpid()}.{os.urandom(4).hex()}")
    row = new_meta(durability, max_bytes, os.urandom(16), clock.boot_id(), clock.wall_ns())
    try:
        os.mkdir(temporary)
        with lmdb.open(
            os.fsencode(temporary),
            max_dbs=8,
            max_readers=limits.MAX_READERS,
            mode=0o664,
            lib_version=0,
        ) as env:
            with env.begin(write=True) as txn:
                for database in (b"held", b"schedule", b"dedup"):
                    env.open_db(database, txn)
                txn.put(META_KEY, row, db=env.open_db(b"state", txn))
            env.sync(True)
        _fill(os.path.join(temporary, files.LOCK))
        _flush(os.path.join(temporary, files.DATA))
        _flush(temporary)
        try:
            os.rename(temporary, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another process was faster; its store is as good.
        _flush(parent)
    except (OSError, lmdb.Error) as error:
        raise translate(error, path) from error
    finally:
        _remove(temporary)


def _flush(path: str) -> None:
    """Flush a file or directory to its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fill(path: str) -> None:
    """Give a file that will be mapped all its blocks: on a full disk, touching a hole in it would
    end the process with SIGBUS."""
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def _remove(path: str) -> None:
    """Remove a store, if it is there."""
    for name in (files.DATA, files.LOCK, files.SLOTS, ""):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(path, name)) if name else os.rmdir(path)
