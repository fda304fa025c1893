"""Ids of the past never keep a store full, and no commit removes many of them."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
from support.stores import bodies

import diskq
from diskq import Outgoing
from diskq.base import limits
from diskq.format.rows import decode_topic
from diskq.tables import dedup, log

MIB = 2**20


def remembered(store):
    """How many rows of ids the store has."""
    engine = store.handle.engine
    return engine.read(lambda tx: sum(1 for _ in tx.scan(b"", database=engine.dedup)))


@pytest.fixture
def small(open_store):
    """A store that 4 MiB fill."""
    return open_store(durability="process", max_bytes=4 * MIB)


def fill_with_ids(topic):
    """Put ids until the store is full."""
    for size in (500, 100):  # a large batch needs more room than it takes
        with suppress(diskq.Full):
            for batch in range(10_000):
                messages = [Outgoing(b"", dedup_id=f"{size} {batch} {n}") for n in range(size)]
                topic.put_many(messages, block=False)
    topic.purge()


@pytest.mark.parametrize("size", [100, 5000, 20_000])
def test_ids_of_large_batches_keep_the_bound_of_the_store(open_store, tmp_path, size):
    """Each batch copied all pages of ids, beside those that the one before had copied."""
    store = open_store(durability="process", max_bytes=4 * MIB)
    with suppress(diskq.Full):
        while True:
            ids = [os.urandom(16).hex() for _ in range(size)]
            store.topic("t").put_many([Outgoing(b"", dedup_id=each) for each in ids], block=False)
    assert store.stats().file_bytes <= 1.5 * 4 * MIB
    assert store.topic("t").stats().stored > 10_000


def test_a_store_full_of_old_ids_has_room_again(small, clock):
    topic = small.topic("t")
    fill_with_ids(topic)
    with pytest.raises(diskq.Full):
        topic.put(bytes(MIB), block=False)
    clock.advance(120)
    topic.put(bytes(MIB), block=False)


@pytest.mark.parametrize("how", ["plain", "dedup", "scheduled", "transaction", "many"])
def test_any_put_into_any_topic_makes_old_ids_go(small, clock, how):
    for name in ("a", "b", "c"):
        fill_with_ids(small.topic(name))
    other = small.topic("other")
    clock.advance(120)
    body = bytes(MIB)
    if how == "plain":
        other.put(body, block=False)
    elif how == "dedup":
        other.put(body, dedup_id="x", block=False)
    elif how == "scheduled":
        other.put(body[: MIB // 2], delay_seconds=10, block=False)  # it needs room twice
    elif how == "many":
        other.put_many([body, b"x"], block=False)
    else:
        with small.transaction() as transaction:
            transaction.put(other, body)


def test_no_commit_of_a_put_removes_more_than_a_bounded_number(small, clock, monkeypatch):
    fill_with_ids(small.topic("t"))
    clock.advance(120)
    removed = []
    forget = dedup.Ids.forget
    monkeypatch.setattr(
        dedup.Ids, "forget", lambda self, limit: removed.append(forget(self, limit)) or removed[-1]
    )
    before = remembered(small)
    small.topic("other").put(bytes(MIB), block=False)
    assert 0 < max(removed) <= limits.MAX_FORGOTTEN_IDS
    assert sum(removed) < before  # only as many as it needs


def test_ids_within_their_window_never_make_room(small, clock):
    topic = small.topic("t")
    first = topic.put(b"", dedup_id="x")
    clock.advance(60)
    fill_with_ids(topic)
    clock.advance(59)
    with pytest.raises(diskq.Full):
        small.topic("other").put(bytes(2 * MIB), block=False)
    assert topic.put(b"", dedup_id="x") == first._replace(duplicate=True)


def test_old_ids_go_before_messages_that_a_topic_would_drop(small, clock):
    topic = small.topic("t", discard="old")
    topic.put(b"kept")
    for batch in range(400):
        small.topic("ids").put_many([Outgoing(b"", dedup_id=f"{batch}-{n}") for n in range(50)])
    clock.advance(120)
    while remembered(small) > 15_000:
        topic.put(bytes(100_000))
    assert topic.stats().dropped == 0
    assert bodies(topic.read(limit=1)) == [b"kept"]


def test_a_trim_takes_old_ids_of_a_topic_that_got_no_put_for_long(store, topic, clock):
    topic.put_many([Outgoing(b"", dedup_id=str(n)) for n in range(2500)])
    clock.advance(119)
    topic.trim()
    assert remembered(store) > 2500
    clock.advance(1)
    topic.trim()
    assert remembered(store) == 0


def test_acks_take_old_ids_now_and_then(store, topic, group, clock):
    topic.put_many([Outgoing(b"", dedup_id=str(n)) for n in range(500)])
    clock.advance(120)
    consumer = group.consumer()
    consumer.ack_many(consumer.get_many(500))
    consumer.close()
    assert remembered(store) == 0


def test_one_put_removes_a_few_old_ids(store, topic, clock):
    topic.put_many([Outgoing(b"", dedup_id=str(n)) for n in range(500)])
    clock.advance(120)
    before = remembered(store)
    topic.put(b"", dedup_id="x")
    assert before - 4 <= remembered(store) < before + 2


def test_a_window_that_changes_holds_for_the_ids_that_are_there(store, clock):
    """Settings are written by hand: whether they may change is for `update` to say."""
    topic = store.topic("t", dedup_seconds=60)

    def change(seconds):
        def operation(tx):
            row = log.load(tx, topic.id, "t")
            config = decode_topic(row.config)
            settings = config.settings._replace(dedup_seconds=seconds)
            row.config = config._replace(settings=settings).encode()
            log.store(tx, topic.id, row)

        store.handle.engine.commit(operation)

    for number in range(10):
        topic.put(b"", dedup_id=f"a{number}")
        clock.advance(10)
    change(1000)
    assert topic.put(b"", dedup_id="a9").duplicate
    assert topic.put(b"", dedup_id="a5").duplicate
    clock.advance(900)
    assert topic.put(b"", dedup_id="a5").duplicate
    topic.put(b"", dedup_id="b")
    change(10)
    assert not topic.put(b"", dedup_id="a9").duplicate
    assert topic.put(b"", dedup_id="b").duplicate
    clock.advance(10)
    assert not topic.put(b"", dedup_id="b").duplicate


def test_many_topics_with_ids_are_all_looked_at(store, clock):
    topics = [store.topic(f"t{n}") for n in range(120)]
    for topic in topics:
        topic.put(b"", dedup_id="x")
    clock.advance(120)
    assert store.handle.engine.commit(dedup.forget) == 240  # with a row for each bucket
    assert store.handle.engine.commit(dedup.forget) == 0
    assert remembered(store) == 0


def test_without_it_an_empty_store_is_full_for_ever(small, clock, monkeypatch):
    """Control."""
    topic = small.topic("t")
    fill_with_ids(topic)
    clock.advance(120)
    monkeypatch.setattr(dedup, "forget", lambda tx: 0)
    with pytest.raises(diskq.Full):
        small.topic("other").put(bytes(2 * MIB), block=False)
