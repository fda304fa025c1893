"""Turns to write: who of all processes has the store's write lock, with a deadline for who waits.

LMDB has a write lock, too, but waiting for that one cannot be interrupted. So whoever writes first
locks a byte of the file `slots`. In its head page:

    13   u8: 1 while who writes may take what others prefetched
    24   u32 twice: the ticket that was served last, and drawn last
    32   u32: generation of the lock, see below
    40   pid u64, PID namespace u64, start time u64, since_ns u64: who took the lock last, and when
    256  TICKETS words, see wake.py: a process with ticket t sleeps on word t modulo TICKETS

A process that finds others waiting draws a ticket, locks the ticket's byte, and sleeps until its
turn comes; so equal consumers get equal shares. A process that just gave the lock back may take it
again a few times, though others wait: each change of the process costs two switches of the kernel.
One that died or gave up has let go of its ticket's byte, and one that is stopped while it waits
holds the others up for a moment only: then they take the lock as it comes.

A child that was forked in C inherits the lock. If the writer is dead and its byte is still locked,
the others go on with the byte of the next generation; should the lock be held twice for a moment,
LMDB's own lock, which the kernel frees at any death, keeps the writers apart.
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
    """One process's turns. Only the thread that leads in the process uses it, until `leave`."""

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
        # Gives back all that this process has, in one step: a call of C, which no signal handler
        # interrupts. May be called by whoever leads, whether it got a turn or not.
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
        """For who writes, before it looks what others handed out: tell them that it may take the
        rest. Until the next write."""
        self._memory[_STEALING_AT] = 1

    def stealing(self) -> bool:
        """Whether somebody may be taking prefetched messages, and may not have seen what was handed
        out last: it marks first and then looks, who hands out does the same."""
        return bool(self._memory[_STEALING_AT])

    def _try_lock(self) -> bool:
        """Lock the byte of the present generation."""
        (generation,) = _U32.unpack_from(self._memory, _GENERATION_AT)
        if not locks.try_lock(self._file, self._first + generation % _GENERATIONS):
            return False
        return bool(_U32.unpack_from(self._memory, _GENERATION_AT)[0] == generation)

    def _wait(self, until: float, check: Callable[[], object]) -> None:
        began = looked = time.monotonic()
        until = max(until, began + NOWAIT_SECONDS)  # for who may not wait
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
            if now - looked > _LOOK_SECONDS:  # twice: who just took the lock has not signed yet
                looked, dead = now, self._dead_writer()
                if dead is not None and dead == suspect and self._next_generation():
                    return
                suspect = dead
            nap = _LOOK_SECONDS if now - began < 1 else _LONG_LOOK_SECONDS
            self._words.wait(ticket % TICKETS, seen, min(until - now, nap))

    def _draw(self, until: float) -> int:
        """Draw a ticket. Without one, should somebody be stopped while it draws, this returns one
        that was served already."""
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
        """Whether nobody who drew before is still waiting; or whether that took too long."""
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
        """The process that wrote down that it writes, if it is dead."""
        writer, _ = self._writer()
        return writer if writer.pid and self._watch.is_gone(writer) else None

    def _next_generation(self) -> bool:
        """Go on without the byte that a dead writer's child keeps."""
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
