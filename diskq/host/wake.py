"""Waits for a commit of another process, without polling where Linux allows it.

A wake word is a u32 in memory shared by all processes of a store. A waiter reads it, reads the
store, and sleeps only if the word is still the same; a committer changes the word, then wakes the
waiters. So no wake-up is lost. See futex(2). On other systems, and where the call is not available
(a Python without ctypes, no descriptor left to load it), the word is polled, every 10 ms at least.
So nothing here raises, and a wake-up that an interrupt cut off comes with the next poll.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import time
from collections.abc import Callable
from typing import TypeAlias

from ..base import ondemand

ALL = 0x7FFFFFFF
_SYSCALLS = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
_WAIT, _WAKE = 0, 1  # not the private forms: other processes wait on the same page
_TIMESPEC = struct.Struct("qq")
_POLL_SECONDS = 0.01
_LOAD_SECONDS = 1.0  # from one try to load the call to the next

Futex: TypeAlias = "Callable[[int, int, int, bytes | None], object]"


class Words:
    """An array of wake words inside a shared memory map. Safe to use from several threads."""

    def __init__(self, memory: mmap.mmap, start: int, count: int) -> None:
        self._memory = memory
        self._start = start
        self._futex: Futex | None = None
        self._load_at = 0.0  # not before
        self._view = memoryview(memory)[start : start + 4 * count].cast("I")
        self._number = _SYSCALLS.get(os.uname().machine) if sys.platform == "linux" else None

    def read(self, index: int) -> int:
        """The word's value; read it before you look for the announced change."""
        return self._view[index]

    def wake(self, index: int, value: int, count: int) -> None:
        """Set the word to `value`, which must be new, and wake up to `count` waiters."""
        self._view[index] = value & 0xFFFFFFFF
        futex = self._futex or self._load()
        if futex is not None:
            futex(index, _WAKE, min(count, ALL), None)

    def mark(self, index: int, value: int) -> None:
        """Set the word without a wake-up."""
        self._view[index] = value

    def nudge(self, index: int) -> None:
        """Wake all waiters without touching the word: a thread about to sleep still sleeps."""
        futex = self._futex or self._load()
        if futex is not None:
            futex(index, _WAKE, ALL, None)

    def wait(self, index: int, seen: int, seconds: float) -> None:
        """Sleep until the word differs from `seen`, `seconds` pass, or a signal comes."""
        futex = self._futex or self._load()
        if futex is not None:
            nanoseconds = max(int(seconds * 1e9), 0)
            timeout = _TIMESPEC.pack(nanoseconds // 10**9, nanoseconds % 10**9)
            futex(index, _WAIT, seen, timeout)
            return
        until = time.monotonic() + seconds
        nap = _POLL_SECONDS / 32
        while self._view[index] == seen and (left := until - time.monotonic()) > 0:
            time.sleep(min(nap, left))
            nap = min(2 * nap, _POLL_SECONDS)

    def _load(self) -> Futex | None:
        if not self._number or time.monotonic() < self._load_at:
            return None
        self._load_at = time.monotonic() + _LOAD_SECONDS
        try:
            ctypes = ondemand.ctypes  # 5 ms: only a process that wakes or waits pays for it
            syscall = ctypes.CDLL(None).syscall  # CDLL, not PyDLL: waiting frees the GIL
        except ImportError:
            return None
        except OSError as error:
            if error.errno is None:  # a handler's TimeoutError, not an error of the system
                raise
            return None
        kinds = ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_char_p
        syscall.argtypes = kinds
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory)) + self._start
        number = self._number

        def futex(index: int, operation: int, value: int, timeout: bytes | None) -> object:
            return syscall(number, base + 4 * index, operation, value, timeout)

        self._futex = futex
        return futex
