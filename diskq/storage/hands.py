"""Messages of a group in the hands of this process: handed out and not settled.

It is kept in memory and only for suspects, see reclaim.py. When a process dies, whatever it had in
hand may have killed it; so a suspect is handed out only while no other thread has a message of the
group in hand, and until it is settled the other threads get none. Leases are known by weak
references: what nobody knows any more, or what a failed transaction leased, is in nobody's hand.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from threading import Thread
from typing import NamedTuple

from ..format.layout import SOLO
from ..format.lease_row import LeaseRow


class Hand(NamedTuple):
    """A thread has a whole lease in hand, or the one message of it at `offset`."""

    lease: LeaseRow
    offset: int | None


class Hands:
    """The leases of one group. They are added by one thread at a time: inside of commits."""

    def __init__(self) -> None:
        self._all: list[weakref.ref[LeaseRow]] = []
        self.suspects: list[weakref.ref[LeaseRow]] = []  # of them
        self._most = 64  # entries, until the forgotten ones are removed
        self.waiting: set[Thread | None] = set()  # in a get
        self.held_up = False  # a thread waits until what others have in hand is settled

    def add(self, thread: Thread | None, lease: LeaseRow) -> None:
        """A thread has a new lease, until it is said which thread has which message of it."""
        lease.hands = {None: thread}
        if len(self._all) >= self._most:
            self._all = [known for known in self._all if known() is not None]
            self._most = 64 + 2 * len(self._all)
        self._all.append(weakref.ref(lease))
        if self.suspects or lease.flags & SOLO:
            self.suspects = [known for known in self.suspects if known() is not None]
            self.suspects += [weakref.ref(lease)] if lease.flags & SOLO else []

    def of_others(self, thread: Thread | None) -> Iterator[Hand]:
        """Messages that other threads work on; some may be settled. Those that wait for more do not
        work: or two of them might wait for each other."""
        return self._find(self._all, {thread, *self.waiting})

    def suspects_of_others(self, thread: Thread | None) -> Iterator[Hand]:
        """The suspects that other threads have; some may be settled."""
        return self._find(self.suspects, {thread})

    def own_suspects(self, thread: Thread | None) -> list[LeaseRow]:
        """The suspects that this thread was given and no other handles; some may be settled."""
        found = [known() for known in self.suspects]
        return [lease for lease in found if lease and thread in lease.hands.values()]

    def _find(self, among: list[weakref.ref[LeaseRow]], but: set[Thread | None]) -> Iterator[Hand]:
        for known in list(among):
            lease = known()
            for offset, holder in list(lease.hands.items()) if lease else ():
                if lease and holder not in but:
                    yield Hand(lease, offset)
