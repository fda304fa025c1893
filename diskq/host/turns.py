"""Turns to write: the store's write lock, held by one process at a time, with a deadline for those
that wait.

LMDB has a write lock, too, but a wait for it cannot be interrupted. So a writer first locks a byte
of the file `slots`. In its head page:

    13   u8: 1 while the writer may take messages that other consumers prefetched
    24   u32 twice: the ticket that was served last, and drawn last
    32   u32: generation of the lock, see below
    40   pid u64, PID namespace u64, start time u64, since_ns u64: the last writer, and since when
    256  TICKETS words, see wake.py: a process with ticket t sleeps on word t modulo TICKETS

A process that finds others waiting draws a ticket, locks the ticket's byte, and sleeps until its
turn comes; so equal consumers get equal shares. A process that just released the lock may take it
again a few times, though others wait: each change of the process costs two context switches. A
process that died or gave up has released its ticket's byte, and one that is stopped while it waits
delays the others only for a moment: then they take the lock in any order.

A child that was forked in C inherits the lock. If the writer is dead and its byte is still locked,
the others go on with the byte of the next generation. If the lock is then held twice for a moment,
LMDB's lock, which the kernel frees at any death, keeps the writers apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fcntl import F_OFD_SETLK, fcntl
from mmap import mmap
from struct import Struct
from typing import Protocol

from ..base.errors import Busy
from ..base.limits import NOWAIT_SECONDS
from . import locks
from .process import Process, Watch, describe
from .wake import Words

TICKETS = 64
_HEAD, _U32, _U64, _WRITER = Struct("=III"), Struct("=I"), Struct("=Q"), Struct("=QQQ")
_STEALING_AT = 13
_SERVED_AT, _DRAWN_AT, _GENERATION_AT = 24, 28, 32
_WRITER_AT, _SINCE_AT, _WORDS_AT = 40, 64, 256
_GENERATIONS = 16
_COUNTER_BYTE, _TICKET_BYTES, _LENGTH = _GENERATIONS, 64, 64 + TICKETS  # behind the first lock
_REPEATS = 8
_PATIENCE_SECONDS = 0.1
_LOOK_SECONDS, _LONG_LOOK_SECONDS = 0.005, 0.05


class Waiting(Protocol):
    """A call that waits for its turn."""

    @property
    def until(self) -> float:
        """How long it may wait, as a time of `time.monotonic()`."""


class Turns:
    """The turns of one process. Only the thread that leads in the process uses it, until
    `leave`."""

    def __init__(self, path: str, file: int, first_byte: int, memory: mmap, watch: Watch) -> None:
        self._path = path
        self._file = file
        self._first = first_byte
        self._memory = memory
        self._watch = watch
        self._words = Words(memory, _WORDS_AT, TICKETS)
        self._me = _WRITER.pack(*watch.mine)
        self._requests = [
            locks.request(first_byte + generation) for generation in range(_GENERATIONS)
        ]
        self._repeats = 0  # writes without waiting while others waited
        # Releases all locks of this process, in one step: a call of C, which no signal handler
        # interrupts. The leading thread may call it, whether it got a turn or not.
        self.leave: Callable[[], object] = locks.unlocker(file, first_byte, _LENGTH)

    def take(self, call: Waiting, check: Callable[[], object]) -> None:
        """Take the write lock, or raise and have nothing of it once `leave` was called. Calls
        `check` now and then while it waits, which may raise.

        Raises: Busy at the call's `until`.
        """
        memory = self._memory
        served, drawn, generation = _HEAD.unpack_from(memory, _SERVED_AT)
        try:
            if served != drawn and self._repeats >= _REPEATS:
                raise BlockingIOError
            fcntl(self._file, F_OFD_SETLK, self._requests[generation % _GENERATIONS])
            self._repeats += 1
        except (BlockingIOError, PermissionError):
            self._repeats = 0
            self._wait(call.until, check)
        memory[_STEALING_AT] = 0
        _U64.pack_into(memory, _SINCE_AT, time.monotonic_ns())
        if memory[_WRITER_AT:_SINCE_AT] != self._me:
            memory[_WRITER_AT:_SINCE_AT] = self._me

    def wake_next(self) -> None:
        """Wake the process whose turn it is, if one waits; after `leave`."""
        served, drawn, _ = _HEAD.unpack_from(self._memory, _SERVED_AT)
        if served != drawn:
            word = (served + 1) % TICKETS
            self._words.wake(word, self._words.read(word) + 1, TICKETS)

    def begin_stealing(self) -> None:
        """Mark that the writer may take prefetched messages, before it reads which ones were handed
        out. Lasts until the next write."""
        self._memory[_STEALING_AT] = 1

    def stealing(self) -> bool:
        """Whether a writer may be taking prefetched messages without having seen the last one that
        was handed out: a writer marks first and then reads, and so does a consumer that hands
        out."""
        return bool(self._memory[_STEALING_AT])

    def _try_lock(self) -> bool:
        """Lock the byte of the current generation."""
        (generation,) = _U32.unpack_from(self._memory, _GENERATION_AT)
        if not locks.try_lock(self._file, self._first + generation % _GENERATIONS):
            return False
        return bool(_U32.unpack_from(self._memory, _GENERATION_AT)[0] == generation)

    def _wait(self, until: float, check: Callable[[], object]) -> None:
        began = looked = time.monotonic()
        until = max(until, began + NOWAIT_SECONDS)  # for a call that must not wait
        ticket = self._draw(began + _PATIENCE_SECONDS)
        suspect: Process | None = None
        while True:
            seen = self._words.read(ticket % TICKETS)
            now = time.monotonic()
            if self._is_my_turn(ticket, now - began) and self._try_lock():
                _U32.pack_into(self._memory, _SERVED_AT, ticket)
                return
            if now >= until:
                raise self._busy(now - began)
            check()
            if now - looked > _LOOK_SECONDS:  # twice: a new writer may not have signed yet
                looked, dead = now, self._dead_writer()
                if dead is not None and dead == suspect and self._next_generation():
                    return
                suspect = dead
            nap = _LOOK_SECONDS if now - began < 1 else _LONG_LOOK_SECONDS
            self._words.wait(ticket % TICKETS, seen, min(until - now, nap))

    def _draw(self, until: float) -> int:
        """Draw a ticket. If another process is stopped while it draws, this returns a ticket that
        was served already."""
        counter = self._first + _COUNTER_BYTE
        while not locks.try_lock(self._file, counter):
            if time.monotonic() > until:
                return int(_U32.unpack_from(self._memory, _SERVED_AT)[0])
            time.sleep(0.0001)
        ticket = (self._drawn() + 1) % 2**32
        locks.try_lock(self._file, self._byte(ticket))
        _U32.pack_into(self._memory, _DRAWN_AT, ticket)
        locks.unlocker(self._file, counter, 1)()
        return ticket

    def _drawn(self) -> int:
        return int(_U32.unpack_from(self._memory, _DRAWN_AT)[0])

    def _is_my_turn(self, ticket: int, waited: float) -> bool:
        """Whether no process that drew before is still waiting; or whether the wait took too
        long."""
        (served,) = _U32.unpack_from(self._memory, _SERVED_AT)
        ahead = (ticket - served) % 2**32
        if ahead <= 1 or ahead > TICKETS or waited > _PATIENCE_SECONDS:
            return True
        return not locks.is_locked(self._file, self._byte(ticket - 1))

    def _byte(self, ticket: int) -> int:
        return self._first + _TICKET_BYTES + ticket % TICKETS

    def _writer(self) -> tuple[Process, int]:
        writer = Process(*_WRITER.unpack_from(self._memory, _WRITER_AT))
        return writer, int(_U64.unpack_from(self._memory, _SINCE_AT)[0])

    def _dead_writer(self) -> Process | None:
        """The process that signed as the writer, if it is dead."""
        writer, _ = self._writer()
        return writer if writer.pid and self._watch.is_gone(writer) else None

    def _next_generation(self) -> bool:
        """Take the byte of the next generation, since a dead writer's child keeps this one."""
        (generation,) = _U32.unpack_from(self._memory, _GENERATION_AT)
        after = (generation + 1) % 2**32
        if not locks.try_lock(self._file, self._first + after % _GENERATIONS):
            return False
        _U32.pack_into(self._memory, _GENERATION_AT, after)
        return True

    def _busy(self, waited: float) -> Busy:
        writer, since_ns = self._writer()
        seconds = max(time.monotonic_ns() - since_ns, 0) / 1e9
        return Busy(
            f"store {self._path} is busy: waited {waited:.1f} s for its write lock, which"
            f" {describe(writer)} has held for {seconds:.1f} s; try again, or let that process go"
            " on or end",
            pid=writer.pid,
        )
