"""The file `slots`: memory that all processes of a store share, and locks on bytes behind its end.

Nothing in it must last. It has a fixed size and is never truncated or unlinked:

    0       magic and version, 8 bytes
    8       u32: how many slots were ever used
    12      u8: 1 once groups or topics may share a wake word
    16      u64: bytes put by all processes since one of them looked at the room left
    13, 24  turns to write, see turns.py
    4096    WAKE_WORDS times u32, see wake.py
    20480   MAX_CONSUMERS slots, see slots.py

The bytes that are locked lie far behind its end; see locks.py. A process that has the store open
shares the first; a process that opens it locks the second. From 2**62 on, `diskq run` locks the
places of its commands; see cli/keeper.py.
"""

from __future__ import annotations

import errno
import mmap
import os
import time

from ..base.errors import Busy, Closed, WrongFormat
from ..base.limits import MAX_CONSUMERS, WAKE_WORDS
from . import files, locks
from .process import Watch, this_process
from .turns import Turns
from .wake import ALL, Words

_MAGIC = b"diskq\0\0\2"
_SHARED_AT, _PUT_BYTES_AT = 12, 16
_WORDS = 4096
SLOTS_AT = _WORDS + 4 * WAKE_WORDS
SLOT_BYTES = 184  # of one slot
_WATCHED, _ROOM = 1 << 31, 1 << 30  # in a topic's word
_END = SLOTS_AT + MAX_CONSUMERS * SLOT_BYTES
_LOCKS = 1 << 40
_OPEN_BYTE, _OPENING_BYTE = _LOCKS, _LOCKS + 1
_TURN_LOCKS = _LOCKS + 256
SLOT_LOCKS = _LOCKS + 4096
_NAP_SECONDS = 0.001


class SharedFile:
    """This process's view of the file: the locks by which a store is opened, the turns to write,
    and the words to wake other processes by. Safe across threads."""

    def __init__(self, path: str, *, readonly: bool = False) -> None:
        self._path = path
        self._file_or_none = -1
        self._watch = Watch(this_process())
        try:
            self._file_or_none = _open(path, readonly)
            # The map keeps the description that it was made of, in forked children too.
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
                os.path.dirname(path), self._file, _TURN_LOCKS, self._memory, self._watch
            )
            # One number: bytes that all processes put since one looked at the room; for who writes.
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
