"""Is this path a store, could it become one, and can its disk keep the promises?

Looks at names, sizes and LMDB's two meta pages with plain reads, because LMDB maps the file: a
truncated one would end the process with SIGBUS instead of an error.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from .errors import Corrupt, NotAStore, NotFound, Unsupported

DATA, LOCK, SLOTS = "data.mdb", "lock.mdb", "slots"

# POSIX locks or shared maps do not hold there between all users of the file.
# http://www.lmdb.tech/doc/, "Do not use LMDB databases on remote filesystems".
_REFUSED_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "afs", "ceph", "lustre"}

# mdb.c, MDB_page header and MDB_meta: after 16 bytes of page header come magic, version, address,
# map size, two databases of 48 bytes, last page, transaction id.
_PAGE_HEADER = struct.Struct("=QHHI")
_META = struct.Struct("=IIQQ48s48sQQ")
_DATABASE = struct.Struct("=IHHQQQQQ")  # the first one's `pad` is the page size
_MAGIC = 0xBEEFC0DE
_META_FLAG = 0x08


class Place(NamedTuple):
    """What is at a path."""

    is_store: bool  # else it is free to become one


def inspect(path: str) -> Place:
    """Tell a store from a free place.

    Raises: NotAStore, NotFound, Unsupported.
    """
    if os.path.isfile(os.path.join(path, DATA)):
        _check_file_system(path)
        return Place(True)
    if os.path.lexists(path):
        if not os.path.isdir(path):
            raise NotAStore(f"{path} is a file; a store is a directory, choose another path")
        if os.listdir(path):
            raise NotAStore(
                f"{path} is a directory with other files in it; choose a new or empty one"
            )
        _check_file_system(path)
        return Place(False)
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise NotFound(f"directory {parent} does not exist; create it before the store")
    _check_file_system(parent)
    return Place(False)


def check_data(path: str) -> None:
    """Refuse a data file that LMDB could not map: of no length, cut short, of another kind.

    A file may rightly end before the last page that LMDB counts, if that was freed before it was
    written; what is missing is added as a hole, so that a page behind the end reads as zeros.

    Raises: Corrupt, NotAStore.
    """
    name = os.path.join(path, DATA)
    with open(name, "rb") as file:
        start = file.read(2 * 65536)
    if not start:
        raise Corrupt(f"{name} is empty, it was damaged; restore the store from a backup")
    metas = []
    page_bytes = _parse_meta(start, 0)[0]
    for at in (0, page_bytes or 4096):
        found_page_bytes, last_page, txn_id = _parse_meta(start, at)
        if found_page_bytes:
            metas.append((txn_id, last_page, found_page_bytes))
    if not metas:
        raise NotAStore(f"{name} is not an LMDB file, or its first pages are damaged")
    _, last_page, page_bytes = max(metas)
    expected = (last_page + 1) * page_bytes
    size = os.stat(name).st_size
    if size < expected:
        raise Corrupt(
            f"{name} is cut short: {size} bytes of {expected}; restore the store from a backup",
            size=size,
            expected=expected,
        )


def _parse_meta(data: bytes, at: int) -> tuple[int, int, int]:
    """Page size, last page and transaction id of the meta page at `at`; zeros if there is none."""
    if len(data) < at + _PAGE_HEADER.size + _META.size:
        return 0, 0, 0
    if not _PAGE_HEADER.unpack_from(data, at)[2] & _META_FLAG:
        return 0, 0, 0
    magic, _, _, _, free, _, last_page, txn_id = _META.unpack_from(data, at + _PAGE_HEADER.size)
    if magic != _MAGIC:
        return 0, 0, 0
    return _DATABASE.unpack_from(free)[0], last_page, txn_id


def _check_file_system(path: str) -> None:
    kind = _file_system(path)
    if kind in _REFUSED_FILE_SYSTEMS or kind.startswith("fuse"):
        raise Unsupported(
            f"{path} is on a {kind} file system, where locks do not reach all users of a file;"
            " use a local disk",
            file_system=kind,
        )


def _file_system(path: str) -> str:
    """Type of the file system of `path`, "" where the system does not tell.

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
        pass
    return kind


def flush(path: str) -> None:
    """Flush a file or directory to its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
