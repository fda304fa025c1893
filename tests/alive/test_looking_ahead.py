"""What a group would deliver next, what waits, and what is stored between two places."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from support.clock import NS
from support.stores import bodies, nothing_changes, offsets

import diskq
from diskq import Backoff, Outgoing


def at(clock, seconds=0):
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
        microseconds=(clock.wall + seconds * NS) // 1000
    )


def test_a_peek_shows_what_a_get_would_return_and_changes_nothing(store, clock):
    topic = store.topic("mail", priorities=2)
    group = topic.group("workers", backoff=Backoff(0), max_deliveries=9)
    topic.put_many([Outgoing(b"%d" % n, priority=n % 2, key="k" * n or None) for n in range(8)])
    topic.put(b"expired", ttl_seconds=1)
    topic.put(b"later", delay_seconds=100)
    consumer = group.consumer()
    first, second, third = consumer.get_many(3, timeout=0)
    second.nack(error="no")
    third.release()
    clock.advance(2)
    with nothing_changes(store):
        seen = group.peek(100)
        assert group.peek(2) == seen[:2]
    first.ack()
    found = consumer.get_many(100, timeout=0)
    facts = [(m.offset, m.body, m.key, m.headers, m.priority, m.attempt) for m in found]
    assert [(m.offset, m.body, m.key, m.headers, m.priority, m.attempt) for m in seen] == facts
    assert (seen[0].attempt, seen[1].body) == (2, third.body)
    assert group.peek(9) == []


def test_a_peek_shows_of_each_free_key_the_first(topic):
    group = topic.group("keyed", ordering="key")
    topic.put_many([Outgoing(b"%d" % n, key="abc"[n % 3]) for n in range(9)])
    consumer = group.consumer()
    consumer.get_nowait()
    assert bodies(group.peek(9)) == [b"1", b"2"]
    assert bodies(consumer.get_many(9, timeout=0)) == [b"1", b"2"]


def test_a_peek_looks_into_many_segments_and_purged_messages(topic, group):
    for number in range(30):
        topic.put_many([Outgoing(b"x" * number, key="gone" if number % 3 else "k")] * 3)
    topic.purge(key="gone")
    assert offsets(group.peek(100)) == [3 * n + more for n in range(0, 30, 3) for more in range(3)]


def test_a_peek_needs_no_writer_and_has_bounds(store, group, topic):
    topic.put(b"x")
    with diskq.open(store.path, readonly=True) as looking:
        assert bodies(looking.topic("mail").group("workers").peek(1)) == [b"x"]
    for odd in 0, 10_001:
        with pytest.raises(ValueError, match="limit"):
            group.peek(odd)
    with pytest.raises(TypeError, match="limit"):
        group.peek("all")
    group.delete()
    with pytest.raises(diskq.NotFound):
        group.peek(1)


def test_what_waits_is_listed_by_when_it_is_due(topic, clock):
    group = topic.group("workers", backoff=Backoff(100), max_deliveries=9)
    topic.put_many([b"a", b"b", b"c", b"d"])
    consumer = group.consumer("ca")
    a, b, c, _ = consumer.get_many(4, timeout=0)
    a.nack(error="slow")
    b.nack(5, error="fast")
    c.release(7)
    found = list(group.waiting())
    seconds = [(each.body, (each.due_ns - clock.wall) / NS) for each in found]
    assert seconds == [(b"b", 5), (b"c", 7), (b"a", 100)]
    assert [each.failures for each in found] == [1, 0, 1]
    assert [[entry.error for entry in each.history] for each in found] == [["fast"], [], ["slow"]]
    clock.advance(5)
    consumer.get_nowait()
    assert [each.body for each in group.waiting()] == [b"c", b"a"]


def test_hundreds_that_wait_are_listed(topic, group, consumer):
    topic.put_many([b"x"] * 350)
    for message in consumer.get_many(350, timeout=0):
        message.nack(100)
    assert offsets(group.waiting()) == list(range(350))
    group.delete()
    with pytest.raises(diskq.NotFound):
        next(group.waiting())


def test_a_topic_is_read_between_places_of_any_kind(store, clock):
    topic = store.topic("log", priorities=2)
    for number in range(6):
        topic.put(b"%d" % number, priority=number % 2)
        clock.advance(1)
    every = [b"0", b"2", b"4", b"1", b"3", b"5"]
    assert bodies(topic.read("earliest")) == bodies(topic.read("earliest", "latest")) == every
    assert bodies(topic.read("latest")) == bodies(topic.read("latest", "earliest")) == []
    assert bodies(topic.read(at(clock, -4))) == [b"2", b"4", b"3", b"5"]
    assert bodies(topic.read(at(clock, -4), at(clock, -2))) == [b"2", b"3"]
    assert bodies(topic.read("earliest", at(clock, -4))) == [b"0", b"1"]
    assert bodies(topic.read(1, at(clock, -2))) == [b"2", b"1", b"3"]
    assert bodies(topic.read(at(clock, -4), 2)) == [b"2"]
    assert bodies(topic.read("earliest", reverse=True)) == every[::-1]
    assert bodies(topic.read("earliest", limit=4)) == every[:4]
    assert bodies(topic.read("earliest", reverse=True, limit=4)) == every[:1:-1]
