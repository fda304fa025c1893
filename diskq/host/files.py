"""Is this path a store, could it become one, and can its disk keep the promises?

A store's files are regular files: no symbolic link is followed, no FIFO is waited for. The files
beside data.mdb have its owner, group and permissions, whichever process creates them and whenever.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress

from ..base.errors import NotAStore, NotFound, StoreMoved, Unsupported
from ..base.limits import MAX_READERS

DATA, LOCK, SLOTS = "data.mdb", "lock.mdb", "slots"
BOOT = "boot"  # only where commits are not flushed: the boot that last found the store sound
NAMES = DATA, LOCK, SLOTS, BOOT
# A store that is being created, see creation.py: its directory, and the file that marks it.
UNFINISHED, MARKER = ".diskq-unfinished", ".diskq-marker"

PRIVATE = 0o600  # the mode of a store's files unless `mode` says otherwise
_LOCK_BYTES = 64 * (MAX_READERS + 2)  # mdb.c, MDB_reader and MDB_txninfo
_PATIENCE_SECONDS = 1.0
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}

# POSIX locks or shared maps do not reach all users of a file there; see "Caveats" in lmdb.h.
_REFUSED = {"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "afs", "ceph", "lustre", "fuse"}


def absolute(path: str | os.PathLike[str]) -> str:
    """The absolute path. Raises: NotAStore if no file can have it, NotFound, TypeError."""
    name = os.fsdecode(path)
    if not name:
        raise NotAStore("the path of the store is empty; give the path of a directory")
    if "\0" in name:
        raise NotAStore(f"the path {name!r} contains a NUL character; choose another path")
    try:
        return os.path.abspath(name)
    except FileNotFoundError:
        raise NotFound(
            f"there is no current directory any more to find {name} in; give an absolute path"
        ) from None


def is_store(path: str) -> bool:
    """Whether a store is at `path`; False if one could be made there.

    Raises: NotAStore, NotFound, Unsupported, OSError.
    """
    if _is_there(os.path.join(path, DATA)):
        for name in NAMES:
            check_regular(os.path.join(path, name))
        _check_file_system(path)
        return True
    try:
        names = os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.lexists(path):
            what = "a file" if os.path.exists(path) else "a symbolic link to what is not there"
            raise NotAStore(
                f"{path} is {what}; a store is a directory, choose another path"
            ) from None
        parent = os.path.dirname(path)
        if not os.path.isdir(parent):
            raise NotFound(
                f"directory {parent} does not exist; create it before the store"
            ) from None
        _check_file_system(parent)
        return False
    if not all(_may_stay(path, name, names) for name in names):
        raise NotAStore(f"{path} is a directory of other files; choose a new or empty one")
    _check_file_system(path)
    return False


def _is_there(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _may_stay(path: str, name: str, names: list[str]) -> bool:
    """Whether a directory with this name in it counts as empty. A process that was killed while it
    created a store here may have left the name; creation.py examines that more closely."""
    if name == "lost+found":
        return os.path.isdir(os.path.join(path, name))
    return name.startswith(UNFINISHED) or (name in NAMES and UNFINISHED in names)


def check_mount(path: str) -> None:
    """Refuse a store on a read-only mount. LMDB reads without its lock file there, so a process for
    which it is mounted writable would overwrite pages that are being read.

    Raises: Unsupported, OSError.
    """
    if os.statvfs(os.path.join(path, DATA)).f_flag & os.ST_RDONLY:
        raise Unsupported(
            f"{path} is mounted read-only, where LMDB cannot protect a reader from writers; mount"
            " it writable, or copy the store"
        )


def has_leftovers(path: str) -> bool:
    """Whether a store has files that its creation may have left behind; see `creation.tidy`."""
    return not {UNFINISHED, MARKER}.isdisjoint(os.listdir(path))


def check_regular(path: str) -> None:
    """Refuse anything but a regular file, unless nothing is there: it might lead to a file of
    another user, or make the process wait.

    Raises: NotAStore.
    """
    with suppress(FileNotFoundError):
        _refuse(path, os.lstat(path).st_mode)


def _refuse(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotAStore(
            f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'a device')}, and no file of diskq; remove"
            " it, or choose another path"
        )


def open_regular(path: str, flags: int) -> int:
    """Open an existing file of a store; returns its descriptor.

    Raises: NotAStore if it is not a regular file; OSError.
    """
    check_regular(path)  # opening some devices does something
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse(path, os.fstat(file).st_mode)  # it may have been replaced since
    except BaseException:
        os.close(file)
        raise
    return file


def open_private(path: str, flags: int, *, like: str) -> int:
    """Open a file beside data.mdb, which is `like`. If `flags` have O_CREAT and the file does not
    exist, it is created with the owner, group and permissions of data.mdb; returns its descriptor.

    Raises: NotAStore if it is not a regular file; OSError.
    """
    until, made = time.monotonic() + _PATIENCE_SECONDS, False
    while True:
        try:
            file = open_regular(path, flags & ~os.O_CREAT)
            break
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
        except PermissionError:
            # Another user's process may be creating it, and be about to set its permissions.
            if time.monotonic() > until or not os.access(like, os.R_OK | os.W_OK):
                raise
            time.sleep(0.01)
            continue
        with suppress(FileExistsError):
            new = flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file, made = os.open(path, new, PRIVATE), True
            break
    try:
        if made:
            os.fchmod(file, PRIVATE)  # whatever the umask is
        if stat.S_IMODE(os.fstat(file).st_mode) == PRIVATE and _is_there(like):
            permit(file, os.lstat(like))  # it is new, or its maker was killed before this
    except BaseException:
        os.close(file)
        raise
    return file


def permit(file: int, like: os.stat_result) -> None:
    """Give an open file or directory the owner, group and permissions of another one. If this
    process may not give it to that group, its group gets no more permissions than all users."""
    found = os.fstat(file)
    mode = stat.S_IMODE(like.st_mode)
    if (found.st_uid, found.st_gid) != (like.st_uid, like.st_gid):
        for owner in (like.st_uid, -1):  # only root may change the owner, members the group
            with suppress(OSError):
                os.fchown(file, owner, like.st_gid)
                break
        found = os.fstat(file)
        if found.st_gid != like.st_gid:
            mode &= ~stat.S_IRWXG | (mode & stat.S_IRWXO) << 3
    if stat.S_IMODE(found.st_mode) != mode and os.geteuid() in (0, found.st_uid):
        os.fchmod(file, mode)


def _access(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


def prepare_lock(path: str) -> None:
    """Create LMDB's lock file if it does not exist, before LMDB does: with the permissions of
    data.mdb, and with all its blocks, because on a full disk touching a hole would end the process
    with SIGBUS. Do not call this while this process has the store open: its locks would be lost.

    Raises: NotAStore, OSError.
    """
    name, data = os.path.join(path, LOCK), os.path.join(path, DATA)
    with suppress(FileNotFoundError):
        found = os.lstat(name)
        finished = stat.S_IMODE(found.st_mode) != PRIVATE or _access(found) == _access(
            os.lstat(data)
        )
        if found.st_size >= _LOCK_BYTES and finished:
            return
    file = open_private(name, os.O_RDWR | os.O_CREAT, like=data)
    try:
        os.posix_fallocate(file, 0, _LOCK_BYTES)
    finally:
        os.close(file)


def identity_of(path: str) -> tuple[int, int]:
    """Device and inode of the data file of the store at `path`: no other store has both."""
    status = os.lstat(os.path.join(path, DATA))
    return status.st_dev, status.st_ino


def check_identity(path: str, expected: tuple[int, int]) -> None:
    """Raise StoreMoved unless this store is the one at `path`."""
    check_data_file(os.path.join(path, DATA), expected)


def check_data_file(data: str, expected: tuple[int, int]) -> int:
    """Raise StoreMoved unless this is the data file at that path; returns its size."""
    try:
        status = os.lstat(data)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        what = "is not there any more"
    else:
        if (status.st_dev, status.st_ino) == expected:
            return status.st_size
        what = "is another file now"
    raise StoreMoved(
        f"{data} {what}: the store was removed, moved or restored while it was open; nothing was"
        " changed, close this store and open the path again"
    )


def _check_file_system(path: str) -> None:
    """Raise Unsupported if locks do not hold on the path's type of file system.

    Source: proc_pid_mountinfo(5): field 3 is the device, the type follows " - ".
    """
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    kind = ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                if line.split(" ", 3)[2] == wanted:
                    kind = line.partition(" - ")[2].split(" ", 1)[0]
    except (FileNotFoundError, PermissionError):
        return  # the system does not tell
    if kind.partition(".")[0] in _REFUSED:
        raise Unsupported(
            f"{path} is on a {kind} file system, where locks do not reach all users of a file;"
            " use a local disk",
            file_system=kind,
        )
