"""Run a function in a child process, so that a crash there does not end this one. Imported on
demand.

`sys.executable` may not be a Python: in a frozen program it is the program, in uWSGI it is uwsgi.
So exit codes are not trusted. A child gets a random word, and shows that it is diskq by printing
the word backwards: after the import, and again with the outcome when the work is done.
"""

from __future__ import annotations

import operator
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from importlib import import_module

from ..base import errors
from ..base.errors import DiskqError

_LOOK_SECONDS = 0.2
_START_SECONDS = 60.0  # until the child must have printed the word
_SLOWEST_LOOK_SECONDS = 0.05
_MARK = "DISKQ_CHILD"  # in the environment of a child
_DONE = "done"
# The signals that end a process in which LMDB reads damaged pages.
OF_DAMAGE = signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV


class Died(DiskqError):
    """Raised when the child began its work and ended before it was done; `code` is its exit code,
    minus the number of a signal, or None if this process cannot learn it."""

    code: int | None


def run(call: str, *arguments: str) -> list[str]:
    """Call a function of diskq, "module:name", with these arguments in another interpreter that
    imports from the same places; returns the lines that it returns. It ends when this process does.

    The interpreter is not a fork of this process, and its output goes to files: a process that
    another thread forks meanwhile has nothing open that this call waits for.

    Raises: the DiskqError that the function raises; Died; DiskqError if no interpreter works.
    """
    if _MARK in os.environ:
        raise DiskqError(
            "diskq started this program as Python, but it is not Python; see sys.executable"
        )
    told = []
    for program in _interpreters():
        answer = _Child(program, call, arguments).answer()
        if isinstance(answer, list):
            return answer
        told.append(f"{program}: {answer}")
    raise DiskqError(
        "diskq needs a Python interpreter for work in another process, and found none"
        f" ({'; '.join(told) or f'sys.executable is {sys.executable!r}'}); install"
        f" {_version()} in {sys.exec_prefix}, or set sys.executable"
    )


def _version() -> str:
    return f"python{sys.version_info[0]}.{sys.version_info[1]}"


def _interpreters() -> Iterator[str]:
    """Programs that may be this Python, those with its name first. The `sys.executable` of a frozen
    program is not tried: it is the program, which would start again."""
    found = [] if hasattr(sys, "frozen") else [sys.executable, getattr(sys, "_base_executable", "")]
    for prefix in (sys.exec_prefix, sys.base_exec_prefix):
        found += [os.path.join(prefix, "bin", name) for name in (_version(), "python3")]
    usable = [path for path in dict.fromkeys(found) if path and os.access(path, os.X_OK)]
    return iter(sorted(usable, key=lambda path: not os.path.basename(path).startswith("python")))


class _Child:
    """One interpreter at work, or a program that was taken for one."""

    def __init__(self, program: str, call: str, arguments: tuple[str, ...]) -> None:
        self.program = program
        self.word = os.urandom(16).hex()
        script = "import sys; from diskq.host import child; child.serve(*sys.argv[1:])"
        self.command = [program, "-P", "-c", script, self.word, call, *arguments]

    def answer(self) -> list[str] | str:
        """The lines that the function returned; or the reason why the program is not diskq."""
        with ExitStack() as stack:
            try:
                self.out, self.err = (_memory(name, stack) for name in ("out", "err"))
            except OSError as error:
                raise DiskqError(
                    f"cannot start a process for work on a store: {error.strerror}; if it has too"
                    " many open files, close some, or raise the limit (ulimit -n)"
                ) from error
            return self._answer()

    def _answer(self) -> list[str] | str:
        files = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, self.out, 1),
            (os.POSIX_SPAWN_DUP2, self.err, 2),
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(_places()), _MARK: "1"}
        spawn = partial(os.posix_spawn, self.program, self.command, environment, file_actions=files)
        child: list[int] = []
        try:  # one call of C starts it and notes its number, so that an interrupt can end it
            child.extend(map(operator.call, (spawn,)))
            code = self._wait(child[0])
        except BaseException as error:
            if child:
                _end(child[0])
            elif isinstance(error, (OSError, ValueError)):
                return str(error)
            raise
        if not self._has_begun():
            return _read(self.err).strip()[-200:] or f"it ended with {code}, without any work"
        lines = _read(self.out).partition(f"{self.word[::-1]}\n")[2].splitlines()
        word, _, outcome = (lines.pop() if lines else "").partition(" ")
        if word != self.word[::-1]:
            why = _read(self.err).strip()[-200:] or f"exit code {code}"
            raise Died(f"a child process ended in the middle of its work ({why})", code=code)
        if outcome == _DONE:
            return lines
        kind, _, text = outcome.partition(" ")
        raise getattr(errors, kind, DiskqError)(text)

    def _has_begun(self) -> bool:
        return f"{self.word[::-1]}\n" in _read(self.out)

    def _wait(self, child: int) -> int | None:
        """The exit code of a child; None if this process reaps all its children elsewhere. Polls
        instead of waiting in one call, so that an interrupt of this thread ends the child, too."""
        began, pause = time.monotonic(), 0.001
        begun = False
        try:
            while True:
                reaped, status = os.waitpid(child, os.WNOHANG)
                if reaped:
                    return os.waitstatus_to_exitcode(status)
                begun = begun or self._has_begun()
                if not begun and time.monotonic() > began + _START_SECONDS:
                    return _end(child)
                time.sleep(pause)
                pause = min(1.2 * pause, _SLOWEST_LOOK_SECONDS)
        except ChildProcessError:
            return None


def _memory(name: str, stack: ExitStack) -> int:
    """A file in memory, closed with the stack."""
    file = os.memfd_create(f"diskq {name}")
    stack.callback(os.close, file)
    return file


def _end(child: int) -> int | None:
    with suppress(ProcessLookupError, ChildProcessError):  # it has ended, or is reaped elsewhere
        os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None


def _places() -> Iterator[str]:
    """The places from which this process imports."""
    for place in sys.path:
        try:
            yield place or os.getcwd()
        except FileNotFoundError:  # the current directory was removed
            continue


def _read(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode("utf-8", "surrogateescape")


def serve(word: str, call: str, *arguments: str) -> None:
    """The work of the child: print the word, call the function, print its outcome."""
    _watch_parent()
    _say(word[::-1])
    module, _, name = call.partition(":")
    try:
        for line in getattr(import_module(f"diskq.{module}"), name)(*arguments):
            _say(_one_line(line))
    except DiskqError as error:
        _say(f"{word[::-1]} {type(error).__name__} {_one_line(str(error))}")
        sys.exit(1)
    _say(f"{word[::-1]} {_DONE}")


def _say(line: str) -> None:
    data = f"{line}\n".encode("utf-8", "surrogateescape")
    while data:
        data = data[os.write(1, data) :]


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _watch_parent() -> None:
    """End this process soon after its parent, which alone needs the result."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
