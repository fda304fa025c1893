"""Verbs at random on a store that is full or fails, beside a ledger of what it acknowledged.

It imports nothing that pytest needs, so that a process starts in a moment.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import diskq
from diskq import Backoff, DiskqError, Full, Message, Store
from diskq.base import limits

from .clock import ManualClock

Errors = type[DiskqError] | tuple[type[DiskqError], ...]
KIB, MIB = limits.KIB, limits.MIB
LEASE_SECONDS = 10
GROUPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "keyed": {"ordering": "key"},
    "slow": {"max_deliveries": 2},
}
SIZES = (0, 100, 1500, 4000, 9000, 40_000, 250_000)


class Ledger:
    """What the store acknowledged: the bodies it has, and what each group is done with."""

    def __init__(self) -> None:
        self.bodies: dict[int, bytes] = {}
        self.scheduled: set[bytes] = set()
        self.acked: dict[str, set[int]] = {name: set() for name in GROUPS}
        self.fulls: Counter[str] = Counter()  # by verb

    def done(self) -> tuple[int, int]:
        """How much was put and acked."""
        return len(self.bodies) + len(self.scheduled), sum(map(len, self.acked.values()))

    def check(self, store: Store, clock: ManualClock) -> list[str]:
        """Take all there is out of the store; what is wrong with it."""
        clock.advance(1000 * LEASE_SECONDS)
        wrong = [f"{finding.where}: {finding.problem}" for finding in store.verify()]
        for name in self.acked:
            group = store.topic("t").group(name)
            found: dict[int, bytes] = {}
            with group.consumer() as consumer:
                while messages := consumer.get_many(50, timeout=0):
                    for message in messages:
                        if message.offset in found:
                            wrong.append(f"{name} has {message.offset} twice")
                        found[message.offset] = message.body
                    consumer.ack_many(messages)
            for letter in group.dead():
                if letter.offset in found:
                    wrong.append(f"{name} has {letter.offset} twice")
                found[letter.offset] = letter.body
            if back := found.keys() & self.acked[name]:
                wrong.append(f"{name} got {sorted(back)[:9]} again, which were acked")
            for offset, body in self.bodies.items():
                if offset not in self.acked[name] and found.get(offset) != body:
                    wrong.append(f"{name} lost {offset}")
            others = {offset: body for offset, body in found.items() if offset not in self.bodies}
            if set(others.values()) != self.scheduled or len(others) != len(self.scheduled):
                wrong.append(f"{name}: {len(others)} unexpected, {len(self.scheduled)} scheduled")
        return wrong


class Drill:
    """One store, one ledger, and verbs at random. Puts may raise Full; `may` says which errors
    the other verbs may raise."""

    def __init__(
        self, path: str, seed: int, may: Mapping[str, Errors] | None = None, **options: Any
    ) -> None:
        self.path = path
        self.clock = ManualClock()
        self.chance = random.Random(seed)
        self.ledger = Ledger()
        self.may: Mapping[str, Errors] = {"put": Full, **(may or {})}
        self.store = diskq.open(path, clock=self.clock, **options)
        self.enter()
        self.held: dict[str, list[Message]] = {name: [] for name in GROUPS}
        self.largest = self.chance.choice(SIZES[2:])
        self.copying = True

    def enter(self) -> None:
        """Take part in all groups."""
        self.topic = self.store.topic("t", priorities=2)
        self.consumers = {
            name: self.topic.group(
                name, lease_seconds=LEASE_SECONDS, backoff=Backoff(0), **settings
            ).consumer()
            for name, settings in GROUPS.items()
        }

    def attempt(self, verb: str, call: Callable[[], Any]) -> tuple[bool, Any]:
        """Whether a verb succeeded, and what it returned; what it may not raise ends all."""
        try:
            return True, call()
        except self.may.get(verb, ()) as error:
            self.ledger.fulls[f"{verb}: {type(error).__name__}"] += 1
            return False, None

    def leave(self, name: str) -> None:
        """Do without a group."""
        self.consumers.pop(name).group.delete()
        del self.held[name], self.ledger.acked[name]

    # Filling

    def body(self) -> bytes:
        size = self.chance.choice([size for size in SIZES if size <= self.largest])
        return self.chance.randbytes(16) + bytes(size)

    def put(self) -> bool:
        """Put a message, or a batch, or schedule one; False if the store is full."""
        chance, ledger = self.chance, self.ledger
        kind = chance.random()
        try:
            if kind < 0.1:
                bodies = [self.body() for _ in range(chance.randrange(1, 9))]
                for body, receipt in zip(bodies, self.topic.put_many(bodies), strict=True):
                    assert receipt.offset is not None
                    ledger.bodies[receipt.offset] = body
                return True
            body = self.body()
            key = chance.choice((None, "a", "a", "b"))
            if kind < 0.2 and self.copying:
                self.topic.put(body, key=key, delay_seconds=5 * LEASE_SECONDS)
                ledger.scheduled.add(body)
                return True
            offset = self.topic.put(body, key=key, priority=chance.randrange(2)).offset
        except self.may["put"] as error:
            ledger.fulls[f"put: {type(error).__name__}"] += 1
            return False
        assert offset is not None
        ledger.bodies[offset] = body
        return True

    def put_one(self) -> None:
        """Put a small message, for which there must be room."""
        body = self.chance.randbytes(16)
        offset = self.topic.put(body).offset
        assert offset is not None
        self.ledger.bodies[offset] = body

    def fill(self) -> None:
        """Put until the store is full for messages of every size."""
        while self.put():
            pass
        while self.largest and not self.ledger.fulls["put: DiskFailed"]:
            self.largest = max(size for size in (-1, *SIZES) if size < self.largest)
            while self.largest >= 0 and self.put():
                pass
            self.largest = max(self.largest, 0)
        self.largest = self.chance.choice(SIZES[2:])

    # All that must work now

    def settle(self, steps: int) -> None:
        """Every other verb, at random; those that copy messages only if that was asked for."""
        verbs = (
            (8, self.get),
            (6, self.ack),
            (6, self.fail),
            (2, self.release),
            (1, self.extend),
            (2, self.let_expire),
            (1, self.redrive),
            (1, lambda: self.attempt("trim", self.topic.trim)),
            (1, lambda: self.attempt("stats", self.store.stats)),
        )
        if not self.copying:
            copying = self.fail, self.redrive, self.let_expire
            verbs = tuple(verb for verb in verbs if verb[1] not in copying)
        weights, calls = zip(*verbs, strict=True)
        for call in self.chance.choices(calls, weights, k=steps):
            call()

    def get(self) -> None:
        name = self.chance.choice(list(self.held))
        many = self.chance.choice((1, 1, 3, 100))
        consumer = self.consumers[name]
        ok, messages = self.attempt("get", lambda: consumer.get_many(many, timeout=0))
        for message in messages or ():
            body = self.ledger.bodies.setdefault(message.offset, message.body)
            assert body == message.body
            self.ledger.scheduled.discard(message.body)
        if ok:
            self.held[name] += messages

    def _take(self, most: int = 1) -> tuple[str, list[Message]]:
        name = self.chance.choice(list(self.held))
        held = self.held[name]
        self.chance.shuffle(held)
        taken, self.held[name] = held[:most], held[most:]
        return name, taken

    def ack(self) -> None:
        name, messages = self._take(self.chance.choice((1, 5, 200)))
        ok, _ = self.attempt("ack", lambda: self.consumers[name].ack_many(messages))
        if ok:
            self.ledger.acked[name].update(message.offset for message in messages)
        else:
            self.held[name] += messages

    def fail(self) -> None:
        name, messages = self._take()
        for message in messages:
            verb = self.chance.choice((message.nack, message.reject))
            ok, _ = self.attempt(verb.__name__, verb)
            if not ok:
                self.held[name].append(message)

    def release(self) -> None:
        name, messages = self._take()
        for message in messages:
            ok, _ = self.attempt("release", message.release)
            if not ok:
                self.held[name].append(message)

    def extend(self) -> None:
        name, messages = self._take()
        for message in messages:
            self.attempt("extend", message.extend)
            self.held[name].append(message)

    def let_expire(self) -> None:
        """All deadlines pass, and somebody gets: what he does not take may still be settled by
        who had it, so it is forgotten here."""
        self.clock.advance(LEASE_SECONDS + 1)
        for messages in self.held.values():
            messages.clear()

    def redrive(self) -> None:
        group = self.consumers[self.chance.choice(list(self.held))].group
        self.attempt("redrive", lambda: group.redrive(limit=self.chance.choice((1, 5, 50))))

    def drain(self) -> None:
        """Consume most of what there is, which makes room."""
        for name, consumer in self.consumers.items():
            consumer.ack_many(self.held[name])
            self.ledger.acked[name].update(message.offset for message in self.held[name])
            self.held[name] = []
            while messages := consumer.get_many(50, timeout=0):
                for message in messages:
                    self.ledger.bodies.setdefault(message.offset, message.body)
                    self.ledger.scheduled.discard(message.body)
                consumer.ack_many(messages)
                self.ledger.acked[name].update(message.offset for message in messages)
            group = self.topic.group(name)
            while offsets := [letter.offset for letter in group.dead()][:500]:
                group.forget_dead(offsets)
                self.ledger.acked[name].update(offsets)
        self.topic.trim()

    def reopen(self) -> list[str]:
        """Close, open anew, and compare with the ledger."""
        self.store.close()
        self.store = diskq.open(self.path, clock=self.clock, create=False)
        return self.ledger.check(self.store, self.clock)
