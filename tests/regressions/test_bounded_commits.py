"""What one commit does is bounded, whatever has piled up, and the next ones do the rest: everybody
waits for the write lock."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest
from support.stores import offsets

import diskq
from diskq.base import limits
from diskq.tables import leases

LARGE = bytes(50_000)
AT_ONCE_BYTES = 200_000  # what a store of the smallest size may copy in one commit, and one more


@pytest.fixture
def per_commit(monkeypatch):
    """Counts something after each commit of a store; returns how much each of them changed it."""

    def watch(store, count):
        commit, seen = store.handle.engine.commit, [count()]

        def counted(operation, *waits):
            result = commit(operation, *waits)
            seen.append(count())
            return result

        monkeypatch.setattr(store.handle.engine, "commit", counted)
        return lambda: [abs(after - before) for before, after in pairwise(seen)]

    return watch


@pytest.fixture
def small_store(open_store):
    """A store of the smallest size."""
    return open_store(durability="process", max_bytes=limits.MIN_STORE_BYTES)


def take_all(consumer, count):
    """Get messages one by one and ack them; `count` must come."""
    messages = []
    for _ in range(count):
        messages.append(consumer.get_nowait())
        messages[-1].ack()
    return messages


def test_of_a_large_batch_that_expired_a_commit_takes_back_a_part(
    topic, clock, per_commit, monkeypatch
):
    monkeypatch.setattr(limits, "MAX_COPIED_MESSAGES", 10)
    group = topic.group("slow", lease_seconds=10, backoff=diskq.Backoff(100))
    topic.put_many([b"x"] * 35)
    late, other = group.consumer(), group.consumer()
    late.get_many(20, timeout=0)
    late.get_many(15, timeout=0)
    clock.advance(10)
    failed = per_commit(topic.store, lambda: group.stats().failed)
    with pytest.raises(diskq.Empty):
        other.get(timeout=0)
    assert max(failed()) == 10
    clock.advance(100)
    found = [other.get_many(35, timeout=0) for _ in range(4)]
    assert offsets(chain(*found)) == list(range(35))
    assert sum(failed()) == 35


def test_of_large_messages_that_fall_due_a_commit_puts_a_part(small_store, clock, per_commit):
    topic = small_store.topic("planned")
    group = topic.group("workers")
    for _ in range(10):
        topic.put(LARGE, delay_seconds=5)
    clock.advance(5)
    due = per_commit(small_store, lambda: topic.stats().scheduled)
    assert offsets(take_all(group.consumer(), 10)) == list(range(10))
    assert max(due()) * len(LARGE) <= AT_ONCE_BYTES
    assert sum(due()) == 10


def test_of_large_messages_of_a_busy_key_a_commit_parks_a_part(small_store, per_commit):
    topic = small_store.topic("keyed")
    group = topic.group("workers", ordering="key")
    for _ in range(11):
        topic.put(LARGE, key="busy")
    one, other = group.consumer(), group.consumer()
    first = one.get_nowait()
    parked = per_commit(small_store, lambda: group.stats().parked)
    with pytest.raises(diskq.Empty):
        other.get_nowait()
    assert max(parked()) * len(LARGE) <= AT_ONCE_BYTES
    assert sum(parked()) == 10
    first.ack()
    assert offsets(take_all(other, 10)) == list(range(1, 11))


def test_many_leases_are_not_looked_through_by_each_get(topic, clock, monkeypatch):
    group = topic.group("slow", lease_seconds=10_000)
    topic.put_many([b"x"] * 250)
    holder, other = group.consumer(), group.consumer()
    for _ in range(200):
        holder.get_nowait()
    decoded = []
    decode = leases.decode_lease

    def slow_decode(key, value):
        decoded.append(key)
        clock.advance(0.001)
        return decode(key, value)

    monkeypatch.setattr(leases, "decode_lease", slow_decode)
    clock.advance(1)
    assert len([other.get_nowait() for _ in range(50)]) == 50
    assert len(decoded) < 2 * 200
