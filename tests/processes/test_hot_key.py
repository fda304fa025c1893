"""A key with a long backlog costs the other keys nothing, once its messages are parked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import diskq
from diskq import Backoff, Outgoing, keys, limits

from .life_roles import LIFE

HOT = 100_000
COLD = 1_000
ROUNDS = 3


@pytest.fixture
def store(tmp_path: Path) -> Iterator[diskq.Store]:
    """A store with two topics, "hot" and "plain", whose groups keep key order."""
    with diskq.open(tmp_path / "store", durability="process") as store:
        for name in ("hot", "plain"):
            retries = {"lease_seconds": 600, "backoff": Backoff(0)}
            store.topic(name).group("g", ordering="key", **retries)
        yield store
        assert list(store.verify()) == []


@pytest.fixture
def holder(store, start):
    """A process that holds the first of many messages of one key."""
    for first in range(0, HOT, 10_000):
        batch = range(first, min(first + 10_000, HOT))
        store.topic("hot").put_many([Outgoing(b"%d" % number, key="hot") for number in batch])
    holder = start("hold_one", *LIFE, path=store.path, topic="hot")
    assert holder.hear("holding")["offset"] == 0
    return holder


def park_all(store: diskq.Store, consumer: diskq.Consumer) -> float:
    """Get one message behind all those of the hot key; seconds of processor time that took."""
    store.topic("hot").put(b"", key="first cold")
    begun = time.process_time()
    consumer.get(timeout=30).ack()
    seconds = time.process_time() - begun
    assert store.topic("hot").group("g").stats().parked == HOT - 1
    return seconds


def put_cold(topic: diskq.Topic) -> None:
    topic.put_many([Outgoing(b"cold", key=f"cold {number}") for number in range(COLD)])


def take_cold(consumer: diskq.Consumer) -> float:
    """Seconds of processor time to get and ack the cold messages, one by one."""
    begun = time.process_time()
    for _ in range(COLD):
        message = consumer.get(timeout=30)
        assert message.body == b"cold"
        message.ack()
    return time.process_time() - begun


@pytest.mark.timeout(300)
def test_a_parked_backlog_of_one_key_does_not_slow_the_others_down(store, holder):
    with (
        store.topic("hot").group("g").consumer() as hot,
        store.topic("plain").group("g").consumer() as plain,
    ):
        parking = park_all(store, hot)
        seconds: dict[str, list[float]] = {"hot": [], "plain": []}
        for _ in range(ROUNDS):
            for consumer in (hot, plain):
                put_cold(consumer.group.topic)
                seconds[consumer.group.topic.name].append(take_cold(consumer))
        ratio = min(seconds["hot"]) / min(seconds["plain"])
        print(
            f"\nhot key: {HOT - 1} messages parked in {parking:.2f} s,"
            f" {parking / (HOT - 1) * 1e6:.1f} us each, once; get and ack of {COLD} cold ones:"
            f" {min(seconds['hot']) / COLD * 1e6:.0f} us each behind them,"
            f" {min(seconds['plain']) / COLD * 1e6:.0f} us without them, ratio {ratio:.2f}"
        )
        assert ratio < 1.5


@pytest.mark.timeout(300)
def test_a_get_does_not_look_at_parked_messages_again(store, holder, monkeypatch):
    """Counted: how often a get asks whether the key of a message is free."""
    asked = 0
    ask = keys.holder

    def count(tx, group_id, key):
        nonlocal asked
        asked += 1
        return ask(tx, group_id, key)

    monkeypatch.setattr(keys, "holder", count)
    with store.topic("hot").group("g").consumer() as consumer:
        park_all(store, consumer)
        assert HOT <= asked <= 2 * HOT  # the count sees what is parked
        put_cold(store.topic("hot"))
        asked = 0
        take_cold(consumer)
    print(f"\nhot key: {asked} keys looked at by {COLD} gets behind {HOT - 1} parked messages")
    assert asked <= 2 * COLD


@pytest.mark.timeout(300)
def test_parked_messages_come_in_order_after_the_holder_of_their_key_died(store, holder):
    with store.topic("hot").group("g").consumer() as consumer:
        park_all(store, consumer)
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
