"""The points at which a running verb can be interrupted, and the interruption itself.

A point is a place in the code of diskq and the way there: the lines of all its frames. A pending
signal cannot be made inside of a Python trace function, which would handle it itself. So the last
thing the tracer does is to read an attribute whose getter is a C function: CPython looks for
signals after calls, not after attributes, and finds this one in the traced frame, where it would
have found a real one.
"""

from __future__ import annotations

import ctypes
import dis
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache, partial
from types import CodeType, FrameType
from typing import Any, NamedTuple

import diskq

LINE = -1  # in the place of an instruction
PACKAGE = os.path.dirname(os.path.abspath(diskq.__file__)) + os.sep


class TimeLimit(Exception):
    """As the idioms with signal.alarm raise it, rq's JobTimeoutException, or celery's
    SoftTimeLimitExceeded."""


class Kind(NamedTuple):
    """A way to interrupt; `opcodes`: wherever CPython looks for signals, not only once a line."""

    error: type[BaseException]
    opcodes: bool = False
    thread: bool = False  # in a worker thread
    raises: bool = False  # by the tracer itself
    handler: str = ""  # nothing is raised: a signal handler calls this
    text: str = ""


KINDS = {
    "ctrl-c": Kind(KeyboardInterrupt, text="a signal is pending when a line begins"),
    "limit": Kind(TimeLimit, text="the same, and its handler raises an Exception"),
    "async": Kind(TimeLimit, thread=True, text="PyThreadState_SetAsyncExc, in a worker thread"),
    "raise": Kind(KeyboardInterrupt, raises=True, text="raised where a line begins"),
    "raise-limit": Kind(TimeLimit, raises=True, text="the same, an Exception"),
    "handler-put": Kind(Exception, handler="put", text="a signal handler puts, as a line begins"),
    "handler-close": Kind(Exception, handler="close", text="it closes the consumer that is used"),
    "handler-shut": Kind(Exception, handler="shut", text="it closes the store that is used"),
    "opcode": Kind(KeyboardInterrupt, opcodes=True, text="as ctrl-c, at every look for signals"),
    "opcode-limit": Kind(TimeLimit, opcodes=True, text="as limit, at every look for signals"),
}


class Point(NamedTuple):
    """A place, as the lines of the package's frames (innermost first), an instruction or LINE, and
    how often the run comes by before."""

    lines: tuple[tuple[str, int], ...]
    function: str
    instruction: int
    nth: int = 0
    bare: bool = False  # only a tracer can raise here; see `_is_bare`

    def __str__(self) -> str:
        file, line = self.lines[0]
        return f"{file}:{line} {self.function}"


class Trigger:
    """Interrupts when `pull` is read; see above. Make it in the thread that it interrupts."""

    pull: Any

    def __new__(cls, kind: Kind) -> Trigger:
        library = ctypes.PyDLL(None)
        if kind.thread:
            call = library.PyThreadState_SetAsyncExc
            call.argtypes = [ctypes.c_ulong, ctypes.py_object, ctypes.py_object]
            bound = partial(call, threading.get_ident(), kind.error)
        else:
            call = library["raise"]
            call.argtypes = [ctypes.c_int, ctypes.py_object]
            bound = partial(call, _signal_of(kind))
        return object.__new__(type("Armed", (cls,), {"pull": property(bound)}))


def _signal_of(kind: Kind) -> int:
    if kind.handler:
        return signal.SIGUSR2
    return signal.SIGINT if kind.error is KeyboardInterrupt else signal.SIGALRM


def set_handlers(handler: Callable[..., None]) -> None:
    """Signals raise what their kinds say, or call the handler, whatever this process inherited."""

    def limit(*_: object) -> None:
        raise TimeLimit("time limit")

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, limit)
    signal.signal(signal.SIGUSR2, handler)


