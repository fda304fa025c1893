"""Is this path a store, could it become one, and can its disk keep the promises?

Looks at names, sizes and LMDB's two meta pages with plain reads, because LMDB maps the file: a
truncated one would end the process with SIGBUS instead of an error.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import NamedTuple

from .errors import WAY_OUT, Corrupt, NotAStore, NotFound, Unsupported

DATA, LOCK, SLOTS = "data.mdb", "lock.mdb", "slots"
BOOT = "boot"  # only where commits are not flushed: the boot that last found the store sound

# POSIX locks or shared maps do not reach all users of a file there; see "Caveats" in lmdb.h.
_REFUSED = {"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "afs", "ceph", "lustre", "fuse"}

# mdb.c, MDB_page header and MDB_meta: magic, version, address, map size, the tree of free pages
# (which begins with the page size), the main one, last page, transaction id.
_META_PAGE = struct.Struct("=10xH4xIIQQ48s48sQQ")
_META_FLAG, _MAGIC = 0x08, 0xBEEFC0DE
_PAGE_BYTES = [512 << power for power in range(8)]  # what LMDB allows
_MAX_PAGES = 1 << 35  # no address space has room for more


class MetaPage(NamedTuple):
    """What a meta page says of the commit that wrote it."""

    txn_id: int
    last_page: int
    page_bytes: int
    free: bytes
    main: bytes


def is_store(path: str) -> bool:
    """Whether a store is at `path`; False if one could be made there.

    Raises: NotAStore, NotFound, Unsupported.
    """
    if os.path.isfile(os.path.join(path, DATA)):
        _check_file_system(path)
        return True
    if os.path.lexists(path):
        if not os.path.isdir(path):
            what = "a file" if os.path.exists(path) else "a symbolic link to what is not there"
            raise NotAStore(f"{path} is {what}; a store is a directory, choose another path")
        if os.listdir(path):
            raise NotAStore(f"{path} is a directory of other files; choose a new or empty one")
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise NotFound(f"directory {parent} does not exist; create it before the store")
    _check_file_system(parent)
    return False


def identity(path: str) -> tuple[int, int]:
    """What tells the data file of the store at `path` from any other one that exists."""
    status = os.stat(os.path.join(path, DATA))
    return status.st_dev, status.st_ino


def check_data(path: str) -> None:
    """Refuse a data file that LMDB could not map: empty, cut short, or of another kind.

    Raises: Corrupt, NotAStore.
    """
    name = os.path.join(path, DATA)
    with open(name, "rb") as file:
        found = meta_pages(file.fileno())
    size = os.stat(name).st_size
    if not size:
        raise Corrupt(f"{name} is empty, it was damaged; {WAY_OUT}")
    if not found:
        raise NotAStore(f"{name} is not an LMDB file, or its first pages are damaged")
    latest = max(found)
    expected = (latest.last_page + 1) * latest.page_bytes
    if latest.last_page >= _MAX_PAGES:
        raise Corrupt(f"{name} cannot have {latest.last_page} pages, it was damaged; {WAY_OUT}")
    if size < expected:
        from .verify import check_short

        check_short(path, name, size, expected)


def meta_pages(file: int) -> list[MetaPage]:
    """The two meta pages of an open data file, without those that are damaged."""
    start = os.pread(file, 2 * 65536, 0)
    first = _meta_page(start, 0)
    second = _meta_page(start, first.page_bytes if first else 4096)
    return [page for page in (first, second) if page is not None]


def _meta_page(data: bytes, at: int) -> MetaPage | None:
    if len(data) < at + _META_PAGE.size:
        return None
    flags, magic, _, _, _, free, main, last_page, txn_id = _META_PAGE.unpack_from(data, at)
    if not flags & _META_FLAG or magic != _MAGIC:
        return None
    page_bytes = int.from_bytes(free[:4], sys.byteorder)
    if page_bytes not in _PAGE_BYTES:
        return None
    return MetaPage(txn_id, last_page, page_bytes, free, main)


def _check_file_system(path: str) -> None:
    """Raise Unsupported where the type of the path's file system says that locks do not hold.

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
    except OSError:
        return  # the system does not tell
    if kind.partition(".")[0] in _REFUSED:
        raise Unsupported(
            f"{path} is on a {kind} file system, where locks do not reach all users of a file;"
            " use a local disk",
            file_system=kind,
        )
