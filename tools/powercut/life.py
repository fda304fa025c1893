"""The workload of a power cut: a store's whole life, in one process, with a ledger.

    python -m powercut.life ROOT LEDGER VIEWS DURABILITY FAULT

The ledger gets a line of JSON after each commit, before the call returns that made it:
`{"state": n, "txn": id}`; and what was acknowledged to the caller: tokens, receipts, backups.
VIEWS gets what the store looked like in each state. FAULT is a planted one, or "".
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lmdb

import diskq
from diskq.base import limits
from diskq.host import files
from diskq.storage import creation, reserve
from diskq.storage.writes import Writes

from .view import MachineClock, view

KEPT_BYTES = 8 * 4096  # for settling
MAP_BYTES = 48 * 4096  # so small that the map grows several times


class Ledger:
    """Tells what is true from now on, by plain writes, in order with those of the store."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.views: list[str] = []
        self.store: diskq.Store | None = None
        self._txn = -1

    def tell(self, **what: object) -> None:
        os.write(self._file, json.dumps(what).encode() + b"\n")

    def committed(self) -> None:
        """Note the state of the store, if it is open and has changed."""
        if self.store is None:
            return
        txn = self.store.handle.engine.look(lambda env: env.info()["last_txnid"])
        if txn != self._txn:
            self._txn = txn
            self.views.append(view(self.store))
            self.tell(state=len(self.views) - 1, txn=txn)

    def watch(self) -> None:
        """Note the state after each commit of this process."""
        transact = Writes._transact

        def watched(writes: Writes, *calls: Any) -> None:
            transact(writes, *calls)
            self.committed()

        Writes._transact = watched  # type: ignore


