"""What a consumer tells all processes in its slot: which message it handles, how far it handed out
what it prefetched, and how many of its threads wait. No commits, and nothing of it must last.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .engine import Engine
from .slots import NOTHING, SEVERAL

if TYPE_CHECKING:
    from .message import Message


class Presence:
    """A consumer's slot, in the process that took it. Safe across threads: whatever changes, the
    thread that tells last has seen it."""

    def __init__(self, engine: Engine, slot: int) -> None:
        self.slot = slot
        self.closed = False
        self.gone = False  # the slot is given up
        self._engine = engine
        self._generation = engine.generation
        self._lock = threading.RLock()
        self._handed = 0  # the latest token of those handed out
        self._named: weakref.WeakSet[Message] = weakref.WeakSet()
        self._waiting: set[threading.Thread] = set()

    @property
    def inherited(self) -> bool:
        """Whether it belongs to a process that forked this one."""
        return self._generation != self._engine.generation

    @property
    def usable(self) -> bool:
        """Whether it is open and of this process."""
        return not self.closed and not self.inherited

    def name(self, message: Message) -> None:
        """The message is handled from now on: should the process die, it is to blame."""
        self._named.add(message)
        self._show_named()

    def unname(self, messages: Iterable[Message]) -> None:
        """These are not handled any more."""
        if self._named:
            self._named.difference_update(messages)
            self._show_named()

    def name_nothing(self) -> None:
        """It closes, which is nobody's fault."""
        self._engine.slots.handle(self.slot, NOTHING)

    def _show_named(self) -> None:
        told: int | None = -1
        while self.usable:
            offsets = [message.offset for message in list(self._named)[:2]]
            now = SEVERAL if len(offsets) > 1 else next(iter(offsets), None)
            if now == told:
                return
            self._engine.slots.handle(self.slot, now)
            told = now

    def hand_out(self, token: int) -> None:
        """Prefetched messages up to this one are left to this consumer."""
        with self._lock:
            self._handed = max(self._handed, token)
            self._engine.slots.hand_out(self.slot, self._handed)

    def is_waiting(self, thread: threading.Thread) -> bool:
        """Whether a thread counts as waiting."""
        return thread in self._waiting

    def count_waiting(self, thread: threading.Thread, waiting: bool) -> None:
        """Let a thread count as waiting, or not. May be said twice."""
        if waiting == (thread in self._waiting):
            return
        (self._waiting.add if waiting else self._waiting.discard)(thread)
        told = -1
        while told != len(self._waiting) and self.usable:
            told = len(self._waiting)
            self._engine.slots.set_waiting(self.slot, told)
