"""The identity of this process, and whether another process still runs.

A lock shows that its holder lives, but a child that was forked in C may keep the lock of a dead
parent. So a process that holds a lock records its pid, and two values that make a pid unique: the
PID namespace and the start time of the process.
"""

from __future__ import annotations

import mmap
import os
import sys
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from ..base import guard, ondemand

_WIPE_ON_FORK = 18
_MOST_PIDFDS = 16  # the descriptors are the program's, too
_STATE, _STARTED = 0, 19  # fields of /proc/PID/stat behind the name, see proc_pid_stat(5)


class Process(NamedTuple):
    """The identity of a process. `namespace` is 0 if the system does not tell it."""

    pid: int
    namespace: int
    started: int


def this_process() -> Process:
    """The calling process."""
    pid = os.getpid()
    try:
        return Process(pid, os.stat("/proc/self/ns/pid").st_ino, int(_stat(pid)[_STARTED]))
    except (OSError, IndexError, ValueError):
        return Process(pid, 0, 0)


class _Pid:
    """A replacement for `HERE` that asks the system."""

    def __getitem__(self, _: int) -> int:
        return os.getpid()

    def __setitem__(self, _: int, pid: int) -> None:
        pass


def _wiped_by_forks() -> Any:
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_WIPE_ON_FORK)
        return memoryview(page).cast("Q")
    except (OSError, ValueError, AttributeError):  # Linux before 4.14, or a sandbox
        return _Pid()


# The first number is this process's id once it was noted, and zero in a forked child, however that
# was forked: madvise(2), MADV_WIPEONFORK. Asking the system would take a microsecond.
HERE = _wiped_by_forks()


# py-lmdb keeps its state per process: two interpreters would mix up their objects.
ONE_INTERPRETER = (
    "diskq works only in the main interpreter of a process; use that one (uWSGI:"
    " single-interpreter = true), or another process"
)


def is_second_interpreter() -> bool:
    """Whether this is not the main interpreter of the process; False if that cannot be told."""
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    with suppress(ImportError):
        current = import_module(name).get_current()
        return bool(int(current[0] if isinstance(current, tuple) else current))
    return False


class Watch:
    """Tells whether processes run. Keeps a descriptor (pidfd) for each of the latest processes that
    it was asked about, if the system allows that. Safe across threads."""

    def __init__(self, mine: Process) -> None:
        self.mine = mine
        self._pidfds: dict[Process, int] = {}
        self._lock = guard.new_lock()  # a closed descriptor's number may soon be another file's

    def is_gone(self, process: Process) -> bool:
        """Whether a process has ended for certain, reaped or not; False if this cannot be told."""
        if not process.namespace or process.namespace != self.mine.namespace:
            return False
        if process.pid == self.mine.pid:
            return process != self.mine
        look = partial(self._has_ended, process)
        return guard.run_alone_or(self._lock, look, partial(_has_ended, process))

    def _has_ended(self, process: Process) -> bool:
        pidfd = self._pidfds.get(process)
        if pidfd is None:
            if _has_ended(process):
                return True
            if len(self._pidfds) >= _MOST_PIDFDS:
                self._drop(next(iter(self._pidfds)))
            try:
                pidfd = self._pidfds[process] = os.pidfd_open(process.pid)
            except ProcessLookupError:
                return True
            except OSError:  # no more descriptors, or a sandbox
                return False
            if not _has_ended(process):  # so it is not of a later process with the same pid
                return False
        else:
            poll = ondemand.select.poll()
            poll.register(pidfd, ondemand.select.POLLIN)
            if not poll.poll(0):
                return False
        self._drop(process)
        return True

    def forget(self, process: Process) -> None:
        """Close the descriptor for a process, unless another thread is using one."""
        guard.run_alone_or(self._lock, partial(self._drop, process), int)

    def close(self) -> None:
        """Close all descriptors."""
        for process in list(self._pidfds):  # without the lock: another thread of a parent had it
            self._drop(process)

    def _drop(self, process: Process) -> None:
        pidfd = self._pidfds.pop(process, None)
        if pidfd is not None:
            os.close(pidfd)


def maps_file(pid: int, file: int) -> bool:
    """Whether a process has a file mapped; True if this cannot be told."""
    try:
        status = os.fstat(file)
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            return any(line.split(None, 5)[4] == str(status.st_ino) for line in maps)
    except FileNotFoundError:
        return False
    except (OSError, IndexError):
        return True


def describe(process: Process) -> str:
    """A process in words: pid, command and state; only the pid if the rest is unknown."""
    try:
        with open(f"/proc/{process.pid}/cmdline", "rb") as file:
            words = file.read(200).replace(b"\0", b" ").decode(errors="replace").split()
        fields = _stat(process.pid)
        if int(fields[_STARTED]) == process.started:
            state = {"T": "stopped", "t": "traced", "D": "waiting for a disk", "Z": "dead"}
            doing = state.get(fields[_STATE], "running")
            return f"process {process.pid} ({' '.join(words)[:60] or 'no command'}, {doing})"
    except (OSError, IndexError, ValueError):
        pass
    return f"process {process.pid}"


def _has_ended(process: Process) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(process.pid, 0)
        except ProcessLookupError:
            return True
    try:
        fields = _stat(process.pid)
        return fields[_STATE] in "ZX" or int(fields[_STARTED]) != process.started
    except (OSError, IndexError, ValueError):
        return False  # hidden from us


def _stat(pid: int) -> list[str]:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()