class Life:
    """The steps, in order; each leaves something for the later ones."""

    def __init__(self, root: str, durability: str, ledger: Ledger) -> None:
        self.root = root
        self.durability = durability
        self.ledger = ledger
        self.clock = MachineClock()
        self.kept: list[diskq.Consumer] = []  # they have leases when the power goes
        self.backups = 0

    def live(self) -> None:
        if self.durability == "process":  # the others make a store where nothing is
            os.mkdir(os.path.join(self.root, "store"))
        self.open()
        steps: list[Callable[[], None]] = [
            self.puts, self.settles, self.dedup, self.delays, self.transactions, self.backup,
            self.key_order, self.lanes_and_bounds, self.operators, self.rounds, self.threads,
            self.growth, self.deletions, self.reopening, self.backup, self.rounds, self.last,
        ]  # fmt: skip
        for step in steps:
            self.ledger.tell(doing=step.__name__)
            step()

    def open(self) -> None:
        self.ledger.store = None
        path = os.path.join(self.root, "store")
        self.store = diskq.open(path, durability=self.durability, clock=self.clock)
        for topic in self.store.topics():
            self.store.handle.engine.log(topic.id)  # a view inside of a commit must find it open
        self.ledger.store = self.store
        self.ledger.committed()
        self.orders = self.store.topic("orders", dedup_seconds=7 * 86_400)
        self.crew = self.orders.group(
            "crew", lease_seconds=10, max_deliveries=2, backoff=diskq.Backoff(5)
        )

    def get(self, consumer: diskq.Consumer) -> diskq.Message:
        message = consumer.get_nowait()
        self.ledger.tell(token=message.token)
        return message

    def puts(self) -> None:
        for number in range(3):
            self.orders.put(b"order %d" % number)
        self.orders.put(b"rich", key="ada", headers={"kind": "test"})
        self.orders.put_many([b"one of many %d" % number * 9 for number in range(60)])
        self.orders.put(b"large" * 6_000)

    def settles(self) -> None:
        with self.crew.consumer("ca") as consumer:
            self.get(consumer).ack()
            self.get(consumer).nack(error="first")
            self.get(consumer).release()
            self.get(consumer).reject("unwanted")
            message = self.get(consumer)
            message.extend(20)
            message.ack()
            self.get(consumer)  # its deadline passes
            self.clock.advance(21)
            for _ in range(2):  # the retries
                self.get(consumer).nack(0, error="second")
            batch = consumer.get_many(20)
            self.ledger.tell(token=max(message.token for message in batch))
            consumer.ack_many(batch[3:12])
        with self.crew.consumer("cb", prefetch=8) as consumer:
            for _ in range(5):
                self.get(consumer).ack()
            for count, message in enumerate(consumer):  # acks in the commit of the next lease
                self.ledger.tell(token=message.token)
                if count == 5:
                    break

    def dedup(self) -> None:
        for name in ("a", "b", "a"):
            receipt = self.orders.put(b"once " + name.encode(), dedup_id=name)
            self.ledger.tell(dedup=name, offset=receipt.offset)

    def delays(self) -> None:
        self.orders.put(b"soon", delay_seconds=30)
        self.orders.put(b"cancelled", delay_seconds=40)
        later = self.orders.put(b"later", delay_seconds=3_600)
        self.orders.put(b"short-lived", ttl_seconds=1)
        assert later.schedule_id is not None
        self.orders.cancel(later.schedule_id)
        self.clock.advance(35)
        with self.crew.consumer("ca") as consumer:
            for _ in range(4):
                self.get(consumer).ack()

    def transactions(self) -> None:
        bills = self.store.topic("bills")
        bills.group("desk")
        with self.crew.consumer("ca") as consumer:
            for number in range(6):
                message = self.get(consumer)
                with self.store.transaction() as transaction:
                    settle = (transaction.ack, transaction.nack, transaction.release)[number % 3]
                    settle(message)
                    transaction.put(bills, b"bill %d" % number)
                    transaction.put_many(self.orders, [b"more"] * number)

    def backup(self) -> None:
        """To a new place, then to an empty directory."""
        name = f"backup{self.backups}"
        path = os.path.join(self.root, name)
        if self.backups:
            os.mkdir(path)
        self.backups += 1
        self.ledger.tell(backing_up=name)
        self.store.backup(path)
        self.ledger.tell(backed_up=name)

    def key_order(self) -> None:
        keyed = self.store.topic("keyed")
        group = keyed.group("crew", ordering="key", backoff=diskq.Backoff(0), lease_seconds=5)
        keyed.put_many([diskq.Outgoing(b"%d" % n, key="abc"[n % 3]) for n in range(12)])
        with group.consumer("ca") as consumer:
            first = consumer.get_many(3)
            first[0].nack()
            first[1].ack()
            first[2].release()
            for _ in range(4):
                self.get(consumer).ack()
        keyed.purge(key="b")

    def lanes_and_bounds(self) -> None:
        lanes = self.store.topic("lanes", priorities=3)
        group = lanes.group("crew")
        for number in range(6):
            lanes.put(b"lane %d" % number, priority=number % 3)
        with group.consumer("ca") as consumer:
            self.get(consumer).ack()
        recent = self.store.topic("recent", retention="limits", max_messages=5, discard="old")
        recent.group("crew")
        for number in range(9):
            recent.put(b"event %d" % number)

    def operators(self) -> None:
        self.crew.redrive(limit=1)
        dead = [letter.offset for letter in self.crew.dead()]
        self.crew.forget_dead(dead[:1])
        copy = self.crew.fork("copy")
        copy.pause()
        copy.resume()
        copy.update(max_in_flight=5)
        copy.seek("earliest")
        with copy.consumer("ca") as consumer:
            consumer.ack_many(consumer.get_many(5))
        copy.seek("latest")
        self.orders.update(max_messages=1_000)
        self.orders.trim()
        self.orders.purge(before=self.crew.topic.stats().put - 10)

    def rounds(self) -> None:
        """What a queue does all day: it uses the same pages again and again."""
        with self.crew.consumer("ca") as consumer:
            for number in range(12):
                self.orders.put(b"round %d" % number * 20)
                self.get(consumer).ack()
                self.orders.trim()

    def threads(self) -> None:
        """Threads share commits."""

        def put(name: bytes) -> None:
            for number in range(4):
                self.orders.put(b"%b %d" % (name, number))

        threads = [threading.Thread(target=put, args=(name,)) for name in (b"x", b"y", b"z")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def growth(self) -> None:
        """The memory map grows, and much of it is free again later."""
        bulk = self.store.topic("bulk")
        group = bulk.group("crew", max_deliveries=2)
        for number in range(6):
            bulk.put(bytes([number]) * 60_000)
        with group.consumer("ca") as consumer:
            for message in consumer.get_many(6)[::2]:
                message.nack(error="copied")
        bulk.purge()

    def deletions(self) -> None:
        keyed = self.store.topic("keyed")
        keyed.group("crew").delete()
        self.store.delete_topic("lanes")
        self.store.delete_topic("bulk")

    def reopening(self) -> None:
        """Close and open, first as ever, then as after a crash of the machine: opening voids what
        was leased."""
        for crashed in (False, True):
            consumer = self.crew.consumer("ca")
            self.kept.append(consumer)
            self.get(consumer)
            self.get(consumer).nack(0)
            self.get(consumer)
            self.ledger.store = None
            if crashed:
                self.store._consumers.clear()  # nobody gives back what is leased
                self.clock.reboot()
                self.ledger.tell(boot=self.clock.boot)
            self.store.close()
            self.open()

    def last(self) -> None:
        """The power goes while messages are leased, retried and prefetched."""
        self.orders.put_many([b"the last ones"] * 10)
        for consumer in (self.crew.consumer("ca"), self.crew.consumer("cb", prefetch=4)):
            self.kept.append(consumer)
            for _ in range(3):
                self.get(consumer)
        bills = self.store.topic("bills").group("desk").consumer("ca")
        self.get(bills).nack(0)
        self.get(bills)
        self.kept.append(bills)


def plant(fault: str) -> None:
    """Break a promise."""
    if fault == "creation":
        creation._flush = lambda folder, name=".": None
    flags = {"nosync": {"sync": False}, "nometasync": {"metasync": False}}.get(fault, {})
    _tiny_maps(flags)


def _tiny_maps(flags: dict[str, bool]) -> None:
    """Let maps begin small. Puts then fill them: what is kept free is for stores with a bound."""
    limits.MAP_BYTES = (MAP_BYTES,)  # type: ignore[assignment]
    setattr(reserve.Room, "need", _allocate_only)  # noqa: B010 - mypy takes it for a class
    setattr(lmdb, "open", partial(_open, lmdb.open, flags))  # noqa: B010 - mypy takes it for a class


def _allocate_only(self: reserve.Room, sizes: Sequence[int]) -> None:
    engine = self._engine
    pages = engine.live().info()["last_pgno"] + 1
    name = os.path.join(engine.path, files.DATA)
    least, now = pages * limits.PAGE_BYTES + sum(sizes) + KEPT_BYTES, os.stat(name).st_size
    if now < least:
        reserve._allocate(name, now, least, 0)


def _open(original: Callable[..., Any], flags: dict[str, bool], *args: Any, **options: Any) -> Any:
    options.setdefault("map_size", MAP_BYTES)
    return original(*args, **{**options, **(flags if "sync" in options else {})})


def main(root: str, ledger_path: str, views_path: str, durability: str, fault: str) -> None:
    """Live, write down what was seen, and die without closing anything."""
    plant(fault)
    ledger = Ledger(ledger_path)
    ledger.watch()
    Life(root, durability, ledger).live()
    ledger.tell(doing="nothing more")
    with open(views_path, "w", encoding="utf-8") as file:
        json.dump(ledger.views, file)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:6])
