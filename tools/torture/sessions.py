"""What the consumers of the torture do: take and settle in every way, at random but by a seed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import diskq
from diskq import Message, Receipt, Store

from . import plants
from .ledger import read_body
from .roles import (
    ACKED,
    GOT,
    GROUPS,
    MAX_DELIVERIES,
    PUT,
    RETRIED,
    Draft,
    Role,
    outgoing,
    receipts,
)

DAWDLES, DAWDLE_LEASES = 0.003, (0.5, 2.5)  # how often something takes long, and how long


def consume(role: Role) -> None:
    """Serve one group after the other, each for a moment. When `calm`, only take and ack."""
    names = list(GROUPS)
    shares = [plan.share for plan in GROUPS.values()]
    with diskq.open(role.store_path, create=False) as store:
        number = 0
        while not role.stopping:
            number += 1
            name = role.chance.choices(names, shares)[0]
            Session(role, store, name, number).serve()


class Session:
    """A consumer of one group, for a moment."""

    def __init__(self, role: Role, store: Store, name: str, number: int) -> None:
        self.role, self.store, self.number = role, store, number
        self.chance = role.chance
        self.ledger = role.ledger(name)
        self.in_transactions = name == "tx"
        self.prefetch = role.chance.choices((1, 8, 50), (3, 1, 1))[0]
        group = store.topic(GROUPS[name].topic).group(name)
        self.lease_seconds = group.settings.lease_seconds
        heartbeat = not role.calm and self.chance.random() < 0.1
        self.consumer = group.consumer(role.who, prefetch=self.prefetch, heartbeat=heartbeat)
        self.until = time.monotonic() + role.chance.uniform(0.05, 0.5)
        self.dawdles = plants.DAWDLES if role.plant else DAWDLES

    def serve(self) -> None:
        """Take and settle; then close the consumer, or now and then just drop it."""
        ways = [self._batches]
        if not self.role.calm:
            ways += [self._one_by_one, self._iterate]
        self.chance.choice(ways)()
        self.ledger.intend("close", s=self.number)
        if self.role.calm or self.chance.random() < 0.9:
            self.consumer.close()

    def _going_on(self) -> bool:
        return time.monotonic() < self.until and not self.role.stopping

    def _note(self, messages: Sequence[Message], begun: int) -> None:
        """Write down what came."""
        got = []
        for message in messages:
            name, bad = read_body(message.body, message.key, message.priority)
            if message.attempt > MAX_DELIVERIES:
                bad = f"attempt {message.attempt}"
            offset, token, lease = message.offset, message.token, message.lease
            row = (offset, token, lease.deadline_ns, name, message.key, bad, lease.token)
            got.append(row)
            self.role.count(RETRIED, message.attempt > 1)
        self.ledger.write(got=got, begun=begun, s=self.number, fetched=self.prefetch > 1)
        self.role.count(GOT, len(messages))

    def _settle(self, verb: str, messages: Sequence[Message], call: Callable[[], object]) -> None:
        settles = [(verb, message.offset, message.token) for message in messages]
        self.role.attempt(self.ledger, verb, call, set=settles)
        if verb == "ack" and messages and messages[0].settled:
            self.role.count(ACKED, len(messages))

    def _one_by_one(self) -> None:
        while self._going_on():
            begun = time.monotonic_ns()
            try:
                message = self.consumer.get(timeout=0.05)
            except (diskq.Empty, diskq.Busy):  # who is stopped may hold the lock
                return
            self._note([message], begun)
            self._handle(message)

    def _batches(self) -> None:
        while self._going_on():
            begun = time.monotonic_ns()
            messages: list[Message] = []
            with suppress(diskq.Busy):
                messages = self.consumer.get_many(self.chance.choice((4, 20, 100)), timeout=0.05)
            if not messages:
                return
            self._note(messages, begun)
            if self.chance.random() < self.dawdles and not self.role.calm:
                self._dawdle()
            some = [] if self.role.calm else messages[: self.chance.choice((0, 1, 3))]
            rest = messages[len(some) :]
            for message in some:
                self._handle(message)
            if rest and self.in_transactions:
                self._transact(rest)
            elif rest:
                self._settle("ack", rest, lambda rest=rest: self.consumer.ack_many(rest))  # type: ignore[misc]

    def _iterate(self) -> None:
        """Each message is acked in the commit that takes the next one; the loop ends because
        another thread closes the consumer."""

        def close() -> None:
            self.ledger.intend("close", s=self.number)
            self.consumer.close()

        timer = threading.Timer(max(self.until - time.monotonic(), 0), close)
        timer.start()
        before: Message | None = None
        messages = iter(self.consumer)
        while True:
            begun = time.monotonic_ns()
            number = 0
            if before is not None and not before.settled and not before.failed:
                settles = [("ack", before.offset, before.token)]
                number = self.ledger.intend("ack", set=settles)
            try:
                message = next(messages, None)
            except diskq.LeaseLost:
                self.ledger.write(no=number, error="LeaseLost")
                before, messages = None, iter(self.consumer)
                continue
            except diskq.Closed:  # between two looks
                break
            if number and before is not None and before.settled:
                self.ledger.write(ok=number)
                self.role.count(ACKED)
            if message is None:
                break
            self._note([message], begun)
            if self.chance.random() < 0.1:
                with suppress(diskq.Closed):
                    self._handle(message)
            before = message
        timer.join()

    def _handle(self, message: Message) -> None:
        """Settle one message in some way, perhaps too late, or not at all."""
        chance = self.chance
        if chance.random() < self.dawdles:
            self._dawdle()
        if chance.random() < 0.1:
            self._extend(message)
        if self.in_transactions and chance.random() < 0.7:
            self._transact([message])
            return
        verbs = ("ack", "with", "nack", "nack later", "release", "reject", "leave")
        verb = chance.choices(verbs, (30, 10, 4, 3, 3, 1, 1))[0]
        if verb == "ack":
            self._settle("ack", [message], message.ack)
        elif verb == "with":
            self._settle("ack", [message], lambda: _within(message))
        elif verb == "nack":
            self._settle("nack", [message], lambda: message.nack(error="at random"))
        elif verb == "nack later":
            self._settle("nack", [message], lambda: message.nack(chance.uniform(0, 0.2)))
        elif verb == "release":
            self._settle("release", [message], message.release)
        elif verb == "reject":
            self._settle("reject", [message], lambda: message.reject("at random"))

    def _dawdle(self) -> None:
        leases = plants.DAWDLE_LEASES if self.role.plant else DAWDLE_LEASES
        time.sleep(self.chance.uniform(*leases) * self.lease_seconds)

    def _extend(self, message: Message) -> None:
        self.role.attempt(
            self.ledger,
            "extend",
            lambda: message.extend(self.chance.choice((None, 1.2 * self.lease_seconds, 2.0))),
            lambda _: {"deadline": message.lease.deadline_ns},
            lease=message.lease.token,
            set=[("extend", message.offset, message.token)],
        )

    def _transact(self, messages: Sequence[Message]) -> None:
        """Settle messages and put one for each that is acked, all in one commit."""
        role, out = self.role, self.store.topic("out")
        odd = 0.0 if role.calm else 0.05
        plan = []
        for message in messages:
            verb = self.chance.choice(("nack", "release")) if self.chance.random() < odd else "ack"
            plan.append((verb, message))
        acked = [message for verb, message in plan if verb == "ack"]
        drafts = [Draft("out", f"{role.who}:{each.token}", {}) for each in acked]

        def call() -> Sequence[Receipt]:
            with self.store.transaction() as tx:
                for verb, message in plan:
                    getattr(tx, verb)(message)
                for each in drafts:
                    tx.put_many(out, [outgoing(role, each)])
            return tx.receipts

        found = role.attempt(
            self.ledger,
            "transaction",
            call,
            receipts,
            set=[(verb, message.offset, message.token) for verb, message in plan],
            msgs=[each.record() for each in drafts],
        )
        if found is not None:
            role.count(ACKED, len(acked))
            role.count(PUT, len(found))


def _within(message: Message) -> None:
    with message:
        pass
