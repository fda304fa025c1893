"""Directories in which stores are built, and their leftovers. Imported on demand.

The first file in such a site is its marker, on which its maker holds a lock as long as it lives.
The lock distinguishes a leftover of a killed process from a site in use, and from a directory of
another user: only a real directory of this user, with an unlocked marker, and with no other files
than those of a store, is taken over or removed. All access is by descriptors of directories; no
link is followed.
"""

from __future__ import annotations

import errno
import fcntl
import operator
import os
import re
import stat
import struct
from contextlib import suppress
from functools import partial
from io import FileIO

from ..base.errors import NotAStore, Unsupported
from . import files
from .files import MARKER, UNFINISHED

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BESIDE = re.compile(re.escape(UNFINISHED) + "-[0-9a-f]{16}")
_NOTE = b"diskq is making a store here; if no process has this file open, all of it may go\n"
_FLOCK = struct.Struct("hhqqi4x")  # fcntl(2), Linux


class Site:
    """A directory in which a store is built, marked and locked by this process. Whether it has
    become the store is read from the disk, not remembered: an interrupt may come in between."""

    directory = -1
    marker: FileIO | None = None  # not a descriptor: its lock surely ends with this object
    taken = False  # from a process that was killed

    def __init__(self, parent: int, name: str) -> None:
        self.parent = parent
        self.name = name

    def claim(self) -> bool:
        """Take the directory; False if a living process builds in it or has moved it, or it belongs
        to another user.

        Raises: OSError, with ENOTDIR or ELOOP if it is something else.
        """
        self.directory = os.open(self.name, DIRECTORY | os.O_NOFOLLOW, dir_fd=self.parent)
        status = os.fstat(self.directory)
        if status.st_uid != os.geteuid():
            return False
        found = os.listdir(self.directory)
        ours = {*found} <= {*files.NAMES, MARKER} and (MARKER in found or not found)
        self.taken = bool(found)
        marker = self.marker = open_marker(self.directory, new=not found) if ours else None
        if marker is None or not is_marker(marker):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory of diskq")
        if not lock(marker):
            return False
        there = os.stat(MARKER, dir_fd=self.directory, follow_symlinks=False)
        if not os.path.samestat(there, os.fstat(marker.fileno())):
            return False
        if not self.is_in_place():  # it became a store since this opened it
            if not found:
                os.unlink(MARKER, dir_fd=self.directory)
            return False
        try:
            os.pwrite(marker.fileno(), _NOTE, 0)
            os.fchmod(self.directory, 0o700 | status.st_mode & stat.S_ISGID)  # despite the umask
        except BaseException:
            self.remove()
            raise
        return True

    def is_in_place(self) -> bool:
        """Whether the directory is still where it was created."""
        with suppress(FileNotFoundError):
            there = os.stat(self.name, dir_fd=self.parent, follow_symlinks=False)
            return os.path.samestat(there, os.fstat(self.directory))
        return False

    def names(self) -> list[str]:
        """The files in the directory, without the marker."""
        return sorted({*os.listdir(self.directory)} - {MARKER})

    def clear(self) -> None:
        """Remove the files in the directory, except the marker."""
        for name in files.NAMES:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.directory)

    def remove(self) -> None:
        """Remove the directory without a trace, or only the marker if it became the store; then
        drop the lock."""
        try:
            with suppress(OSError):
                unused = self.is_in_place()
                if unused:
                    self.clear()
                os.unlink(MARKER, dir_fd=self.directory)  # last: the directory is ours until then
                if unused:
                    os.rmdir(self.name, dir_fd=self.parent)
        finally:
            self.close()

    def undo(self) -> None:
        """Remove the directory that an interrupted `claim` created, unless another process took it
        over."""
        with suppress(OSError):
            if self.directory < 0:
                flags = DIRECTORY | os.O_NOFOLLOW
                self.directory = os.open(self.name, flags, dir_fd=self.parent)
            if self.marker is None:
                self.marker = open_marker(self.directory)
            if lock(self.marker):
                self.remove()
        self.close()
        with suppress(OSError):
            os.rmdir(self.name, dir_fd=self.parent)

    def close(self) -> None:
        """Drop the lock."""
        if self.marker is not None:
            self.marker.close()
        directory, self.directory = self.directory, -1
        if directory >= 0:
            os.close(directory)


def claim(parent: int, name: str, *, make: bool, taken: list[Site] | None = None) -> Site | None:
    """Take a directory to build in: a new one, if `make`, or one that a killed process left. None
    if it is in use or gone. It is added to `taken` first, so that the caller can remove it whenever
    an interrupt comes.

    Raises: NotAStore if it is something else; OSError.
    """
    site, claimed, there = Site(parent, name), False, not make
    made: list[None] = []
    if taken is not None:
        taken.append(site)
    try:
        if make:  # in one call of C, so that no interrupt comes between the two
            mkdir = partial(os.mkdir, name, 0o700, dir_fd=parent)
            with suppress(FileExistsError):
                made.extend(map(operator.call, (mkdir,)))
            there = True
        claimed = site.claim()
    except (FileNotFoundError, FileExistsError):
        if not there:  # the parent was removed, or keeps no directories, as in /proc
            raise
    except PermissionError:
        if not _is_anothers(parent, name):
            raise
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise NotAStore(
            f"{name} is not a directory that diskq left there; move it elsewhere, or choose another"
            " path"
        ) from error
    finally:
        if not claimed and made:
            site.undo()
        elif not claimed:
            site.close()
    return site if claimed else None


def _is_anothers(parent: int, name: str) -> bool:
    with suppress(FileNotFoundError):
        return os.stat(name, dir_fd=parent, follow_symlinks=False).st_uid != os.geteuid()
    return False


def open_marker(directory: int, *, new: bool = False) -> FileIO:
    """The marker in a directory, or a new one. Raises: OSError."""
    more = os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT | os.O_EXCL if new else 0)

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | more, files.PRIVATE, dir_fd=directory)

    return FileIO(MARKER, "r+", opener=opener)


def is_marker(file: FileIO) -> bool:
    """Whether a file is the marker of a site, even if it was not completely written, or was not on
    the disk when the power failed: then a part of it is zeros."""
    status = os.fstat(file.fileno())
    mine = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
    return mine and _NOTE.startswith(os.pread(file.fileno(), len(_NOTE) + 1, 0).rstrip(b"\0"))


def lock(marker: FileIO) -> bool:
    """Lock a marker; False if another process, or thread, has locked it. The lock ends only with
    the descriptor, whatever else this process does with the file."""
    try:
        query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(marker, fcntl.F_OFD_SETLK, query)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno == errno.EINVAL:
            raise Unsupported(
                "this system has no open file description locks (F_OFD_SETLK); use diskq outside"
                " this sandbox"
            ) from error
        raise
    return True


def sweep(folder: int) -> None:
    """Remove the leftovers of processes that were killed while they built a store."""
    for name in os.listdir(folder):
        if _BESIDE.fullmatch(name):
            with suppress(OSError, NotAStore):
                if site := claim(folder, name, make=False):
                    site.remove()
