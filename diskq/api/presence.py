"""A consumer tells all processes in its slot which message it handles, how far it handed out
what it prefetched, and how many of its threads wait. No commits, and nothing of it must last.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from ..host.slots import NOTHING, SEVERAL
from ..storage.engine import Engine
from ..storage.hands import Hands


class Presence:
    """A consumer's slot, in the process that took it. Safe across threads: whatever changes, the
    thread that tells last has seen it."""

    def __init__(self, engine: Engine, slot: int, hands: Hands) -> None:
        self.slot = slot
        self.closed = False
        self.gone = False  # the slot is given up
        self._engine = engine
        self._hands = hands
        self.generation = engine.generation
        self._lock = threading.RLock()
        self._handed = 0  # the latest token of those handed out
        self.named: dict[int, int] = {}  # offsets, by token
        self.waiting: set[threading.Thread] = set()

    @property
    def inherited(self) -> bool:
        """Whether it belongs to a process that forked this one."""
        return self.generation != self._engine.generation

    @property
    def usable(self) -> bool:
        """Whether it is open and of this process."""
        return not self.closed and not self.inherited

    def name(self, token: int, offset: int) -> None:
        """A delivery is handled from now on: should the process die, its message is to blame."""
        self.named[token] = offset
        self._show_named()

    def unname(self, tokens: Iterable[int]) -> None:
        """These deliveries are not handled any more."""
        if self.named:
            for token in tokens:
                self.named.pop(token, None)
            self._show_named()

    def name_nothing(self) -> None:
        """It closes, which is nobody's fault."""
        self._engine.slots.handle(self.slot, NOTHING)

    def _show_named(self) -> None:
        told: int | None = -1
        while self.usable:
            named = set(self.named.values())  # a message may be here twice
            now = SEVERAL if len(named) > 1 else named.pop() if named else None
            if now == told:
                return
            self._engine.slots.handle(self.slot, now)
            told = now

    def hand_out(self, token: int) -> None:
        """Prefetched messages up to this one are left to this consumer."""
        with self._lock:
            self._handed = max(self._handed, token)
            self._engine.slots.hand_out(self.slot, self._handed)

    def count_waiting(self, thread: threading.Thread, waiting: bool) -> None:
        """Let a thread count as waiting, or not. May be said twice."""
        if waiting == (thread in self.waiting):
            return
        for threads in self.waiting, self._hands.waiting:
            (threads.add if waiting else threads.discard)(thread)
        told = -1
        while told != len(self.waiting) and self.usable:
            told = len(self.waiting)
            self._engine.slots.set_waiting(self.slot, told)
