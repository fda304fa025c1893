"""How the threads of a process share commits: one leads, the others' calls go with its own.

    new --led by its own thread-----------------> committed
     '--in line --claimed by who leads----------> committed
                    '--the leader failed--> led by its own thread

Leading is holding the lock `lead`. Nothing has to be handed on: who waits looks now and then
whether its call is done, or whether it may lead itself, so an exception at whatever line holds
nobody up. An error is raised in the thread of the call that made it, and an exception that no call
made (Ctrl-C, a time limit) where the interpreter raised it: neither is ever stored and given to
another thread.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..base import guard
from ..base.errors import Busy
from ..base.limits import MAX_SHARED_COMMIT, NOWAIT_SECONDS

_LOOK_SECONDS = 0.05
_OUTCOME_SECONDS = 1.0  # how long an interrupted call waits to be committed, once it is claimed


class Call:
    """An operation on its way through a commit; `pending` is emptied by the commit itself."""

    result: Any = None
    claimed = False  # by a leader, which may be committing it right now
    alone = False  # it failed in another thread's commit
    gate: Any = None  # its thread waits here

    def __init__(
        self, operation: Callable[[Any], Any], until: float | None, busy_seconds: float
    ) -> None:
        self.operation = operation
        self.pending = [True]
        self._until = until
        self._busy_seconds = busy_seconds

    @property
    def until(self) -> float:
        """How long it may wait for others, as a time of `time.monotonic()`."""
        if self._until is None:
            self._until = time.monotonic() + self._busy_seconds
        return self._until


class Door:
    """The one way into a commit.

    `transact(call, claimed)` commits a call in one transaction with those that `claim` adds, or
    raises, or marks one of those that failed as `alone` and returns. `clean()` ends whatever an
    interrupted one left, and may be called more than once; `unclean` is true from before one begins
    until after it ended.
    """

    def __init__(
        self, transact: Callable[[Call, list[Call]], None], clean: Callable[[], object]
    ) -> None:
        self.lead = guard.new_lock()
        self.unclean = False
        self._transact = transact
        self._clean = clean
        self._line: dict[Call, bool] = {}

    def enter(
        self, operation: Callable[[Any], Any], until: float | None, busy_seconds: float
    ) -> Any:
        """Commit an operation; returns its result.

        Raises: Reentered; Busy if other threads of this process led until `until`, by default for
        `busy_seconds`; whatever the operation or the commit raised, and then nothing was changed.
        """
        lead = self.lead
        if lead._is_owned() and self._is_inside():
            raise guard.reentered()
        call = Call(operation, until, busy_seconds)
        try:
            if lead.acquire(False):
                self._serve(call)
            if call.pending:
                self._wait(call)
        finally:
            if call.gate is not None:
                self._line.pop(call, None)  # the first step, and C: no interrupt comes before it
                if call.claimed and call.pending:  # an interrupt, while it is being committed
                    call.gate.acquire(True, _OUTCOME_SECONDS)
            if lead._is_owned():  # only a tracer, or a second interrupt, comes between its ends
                self._let_go()
        return call.result

    def in_line(self) -> int:
        """How many calls wait for who leads, and are not claimed."""
        return len(self._line)

    def _is_inside(self) -> bool:
        """Whether a frame of this thread is in `enter`, behind the one that asks. If not, an
        exception in the wrong place left the lead to nobody."""
        frame = sys._getframe(1).f_back
        while frame is not None:
            if frame.f_code is Door.enter.__code__ and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        self._let_go()
        return False

    def _let_go(self) -> None:
        if self.unclean:
            self._clean()
        self.lead.release()

    def _wait(self, call: Call) -> None:
        guard.check_may_wait()
        began = time.monotonic()
        until = max(call.until, began + NOWAIT_SECONDS)
        call.gate = threading.Lock()
        call.gate.acquire()
        while call.pending:
            if not call.claimed:
                self._line[call] = True
            if self.lead.acquire(False):
                self._serve(call)
            elif call.gate.acquire(True, _LOOK_SECONDS) or time.monotonic() < until:
                pass
            elif not call.claimed and self._line.pop(call, False):  # else it is being committed
                waited = time.monotonic() - began
                raise Busy(
                    "other threads of this process have been writing to the store for"
                    f" {waited:.1f} s; nothing was changed, try again",
                    pid=os.getpid(),
                )

    def _serve(self, call: Call) -> None:
        """Commit a call, and with it those in line, as who leads."""
        claimed: list[Call] = []
        try:
            while call.pending:
                self._transact(call, claimed)
        finally:
            if self.unclean:
                self._clean()
            self.lead.release()
            if claimed or self._line:
                self._wake(claimed)

    def claim(self, call: Call, claimed: list[Call]) -> list[Call]:
        """For `transact`, which may begin now: the calls that go with this one, of which some are
        claimed already."""
        if self._line and not call.alone:
            self._claim(call, claimed)
        return [other for other in claimed if other.pending and not other.alone]

    def _claim(self, call: Call, claimed: list[Call]) -> None:
        for other in list(self._line)[: MAX_SHARED_COMMIT - 1 - len(claimed)]:
            if other is not call and not other.alone and self._line.pop(other, False):
                other.claimed = True
                claimed.append(other)

    def _wake(self, claimed: list[Call]) -> None:
        """Tell those whose calls are done, or were not, and one that may lead now."""
        for other in claimed:
            other.claimed = False
        for other in (*claimed, *list(self._line)[:1]):
            with suppress(RuntimeError):  # it is awake
                other.gate.release()
