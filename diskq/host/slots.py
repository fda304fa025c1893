"""Slots: which consumers are alive, and what each one handles, in the shared file.

A slot has 184 bytes: owner u64 (odd; 0: free), group u32, pid u32, PID namespace u64, start time of
the process u64, handling u64 (offset + 1; 0: none named), handed u64 (token of the last prefetched
message that was handed out), waiting u8 (threads blocked in a get), length of the name u8, name.

A live consumer holds a lock on its slot's byte: the kernel frees it at any death. A process sees
its own locks as free, so it remembers its slots. A child that was forked in C may keep the lock of
its dead parent: then the process that the slot names is looked at.
"""

from __future__ import annotations

import itertools
import struct
from typing import NamedTuple

from ..base import guard
from ..base.errors import Unsupported
from ..base.limits import MAX_CONSUMERS
from . import locks
from .process import Process
from .shared_file import SLOT_LOCKS, SLOTS_AT, SharedFile

_USED_AT = 8
_SLOT = struct.Struct("=QIIQQQQBB128s6x")
_USED = struct.Struct("=I")
_OWNER = struct.Struct("=QI")
_U64 = struct.Struct("=Q")
_HANDLING, _HANDED, _WAITING = 32, 40, 48  # in a slot
SEVERAL = 2**64 - 2  # in place of an offset: several messages are handled
NOTHING = 2**64 - 3  # no message is handled: after a death none is charged
_FREE = bytes(_SLOT.size)


class Slot(NamedTuple):
    """The content of a slot, whether its consumer is alive or not; `handling` is None if it named
    no message."""

    owner: int
    group: int
    process: Process
    handling: int | None
    handed: int
    waiting: int
    name: str

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self.process.pid


class Slots(SharedFile):
    """The slots of the shared file, and the consumers of this process. Safe across threads."""

    def __init__(self, path: str, *, readonly: bool = False) -> None:
        self._mine: dict[int, int] = {}  # slot -> owner, or a mark while it is cleared
        self._marks = itertools.count(1)
        super().__init__(path, readonly=readonly)

    def take(self, owner: int, group: int, name: str) -> int:
        """Lock and fill a slot for a new consumer; returns its number, the same one if the consumer
        has a slot already. Only the process with the write lock may call this.

        A slot whose consumer died is taken last: it still names the message that was handled.

        Raises: Unsupported if MAX_CONSUMERS are alive.
        """
        text = name.encode()
        slot = _SLOT.pack(owner, group, *self._watch.mine, 0, 0, 0, len(text), text)

        for index, its in list(self._mine.items()):
            if its == owner:
                return index
        used = self._column(0).ljust(MAX_CONSUMERS, b"\0")
        for index in sorted(range(MAX_CONSUMERS), key=lambda index: used[index] != 0):
            if index not in self._mine and self._take(index, owner, slot):
                return index
        raise Unsupported(f"the store has {MAX_CONSUMERS} live consumers, its limit; close some")

    def _take(self, index: int, owner: int, slot: bytes) -> bool:
        try:  # mine before the lock: an interrupt leaves no lock without it
            if self._mine.setdefault(index, owner) != owner:
                return False
            if not locks.try_lock(self._file, SLOT_LOCKS + index):
                del self._mine[index]
                return False
            self._fill(index, slot)
            _USED.pack_into(self._memory, _USED_AT, max(index + 1, len(self._column(0))))
            return True
        except BaseException:
            self.release(index, owner, clean=False)
            raise

    def release(self, index: int, owner: int, *, clean: bool) -> None:
        """Give a slot up, if it still belongs to this owner; unless `clean`, its content stays, for
        the process that frees its leases."""
        if self._mine.get(index) == owner:
            if clean:
                self._fill(index, _FREE)
            self._unlock(SLOT_LOCKS + index)
            self._mine.pop(index, None)

    def give_up(self, owner: int) -> None:
        """Give up the slot of a consumer that could not be created, if it has one."""
        for index in [index for index, its in list(self._mine.items()) if its == owner]:
            self.release(index, owner, clean=True)

    def forget(self, index: int, owner: int) -> None:
        """Clear the slot of a dead consumer whose leases are free again, unless another consumer
        has it by now."""
        mark = -next(self._marks)  # of this call: a thread that wants the slot takes another one

        def clear() -> None:
            if self._mine.setdefault(index, mark) != mark:
                return
            locked = locks.try_lock(self._file, SLOT_LOCKS + index)
            if locked and self.read(index).owner == owner:
                self._watch.forget(self.read(index).process)
                self._fill(index, _FREE)

        guard.surely(clear, lambda: self.release(index, mark, clean=False))

    def handle(self, index: int, offset: int | None) -> None:
        """Name the message being handled: if the process dies now, only that one is charged."""
        value = 0 if offset is None else offset + 1
        _U64.pack_into(self._memory, _start(index) + _HANDLING, value)

    def hand_out(self, index: int, token: int) -> None:
        """Publish the last token that a prefetching consumer handed out: other consumers leave the
        messages up to it alone."""
        _U64.pack_into(self._memory, _start(index) + _HANDED, token)

    def set_waiting(self, index: int, threads: int) -> None:
        """Publish how many threads of this consumer are blocked in a get."""
        self._memory[_start(index) + _WAITING] = min(threads, 255)

    def read(self, index: int) -> Slot:
        """The content of a slot."""
        owner, group, *process, handling, handed, waiting, length, name = _SLOT.unpack_from(
            self._memory, _start(index)
        )
        text = name[:length].decode(errors="replace")
        named = handling - 1 if handling else None
        return Slot(owner, group, Process(*process), named, handed, waiting, text)

    def alive(self, index: int, owner: int) -> bool:
        """Whether the consumer `owner`, which had this slot, is alive."""
        mine = self._mine.get(index)
        if mine is not None:
            return mine == owner
        (found,) = _U64.unpack_from(self._memory, _start(index))
        if found != owner or not locks.is_locked(self._file, SLOT_LOCKS + index):
            return False
        return not self._watch.is_gone(self.read(index).process)

    def live(self) -> list[Slot]:
        """All live consumers of all processes, by slot."""
        used = [(at, self.read(at)) for at, owner in enumerate(self._column(0)) if owner]
        return [slot for at, slot in used if self.alive(at, slot.owner)]

    def peers(self, group: int) -> tuple[bool, list[tuple[int, int]]]:
        """Whether the group has consumers of other processes, and those that are dead, as slot and
        owner."""
        others, dead = False, []
        for index, used in enumerate(self._column(0)):
            if used and index not in self._mine:
                owner, its_group = _OWNER.unpack_from(self._memory, _start(index))
                if owner and its_group == group:
                    others = True
                    if not self.alive(index, owner):
                        dead.append((index, owner))
        return others, dead

    def count_waiting(self, group: int) -> int:
        """Threads of live consumers of the group that are blocked in a get."""
        counts = self._column(_WAITING)
        if not any(counts):
            return 0
        slots = [(at, self.read(at)) for at, count in enumerate(counts) if count]
        mine = (slot for at, slot in slots if slot.group == group and self.alive(at, slot.owner))
        return sum(slot.waiting for slot in mine)

    def _column(self, field: int) -> bytes:
        """One byte of each slot that was ever used, in order."""
        (used,) = _USED.unpack_from(self._memory, _USED_AT)
        return self._memory[SLOTS_AT + field : SLOTS_AT + used * _SLOT.size : _SLOT.size]

    def _fill(self, index: int, data: bytes) -> None:
        self._memory[_start(index) : _start(index) + _SLOT.size] = data


def _start(index: int) -> int:
    return SLOTS_AT + index * _SLOT.size