class Tracer:
    """A trace function that lists the points of a run, or interrupts it at one of them. Points of
    instructions and of lines are listed together."""

    def __init__(self, kind: Kind, target: Point | None = None, *, deep: bool = False) -> None:
        self._kind, self._target, self._deep = kind, target, deep
        self._trigger = Trigger(kind)
        self._came_by = 0
        self._looked: dict[int, int] = {}  # by frame, its last look for signals
        self._opcodes = kind.opcodes or target is None
        self._lines = not kind.opcodes or target is None
        self._pid = os.getpid()
        self.points: list[Point] = []
        self.fired = False
        self.only_in_child = False

    def trace(self, act: Callable[[], None]) -> None:
        """Run `act`, traced. A signal that is still pending at its end comes out here."""
        sys._getframe().f_trace_opcodes = self._opcodes  # 3.12 wants to know it before
        sys.settrace(self._call)
        try:
            act()
        finally:
            sys.settrace(None)
        for _ in range(3):
            len("")  # looks for signals

    def _call(self, frame: FrameType, event: str, _: object) -> Any:
        if not self._is_inside(frame):
            return None
        frame.f_trace_opcodes = self._opcodes
        if self._opcodes and self._is_due(frame, 0):
            self._trigger.pull  # noqa: B018 - the last thing; see above
        return self._local

    def _local(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "opcode":
            if not looks_for_signals(frame.f_code, frame.f_lasti):
                return self._local
            if self._is_due(frame, frame.f_lasti):
                self._trigger.pull  # noqa: B018
            self._looked[id(frame)] = frame.f_lasti
        elif event == "return":
            self._looked.pop(id(frame), None)
        elif event == "line" and self._lines and self._is_due(frame, LINE):
            if self._kind.raises:
                raise self._kind.error
            self._trigger.pull  # noqa: B018
        return self._local

    def _is_inside(self, frame: FrameType) -> bool:
        name = frame.f_code.co_filename
        if self._deep:  # what diskq calls of Python's library, too
            return not name.startswith("<frozen") and bool(_lines(frame))
        return name.startswith(PACKAGE)

    def _is_due(self, frame: FrameType, instruction: int) -> bool:
        """Note a point; whether it is the one. Then nothing is traced any more."""
        if self.only_in_child and os.getpid() == self._pid:
            return False
        target = self._target
        if target is None:
            bare = instruction == LINE and _is_bare(frame, self._looked.get(id(frame)))
            self.points.append(
                Point(_lines(frame), frame.f_code.co_qualname, instruction, bare=bare)
            )
            return False
        if self.fired or (frame.f_lineno, instruction) != (target.lines[0][1], target.instruction):
            return False
        if frame.f_code.co_qualname != target.function or _lines(frame) != target.lines:
            return False
        self._came_by += 1
        if self._came_by <= target.nth:
            return False
        self.fired = True
        sys.settrace(None)
        return True

    def distinct(self) -> list[Point]:
        """The points of the run in order, each with how often the run came by before."""
        seen: dict[Point, int] = {}
        found = []
        for point in self.points:
            place = point._replace(bare=False)
            nth = seen[place] = seen.get(place, -1) + 1
            found.append(point._replace(nth=nth))
        return found


def _lines(frame: FrameType | None) -> tuple[tuple[str, int], ...]:
    """The lines of the package's frames, innermost first; of a frame of Python's library that the
    package called, that one's too."""
    found: list[tuple[str, int]] = []
    inside = 0
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            inside = len(found) + 1
            found.append((name[len(PACKAGE) :], frame.f_lineno))
        else:
            found.append((os.path.basename(name), frame.f_lineno))
        frame = frame.f_back
    return tuple(found[:inside])


@cache
def _instructions(code: CodeType) -> dict[int, str]:
    return {each.offset: each.opname for each in dis.get_instructions(code)}


def looks_for_signals(code: CodeType, offset: int) -> bool:
    """Whether CPython looks for signals in this instruction: when a function begins, behind calls,
    and when a loop goes round."""
    name = _instructions(code).get(offset, "")
    if name.startswith("CALL"):
        return "INTRINSIC" not in name
    return name == "RESUME" or ("JUMP_BACKWARD" in name and "NO_INTERRUPT" not in name)


def _is_bare(frame: FrameType, looked: int | None) -> bool:
    """Whether a handler would miss an error raised here, but not one raised by a signal: the last
    look for signals was inside its `try` or `with`, and CPython does not look again before the
    handler's code runs. Nothing in Python can be made safe there."""
    if looked is None:
        return False
    return not _handlers(frame.f_code, looked) <= _handlers(frame.f_code, frame.f_lasti)


@cache
def _handlers(code: CodeType, offset: int) -> frozenset[int]:
    """Where an error at this instruction goes, and where an error there goes, and so on."""
    entries: list[Any] = getattr(dis.Bytecode(code), "exception_entries", [])
    found: set[int] = set()
    at: int | None = offset
    while at is not None and (at not in found or at == offset):
        targets = [each.target for each in entries if each.start <= at < each.end]
        at = targets[0] if targets and targets[0] not in found else None
        if at is not None:
            found.add(at)
    return frozenset(found)
