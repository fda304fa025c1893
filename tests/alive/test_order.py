"""A batch never has a message while a lower one of its lane is ready, whoever gave back what."""

from __future__ import annotations

import gc
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from support.programs import run_python
from support.stores import offsets

from diskq import Backoff
from diskq.base import limits

HOLD = """
import os, sys, diskq
consumer = diskq.open(sys.argv[1]).topic("mail").group("workers").consumer()
messages = consumer.get_many(int(sys.argv[2]))
consumer.ack_many([each for each in messages if str(each.offset) in sys.argv[3:]])
print([each.offset for each in messages])
sys.stdout.flush()
os._exit(9)
"""


@pytest.fixture
def group(topic):
    return topic.group("workers", backoff=Backoff(0), max_deliveries=1000)


def got(consumer, count=10):
    return [(message.offset, message.attempt) for message in consumer.get_many(count, timeout=0)]


def test_after_two_deaths_a_batch_gives_the_oldest_first(real_store):
    topic = real_store.topic("mail")
    group = topic.group("workers", backoff=Backoff(0), max_deliveries=1000)
    topic.put_many([b"x"] * 30)
    first = run_python(HOLD, real_store.path, 10, check=False)
    second = run_python(HOLD, real_store.path, 10, check=False)
    assert (first.stdout, second.stdout) == (f"{list(range(10))}\n", "[0]\n")
    consumer = group.consumer()
    assert [got(consumer) for _ in range(3)] == [[(0, 2)], [(1, 1)], [(2, 1)]]


def test_a_batch_ends_before_a_suspect(topic, group, consumer):
    """What is unread came before it, and after it nothing else that was given back."""
    topic.put_many([b"x"] * 6)
    first, second, *rest = consumer.get_many(4, timeout=0)
    victim = group.consumer()
    assert offsets(victim.get_many(9, timeout=0)) == [4, 5]
    del victim
    gc.collect()
    for message in (first, second, *rest):
        message.release()
    assert [got(consumer) for _ in range(3)] == [[(n, 1) for n in range(4)], [(4, 1)], [(5, 1)]]


def test_a_retry_that_is_a_suspect_is_not_passed_by_others(topic, group):
    topic.put_many([b"x"] * 4)
    for message in group.consumer().get_many(2, timeout=0):
        message.nack()
    victim = group.consumer()
    assert got(victim, 2) == [(0, 2), (1, 2)]
    del victim
    gc.collect()
    heir = group.consumer()
    assert [got(heir) for _ in range(3)] == [[(0, 2)], [(1, 2)], [(2, 1), (3, 1)]]


def test_runs_that_interleave_are_taken_in_order(topic, group, consumer):
    topic.put_many([b"x"] * 40)
    messages = consumer.get_many(40, timeout=0)
    with group.consumer() as other:
        for message in messages[::2]:
            message.release()
        even = other.get_many(40, timeout=0)
        assert offsets(even) == list(range(0, 40, 2))
        for message in messages[1::2]:
            message.release()
    batches = [offsets(consumer.get_many(15, timeout=0)) for _ in range(3)]
    assert batches == [list(range(15)), list(range(15, 30)), list(range(30, 40))]


def test_many_messages_given_back_one_by_one_are_taken_in_one_batch(topic, consumer):
    topic.put_many([b"x"] * 2000)
    for message in consumer.get_many(2000, timeout=0)[::-1]:
        message.release()
    assert offsets(consumer.get_many(2000, timeout=0)) == list(range(2000))


def test_a_retry_that_is_released_keeps_its_place(topic, consumer):
    topic.put_many([b"a", b"b"])
    for message in consumer.get_many(2, timeout=0):
        message.nack()
    consumer.get_nowait().release()
    assert got(consumer) == [(0, 2), (1, 2)]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["get", "get", "ack", "release", "kill"]),
        st.integers(0, 3),
        st.integers(1, 12),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_whatever_was_killed_acked_or_given_back_the_order_rises(open_store, clock, steps):
    """A get has retries first; then, in each lane, nothing that is ready is passed."""
    store = open_store(durability="process")
    for topic in store.topics():
        store.delete_topic(topic.name)
    topic = store.topic("mail")
    group = topic.group("workers", backoff=Backoff(0), max_deliveries=1000, lease_seconds=1e5)
    topic.put_many([b"x"] * 60)
    members = [[group.consumer()] for _ in range(4)]  # each with what it holds
    left, charged = set(range(60)), set()
    for verb, which, count in steps:
        member = members[which]
        if verb == "kill":
            member.clear()
            gc.collect()
            member.append(group.consumer())
        elif verb == "get":
            clock.advance(2 * limits.LOOK_SECONDS)
            found = take(member, count)
            retries = [offset for offset, attempt in found if attempt > 1]
            charged.update(retries)
            fresh = [offset for offset, attempt in found if attempt == 1]
            assert [offset for offset, _ in found] == retries + fresh
            assert all(one < other for one, other in pairwise(fresh))
            held = {message.offset for each in members for message in each[1:]}
            rest = left - held - charged
            assert not fresh or not rest or max(fresh) < min(rest)
        elif len(member) > 1:
            left -= settle(member, verb, 1 + count % (len(member) - 1))
    assert list(store.verify()) == []


def take(member, count):
    """Offsets and attempts of what a member gets; it keeps the messages."""
    messages = member[0].get_many(count, timeout=0)
    member += messages
    return [(message.offset, message.attempt) for message in messages]


def settle(member, verb, which):
    """Ack or release a message that a member keeps; returns what is done."""
    message = member.pop(which)
    getattr(message, verb)()
    return {message.offset} if verb == "ack" else set()
