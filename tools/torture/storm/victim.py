"""A process in the storm: its main thread gets signals, the others asynchronous errors, and each
uses the store. `ordinary` is another process, which gets nothing."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import itertools
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diskq

from ..every_line.plants import PLANTS
from .ledger import Ledger

WORK, OUT, GROUP = "work", "out", "g"
LEASE_SECONDS = 3600.0  # nothing comes again because of the time
PAUSE_SECONDS = 0.002  # between two errors in one thread, in the mean
SIGNALS = signal.SIGINT, signal.SIGUSR1, signal.SIGTERM
GARBAGE = 20  # a finalizer of so many steps uses the store


class TimeLimit(Exception):
    """Raised by the handler of SIGALRM in the main thread."""


class Plan(NamedTuple):
    """The parameters of one process."""

    folder: Path
    name: str
    seed: int
    threads: int
    plant: str
    beats: memoryview  # one u64 for each thread, main first: nanoseconds, when a step was over


def names(topics: diskq.Store) -> tuple[diskq.Topic, diskq.Topic, diskq.Group]:
    """The topics and the group that all use."""
    work = topics.topic(WORK, retention="limits")
    again = diskq.Backoff(0)  # what a killed one held is there at the end
    group = work.group(GROUP, lease_seconds=LEASE_SECONDS, max_deliveries=1000, backoff=again)
    return work, topics.topic(OUT, retention="limits"), group


class Hand:
    """One thread that uses the store, step by step, and keeps a ledger."""

    def __init__(self, plan: Plan, number: int, raised: tuple[type[BaseException], ...]) -> None:
        self.plan, self.number, self.raised = plan, number, raised
        self.name = f"{plan.name}.{number}"
        self.ledger = Ledger(plan.folder / f"{self.name}.ledger")
        self.chance = random.Random(f"{plan.seed} {self.name}")
        self.bodies = 0
        self.store: diskq.Store | None = None
        self.consumer: diskq.Consumer | None = None
        self.kept: list[diskq.Message] = []  # leased, and not settled
        self.ending: diskq.Consumer | None = None  # its close may have been interrupted
        self.longest = 0.0

    def body(self, mark: str = "") -> str:
        """A body that nobody else puts."""
        self.bodies += 1
        return f"{self.name}{mark}-{self.bodies}"

    def open(self) -> None:
        """Have a store and a consumer, whatever was closed."""
        self.finish()
        if self.store is None:
            store = diskq.open(self.plan.folder / "store")
            self.work, self.out, self.group = names(store)
            self.store = store
        if self.consumer is None or not self.consumer.usable:
            self.kept.clear()
            self.consumer = self.group.consumer()

    def step(self) -> None:
        """Something at random."""
        try:
            self.open()
        except diskq.Closed:
            if self.number:
                raise
            return  # in the main thread a handler closed it this moment
        steps: list[Callable[[], None]] = [self.put, self.put_many, *[self.take] * 4, self.renew]
        began = time.monotonic()
        self.chance.choices(steps, [30, 10, 20, 20, 20, 20, 1])[0]()
        self.longest = max(self.longest, time.monotonic() - began)

    def attempt(self, call: Callable[[], object], **what: Any) -> bool:
        """Call, with lines before and after; whether it returned. An error of diskq is noted, and
        what was raised into this thread goes on."""
        number = self.ledger.attempt(**what)
        try:
            call()
        except diskq.DiskqError as error:
            self.ledger.no(number, error)
            return False
        except self.raised:
            raise
        except BaseException as error:
            self.ledger.no(number, error)
            return False
        self.ledger.ok(number)
        return True

    # Its steps

    def put(self) -> None:
        body = self.body()
        self.attempt(lambda: self.work.put(body.encode()), put=[body])

    def put_many(self) -> None:
        bodies = [self.body() for _ in range(self.chance.randint(2, 5))]
        self.attempt(lambda: self.work.put_many([each.encode() for each in bodies]), put=bodies)

    def take(self) -> None:
        """Get some, or what was got before and not settled, and settle it in some way."""
        consumer, chance = self.consumer, self.chance
        if consumer is None:  # a handler closed it this moment
            return
        if not self.kept:
            began, count = time.monotonic_ns(), chance.choice((1, 1, 1, 4, 9))
            try:
                self.kept += consumer.get_many(count, timeout=chance.choice((0, 0, 0.01)))
            except diskq.Closed:
                return
            except self.raised:
                raise
            except BaseException as error:
                self.ledger.write(got=[], error=type(error).__name__, text=str(error)[:200])
                return
            self.ledger.write(got=[each.body.decode() for each in self.kept], begun=began)
        messages, self.kept = self.kept, []
        ways = [self.ack, self.ack_many, self.transact, self.succeed, self.release]
        chance.choices(ways, [4, 4, 4, 4, 1])[0](messages)

    def ack(self, messages: list[diskq.Message]) -> None:
        for message in messages:
            self.attempt(message.ack, ack=[message.body.decode()])

    def ack_many(self, messages: list[diskq.Message]) -> None:
        consumer = self.consumer
        bodies = [each.body.decode() for each in messages]
        if bodies and consumer is not None:
            self.attempt(lambda: consumer.ack_many(messages), ack=bodies)

    def succeed(self, messages: list[diskq.Message]) -> None:
        def handle(message: diskq.Message) -> None:
            with message:
                pass

        for message in messages:
            self.attempt(lambda: handle(message), ack=[message.body.decode()])  # noqa: B023

    def release(self, messages: list[diskq.Message]) -> None:
        for message in messages:
            self.attempt(message.release, way="release", body=message.body.decode())

    def transact(self, messages: list[diskq.Message]) -> None:
        """Ack all, and put what comes of it, in one commit."""
        bodies = [each.body.decode() for each in messages]
        results = [self.body("-out") for _ in messages[:3]]

        store = self.store

        def commit() -> None:
            assert store
            with store.transaction() as transaction:
                for message in messages:
                    transaction.ack(message)
                for result in results:
                    transaction.put(self.out, result.encode())

        if messages and store is not None:
            self.attempt(commit, ack=bodies, put=results)

    def renew(self) -> None:
        """Close the consumer; the next step makes another."""
        self.ending = self.consumer
        self.finish()

    def finish(self) -> None:
        """Close a consumer, once more if that was interrupted."""
        if self.ending is not None:
            self.ending.close()
            self.ending = None

    def close(self) -> None:
        """Close all."""
        self.finish()
        if self.consumer is not None:
            self.consumer.close()
        if self.store is not None:
            self.store.close()


class Garbage:
    """Its finalizer uses the store, in whatever thread and line the collector runs."""

    def __init__(self, victim: Victim, hand: Hand) -> None:
        self.victim, self.hand, self.me = victim, hand, self

    def __del__(self) -> None:
        self.victim.use_in_between("finalizer", self.hand)


class Victim:
    """The process: N threads, and who throws errors at them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.over = False
        self.armed = False  # the main thread may be interrupted
        numbers = range(plan.threads + 1)
        self.limits: list[type[Exception]] = [type(f"Limit{n}", (Exception,), {}) for n in numbers]
        self.thrown: tuple[type[BaseException], ...]
        self.thrown = KeyboardInterrupt, TimeLimit, *self.limits
        self.hand = Hand(plan, 0, (KeyboardInterrupt, TimeLimit))
        self.ready = [False] * (plan.threads + 1)  # for another error
        self.idents = [0] * (plan.threads + 1)
        self.between = Ledger(plan.folder / f"{plan.name}.between.ledger")
        self.betweens = itertools.count()
        self.counts = {"signals": 0, "async": 0, "handlers": 0, "finalizers": 0}

    def goes_on(self) -> bool:
        """Until SIGTERM."""
        return not self.over

    # Errors and signals

    def raise_in_main(self, number: int, _: object) -> None:
        """For SIGINT and SIGALRM: one error for each time it was armed."""
        if self.armed:
            self.armed = False
            self.counts["signals"] += 1
            raise KeyboardInterrupt if number == signal.SIGINT else TimeLimit

    def use_in_handler(self, *_: object) -> None:
        """For SIGUSR1: put, or close what the main thread uses."""
        armed, self.armed = self.armed, False
        self.counts["handlers"] += 1
        self.use_in_between("handler", self.hand)
        self.armed = armed

    def use_in_between(self, where: str, hand: Hand) -> None:
        """Put, or close a consumer or store, in the middle of something else."""
        store, consumer = hand.store, hand.consumer
        if store is None or consumer is None:
            return
        ways = ("put", "put", "consumer", "store") if where == "handler" else ("put", "stats")
        way = random.choice(ways)
        body = f"{self.plan.name}-{where}-{next(self.betweens)}"
        number = self.between.attempt(put=[body] if way == "put" else [], where=where, way=way)
        try:
            if way == "put":
                hand.work.put(body.encode(), timeout=5)
            elif way == "stats":
                store.stats()
            elif way == "consumer":
                consumer.close()
            else:
                hand.store = hand.consumer = None
                store.close()
        except self.thrown:
            raise
        except BaseException as error:
            self.between.write(no=number, error=type(error).__name__, text=str(error)[:200])
        else:
            self.between.ok(number)

    def note_unraisable(self, told: Any) -> None:
        """Python swallows what is raised in a finalizer, whatever it was."""
        if told.exc_type in self.limits:
            self.ready[self.limits.index(told.exc_type)] = True
        self.between.write(unraisable=told.exc_type.__name__, text=str(told.exc_value)[:200])

    def throw(self) -> None:
        """Run in a separate thread: an asynchronous error for one worker after the other."""
        set_error = ctypes.pythonapi.PyThreadState_SetAsyncExc
        set_error.argtypes = [ctypes.c_ulong, ctypes.py_object]
        chance = random.Random(f"{self.plan.seed} throw")
        while self.goes_on():
            time.sleep(chance.expovariate(1 / PAUSE_SECONDS))
            number = chance.randint(1, self.plan.threads)
            if self.ready[number]:
                self.ready[number] = False
                self.counts["async"] += 1
                set_error(self.idents[number], self.limits[number])

    # The threads

    def work(self, number: int) -> None:
        """A worker. One error at a time is thrown at it."""
        limit = self.limits[number]
        hand = Hand(self.plan, number, (limit,))
        self.idents[number] = threading.get_ident()
        while self.goes_on():
            try:
                self.ready[number] = True
                while self.goes_on():
                    self._step(number, hand)
                self.ready[number] = False
                time.sleep(0.05)  # what was thrown is here by now
            except limit:
                pass  # nothing is thrown again before it is ready
        hand.close()

    def _step(self, number: int, hand: Hand) -> None:
        hand.step()
        if number and hand.chance.randrange(GARBAGE) == 0:
            self.counts["finalizers"] += 1
            Garbage(self, hand)
        self.plan.beats[number] = time.monotonic_ns()

    def run(self) -> None:
        """All of it."""
        PLANTS[self.plan.plant]()
        signal.signal(signal.SIGINT, self.raise_in_main)
        signal.signal(signal.SIGALRM, self.raise_in_main)
        signal.signal(signal.SIGUSR1, self.use_in_handler)
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "over", True))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        sys.unraisablehook = self.note_unraisable
        sys.setswitchinterval(0.0005)
        gc.set_threshold(200)
        threads = [
            threading.Thread(target=self.work, args=[n]) for n in range(1, self.plan.threads + 1)
        ]
        thrower = threading.Thread(target=self.throw)
        for thread in (*threads, thrower):
            thread.start()
        while self.goes_on():
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00005, 0.004))
            try:
                self.armed = True
                self._step(0, self.hand)
                self.armed = False
            except (KeyboardInterrupt, TimeLimit):
                pass
            except BaseException:
                self.armed = False
                raise
        self.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        for thread in (*threads, thrower):
            thread.join()
        self.hand.close()
        self.between.write(counts=self.counts)


def suffer(plan: Plan, dump: Path) -> None:
    """The life of a victim."""
    faulthandler.register(signal.SIGUSR2, dump.open("w"), all_threads=True)
    Victim(plan).run()


def ordinary(plan: Plan, dump: Path) -> None:
    """The life of a process beside it: it does the same in one thread, and nothing is raised."""
    faulthandler.register(signal.SIGUSR2, dump.open("w"), all_threads=True)
    over: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    hand = Hand(plan, 0, ())
    while not over:
        hand.step()
        plan.beats[0] = time.monotonic_ns()
        time.sleep(0.001)
    hand.close()
    hand.ledger.write(longest=hand.longest)


def spawn(job: Callable[[Plan, Path], None], plan: Plan) -> int:
    """Fork a process for a job; returns its pid."""
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until it has handlers
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return pid
    try:
        job(plan, plan.folder / f"{plan.name}.stacks")
    except BaseException:
        text = traceback.format_exc()[-800:]
        Ledger(plan.folder / f"{plan.name}.died.ledger").write(died=text)
        os._exit(1)
    os._exit(0)
