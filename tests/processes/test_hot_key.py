"""A key with a long backlog costs the other keys nothing, once its messages are parked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.workers import Worker

import diskq
from diskq import Backoff, Outgoing
from diskq.base import limits
from diskq.delivery import take
from diskq.tables import key_owners

HOT = 100_000
COLD = 1_000
FEW_HOT, FEW_COLD = 1_000, 50  # enough to find a fault
ROUNDS = 3
MOST_RATIO = 1.5  # between the time of a cold message behind hot ones, and without any
MOST_LOOKS = 2  # at keys, for each cold message


@pytest.fixture
def store(tmp_path: Path) -> Iterator[diskq.Store]:
    """A store with two topics, "hot" and "plain", whose groups keep key order."""
    with diskq.open(tmp_path / "store", durability="process") as store:
        for name in ("hot", "plain"):
            retries = {"lease_seconds": 600, "backoff": Backoff(0)}
            store.topic(name).group("g", ordering="key", **retries)
        yield store
        assert list(store.verify()) == []


def hold_first(store: diskq.Store, start: Any, count: int) -> Worker:
    """A process that holds the first of so many messages of one key."""
    for first in range(0, count, 10_000):
        batch = range(first, min(first + 10_000, count))
        store.topic("hot").put_many([Outgoing(b"%d" % number, key="hot") for number in batch])
    holder: Worker = start("lives.hold_one", path=store.path, topic="hot")
    assert holder.hear("holding")["offset"] == 0
    return holder


@pytest.fixture
def holder(store, start):
    """Of many."""
    return hold_first(store, start, HOT)


@pytest.fixture
def holder_of_few(store, start):
    """Of few."""
    return hold_first(store, start, FEW_HOT)


@pytest.fixture
def careless(monkeypatch):
    """A planted fault: each get looks again at all messages that are parked."""
    taken = take.take

    def look_again(group, member, limit):
        for key, _, _ in key_owners.parked(group.tx, group.id):
            key_owners.holder(group.tx, group.id, key)
        return taken(group, member, limit)

    monkeypatch.setattr(take, "take", look_again)


def park_all(store: diskq.Store, consumer: diskq.Consumer, hot: int) -> float:
    """Get one message behind all those of the hot key; seconds of processor time that took."""
    store.topic("hot").put(b"", key="first cold")
    begun = time.process_time()
    consumer.get(timeout=30).ack()
    seconds = time.process_time() - begun
    assert store.topic("hot").group("g").stats().parked == hot - 1
    return seconds


def put_cold(topic: diskq.Topic, cold: int) -> None:
    topic.put_many([Outgoing(b"cold", key=f"cold {number}") for number in range(cold)])


def take_cold(consumer: diskq.Consumer, cold: int) -> float:
    """Seconds of processor time to get and ack the cold messages, one by one."""
    begun = time.process_time()
    for _ in range(cold):
        message = consumer.get(timeout=30)
        assert message.body == b"cold"
        message.ack()
    return time.process_time() - begun


def slowdown(store: diskq.Store, hot: int, cold: int) -> float:
    """How many times as long cold messages take behind parked ones as without any."""
    with (
        store.topic("hot").group("g").consumer() as behind,
        store.topic("plain").group("g").consumer() as plain,
    ):
        parking = park_all(store, behind, hot)
        seconds: dict[str, list[float]] = {"hot": [], "plain": []}
        for _ in range(ROUNDS):
            for consumer in (behind, plain):
                put_cold(consumer.group.topic, cold)
                seconds[consumer.group.topic.name].append(take_cold(consumer, cold))
    ratio = min(seconds["hot"]) / min(seconds["plain"])
    print(
        f"\nhot key: {hot - 1} messages parked in {parking:.2f} s,"
        f" {parking / (hot - 1) * 1e6:.1f} us each, once; get and ack of {cold} cold ones:"
        f" {min(seconds['hot']) / cold * 1e6:.0f} us each behind them,"
        f" {min(seconds['plain']) / cold * 1e6:.0f} us without them, ratio {ratio:.2f}"
    )
    return ratio


@pytest.mark.timeout(300)
def test_a_parked_backlog_of_one_key_does_not_slow_the_others_down(store, holder):
    assert slowdown(store, HOT, COLD) < MOST_RATIO


def test_gets_that_are_slow_behind_parked_messages_are_found_out(store, holder_of_few, careless):
    """Negative control."""
    assert slowdown(store, FEW_HOT, FEW_COLD) >= MOST_RATIO


def count_looks(
    store: diskq.Store, monkeypatch: pytest.MonkeyPatch, hot: int, cold: int
) -> tuple[int, int]:
    """How often gets ask whether the key of a message is free: until the messages of the hot key
    are parked, and then to take cold ones."""
    asked = 0
    ask = key_owners.holder

    def count(tx, group_id, key):
        nonlocal asked
        asked += 1
        return ask(tx, group_id, key)

    monkeypatch.setattr(key_owners, "holder", count)
    with store.topic("hot").group("g").consumer() as consumer:
        park_all(store, consumer, hot)
        parking, asked = asked, 0
        put_cold(store.topic("hot"), cold)
        take_cold(consumer, cold)
    print(f"\nhot key: {asked} keys looked at by {cold} gets behind {hot - 1} parked messages")
    return parking, asked


@pytest.mark.timeout(300)
def test_a_get_does_not_look_at_parked_messages_again(store, holder, monkeypatch):
    parking, looks = count_looks(store, monkeypatch, HOT, COLD)
    assert HOT <= parking <= 2 * HOT  # the count sees what is parked
    assert looks <= MOST_LOOKS * COLD


def test_gets_that_look_at_parked_messages_again_are_found_out(
    store, holder_of_few, careless, monkeypatch
):
    """Negative control."""
    _, looks = count_looks(store, monkeypatch, FEW_HOT, FEW_COLD)
    assert looks > MOST_LOOKS * FEW_COLD


@pytest.mark.timeout(300)
def test_parked_messages_come_in_order_after_the_holder_of_their_key_died(store, holder):
    with store.topic("hot").group("g").consumer() as consumer:
        park_all(store, consumer, HOT)
        holder.kill()
        for number in range(1_000):
            message = consumer.get(timeout=30)
            assert message.body == b"%d" % number
            assert message.attempt == 1 + (number == 0)
            message.ack()


def test_cold_messages_scattered_through_the_backlog_of_a_hot_key_all_come(tmp_path):
    """Some of them are read by the very get that has parked all that one commit may."""
    backlog = [Outgoing(b"hot", key="hot")] * (limits.MAX_COPIED_MESSAGES + 10)
    with diskq.open(tmp_path / "store", durability="process") as store:
        topic = store.topic("t")
        with topic.group("g", ordering="key").consumer() as consumer:
            topic.put_many(backlog)
            first = consumer.get()
            for number in range(10):
                topic.put_many([*backlog[number:], Outgoing(b"%d" % number, key="cold")])
            for number in range(10):
                message = consumer.get(timeout=2)
                assert message.body == b"%d" % number
                message.ack()
            first.ack()
        assert list(store.verify()) == []
