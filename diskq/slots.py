"""The file `slots`: who is alive, what it is handling, and the words to wake it by.

Nothing in it must last. It has a fixed size and is never truncated or unlinked:

    0       u8: 1 once groups or topics may share a wake word
    4       u32: how many slots were ever used; locked by who takes one
    8, 9    locked by who writes to the store, and by who draws a number to wait for that
    12      u32 twice: the number that was served last, and drawn last
    20      u8: 1 while who writes may take what others prefetched
    24      u64: bytes put by all processes since one of them looked at the room left
    64      64 bytes, locked by those who wait and who is served, by their number modulo 64
    4096    WAKE_WORDS times u32, see wake.py
    20480   MAX_CONSUMERS slots of 168 bytes: owner u64 (odd; 0: free), group u32, pid u32,
            handling u64 (offset + 1; 0: none named), handed u64 (token of the last prefetched
            message that was handed out), waiting u8, length of the name u8, name

A live consumer holds a POSIX lock on the first byte of its slot. The kernel frees it at any death,
a forked child does not inherit it, and F_GETLK asks for it without side effects. Two rules follow
(fcntl(2)): a process sees its own locks as free, so it remembers its own slots; closing *any*
descriptor of the file drops all of the process's locks, so a process opens it once.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import threading
import time
import weakref
from typing import NamedTuple

from . import files
from .errors import Unsupported
from .limits import MAX_CONSUMERS, WAKE_WORDS
from .wake import ALL, Words

_USED_AT, _WRITER, _COUNTER, _TURNS_AT = 4, 8, 9, 12
_TURN, _TURN_BYTES = 64, 64
_STEALING = 20
_PUT_BYTES = 24
_PATIENCE_SECONDS = 0.1
_TURNS = struct.Struct("=II")
_REPEATS = 8
_WORDS = 4096
_SLOTS = _WORDS + 4 * WAKE_WORDS
_SLOT = struct.Struct("=QIIQQBB128s6x")
_USED = struct.Struct("=I")
_OWNER = struct.Struct("=QI")
_HANDLING, _HANDED, _WAITING = 16, 24, 32  # in a slot
SEVERAL = 2**64 - 2  # in the place of an offset: several are handled, and nobody knows which
NOTHING = 2**64 - 3  # none is: nobody is to be charged
_WATCHED, _ROOM = 1 << 31, 1 << 30  # in a topic's word
_END = _SLOTS + MAX_CONSUMERS * _SLOT.size
_FREE = bytes(_SLOT.size)
_FLOCK = struct.Struct("hhqqi4x")  # fcntl(2), Linux

# A map has a descriptor of its own, and its end would drop the locks of whoever opened the file
# again; so as long as one is in use, it is everybody's.
_maps: weakref.WeakValueDictionary[tuple[int, int], mmap.mmap] = weakref.WeakValueDictionary()


class Slot(NamedTuple):
    """What a slot says, whether its consumer is alive or not; `handling` None: none named."""

    owner: int
    group: int
    pid: int
    handling: int | None
    handed: int
    waiting: bool
    name: str


class Slots:
    """This process's view of the file. Safe across threads."""

    def __init__(self, path: str) -> None:
        data = os.path.join(os.path.dirname(path), files.DATA)
        self._file = files.open_private(path, os.O_RDWR | os.O_CREAT, like=data)
        try:
            # Without holes: on a full disk, touching one would end the process with SIGBUS.
            os.posix_fallocate(self._file, 0, _END)
            status = os.fstat(self._file)
            identity = status.st_dev, status.st_ino
            self._memory = _maps.get(identity) or mmap.mmap(self._file, _END)
        except BaseException:
            os.close(self._file)
            raise
        _maps[identity] = self._memory
        self._words = Words(self._memory, _WORDS, WAKE_WORDS)
        self._served = Words(self._memory, _TURNS_AT, 1)
        # One number: bytes that all processes put since one looked at the room; for who writes.
        self.put_bytes = memoryview(self._memory)[_PUT_BYTES : _PUT_BYTES + 8].cast("Q")
        self._repeats = 0  # writes without waiting while others waited
        self._turn: int | None = None  # the number of the write that waited and goes on
        self._mine: dict[int, int] = {}  # slot -> owner
        self._lock = threading.Lock()

    def close(self) -> None:
        """Drop all locks of this process; its consumers count as dead from now on."""
        file, self._file = self._file, -1
        os.close(file)  # the memory goes with the last thread that waits in it

    def begin_writing(self) -> None:
        """Take the store's write lock: LMDB has one too, but waiting for that one cannot be
        interrupted should its holder hang. Give it back with `end_writing`.

        Who has to wait draws a number, holds its byte, and waits for the byte of the one before.
        So processes come in turn, and equal consumers get equal shares: with a plain lock, who
        just gave it back is faster than those it wakes. It may be, `_REPEATS` times: each change
        of the process costs two switches of the kernel. Nobody waits long for one that was stopped
        while it waited: then the plain lock decides.
        """
        served, drawn = _TURNS.unpack_from(self._memory, _TURNS_AT)
        if (served == drawn or self._repeats < _REPEATS) and self._try_lock(_WRITER):
            self._repeats += 1
            self._memory[_STEALING] = 0
            return
        self._repeats = 0
        try:
            if self._wait_briefly(_COUNTER):
                (drawn,) = _USED.unpack_from(self._memory, _TURNS_AT + 4)
                turn = (drawn + 1) % 2**32
                _USED.pack_into(self._memory, _TURNS_AT + 4, turn)
                if self._wait_briefly(_TURN + turn % _TURN_BYTES):
                    self._turn = turn
                self._unlock(_COUNTER)
                if self._wait_briefly(_TURN + drawn % _TURN_BYTES):
                    self._unlock(_TURN + drawn % _TURN_BYTES)
            self._wait_for(_WRITER)
            self._memory[_STEALING] = 0
        except BaseException:
            self._unlock(_COUNTER)
            self.end_writing()
            raise

    def end_writing(self) -> None:
        """Give the write lock back."""
        turn, self._turn = self._turn, None
        if turn is not None:
            self._unlock(_TURN + turn % _TURN_BYTES)
            self._served.wake(0, turn, ALL)
        self._unlock(_WRITER)

    # Wake words

    def share_words(self) -> None:
        """Note that groups or topics share a word, so that a wake-up must reach all its waiters."""
        self._memory[0] = 1

    def word(self, group: int) -> int:
        """The group's word, to be read before looking for messages."""
        return self._words.read(group % WAKE_WORDS)

    def wake(self, group: int, value: int, count: int) -> None:
        """Wake `count` consumers blocked on the group."""
        self._words.wake(group % WAKE_WORDS, value, ALL if self._memory[0] else count)

    def nudge(self, group: int) -> None:
        """Let the group's blocked consumers look around, though nothing was committed."""
        self._words.nudge(group % WAKE_WORDS)

    def wait(self, group: int, seen: int, seconds: float) -> None:
        """Sleep until something happens in the group whose word was `seen`."""
        self._words.wait(group % WAKE_WORDS, seen, seconds)

    def watch(self, topic: int, *, room: bool) -> int:
        """The topic's word, marked as watched, and maybe for `room`: look at the topic after this,
        then wait for the word to change. Only watched topics are announced, so nobody pays where
        nobody waits."""
        value = self._words.read(_word_of(topic)) | _WATCHED | (_ROOM if room else 0)
        self._words.mark(_word_of(topic), value)
        return value

    def watched(self, topic: int) -> bool:
        """Whether somebody waits for something to happen in the topic."""
        return self._words.read(_word_of(topic)) >= _WATCHED

    def room_wanted(self, topic: int) -> bool:
        """Whether somebody waits for room in the topic."""
        word = self._words.read(_word_of(topic))
        return word >= _WATCHED and bool(word & _ROOM)

    def announce(self, topic: int, value: int) -> None:
        """Wake whoever watches the topic."""
        if self.watched(topic):
            self._words.wake(_word_of(topic), value & ~(_WATCHED | _ROOM), ALL)

    def wait_for_topic(self, topic: int, seen: int, seconds: float) -> None:
        """Sleep until something happens in the topic, or its word is not the one seen."""
        self._words.wait(_word_of(topic), seen, seconds)

    # Consumers

    def take(self, owner: int, group: int, name: str) -> int:
        """Lock and fill a slot for a new consumer; returns its number.

        A slot whose consumer died is taken last: it still says what that one was handling.

        Raises: Unsupported if MAX_CONSUMERS are alive.
        """
        text = name.encode()
        with self._lock:
            self._wait_for(_USED_AT)
            try:
                used = self._column(0).ljust(MAX_CONSUMERS, b"\0")
                for index in sorted(range(MAX_CONSUMERS), key=lambda index: used[index] != 0):
                    if index not in self._mine and self._try_lock(_start(index)):
                        slot = (owner, group, os.getpid(), 0, 0, 0, len(text), text)
                        self._fill(index, _SLOT.pack(*slot))
                        self._mine[index] = owner
                        count = max(index + 1, len(self._column(0)))
                        _USED.pack_into(self._memory, _USED_AT, count)
                        return index
            finally:
                self._unlock(_USED_AT)
        raise Unsupported(f"the store has {MAX_CONSUMERS} live consumers, its limit; close some")

    def release(self, index: int, *, clean: bool) -> None:
        """Give a slot up; unless `clean`, what it says stays, for who frees its leases."""
        if self._mine.pop(index, None) is not None:
            if clean:
                self._fill(index, _FREE)
            self._unlock(_start(index))

    def forget(self, index: int, owner: int) -> None:
        """Clear the slot of a dead consumer whose leases are free again."""
        with self._lock:
            if index in self._mine or not self._try_lock(_start(index)):
                return
            try:  # whoever wants the slot has to wait for the lock of its byte
                if self.read(index).owner == owner:
                    self._fill(index, _FREE)
            finally:
                self._unlock(_start(index))

    def handle(self, index: int, offset: int | None) -> None:
        """Name the message being handled: should the process die now, only that one is charged."""
        value = 0 if offset is None else offset + 1
        struct.pack_into("=Q", self._memory, _start(index) + _HANDLING, value)

    def hand_out(self, index: int, token: int) -> None:
        """Tell others how far a prefetching consumer is: they leave that to it."""
        struct.pack_into("=Q", self._memory, _start(index) + _HANDED, token)

    def begin_stealing(self) -> None:
        """For who writes, before it looks what others handed out: tell them that it may take the
        rest. Until the next write."""
        self._memory[_STEALING] = 1

    def stealing(self) -> bool:
        """Whether somebody may be taking prefetched messages, and may not have seen the latest
        `hand_out`: it marks first and then looks, who hands out does the same."""
        return bool(self._memory[_STEALING])

    def set_waiting(self, index: int, waiting: bool) -> None:
        """Tell others that this consumer is blocked in a get."""
        self._memory[_start(index) + _WAITING] = waiting

    def read(self, index: int) -> Slot:
        """What a slot says."""
        owner, group, pid, handling, handed, waiting, length, name = _SLOT.unpack_from(
            self._memory, _start(index)
        )
        text = name[:length].decode(errors="replace")
        named = handling - 1 if handling else None
        return Slot(owner, group, pid, named, handed, bool(waiting), text)

    def alive(self, index: int, owner: int) -> bool:
        """Whether the consumer `owner`, which had this slot, is alive."""
        if index in self._mine:
            return self._mine[index] == owner
        (found,) = struct.unpack_from("=Q", self._memory, _start(index))
        return found == owner and self._locked_elsewhere(index)

    def live(self) -> list[Slot]:
        """All live consumers of all processes, by slot."""
        used = [(at, self.read(at)) for at, owner in enumerate(self._column(0)) if owner]
        return [slot for at, slot in used if self.alive(at, slot.owner)]

    def peers(self, group: int) -> tuple[bool, list[tuple[int, int]]]:
        """Whether consumers of other processes belong to the group, and which of them are dead:
        slot and owner."""
        others, dead = False, []
        for index, used in enumerate(self._column(0)):
            if used and index not in self._mine:
                owner, its_group = _OWNER.unpack_from(self._memory, _start(index))
                if owner and its_group == group:
                    others = True
                    if not self.alive(index, owner):
                        dead.append((index, owner))
        return others, dead

    def count_waiting(self, group: int, but: int) -> int:
        """Live consumers of the group, other than slot `but`, that are blocked in a get."""
        flags = self._column(_WAITING)
        if 1 not in flags:
            return 0
        slots = [(at, self.read(at)) for at, flag in enumerate(flags) if flag and at != but]
        return sum(slot.group == group and self.alive(at, slot.owner) for at, slot in slots)

    def _column(self, field: int) -> bytes:
        """One byte of each slot that was ever used."""
        (used,) = _USED.unpack_from(self._memory, _USED_AT)
        return self._memory[_SLOTS + field : _SLOTS + used * _SLOT.size : _SLOT.size]

    def _fill(self, index: int, data: bytes) -> None:
        self._memory[_start(index) : _start(index) + _SLOT.size] = data

    def _wait_for(self, byte: int) -> None:
        """Lock a byte of the file. The kernel takes the threads of a process for one, and may see a
        deadlock where two of them write to two stores (fcntl(2), EDEADLK): there is none."""
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX, 1, byte)
                return
            except OSError as error:
                if error.errno != errno.EDEADLK:
                    raise
                time.sleep(0.001)

    def _wait_briefly(self, byte: int) -> bool:
        """Lock a byte that is free as soon as a process moved on; False if none did for long."""
        until = time.monotonic() + _PATIENCE_SECONDS
        seen = self._served.read(0)
        while not self._try_lock(byte):
            left = until - time.monotonic()
            if left <= 0:
                return False
            self._served.wait(0, seen, min(left, _PATIENCE_SECONDS / 20))
            seen = self._served.read(0)
        return True

    def _try_lock(self, byte: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _unlock(self, byte: int) -> None:
        if self._file >= 0:  # it may be closed meanwhile, and its locks with it
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)

    def _locked_elsewhere(self, index: int) -> bool:
        query = (fcntl.F_WRLCK, os.SEEK_SET, _start(index), 1, 0)
        answer = _FLOCK.unpack(fcntl.fcntl(self._file, fcntl.F_GETLK, _FLOCK.pack(*query)))
        return bool(answer[0] != fcntl.F_UNLCK)


def _word_of(topic: int) -> int:
    """Topics have their words from the end on, groups theirs from the front."""
    return WAKE_WORDS - 1 - topic % WAKE_WORDS


def _start(index: int) -> int:
    return _SLOTS + index * _SLOT.size
