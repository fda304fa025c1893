"""Creating a store, new, as a backup or out of a damaged one: it is there and complete, or not at
all. Imported on demand.

LMDB flushes neither a new file's name nor, before its first commit, the file. So a store is built
in another directory, its *site*, flushed, and then moved:

- where nothing is at the path, the site stands beside it, `.diskq-unfinished-HEX`, and is renamed;
- an empty directory is kept as it is, with its owner and permissions: the site is in it,
  `.diskq-unfinished`, and the files are moved out of it, data.mdb last.

The next creation removes or takes over whatever a killed process left of a site; see sites.py.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import lmdb

from ..base import limits
from ..base.clock import Clock
from ..base.errors import Busy, Full, NotAStore, NotFound
from ..base.model import DURABILITIES
from ..format.layout import META_KEY
from ..format.rows import Meta, new_meta
from ..host import files
from ..host.files import MARKER, UNFINISHED
from ..host.sites import DIRECTORY, Site, claim, is_marker, lock, open_marker, sweep
from .environment import full, is_out_of_room, keep_from_others, no_permission, translate

FORGOTTEN, COPIED = 1 << 24, 1 << 28  # commits that one may have made meanwhile
_LATEST = 1 << 39  # of 40 bits that a token has for the commit: the year 2037
_YEAR_2020 = 1_577_836_800
_WAIT_SECONDS = 30.0  # for another process that makes a store in the same directory
_TRIES = 3
_THERE = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def create_store(path: str, durability: str, max_bytes: int, mode: int, clock: Clock) -> None:
    """Create an empty store, unless another process is faster: its store is as good.

    Raises: NotAStore, Full, DiskFailed, NoPermission, ReadOnly, Unsupported, Busy.
    """
    row = new_meta(durability, max_bytes, os.urandom(16), clock.boot_id(), clock.wall_ns())
    for tries in range(_TRIES):
        try:
            with building(path, mode=mode) as place:
                _check_room(place)
                create_in(place, row)
            return
        except NotAStore:  # there is something now, maybe the empty directory that was wanted
            if files.is_store(path):
                return
            if tries == _TRIES - 1:
                raise


@contextmanager
def building(path: str, *, mode: int = files.PRIVATE, source: str = "") -> Iterator[str]:
    """Build a store in the directory that this gives, which nobody else can read. At the end it
    becomes `path`, with this mode, or that of the store at `source`. Whenever the power fails,
    there is all of it, or nothing.

    Raises: NotAStore if something is at `path` already; NotFound, Full, DiskFailed, NoPermission,
    ReadOnly, Unsupported, Busy.
    """
    inside = os.path.isdir(path)
    folder = path if inside else os.path.dirname(path)
    with ExitStack() as stack:
        place = folder
        try:
            parent = os.open(folder, DIRECTORY)
            stack.callback(os.close, parent)
            sweep(parent)
            taken: list[Site] = []
            stack.callback(_remove, taken)
            site = _site_inside(parent, path, taken) if inside else _site_beside(parent, taken)
            place = os.path.join(folder, site.name)
            files.prepare_lock(place)
            yield place
            _permit(site, mode, source, whole=not inside)
            if inside:
                _move_out(site)
            else:
                _rename(site, path)
        except (OSError, lmdb.Error, Full) as error:
            if getattr(error, "errno", 0) in _THERE:
                raise _exists(path) from error
            if isinstance(error, PermissionError):
                raise no_permission(folder, "make a store in") from error
            if isinstance(error, FileNotFoundError):
                text = f"no store can be made in {folder}: it was removed, or keeps no directories"
                raise NotFound(f"{text}; choose another path") from error
            translated = error if isinstance(error, Full) else translate(error, path)
            if isinstance(translated, Full) or is_out_of_room(error, place):
                text = f"there is no room for a store at {path}; free some, or choose another disk"
                raise Full(text) from error  # there is nothing to consume yet
            raise translated from error


def tidy(path: str) -> None:
    """Remove from a store what its maker left there, if it was killed at the very end."""
    with suppress(OSError, NotAStore), ExitStack() as stack:
        folder = os.open(path, DIRECTORY)
        stack.callback(os.close, folder)
        if site := claim(folder, UNFINISHED, make=False):
            site.remove()
        marker = stack.enter_context(open_marker(folder))
        if is_marker(marker) and lock(marker):
            os.unlink(MARKER, dir_fd=folder)


def _remove(taken: list[Site]) -> None:
    for site in taken:
        site.remove()


def _site_beside(parent: int, taken: list[Site]) -> Site:
    while True:
        site = claim(parent, f"{UNFINISHED}-{os.urandom(8).hex()}", make=True, taken=taken)
        if site is not None:
            return site


def _site_inside(folder: int, path: str, taken: list[Site]) -> Site:
    """The one site in an empty directory, once no other process makes a store there."""
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        if _has_data(folder):
            raise _exists(path)
        site = claim(folder, UNFINISHED, make=True, taken=taken)
        if site is not None:
            break
        if time.monotonic() > until:
            raise Busy(
                f"another process has been making a store in {path} for {_WAIT_SECONDS:g} s; wait"
                f" for it, or end it, or remove {UNFINISHED} there if another user left it"
            )
        time.sleep(0.01)
    try:
        if _has_data(folder):  # by the one that had the site
            raise _exists(path)
        site.clear()
        for name in os.listdir(folder):
            if name in files.NAMES and site.taken:
                os.unlink(name, dir_fd=folder)  # that one was killed as it moved its files
            elif name not in (UNFINISHED, "lost+found"):
                raise NotAStore(f"{path} is a directory of other files; choose a new or empty one")
        _flush(site.directory)  # the marker is there before what it marks
    except BaseException:
        site.remove()
        raise
    return site


def _has_data(folder: int) -> bool:
    with suppress(FileNotFoundError):
        os.stat(files.DATA, dir_fd=folder, follow_symlinks=False)
        return True
    return False


def _exists(path: str) -> NotAStore:
    return NotAStore(f"{path} exists; choose a new path")


def _move_out(site: Site) -> None:
    """Move the files to the directory around the site. While data.mdb is not there, no store is:
    it comes when all else is on the disk."""
    folder = site.parent
    beside = {
        name: os.stat(name, dir_fd=site.directory) for name in site.names() if name != files.DATA
    }
    _flush(folder)  # the site's name is there before the others
    try:
        for name in beside:
            _move(site, name)
        if files.BOOT in beside:  # without it the store would be refused
            _flush(folder)
        _move(site, files.DATA)
    except BaseException:
        for name, status in beside.items() if not _has_data(folder) else ():
            with suppress(FileNotFoundError):
                there = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if os.path.samestat(there, status):
                    os.unlink(name, dir_fd=folder)
        raise
    _flush(folder)
    with suppress(PermissionError):  # whoever made the directory may not have flushed its name
        _flush(folder, "..")


def _move(site: Site, name: str) -> None:
    """Give a file its place, which is empty: a link never replaces anything, unlike a rename."""
    try:
        os.link(name, name, src_dir_fd=site.directory, dst_dir_fd=site.parent)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.rename(name, name, src_dir_fd=site.directory, dst_dir_fd=site.parent)


def _rename(site: Site, path: str) -> None:
    """Let the site be the store, unless something is there. Of two makers the second fails, for no
    rename replaces a directory that is not empty."""
    if os.path.lexists(path):
        raise _exists(path)
    _flush(site.directory)
    os.rename(site.name, os.path.basename(path), src_dir_fd=site.parent, dst_dir_fd=site.parent)
    _flush(site.parent)


def _permit(site: Site, mode: int, source: str, *, whole: bool) -> None:
    """Give the files their permissions, the directory too if it is `whole` a part of the store, and
    flush what must last."""
    for name in site.names():
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=site.directory)
        try:
            if source:
                files.permit(file, _model(source, name))
            else:
                os.fchmod(file, mode)
            if name in (files.DATA, files.BOOT):
                os.fsync(file)
        finally:
            os.close(file)
    if whole and source:
        files.permit(site.directory, os.stat(source))
    elif whole:
        found = os.fstat(site.directory).st_mode
        readable = mode & (stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        os.fchmod(site.directory, mode | readable >> 2 | found & stat.S_ISGID)


def _model(source: str, name: str) -> os.stat_result:
    """The file of a store after which one of its copy is made."""
    with suppress(FileNotFoundError):
        return os.lstat(os.path.join(source, name))
    return os.lstat(os.path.join(source, files.DATA))


def _check_room(place: str) -> None:
    """A store without room for its side files, and what is kept for settling, cannot be used."""
    disk = os.statvfs(place)
    if disk.f_bavail * disk.f_frsize < limits.MIN_RESERVE_BYTES:
        raise full(place, "its disk has no room left")


def create_in(place: str, row: bytes) -> None:
    """Make an empty store in a directory that is being built, and flushed at the end."""
    with lmdb.open(
        os.fsencode(place),
        max_dbs=8,
        max_readers=limits.MAX_READERS,
        mode=files.PRIVATE,
        lib_version=0,
        sync=False,
    ) as env:
        keep_from_others(place)
        write_meta(env, place, row)


def write_meta(env: lmdb.Environment, place: str, row: bytes) -> None:
    """Write the row of a store that is being built, and what it needs besides."""
    with env.begin(write=True) as txn:
        for database in (b"held", b"schedule", b"dedup"):
            env.open_db(database, txn)
        txn.put(META_KEY, row, db=env.open_db(b"state", txn))
    meta = Meta(row)
    if DURABILITIES[meta.durability] == "process":
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = os.open(os.path.join(place, files.BOOT), flags, files.PRIVATE)
        try:
            os.write(file, meta.boot_id.hex().encode())
        finally:
            os.close(file)


def later(commit_id: int, apart: int) -> int:
    """A commit id to go on from where commits may be forgotten, or made again elsewhere: in a copy
    of a store that goes on too, and after a power cut where nothing is flushed. Tokens are made of
    commit ids, and must not repeat. Nobody makes a thousand commits a second for years, so the
    milliseconds since 2020 are ahead of what is forgotten, whatever was copied of copies before."""
    elapsed = int((time.time() - _YEAR_2020) * 1000)
    return max(commit_id + apart, min(elapsed, _LATEST))  # a clock may be wrong


def _flush(folder: int, name: str = ".") -> None:
    """Flush a directory, or the one above it, to its disk: which names it has."""
    descriptor = os.open(name, DIRECTORY, dir_fd=folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
