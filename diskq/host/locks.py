"""Locks on bytes of a file, which belong to an open file description: fcntl(2), F_OFD_SETLK.

A POSIX lock is lost with the first close of *any* descriptor of its file in the process: a program
that reads its data directory would drop it. These locks end when the last descriptor of the
description is closed, also by the end of the process. A child inherits the description, so it must
only close: an unlock there would unlock the parent.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from functools import partial
from struct import Struct

from ..base.errors import Unsupported

_FLOCK = Struct("hhqqi4x")  # type, whence, start, length, pid: 0 here


def try_lock(file: int, byte: int, *, shared: bool = False) -> bool:
    """Lock a byte, unless another description holds it.

    Raises: Unsupported where the system has no such locks.
    """
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, request(byte, shared=shared))
    except (BlockingIOError, PermissionError):  # EAGAIN, EACCES
        return False
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise Unsupported(
            "this system has no open file description locks (fcntl F_OFD_SETLK), without which a"
            " program that reads the files of its store would lose its locks; use Linux 3.15 or"
            " later, outside a sandbox that lacks them"
        ) from error
    return True


def request(byte: int, *, shared: bool = False) -> bytes:
    """The argument of F_OFD_SETLK that locks a byte."""
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


def unlocker(file: int, start: int, length: int) -> Callable[[], object]:
    """A function that unlocks bytes, locked or not. It runs no Python, so no signal handler can
    interrupt it."""
    return partial(
        fcntl.fcntl, file, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, 0, start, length, 0)
    )


def is_locked(file: int, start: int, length: int = 1, *, shared: bool = False) -> bool:
    """Whether another description, of any process, holds a lock on one of these bytes; with
    `shared`, a lock that excludes even shared ones."""
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    query = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    answer = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, query))
    return bool(answer[0] != fcntl.F_UNLCK)


def lock_for_process(file: int, byte: int) -> None:
    """Take, or take again, the POSIX lock on a byte by which LMDB knows that a reader is alive."""
    fcntl.fcntl(file, fcntl.F_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
