"""Messages of a group in the hands of this process: handed out and not settled.

This is kept in memory, and only for suspects, see delivery/suspects.py. When a process dies,
anything it had in hand may have killed it. So a suspect is handed out only while no other thread
has a message of the group in hand, and until it is settled the other threads get none. Hands knows
leases by weak references: a lease that the program dropped, or that a failed transaction granted,
is in nobody's hand.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from threading import Thread
from typing import NamedTuple

from ..format.layout import SOLO
from ..format.lease_row import LeaseRow


class Lease:
    """A lease as its holder knows it: where its row is, and what is kept only in memory.

    `moved_ns` is its deadline within a transaction that is not committed yet; `lasts_ns` how long a
    grant or an extension lasts. `keys` has the hash of each message's key, in a group that keeps
    key order: an ack then need not read the messages. `hands` names the thread that has the message
    at an offset in hand; the key None stands for all messages that no other key names.
    """

    __slots__ = (
        *("count", "deadline_ns", "first", "flags", "hands"),
        *("keys", "lasts_ns", "moved_ns", "token", "__weakref__"),
    )

    def __init__(self, row: LeaseRow, lasts_ns: int, keys: dict[int, int]) -> None:
        self.first, self.count, self.flags, self.token = row.first, row.count, row.flags, row.token
        self.deadline_ns, self.moved_ns, self.lasts_ns = row.deadline_ns, 0, lasts_ns
        self.keys = keys
        self.hands: dict[int | None, Thread | None] = {}


class Hand(NamedTuple):
    """A thread has a whole lease in hand, or the one message of it at `offset`."""

    lease: Lease
    offset: int | None


class Hands:
    """The leases of one group. One thread at a time adds to them: the one that commits."""

    def __init__(self) -> None:
        self._all: list[weakref.ref[Lease]] = []
        self.suspects: list[weakref.ref[Lease]] = []  # a part of all
        self._most = 64  # entries, until those of dropped leases are removed
        self.waiting: set[Thread | None] = set()  # in a get
        self.held_up = False  # a thread waits until what others have in hand is settled

    def add(self, thread: Thread | None, lease: Lease) -> None:
        """Note that a thread has a new lease, until `lease.hands` says more."""
        lease.hands = {None: thread}
        if len(self._all) >= self._most:
            self._all = [known for known in self._all if known() is not None]
            self._most = 64 + 2 * len(self._all)
        self._all.append(weakref.ref(lease))
        if self.suspects or lease.flags & SOLO:
            self.suspects = [known for known in self.suspects if known() is not None]
            self.suspects += [weakref.ref(lease)] if lease.flags & SOLO else []

    def of_others(self, thread: Thread | None) -> Iterator[Hand]:
        """Messages that other threads work on; some may be settled. Threads that wait for more are
        left out, or two of them might wait for each other."""
        return self._find(self._all, {thread, *self.waiting})

    def suspects_of_others(self, thread: Thread | None) -> Iterator[Hand]:
        """The suspects that other threads have; some may be settled."""
        return self._find(self.suspects, {thread})

    def own_suspects(self, thread: Thread | None) -> list[Lease]:
        """The suspects that this thread was given and no other handles; some may be settled."""
        leases = [known() for known in self.suspects]
        return [lease for lease in leases if lease and thread in lease.hands.values()]

    def _find(self, among: list[weakref.ref[Lease]], but: set[Thread | None]) -> Iterator[Hand]:
        for known in list(among):
            lease = known()
            for offset, holder in list(lease.hands.items()) if lease else ():
                if lease and holder not in but:
                    yield Hand(lease, offset)
