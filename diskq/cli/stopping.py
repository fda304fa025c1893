"""Signals that ask the process to stop: SIGINT, SIGTERM and SIGHUP, all handled alike.

An exception that a signal raises between two lines of a clean-up would skip the rest of it. So a
signal raises only between `raise_them` and `note_them`, where `main` runs the verb, and only the
first signal does; at other times it is noted. A clean-up that must happen is registered with
`at_the_end`, and runs after `note_them`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import click

INTERRUPTED = 130
_AGAIN_SECONDS = 1.0  # an exception raised in a finalizer is lost: a later signal raises again
_PATIENCE_SECONDS = 0.5  # with a call that can report its effect only when it ends
_CLEAN_UP_SECONDS = 30.0
_NAMES = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "hung up",
}


class Stopped(BaseException):
    """A signal asked the process to stop. Raised in the main thread."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __str__(self) -> str:
        return _NAMES[signal.Signals(self.number)]


class Signals:
    """The signals that came. A process has one set of handlers, and so one instance: `signals`."""

    def __init__(self) -> None:
        self.first = 0  # the number of the first one
        self._raising = self._patient = False
        self._raised_at = 0.0

    def catch(self) -> None:
        """Handle the signals from now on, except those that the parent ignores, as nohup does."""
        for number in _NAMES:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.first or time.monotonic() > self._raised_at + _AGAIN_SECONDS:
            self.first = self.first or number
            self._raised_at = time.monotonic()
            if self._patient:
                signal.setitimer(signal.ITIMER_REAL, _PATIENCE_SECONDS)
            elif self._raising:
                raise Stopped(self.first)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Let a signal raise Stopped only at the end of the block, or after a moment. A call that
        returns by then can report its effect; a call that waits for others is cut short."""
        signal.signal(signal.SIGALRM, self._lose_patience)
        self._patient = True
        try:
            yield
        finally:
            self._patient = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.raise_them()

    def _lose_patience(self, number: int, frame: FrameType | None) -> None:
        if self._patient:
            self._patient = False
            raise Stopped(self.first)

    def raise_them(self) -> None:
        """Let a signal raise Stopped from now on, including one that came before."""
        self._raising = True
        if self.first:
            raise Stopped(self.first)

    def note_them(self) -> None:
        """Let signals raise nothing from now on."""
        self._raising = False
        if self.first:
            self.limit(_CLEAN_UP_SECONDS)

    def limit(self, seconds: float) -> None:
        """End the process after this many seconds, in case its clean-up hangs: the store notices
        that its consumers are dead."""
        signal.signal(signal.SIGALRM, lambda *_: end_of(self.first or signal.SIGALRM))
        signal.setitimer(signal.ITIMER_REAL, seconds)

    @contextmanager
    def waking(self) -> Iterator[tuple[int, int]]:
        """Let signals raise nothing in the block. Yields the two ends of a pipe, which is readable
        once a signal came: unlike a lock, it wakes the main thread at any moment."""
        self._raising = False
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
            if self.first:
                os.write(writing, b"\0")
            yield reading, writing
            signal.set_wakeup_fd(before)
        finally:
            os.close(reading)
            os.close(writing)
        self.raise_them()

    def let_go(self) -> None:
        """Let any further signal end the process at once: nothing is left to clean up."""
        self._replace(lambda number, _: end_of(self.first or number))

    def ignore(self) -> None:
        """Let no further signal change how the process ends: its work is done."""
        self._replace(signal.SIG_IGN)

    def _replace(self, handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
        for number in _NAMES:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


signals = Signals()


def at_the_end(clean_up: Callable[[], object]) -> None:
    """Call `clean_up` when the verb is over, however it ends, where no signal can cut it short."""
    click.get_current_context().find_root().call_on_close(clean_up)


def end_of(number: int) -> NoReturn:
    """End at once as this signal demands; for an interrupt with an exit code."""
    if number == signal.SIGINT:
        os._exit(INTERRUPTED)
    die_of(number)


def die_of(number: int) -> NoReturn:
    """End by the signal's default action, which shells and supervisors can tell from an error."""
    with suppress(OSError):  # not for SIGKILL
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # it was blocked
