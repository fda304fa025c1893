"""The file `slots`: the live consumers, the messages that they handle, and words to wake them by.

Its content need not last. It has a fixed size and is never truncated or unlinked:

    0       magic and version, 8 bytes
    8       u32: how many slots were ever used
    12      u8: 1 once groups or topics may share a wake word
    16      u64: bytes put by all processes since one of them looked at the room left
    13, 24  turns to write, see turns.py
    4096    WAKE_WORDS times u32, see wake.py
    20480   MAX_CONSUMERS slots of 184 bytes: owner u64 (odd; 0: free), group u32, pid u32, PID
            namespace u64, start time of the process u64, handling u64 (offset + 1; 0: none named),
            handed u64 (token of the last prefetched message that was handed out), waiting u8
            (threads blocked in a get), length of the name u8, name

The locked bytes lie far behind the end of the file; see locks.py. All processes with the store open
share a lock on the first; a process that opens the store locks the second. A live consumer holds
the lock of its slot, which the kernel frees at any death. A process sees its own locks as free, so
it remembers its slots. A child that was forked in C may keep the lock of its dead parent: then the
process that the slot names is looked up. From 2**62 on, `diskq run` locks the places of its
commands; see cli/keeper.py.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import struct
import time
from typing import NamedTuple

from ..base import guard
from ..base.errors import Busy, Closed, Unsupported, WrongFormat
from ..base.limits import MAX_CONSUMERS, WAKE_WORDS
from . import files, locks
from .process import Process, Watch, this_process
from .turns import Turns
from .wake import ALL, Words

_MAGIC = b"diskq\0\0\2"
_USED_AT, _SHARED_AT, _PUT_BYTES_AT = 8, 12, 16
_WORDS = 4096
_SLOTS = _WORDS + 4 * WAKE_WORDS
_SLOT = struct.Struct("=QIIQQQQBB128s6x")
_USED = struct.Struct("=I")
_OWNER = struct.Struct("=QI")
_U64 = struct.Struct("=Q")
_HANDLING, _HANDED, _WAITING = 32, 40, 48  # in a slot
SEVERAL = 2**64 - 2  # in place of an offset: several messages are handled
NOTHING = 2**64 - 3  # no message is handled: after a death none is charged
_WATCHED, _ROOM = 1 << 31, 1 << 30  # in a topic's word
_END = _SLOTS + MAX_CONSUMERS * _SLOT.size
_FREE = bytes(_SLOT.size)
_LOCKS = 1 << 40
_OPEN_BYTE, _OPENING_BYTE = _LOCKS, _LOCKS + 1
_TURN_BYTES, _SLOT_BYTES = _LOCKS + 256, _LOCKS + 4096
_NAP_SECONDS = 0.001


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


class Slots:
    """This process's view of the file. Safe across threads."""

    def __init__(self, path: str, *, readonly: bool = False) -> None:
        self._path = path
        self._file_or_none = -1
        self._watch = Watch(this_process())
        self._mine: dict[int, int] = {}  # slot -> owner, or a mark while it is cleared
        self._marks = itertools.count(1)
        try:
            self._file_or_none = _open(path, readonly)
            # The map keeps the description that it was made from, in forked children too.
            other = _open(path, readonly)
            try:
                access = mmap.ACCESS_READ if readonly else mmap.ACCESS_WRITE
                self._memory = mmap.mmap(other, _END, access=access)
            finally:
                os.close(other)
            if not readonly and not any(self._memory[:8]):
                self._memory[:8] = _MAGIC
            _check_magic(path, self._memory[:8])
            self._words = Words(self._memory, _WORDS, WAKE_WORDS)
            self.turns = Turns(
                os.path.dirname(path), self._file, _TURN_BYTES, self._memory, self._watch
            )
            # One number, which only the writer uses: bytes put since a process checked the room.
            self.put_bytes = memoryview(self._memory)[_PUT_BYTES_AT:][:8].cast("Q")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drop all locks of this process, whose consumers count as dead from now on. In a forked
        child this only closes the file."""
        file, self._file_or_none = self._file_or_none, -1
        if file >= 0:
            os.close(file)  # the memory goes with the last thread that waits in it
        self._watch.close()

    @property
    def _file(self) -> int:
        if self._file_or_none < 0:
            raise Closed("the store is closed; open it again")
        return self._file_or_none

    def begin_opening(self, until: float) -> None:
        """Let no other process open or close the environment until `end_opening`.

        Raises: Busy.
        """
        while not locks.try_lock(self._file, _OPENING_BYTE):
            if time.monotonic() > until:
                raise Busy(
                    f"{self._path} was locked for too long by a process that opens the store; is"
                    " one stopped? Try again, or end it",
                    pid=0,
                )
            time.sleep(_NAP_SECONDS)

    def end_opening(self) -> None:
        """Let other processes open the environment; may be called twice."""
        self._unlock(_OPENING_BYTE)

    def join(self) -> None:
        """Mark the store as open, and known to be sound."""
        locks.try_lock(self._file, _OPEN_BYTE, shared=True)

    def used_elsewhere(self) -> bool:
        """Whether another process, or another opening of the store, is alive."""
        return locks.is_locked(self._file, _OPEN_BYTE)

    # Wake words

    def share_words(self) -> None:
        """Note that groups or topics share a word, so that a wake-up must reach all its waiters."""
        self._memory[_SHARED_AT] = 1

    def word(self, group: int) -> int:
        """The group's word; read it before you look for messages."""
        return self._words.read(group % WAKE_WORDS)

    def wake(self, group: int, value: int, count: int) -> None:
        """Wake `count` consumers blocked on the group."""
        self._words.wake(group % WAKE_WORDS, value, ALL if self._memory[_SHARED_AT] else count)

    def nudge(self, group: int) -> None:
        """Wake the group's blocked consumers, though nothing was committed."""
        self._words.nudge(group % WAKE_WORDS)

    def wait(self, group: int, seen: int, seconds: float) -> None:
        """Sleep until something happens in the group whose word was `seen`."""
        self._words.wait(group % WAKE_WORDS, seen, seconds)

    def watch(self, topic: int, *, room: bool) -> int:
        """The topic's word, marked as watched, and with `room` as watched for room. Read the topic
        after this, then wait for the word to change. Only watched topics are announced, so a commit
        pays nothing where no process waits."""
        value = self._words.read(_word_of(topic)) | _WATCHED | (_ROOM if room else 0)
        self._words.mark(_word_of(topic), value)
        return value

    def watched(self, topic: int) -> bool:
        """Whether a process waits for a change of the topic."""
        return self._words.read(_word_of(topic)) >= _WATCHED

    def room_wanted(self, topic: int) -> bool:
        """Whether a process waits for room in the topic."""
        word = self._words.read(_word_of(topic))
        return word >= _WATCHED and bool(word & _ROOM)

    def announce(self, topic: int, value: int) -> None:
        """Wake all watchers of the topic."""
        if self.watched(topic):
            self._words.wake(_word_of(topic), value & ~(_WATCHED | _ROOM), ALL)

    def wait_for_topic(self, topic: int, seen: int, seconds: float) -> None:
        """Sleep until the topic changes, or its word differs from `seen`."""
        self._words.wait(_word_of(topic), seen, seconds)

    # Consumers

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
            if not locks.try_lock(self._file, _SLOT_BYTES + index):
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
            self._unlock(_SLOT_BYTES + index)
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
            locked = locks.try_lock(self._file, _SLOT_BYTES + index)
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
        if found != owner or not locks.is_locked(self._file, _SLOT_BYTES + index):
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
        return self._memory[_SLOTS + field : _SLOTS + used * _SLOT.size : _SLOT.size]

    def _fill(self, index: int, data: bytes) -> None:
        self._memory[_start(index) : _start(index) + _SLOT.size] = data

    def _unlock(self, byte: int) -> None:
        if self._file_or_none < 0:  # it is closed, and its locks with it
            return
        try:
            locks.unlocker(self._file_or_none, byte, 1)()
        except OSError as error:
            if error.errno != errno.EBADF:  # in this moment
                raise


def _open(path: str, readonly: bool) -> int:
    if readonly:
        return files.open_regular(path, os.O_RDONLY)
    data = os.path.join(os.path.dirname(path), files.DATA)
    file = files.open_private(path, os.O_RDWR | os.O_CREAT, like=data)
    try:
        _check_magic(path, os.pread(file, len(_MAGIC), 0))
        # Without holes: on a full disk, touching one would end the process with SIGBUS.
        os.posix_fallocate(file, 0, _END)
    except BaseException:
        os.close(file)
        raise
    return file


def _check_magic(path: str, found: bytes) -> None:
    """Refuse a file of another kind, before anything in it is changed."""
    if found != _MAGIC and any(found):
        raise WrongFormat(
            f"{path} is of another version of diskq; end its users, then remove this file"
        )


def _word_of(topic: int) -> int:
    """The word of a topic: topics count from the end of the words, groups from the front."""
    return WAKE_WORDS - 1 - topic % WAKE_WORDS


def _start(index: int) -> int:
    return _SLOTS + index * _SLOT.size
