"""Room: puts are refused before they touch what is kept for settling.

The room is kept in the file itself, whatever else fills the disk: a sixteenth of the file, between
two limits, is allocated behind its last page, or free inside of it. Only puts make that larger, and
only they are refused for the lack of it; what settles or trims may use it.
"""

from __future__ import annotations

import errno
import os

from . import files, limits
from .environment import TREE, full, is_out_of_room, translate
from .tx import Tx


def need_room(tx: Tx, size: int) -> None:
    """Refuse a put of `size` bytes for which there is no room. Looks at the file once per so many
    bytes that all processes put, a fourth of the room kept.

    Raises: Full.
    """
    engine = tx.engine
    put = engine.slots.put_bytes[0] + size + limits.PAGE_BYTES
    if not engine.looked or put >= engine.reserve // 4:
        _look(tx, size)
        put, engine.looked = 0, True
    engine.slots.put_bytes[0] = put


def _look(tx: Tx, size: int) -> None:
    engine, path = tx.engine, tx.engine.path
    env = engine.live()
    info = env.info()
    high_water = (info["last_pgno"] + 1) * limits.PAGE_BYTES
    most = min(limits.MAX_RESERVE_BYTES, high_water // 16)
    engine.reserve = max(limits.MIN_RESERVE_BYTES, most)
    wanted = size + engine.reserve
    limit = engine.meta.max_bytes or info["map_size"]
    least = min(high_water + wanted, limit)
    spare = min(engine.reserve, limit - least)
    name = os.path.join(path, files.DATA)
    file_bytes, disk_full = os.stat(name).st_size, False
    over = high_water + wanted > limit
    if over or file_bytes < least:
        env.reader_check()  # who died while reading keeps freed pages
    if file_bytes < least:
        file_bytes, disk_full = _allocate(name, file_bytes, least, spare)
    if over or disk_full:
        from .readers import blame, pinned_bytes

        used = used_bytes(tx) + pinned_bytes(env, path)
        if used + wanted > limit:
            why = f"of {limit} bytes, {engine.reserve} are kept for settling{blame(env)}"
            raise full(path, why)
        # Free pages inside are seldom in a row: while the end is short, many of them must be free.
        short = file_bytes - high_water < engine.reserve // 2
        if disk_full and used + wanted > (file_bytes // 2 if short else file_bytes):
            raise full(path, f"its disk has less than {wanted} bytes left{blame(env)}")


def _allocate(name: str, size: int, least: int, spare: int) -> tuple[int, bool]:
    """Let a file of this size be at least so long, with all its blocks allocated, and rather have
    some to spare for the next time. Returns how long it is, and whether the disk has no room."""
    for wanted in (least + spare, least):
        with open(name, "r+b", buffering=0) as file:
            try:
                os.posix_fallocate(file.fileno(), size, wanted - size)
                return wanted, False
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # it cannot keep room
                    disk = os.statvfs(name)
                    return size, disk.f_bavail * disk.f_frsize < wanted - size
                if not is_out_of_room(error, os.path.dirname(name)):
                    raise translate(error, os.path.dirname(name)) from error
    return size, True


def is_low(tx: Tx) -> bool:
    """Whether the disk has less than is kept for settling: then pages in a row may be rare."""
    disk = os.statvfs(tx.engine.path)
    return disk.f_bavail * disk.f_frsize < tx.engine.reserve


def is_tight(tx: Tx) -> bool:
    """Whether less than half of what is kept for settling is left, and the disk has no more. That
    is for acks: no message is to be copied out of a log now."""
    if not is_low(tx):
        return False
    file_bytes = os.stat(os.path.join(tx.engine.path, files.DATA)).st_size
    return used_bytes(tx) + tx.engine.reserve // 2 > file_bytes


def used_bytes(tx: Tx) -> int:
    """Bytes in use, but for LMDB's list of free pages and what an open reader pins."""
    pages, handles = 2, tx.engine.handles()
    for name, row in tx.lmdb.cursor(tx.engine.main):
        if name in handles:  # what this transaction changed is not in the row yet
            stat = tx.lmdb.stat(handles[name])
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        elif len(row) == TREE.size:
            pages += sum(TREE.unpack(row)[3:6])
    return pages * limits.PAGE_BYTES
