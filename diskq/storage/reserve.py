"""Room: puts are refused before they touch what is kept for settling, and copies before they touch
what is kept for acks.

The room is kept in the file itself, whatever else fills the disk: a sixteenth of the file, between
two limits, is allocated behind its last page, or free inside of it. Only puts make that larger, and
only they are refused for the lack of it; what settles or trims may use it.

Copies are messages that leave a log for one group (they failed, are parked, dead, or forked), fall
due, or are given back. They may take a store over its `max_bytes` by a bounded part, and on a full
disk they may use half of what is kept for settling. The other half is for acks.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..base import limits
from ..base.ondemand import lazy
from ..host import files
from .connection import Connection
from .environment import TREE, full, is_out_of_room, translating
from .tx import Tx

if TYPE_CHECKING:
    from ..format import lmdb_pages
    from . import readers
else:
    lmdb_pages = lazy("format.lmdb_pages")
    readers = lazy("storage.readers")


_ENDLESS = 2**63
_FOR_ROWS = 16  # free pages that a commit takes one by one


def room_of(tx: Tx) -> Room:
    """The room that a transaction has."""
    if tx.room is None:
        tx.room = Room(tx)
    found: Room = tx.room
    return found


def is_spent(tx: Tx) -> bool:
    """Whether a transaction copied enough; see `Room.spent`."""
    return tx.room is not None and room_of(tx).spent


def need_room(tx: Tx, *sizes: int) -> None:
    """Refuse a put of values of these sizes, in bytes, for which there is no room. Looks at the
    file once per so many bytes that all processes put, a fourth of the room kept.

    Raises: Full.
    """
    engine = tx.engine
    put = engine.slots.put_bytes[0] + sum(sizes) + limits.PAGE_BYTES
    if not engine.looked or put >= engine.reserve // 4:
        room_of(tx).need(sizes)
        put, engine.looked = 0, True
        if room_of(tx).at_ceiling:  # the next put has to look for pages in a row, too
            put = engine.reserve
    engine.slots.put_bytes[0] = put


class Room:
    """How much one transaction may still write. It looks at the disk and at the file at most once,
    when it is first asked."""

    def __init__(self, tx: Tx) -> None:
        engine = tx.engine
        self._engine, self._txn = engine, tx.lmdb  # not the Tx, which has this one
        self._path, self._env = engine.path, engine.live()
        self._name = os.path.join(engine.path, files.DATA)
        info = self._env.info()
        self._high_water = (info["last_pgno"] + 1) * limits.PAGE_BYTES
        most = min(limits.MAX_RESERVE_BYTES, self._high_water // 16)
        self._reserve = engine.reserve = max(limits.MIN_RESERVE_BYTES, most)
        self._limit = engine.meta.max_bytes or info["map_size"]
        self._file_bytes: int | None = None  # once it looked
        self._put = 0  # bytes that puts of this transaction need
        self._ceiling = _ceiling(engine.meta.max_bytes) - self._reserve
        self._grown = 0  # bytes that the file may grow by in this transaction
        self._free: list[list[int]] | None = None  # first and last of free pages in a row
        self._left: int | None = None  # for copies, once it looked; at least
        self._exact = False  # that is all there is
        self._low = False
        self._passed = self._copied = 0  # messages and bytes so far

    # Copies

    @property
    def low(self) -> bool:
        """Whether the disk has less than is kept for settling: pages in a row may be rare."""
        self._look()
        return self._low

    @property
    def short(self) -> bool:
        """Whether the store cuts texts, because the room left is needed for messages."""
        max_bytes = self._engine.meta.max_bytes
        spare = self._ceiling - max_bytes + self._reserve // 2
        return self.low or (max_bytes > 0 and not self._has(spare))

    @property
    def spent(self) -> bool:
        """Whether this transaction copied or passed over so much that the rest is for the next
        one: everybody waits for the write lock."""
        too_many = self._passed >= limits.MAX_COPIED_MESSAGES
        return too_many or self._copied >= self._reserve // 4

    def take(self, size: int, *, kept: bool = False) -> bool:
        """Use room for a copy of `size` bytes; False if there is none, and then nothing is used.

        `kept`: the copy may also use half of what is kept for acks, because it takes the place of
        another row, or is needed to get on.
        """
        pages = -(-size // limits.PAGE_BYTES) * limits.PAGE_BYTES
        cost = size if size < limits.PAGE_BYTES // 2 else pages
        self._look()
        if not self._has(cost - (self._reserve // 4 if kept else 0)) or not self._fits(cost):
            return False
        assert self._left is not None
        self._left -= cost
        self._copied += size
        self._passed += 1
        return True

    def pass_over(self) -> None:
        """Note that a message was looked at and left the group without a copy."""
        self._passed += 1

    def _has(self, size: int) -> bool:
        assert self._left is not None
        if self._left < size and not self._exact:
            unused = self._high_water - _used_bytes(self._engine, self._txn) - self._pinned()
            self._left, self._exact = self._left + max(unused, 0), True
        return self._left >= size

    def _look(self) -> None:
        if self._left is not None:
            return
        disk = os.statvfs(self._path)
        self._low = disk.f_bavail * disk.f_frsize < self._reserve
        ceiling = min(self._ceiling, self._size()) if self._low else self._ceiling
        self._left = ceiling - self._high_water - self._reserve // 2
        self._exact = self._left > _ENDLESS // 2

    # Puts

    def need(self, sizes: Sequence[int]) -> None:
        """Let a put of values of these sizes have room, and let the file keep what settling may
        need behind it. Raises: Full."""
        size = sum(sizes)
        wanted = self._put + size + self._reserve
        least = min(self._high_water + wanted, self._limit)
        file_bytes, disk_full = self._size(), False
        over = self._high_water + wanted > self._limit
        if over or file_bytes < least:
            self._engine.drop_dead_readers()  # who died while reading keeps freed pages
        if file_bytes < least:
            spare = min(self._reserve, self._limit - least)
            file_bytes, disk_full = _allocate(self._name, file_bytes, least, spare)
            self._file_bytes = file_bytes
        if over or disk_full:
            used = _used_bytes(self._engine, self._txn) + self._pinned()
            wanted = size + self._reserve  # what this transaction put before is in use
            if used + wanted > self._limit:
                why = f"of {self._limit} bytes, {self._reserve} are kept for settling"
                raise full(self._path, why + readers.blame(self._env))
            # Free pages inside are seldom in a row: while the end is short, many must be free.
            short = file_bytes - self._high_water < self._reserve // 2
            if disk_full and used + wanted > (file_bytes // 2 if short else file_bytes):
                why = f"its disk has less than {wanted} bytes left{readers.blame(self._env)}"
                raise full(self._path, why)
        for each in sizes:
            if not self._fits(each):
                raise full(self._path, f"{each} bytes in a row are not free")
        self._put += size

    # The end of the file

    @property
    def at_ceiling(self) -> bool:
        """Whether the file is about as large as it may be."""
        return self._high_water + self._grown + self._reserve > self._ceiling

    def _fits(self, size: int) -> bool:
        """Whether the file need not grow over its ceiling for a value of this size, which needs
        pages in a row: LMDB takes free ones, the lowest, or else new ones at the end."""
        if self._high_water + self._grown + size <= self._ceiling:
            self._grown += size
            return True
        pages = size // limits.PAGE_BYTES + 1
        if pages == 1:
            return True
        if self._free is None:
            self._free = self._free_runs()
        for run in self._free:
            if run[1] - run[0] >= pages:
                run[0] += pages
                return True
        return False

    def _free_runs(self) -> list[list[int]]:
        """Free pages that this transaction may use, but for the first few: rows take those."""
        last = self._env.info()["last_txnid"]
        oldest = last - next((reader.lag for reader in readers.open_reads(self._env)), 0)
        with translating(self._path), open(self._name, "rb") as file:
            free = lmdb_pages.snapshots(file.fileno())[0].free_pages()
            pages = sorted(page for txn, some in free if txn < oldest for page in some)
        runs: list[list[int]] = []
        for page in pages[_FOR_ROWS:]:
            if runs and runs[-1][1] == page:
                runs[-1][1] += 1
            else:
                runs.append([page, page + 1])
        return runs

    def _size(self) -> int:
        if self._file_bytes is None:
            self._file_bytes = os.stat(self._name).st_size
        return self._file_bytes

    def _pinned(self) -> int:
        return readers.pinned_bytes(self._env, self._path)


def _ceiling(max_bytes: int) -> int:
    """How large copies may let a file become; what is kept for settling is within that."""
    if not max_bytes:
        return _ENDLESS
    return max_bytes * 5 // 4 if max_bytes >= 64 * limits.MIB else max_bytes * 3 // 2


def _allocate(name: str, size: int, least: int, spare: int) -> tuple[int, bool]:
    """Let a file of this size be at least so long, with all its blocks allocated, and rather have
    some to spare for the next time. Returns how long it is, and whether the disk has no room."""
    for wanted in (least + spare, least):
        with translating(os.path.dirname(name)), open(name, "r+b", buffering=0) as file:
            try:
                os.posix_fallocate(file.fileno(), size, wanted - size)
                return wanted, False
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # it cannot keep room
                    disk = os.statvfs(name)
                    return size, disk.f_bavail * disk.f_frsize < wanted - size
                if not is_out_of_room(error, os.path.dirname(name)):
                    raise
    return size, True


def used_bytes(tx: Tx) -> int:
    """Bytes in use, but for LMDB's list of free pages and what an open reader pins."""
    return _used_bytes(tx.engine, tx.lmdb)


def _used_bytes(engine: Connection, txn: Any) -> int:
    pages, handles = 2, engine.handles()
    for name, row in txn.cursor(engine.main):
        if name in handles:  # what this transaction changed is not in the row yet
            stat = txn.stat(handles[name])
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        elif len(row) == TREE.size:
            pages += sum(TREE.unpack(row)[3:6])
    return pages * limits.PAGE_BYTES
