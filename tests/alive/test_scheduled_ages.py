"""TTL and max_age of a scheduled message count from when it was due, however late that is noted."""

from __future__ import annotations

from support.clock import NS
from support.stores import bodies

from diskq import Outgoing


def ready(consumer):
    """The bodies of all that can be delivered now."""
    return bodies(consumer.get_many(1000, timeout=0))


def test_a_ttl_counts_from_when_it_was_due_though_nobody_looked(topic, group, clock):
    topic.put_many(
        [
            Outgoing(b"over", delay_seconds=10, ttl_seconds=59),
            Outgoing(b"not over", delay_seconds=10, ttl_seconds=61),
            Outgoing(b"later", delay_seconds=20, ttl_seconds=51),
        ]
    )
    clock.advance(70)
    assert ready(group.consumer()) == [b"not over", b"later"]
    assert group.stats().expired == 1
    clock.advance(1)
    assert ready(topic.group("other").consumer()) == []


def test_a_ttl_counts_from_when_it_was_due_though_it_was_promoted_by_a_late_put(
    topic, group, clock
):
    topic.put(b"code", delay_seconds=10, ttl_seconds=60)
    clock.advance(69)
    topic.put(b"promotes it")
    clock.advance(1)
    assert ready(group.consumer()) == [b"promotes it"]


def test_max_age_counts_from_when_it_was_due(store, clock):
    topic = store.topic("t", max_age_seconds=100)
    for seconds in (10, 20):
        topic.put(b"%d" % seconds, delay_seconds=seconds)
    clock.advance(115)
    assert ready(topic.group("one").consumer()) == [b"20"]
    topic.trim()
    assert bodies(topic.read()) == [b"20"]
    clock.advance(5)
    topic.trim()
    assert topic.stats().stored == 0


def test_those_due_at_different_times_expire_each_at_its_own(topic, group, clock):
    topic.put_many([Outgoing(b"%d" % n, delay_seconds=n, ttl_seconds=100) for n in range(1, 50)])
    clock.advance(120)
    assert ready(group.consumer()) == [b"%d" % n for n in range(21, 50)]


def test_those_due_at_one_time_are_one_segment_for_each_priority(store, clock):
    topic = store.topic("t", priorities=2)
    topic.put_many([Outgoing(b"%d" % n, delay_seconds=5, priority=n % 2) for n in range(40)])
    clock.advance(5)
    found = ready(topic.group("g").consumer())
    assert found == [b"%d" % n for n in [*range(1, 40, 2), *range(0, 40, 2)]]
    assert topic.stats().segments == 2


def test_it_was_put_when_it_was_due_as_users_see_it(topic, group, clock):
    start = clock.wall
    topic.put(b"early", delay_seconds=10)
    clock.advance(60)
    assert group.consumer().get_nowait().put_at_ns == start + 10 * NS


def test_it_was_put_no_earlier_than_what_is_before_it_in_the_log(topic, group, clock):
    topic.put(b"later", delay_seconds=10)
    clock.advance(5)
    topic.put(b"before")
    before = clock.wall
    clock.step_wall(3600)
    topic.put(b"by a clock ahead")  # notes what is due first
    clock.step_wall(-3600)
    times = [message.put_at_ns for message in topic.read()]
    assert bodies(topic.read()) == [b"before", b"later", b"by a clock ahead"]
    assert times == [before, before + 5 * NS, before + 3600 * NS]


def test_what_a_clock_ahead_promoted_expires_when_it_would_have(topic, group, clock):
    topic.put(b"code", delay_seconds=1000, ttl_seconds=10_000)
    clock.step_wall(7200)
    topic.put(b"promotes it")
    clock.step_wall(-7200)
    clock.advance(10_999)
    assert ready(topic.group("one").consumer()) == [b"code", b"promotes it"]
    clock.advance(1)
    assert ready(group.consumer()) == [b"promotes it"]
