"""Faults to plant into the processes of the torture: negative controls of its rules.

Each is a mistake that a queue could make. A run with one of them must end with a violation.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from diskq.api.consumer import Consumer
from diskq.api.message import Message
from diskq.api.topic import Topic
from diskq.delivery import settle
from diskq.host.slots import Slots
from diskq.storage.hands import Lease
from diskq.tables import leases
from diskq.tables.group_tx import GroupTx

DAWDLES, DAWDLE_LEASES = 0.3, (1.0, 6.0)  # of consumers of a run with a plant: many are too late


def ack_without_token(_: random.Random) -> None:
    """Ack whatever lease has the message now, as queues do that ack by a bare id."""
    ack = settle.ack

    def careless(group: GroupTx, lease: Lease, offsets: Sequence[int]) -> None:
        for offset in offsets:
            row = next((row for row in leases.leased(group) if row.holds(offset)), None)
            ack(group, Lease(row, lease.lasts_ns, lease.keys) if row else lease, [offset])

    settle.ack = careless


def lost_ack(chance: random.Random) -> None:
    """An ack that is told to be done, and was not committed."""
    ack_many = Consumer.ack_many

    def careless(self: Consumer, messages: Iterable[Message]) -> None:
        if chance.random() < 0.1:
            self.member.count_acked(list(messages))
        else:
            ack_many(self, messages)

    Consumer.ack_many = careless  # type: ignore[method-assign]


def lost_row(chance: random.Random) -> None:
    """A nack that drops the message instead of keeping it for a retry."""
    fail = settle.fail

    def careless(group: GroupTx, lease: Lease, offset: int, cause: str, *rest: Any) -> None:
        if cause == "nack" and chance.random() < 0.5:
            settle.ack(group, lease, [offset])
        else:
            fail(group, lease, offset, cause, *rest)

    settle.fail = careless  # type: ignore[assignment]


def lost_put(chance: random.Random) -> None:
    """A put that is told to be done, and was undone."""
    put = Topic._put

    def careless(self: Topic, *arguments: Any) -> Any:
        found = put(self, *arguments)
        offset = found[0].offset
        if offset is not None and chance.random() < 0.05:
            self.purge(before=offset + 1)
        return found

    Topic._put = careless  # type: ignore[method-assign, assignment]


def double_delivery(chance: random.Random) -> None:
    """A living consumer that is taken for dead."""
    alive = Slots.alive

    def careless(self: Slots, index: int, owner: int) -> bool:
        return chance.random() > 0.2 and alive(self, index, owner)

    Slots.alive = careless  # type: ignore[method-assign]


PLANTS: dict[str, Callable[[random.Random], None]] = {
    plant.__name__.replace("_", "-"): plant
    for plant in (ack_without_token, lost_ack, lost_row, lost_put, double_delivery)
}


def plant(name: str, seed: str) -> None:
    """Plant a fault into this process."""
    PLANTS[name](random.Random(seed))
