"""What this process has in hand of a group: messages that were handed out and are not settled.

It is kept in memory and only for suspects, see reclaim.py. When a process dies, whatever it had in
hand may have killed it; so a suspect is handed out only while no other thread has a message of the
group in hand, and until it is settled the other threads get none. An entry is a weak reference: a
message that nobody knows any more, or a lease whose transaction failed, is in nobody's hand.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from threading import Thread
from typing import Any, NamedTuple, TypeAlias

from .codec import SOLO, LeaseRow

# The thread; and of a message its lease and offset.
_Entry: TypeAlias = tuple["Thread | None", "LeaseRow | None", "int | None"]


class Hand(NamedTuple):
    """A thread has a whole lease in hand, or the one message of it at `offset`."""

    thread: Thread | None
    lease: LeaseRow
    offset: int | None


class Hands:
    """The entries of one group. Safe across threads."""

    def __init__(self) -> None:
        self._all: dict[weakref.ref[Any], _Entry] = {}
        self._suspects: dict[weakref.ref[Any], _Entry] = {}
        self.held_up = False  # a thread waits until what others have in hand is settled

    def take_lease(self, thread: Thread | None, lease: LeaseRow) -> None:
        """A thread gets all messages of a lease."""
        self._add(lease, (thread, None, None), lease)

    def take_message(
        self, thread: Thread | None, message: Any, lease: LeaseRow, offset: int
    ) -> None:
        """A thread gets one of the messages that were leased together."""
        self._add(message, (thread, lease, offset), lease)

    def drop(self, thing: object) -> None:
        """A lease or message is in nobody's hand any more."""
        self._forget(weakref.ref(thing))

    def of_others(self, thread: Thread | None, *, suspects: bool = False) -> Iterator[Hand]:
        """What other threads have in hand, all of it or the suspects; some may be settled."""
        entries = self._suspects if suspects else self._all
        for known, (owner, lease, offset) in entries.copy().items() if entries else ():
            thing = known()
            if thing is not None and owner is not thread:
                yield Hand(owner, lease or thing, offset)

    def _add(self, thing: Any, entry: _Entry, of: LeaseRow) -> None:
        known = weakref.ref(thing, self._forget)
        self._all[known] = entry
        if of.flags & SOLO:
            self._suspects[known] = entry

    def _forget(self, known: weakref.ref[Any]) -> None:
        self._all.pop(known, None)
        if self._suspects:
            self._suspects.pop(known, None)
