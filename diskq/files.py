"""Is this path a store, could it become one, and can its disk keep the promises?

Looks at names, sizes and LMDB's two meta pages with plain reads, because LMDB maps the file: a
truncated one would end the process with SIGBUS instead of an error.
"""

from __future__ import annotations

import os
import struct

from .errors import Corrupt, NotAStore, NotFound, Unsupported

DATA, LOCK, SLOTS = "data.mdb", "lock.mdb", "slots"

# POSIX locks or shared maps do not reach all users of a file there; see "Caveats" in lmdb.h.
_REFUSED = {"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "afs", "ceph", "lustre", "fuse"}

# mdb.c, MDB_page header and MDB_meta: magic, version, address, map size, the free list's database
# (which begins with the page size), the main one, last page, transaction id.
_META_PAGE = struct.Struct("=10xH4xIIQQI44s48sQQ")
_META_FLAG, _MAGIC = 0x08, 0xBEEFC0DE


def is_store(path: str) -> bool:
    """Whether a store is at `path`; False if one could be made there.

    Raises: NotAStore, NotFound, Unsupported.
    """
    if os.path.isfile(os.path.join(path, DATA)):
        _check_file_system(path)
        return True
    if os.path.lexists(path):
        if not os.path.isdir(path):
            raise NotAStore(f"{path} is a file; a store is a directory, choose another path")
        if os.listdir(path):
            raise NotAStore(f"{path} is a directory of other files; choose a new or empty one")
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise NotFound(f"directory {parent} does not exist; create it before the store")
    _check_file_system(parent)
    return False


def check_data(path: str) -> None:
    """Refuse a data file that LMDB could not map: empty, cut short, or of another kind.

    Raises: Corrupt, NotAStore.
    """
    name = os.path.join(path, DATA)
    with open(name, "rb") as file:
        start = file.read(2 * 65536)
    if not start:
        raise Corrupt(f"{name} is empty, it was damaged; restore the store from a backup")
    metas = [_meta(start, 0)]
    metas.append(_meta(start, metas[0][2] or 4096))
    _, last_page, page_bytes = max(metas)
    if not page_bytes:
        raise NotAStore(f"{name} is not an LMDB file, or its first pages are damaged")
    expected = (last_page + 1) * page_bytes
    size = os.stat(name).st_size
    if size < expected:
        from .verify import check_short

        check_short(path, name, size, expected)


def _meta(data: bytes, at: int) -> tuple[int, int, int]:
    """Transaction id, last page and page size of the meta page at `at`; zeros if there is none."""
    if len(data) >= at + _META_PAGE.size:
        flags, magic, _, _, _, page_bytes, _, _, last_page, txn_id = _META_PAGE.unpack_from(
            data, at
        )
        if flags & _META_FLAG and magic == _MAGIC:
            return txn_id, last_page, page_bytes
    return 0, 0, 0


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
