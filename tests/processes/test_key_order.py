"""With key order, the messages of a key are handled one after the other, whoever dies (G8)."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from support import history
from support.history import NEVER, Entry
from support.roles.lives import FULL
from support.workers import Worker, wait_until

import diskq
from diskq import Backoff, Outgoing

MESSAGES = 20_000 if FULL else 4_000
KILLS = MESSAGES // 200
KEYS = 100
PREFETCH = (1, 1, 1, 8)  # of the four consumers


class Flight(NamedTuple):
    """A delivery, for as long as the message was certainly leased: from when get had returned to
    when its settle, or the kill of its process, began."""

    key: str
    offset: int
    token: int
    begun: int
    ended: int
    verb: str  # that was tried
    sure: bool  # and returned


def flights(entries: list[Entry], deaths: dict[str, int]) -> list[Flight]:
    """All deliveries in the order of their tokens."""
    tried = {entry["token"]: entry for entry in entries if entry["phase"] == "try"}
    ok = {entry["token"] for entry in entries if entry["phase"] == "ok"}
    found = []
    for got in (entry for entry in entries if entry["phase"] == "got"):
        token = got["token"]
        settle = tried.get(token, {"at": NEVER, "verb": "nothing"})
        ended = min(settle["at"], deaths.get(got["who"], NEVER))
        verb = settle["verb"]
        found.append(Flight(got["key"], got["offset"], token, got["at"], ended, verb, token in ok))
    return sorted(found, key=lambda flight: flight.token)


def problems(every: list[Flight], count: int) -> list[str]:
    """Everything in the flights of messages 0 to `count` that must not be."""
    of_message: dict[int, list[Flight]] = defaultdict(list)
    of_key: dict[str, list[Flight]] = defaultdict(list)
    for flight in every:
        of_message[flight.offset].append(flight)
        of_key[flight.key].append(flight)
    found = [f"message {offset} was never got" for offset in set(range(count)) - set(of_message)]
    for its in of_message.values():
        found += _check_acks(its)
    for key, its in of_key.items():
        found += _check_one_in_flight(key, its)
        found += _check_order(key, {flight.offset: of_message[flight.offset] for flight in its})
    return found


def _check_acks(its: list[Flight]) -> list[str]:
    """The flights of one message: the last one is acked, and no other."""
    offset = its[0].offset
    found = [
        f"message {offset} was delivered after its ack"
        for flight in its[:-1]
        if flight.verb == "ack" and flight.sure
    ]
    return found if its[-1].verb == "ack" else [*found, f"message {offset} was never acked"]


def _check_one_in_flight(key: str, its: list[Flight]) -> list[str]:
    found = []
    latest: Flight | None = None
    for flight in sorted(its, key=lambda flight: flight.begun):
        if latest is not None and flight.begun < latest.ended:
            pair = f"{latest.offset} and {flight.offset}"
            found.append(f"key {key}: {pair} were in flight at once")
        if latest is None or flight.ended > latest.ended:
            latest = flight
    return found


def _check_order(key: str, messages: dict[int, list[Flight]]) -> list[str]:
    """Each message of a key is got only after the ack of the one before was begun."""
    offsets = sorted(messages)
    return [
        f"key {key}: {later} was delivered before the ack of {earlier}"
        for earlier, later in pairwise(offsets)
        if messages[later][0].begun < messages[earlier][-1].ended
    ]


class Run(NamedTuple):
    """What came of one run."""

    flights: list[Flight]
    stats: diskq.GroupStats
    seconds: float


def run(folder: Path, ordering: str, count: int, kills: int) -> Run:
    """Four consumers take `count` messages of KEYS keys; `kills` of them are killed at random, and
    each replaced."""
    chance = random.Random(3)
    workers: dict[str, Worker] = {}
    deaths: dict[str, int] = {}
    path = str(folder / "store")

    def begin() -> None:
        number = len(workers)
        options = {"who": f"c{number}", "seed": number, "prefetch": PREFETCH[number % 4]}
        ledger = str(folder / f"c{number}")
        workers[f"c{number}"] = Worker("lives.consume_keys", path=path, ledger=ledger, **options)
        workers[f"c{number}"].hear("ready")

    try:
        with diskq.open(path, durability="process") as store:
            topic = store.topic("q")
            retries = {"lease_seconds": 600, "max_deliveries": 10_000, "backoff": Backoff(0)}
            group = topic.group("default", ordering=ordering, **retries)
            for _ in range(4):
                begin()
            begun = time.monotonic()
            for number in range(max(kills, 1)):
                keys = [f"{chance.randrange(KEYS)}" for _ in range(count // max(kills, 1))]
                topic.put_many([Outgoing(b"", key=key) for key in keys])
                if number < kills:
                    settled = group.stats().acked
                    wait_until(lambda settled=settled: group.stats().acked > settled + 20)
                    time.sleep(chance.random() * 0.02)  # no protocol: any moment will do
                    who = chance.choice([who for who in workers if who not in deaths])
                    deaths[who] = time.monotonic_ns()
                    workers[who].kill()
                    begin()
            wait_until(lambda: group.stats().lag == 0)
            seconds = time.monotonic() - begun
            for who in set(workers) - set(deaths):
                workers[who].tell("end")
                workers[who].hear("done")
            assert list(store.verify()) == []
            stats = group.stats()
    finally:
        for worker in workers.values():
            worker.clean_up()
    return Run(flights(history.read(folder.glob("c*")), deaths), stats, seconds)


@pytest.mark.timeout(900)
def test_the_messages_of_a_key_are_handled_one_after_the_other(tmp_path):
    every, stats, seconds = run(tmp_path, "key", MESSAGES, KILLS)
    assert problems(every, MESSAGES) == []
    assert (stats.acked, stats.dead, stats.lag) == (MESSAGES, 0, 0)
    verbs = [flight.verb for flight in every]
    killed = sum(not flight.sure for flight in every)
    print(
        f"\nkey order: {MESSAGES} messages of {KEYS} keys, {len(every)} deliveries,"
        f" {verbs.count('nack')} nacks, {verbs.count('release')} releases, {KILLS} kills,"
        f" {killed} messages in hand then, 0 out of order, {seconds:.1f} s"
    )
    assert verbs.count("nack") > MESSAGES // 20
    assert killed > 0


def test_without_key_order_the_same_check_finds_violations(tmp_path):
    """Negative control."""
    every, stats, _ = run(tmp_path, "none", 1_000, 2)
    found = problems(every, 1_000)
    at_once = sum("at once" in problem for problem in found)
    early = sum("before the ack" in problem for problem in found)
    print(f"\nwithout key order: {at_once} times two at once, {early} times out of order")
    assert at_once > 0
    assert early > 0
    assert at_once + early == len(found)  # and nothing else is wrong
    assert stats.acked == 1_000
