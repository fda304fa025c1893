"""LMDB environments: open one, and say in diskq's words what LMDB refuses."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import lmdb

from ..base import errors, limits, ondemand
from ..host import files

T = TypeVar("T")
Database = Any  # py-lmdb's handle has no public type
# What LMDB raises, and what a damaged row does.
FAULTS = (lmdb.Error, struct.error, UnicodeDecodeError, IndexError)
_DAMAGE = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, *FAULTS[1:])
# How the main database describes a database: flags, depth, pages of branches, leaves and overflows,
# entries, root; mdb.c, MDB_db.
TREE = struct.Struct("=IHHQQQQQ")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_PERMISSION = (errno.EACCES, errno.EPERM)
_FAILED = (
    "writing to {} failed ({}); check the disk, reopen the store and run store.verify() or"
    " 'diskq verify'"
)
_CLASH = (
    "store {} is used by a process of another PID namespace with the number of this one, {}, and"
    " LMDB tells processes by it; let the containers share their PID namespace, or use the store"
    " from one of them"
)
_TOO_MANY = "store {{}} cannot be used: {} has too many open files; close some, or raise the limit"
_OF_SYSTEM: dict[int, tuple[type[errors.DiskqError], str]] = {
    errno.EMFILE: (errors.DiskqError, _TOO_MANY.format("this process") + " (ulimit -n)"),
    errno.ENFILE: (errors.DiskqError, _TOO_MANY.format("the system") + " (sysctl fs.file-max)"),
    errno.ENAMETOOLONG: (errors.NotAStore, "{} is too long a name; choose a shorter one"),
    errno.ELOOP: (errors.NotAStore, "{} leads through symbolic links in a circle; mend them"),
    errno.ENOTDIR: (errors.NotAStore, "{} leads through a file; choose another path"),
    errno.ENOENT: (errors.NotFound, "{} is not there any more; check the path"),
    errno.EROFS: (
        errors.ReadOnly,
        "{} is on a disk that is mounted read-only; mount it writable, or choose another place",
    ),
}


def open_environment(path: str, durability: str, *, readonly: bool) -> lmdb.Environment:
    """Open with the largest memory map that the process may have (ulimit -v).

    `max_spare_txns` is 0 because a spare transaction keeps its reader slot, which a forked child
    that closes the environment would free under its parent. `lib_version` 0 is the 0.9 format.
    Nothing follows the opening here: the caller holds the environment at once, so that an exception
    cannot leave it open in a traceback. LMDB refuses a second one of a store in a process.
    """
    with translating(path):
        files.check_mount(path)
        files.prepare_lock(path)
    sizes = list(limits.MAP_BYTES)
    tries = 0
    while True:
        try:
            return lmdb.open(
                os.fsencode(path),
                map_size=sizes[0],
                readonly=readonly,
                create=False,
                mode=files.PRIVATE,
                sync=durability != "process",
                metasync=durability == "commit",
                max_readers=limits.MAX_READERS,
                max_dbs=limits.MAX_LOG_DATABASES + 8,
                max_spare_txns=0,
                lib_version=0,
            )
        except lmdb.MapResizedError as error:
            tries += 1  # it grew between the two looks that LMDB takes at it
            if tries == 64:
                raise errors.Corrupt(
                    f"store {path} is damaged (its size is impossible); {errors.WAY_OUT}"
                ) from error
        except lmdb.Error as error:
            if error.code != errno.ENOMEM or len(sizes) == 1:
                raise translate(error, path) from error
            del sizes[0]


def keep_from_others(path: str) -> None:
    """Close data.mdb where another program is executed: LMDB lets it inherit the descriptor. The
    open files are looked through, because py-lmdb does not tell which one it is."""
    with suppress(OSError):  # no /proc
        identity = files.identity_of(path)
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # the directory itself, and what other threads close
                if os.get_inheritable(int(name)):
                    status = os.fstat(int(name))
                    if (status.st_dev, status.st_ino) == identity:
                        os.set_inheritable(int(name), False)


def adopting(env: lmdb.Environment, action: Callable[[], T]) -> T:
    """Run an action that begins a transaction, with the map size that other processes gave the
    file. No transaction may be open in this process."""
    while True:
        try:
            return action()
        except lmdb.MapResizedError:
            env.set_mapsize(0)


def open_databases(env: lmdb.Environment, *names: bytes, create: bool) -> list[Database]:
    """Handles of databases, None for what is not there and not to be created.

    In an explicit write transaction: without one, py-lmdb waits for LMDB's write lock while it
    holds the GIL. A read-only environment has no such lock, and a read transaction, which py-lmdb
    always aborts, would close what it opened.
    """
    if create:
        with env.begin(write=True) as txn:
            return [env.open_db(name, txn) for name in names]
    found: list[Database] = []
    for name in names:
        try:
            found.append(env.open_db(name, create=False))
        except (lmdb.NotFoundError, lmdb.ReadonlyError):
            found.append(None)
    return found


def read_row(env: lmdb.Environment, database: bytes, key: bytes) -> bytes | None:
    """One row, None if it or its database is not there."""
    with env.begin() as txn:
        try:
            return txn.get(key, db=env.open_db(database, txn, create=False))
        except lmdb.NotFoundError:
            return None


def full(path: str, why: str) -> errors.Full:
    """The error of a put that has no room."""
    return errors.Full(f"store {path} is full: {why}; consume messages, trim or purge", path=path)


def translate(error: Exception, path: str) -> errors.DiskqError:
    """The diskq error for an error of LMDB or of the system."""
    code = getattr(error, "code", 0) or getattr(error, "errno", 0)
    if is_out_of_room(error, path) or isinstance(error, lmdb.MapFullError):
        return full(path, "its disk has no room left")
    if code in _NO_PERMISSION:
        return no_permission(str(getattr(error, "filename", None) or path))
    if code in _OF_SYSTEM:
        kind, text = _OF_SYSTEM[code]
        return kind(text.format(path))
    if code == errno.EIO or isinstance(error, lmdb.PanicError):
        kind, text = errors.DiskFailed, _FAILED.format(path, error)
    elif isinstance(error, lmdb.LockError):
        kind, text = errors.Unsupported, _CLASH.format(path, os.getpid())
    elif isinstance(error, _DAMAGE):
        kind, text = errors.Corrupt, f"store {path} is damaged ({error}); {errors.WAY_OUT}"
    else:
        kind, text = errors.DiskqError, f"store {path}: {error}"
    return kind(text)


def no_permission(path: str, to: str = "use") -> errors.NoPermission:
    """The error of a user who may not use a file of a store, or not make one."""
    whose = ""
    with suppress(OSError):
        found = os.stat(path)
        mode = f"{found.st_mode & 0o7777:04o}"
        whose = f", which belongs to user {found.st_uid} and has mode {mode}"
    way_out = "let its owner open the store to your group: mode 0660, when it is made or by chmod"
    if to != "use":
        way_out = "choose another place, or let its owner make an empty directory for you"
    return errors.NoPermission(f"no permission to {to} {path}{whose}; {way_out}")


@contextmanager
def translating(path: str) -> Iterator[None]:
    """Raise errors of the system, and of LMDB, in diskq's words."""
    try:
        yield
    except (OSError, lmdb.Error) as error:
        raise translate(error, path) from error


def is_out_of_room(error: Exception, path: str) -> bool:
    """Whether the disk of a store, or the size that its files may have, is used up. LMDB says of a
    write that was cut short by that the same as of a broken disk."""
    code = getattr(error, "code", 0) or getattr(error, "errno", 0)
    if code != errno.EIO:
        return code in _NO_ROOM
    most = ondemand.resource.getrlimit(ondemand.resource.RLIMIT_FSIZE)[0]
    with suppress(OSError):
        disk = os.statvfs(path)
        size = os.stat(os.path.join(path, files.DATA)).st_size
        limited = most != ondemand.resource.RLIM_INFINITY and size + limits.MIB > most
        return limited or disk.f_bavail * disk.f_frsize < limits.MIN_RESERVE_BYTES
    return False
