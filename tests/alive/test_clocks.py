"""A wall clock that was wrong for a moment, ahead or behind, changes nothing afterwards."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support.clock import NS
from support.stores import bodies, offsets

import diskq
from diskq import Outgoing
from diskq.tables import ages

WRONG = [-(10**9), -7200, -60, 60, 7200, 10**9]  # seconds


def ready(consumer):
    """The bodies of all that can be delivered now."""
    return bodies(consumer.get_many(1000, timeout=0))


def at_a_wrong_time(clock, seconds, call):
    """Call while the wall clock is wrong by so many seconds."""
    clock.step_wall(seconds)
    found = call()
    clock.step_wall(-seconds)
    return found


@pytest.fixture(params=WRONG)
def wrong(request):
    """Seconds by which the wall clock is wrong for a moment."""
    return request.param


def test_a_message_put_at_a_wrong_time_expires_to_the_nanosecond(topic, group, clock, wrong):
    consumer = group.consumer()
    topic.put(b"before")
    at_a_wrong_time(clock, wrong, lambda: topic.put(b"code", ttl_seconds=60))
    clock.advance_ns(60 * NS - 1)
    assert topic.group("other").consumer().get_many(9, timeout=0)[-1].body == b"code"
    clock.advance_ns(1)
    assert ready(consumer) == [b"before"]
    assert group.stats().expired == 1


def test_what_is_put_after_a_wrong_time_expires_to_the_nanosecond(topic, group, clock, wrong):
    at_a_wrong_time(clock, wrong, lambda: topic.put(b"at a wrong time"))
    clock.advance(1)
    topic.put(b"code", ttl_seconds=60)
    clock.advance_ns(60 * NS - 1)
    assert ready(topic.group("other").consumer()) == [b"at a wrong time", b"code"]
    clock.advance_ns(1)
    assert ready(group.consumer()) == [b"at a wrong time"]


def test_a_get_at_a_wrong_time_lets_nothing_expire(topic, group, clock, wrong):
    topic.put_many([Outgoing(b"a", ttl_seconds=60), Outgoing(b"b", ttl_seconds=60)])
    consumer = group.consumer()
    assert at_a_wrong_time(clock, wrong, consumer.get_nowait).body == b"a"
    assert ready(consumer) == [b"b"]
    assert group.stats().expired == 0


def test_a_put_at_a_wrong_time_drops_nothing_over_an_age(store, clock, wrong):
    topic = store.topic("t", max_age_seconds=600)
    topic.put(b"before")
    at_a_wrong_time(clock, wrong, lambda: topic.put(b"at a wrong time"))
    at_a_wrong_time(clock, wrong, topic.trim)
    clock.advance_ns(300 * NS)
    topic.put(b"after")
    clock.advance_ns(300 * NS - 1)
    topic.trim()
    assert bodies(topic.read()) == [b"before", b"at a wrong time", b"after"]
    clock.advance_ns(1)
    topic.trim()
    assert bodies(topic.read()) == [b"after"]
    clock.advance_ns(300 * NS)
    topic.trim()
    assert bodies(topic.read()) == []


def test_a_message_that_waits_expires_when_it_would_have(topic, group, consumer, clock, wrong):
    at_a_wrong_time(clock, wrong, lambda: topic.put(b"a", ttl_seconds=60))
    consumer.get_nowait().nack()
    clock.advance(59)
    consumer.get_nowait().nack()
    clock.advance(1)
    assert ready(consumer) == []
    assert (group.stats().expired, group.stats().waiting) == (1, 0)


def test_a_parked_message_expires_when_it_would_have(topic, clock, wrong):
    group = topic.group("keyed", ordering="key")
    consumer = group.consumer()
    at_a_wrong_time(
        clock, wrong, lambda: topic.put_many([Outgoing(b"a", "k"), Outgoing(b"b", "k")])
    )
    topic.put(b"c", key="k", ttl_seconds=60)
    first = consumer.get_nowait()
    assert ready(consumer) == []
    clock.advance(60)
    first.ack()
    consumer.get_nowait().ack()
    assert ready(consumer) == []
    assert group.stats().expired == 1


def test_an_id_put_at_a_wrong_time_is_known_for_its_window(topic, clock, wrong):
    topic.put(b"before")
    first = at_a_wrong_time(clock, wrong, lambda: topic.put(b"", dedup_id="x"))
    assert topic.put(b"", dedup_id="x") == first._replace(duplicate=True)
    clock.advance_ns(120 * NS - 1)
    assert topic.put(b"", dedup_id="x").duplicate
    clock.advance_ns(1)
    assert not topic.put(b"", dedup_id="x").duplicate


def test_an_id_is_known_at_a_wrong_time_and_after_it(topic, clock, wrong):
    first = topic.put(b"", dedup_id="x")
    assert at_a_wrong_time(clock, wrong, lambda: topic.put(b"", dedup_id="x")).duplicate
    for number in range(20):  # each removes what is old
        at_a_wrong_time(clock, wrong, lambda: topic.put(b"", dedup_id=f"y{number}"))  # noqa: B023
        at_a_wrong_time(clock, wrong, topic.trim)
    clock.advance(119)
    assert topic.put(b"", dedup_id="x") == first._replace(duplicate=True)
    clock.advance(1)
    assert not topic.put(b"", dedup_id="x").duplicate


def test_ids_are_forgotten_though_the_clock_was_wrong(store, topic, clock, wrong):
    at_a_wrong_time(clock, wrong, lambda: topic.put(b"", dedup_id="first"))
    engine = store.handle.engine

    def rows():
        return engine.read(lambda tx: sum(1 for _ in tx.scan(b"", database=engine.dedup)))

    for number in range(500):
        topic.put(b"", dedup_id=str(number))
        clock.advance(10)
    assert rows() < 60
    clock.advance(1000)
    topic.trim()
    assert rows() == 0


def test_the_time_of_a_put_never_goes_back_in_a_topic(topic, clock, wrong):
    topic.put(b"a")
    at_a_wrong_time(clock, wrong, lambda: topic.put(b"b"))
    topic.put(b"c")
    times = [message.put_at_ns for message in topic.read()]
    assert times == sorted(times)
    assert topic.stats().last_put_ns == times[-1]
    latest = datetime.fromtimestamp(times[-1] // NS, UTC)
    assert topic.offset_at(latest) == times.index(times[-1])
    assert offsets(topic.read()) == [0, 1, 2]


def test_after_a_reboot_what_a_clock_ahead_put_into_the_future_counts_from_then(open_store, clock):
    with open_store(durability="process") as store:
        topic = store.topic("t", max_age_seconds=600)
        at_a_wrong_time(clock, 10**9, lambda: topic.put(b"a", ttl_seconds=60, dedup_id="x"))
        topic.put(b"b", ttl_seconds=60)
        clock.advance(30)
    clock.reboot()
    topic = open_store().topic("t")
    assert topic.put(b"", dedup_id="x").duplicate
    assert ready(topic.group("one").consumer()) == [b"a", b"b"]
    clock.advance(30)
    assert ready(topic.group("two").consumer()) == [b"a"]  # b is exact: it knows its own time
    clock.advance(30)
    assert ready(topic.group("three").consumer()) == []
    clock.advance(60)
    assert not topic.put(b"", dedup_id="x").duplicate
    clock.advance(600)
    topic.trim()
    assert topic.stats().stored == 0


def test_after_a_reboot_ages_go_on_by_the_wall_clock(open_store, clock):
    with open_store(durability="process") as store:
        topic = store.topic("t")
        first = topic.put(b"a", ttl_seconds=100, dedup_id="x")
    clock.advance(50)
    clock.reboot()
    topic = open_store().topic("t")
    clock.advance(49)
    assert ready(topic.group("one").consumer()) == [b"a"]
    clock.advance(1)
    assert ready(topic.group("two").consumer()) == []
    clock.advance(19)
    assert topic.put(b"", dedup_id="x") == first._replace(duplicate=True)
    clock.advance(1)
    assert not topic.put(b"", dedup_id="x").duplicate


def test_a_clock_behind_after_a_reboot_lets_nothing_live_for_longer(open_store, clock):
    with open_store(durability="process") as store:
        store.topic("t").put(b"a", ttl_seconds=100)
    clock.reboot()
    clock.step_wall(-(10**9))
    topic = open_store().topic("t")
    clock.advance(99)
    assert ready(topic.group("one").consumer()) == [b"a"]
    clock.advance(1)
    assert ready(topic.group("two").consumer()) == []


def test_time_asleep_counts(topic, group, clock, monkeypatch):
    """The monotonic clock stands still while a machine is suspended; an age does not."""
    topic.put(b"a", ttl_seconds=60, dedup_id="x")
    awake = diskq.Clock.elapsed_ns
    monkeypatch.setattr(diskq.Clock, "elapsed_ns", lambda self: awake(self) + 120 * NS)
    clock.wall += 120 * NS
    assert ready(group.consumer()) == []
    assert not topic.put(b"", dedup_id="x").duplicate


def test_without_the_monotonic_clock_a_wrong_time_is_found_out(topic, group, clock, monkeypatch):
    """Control: ages by the time that orders the log, as they once were."""

    def age_ns(self, put):
        return max(self._wall_ns - put.put_at_ns, 0)

    monkeypatch.setattr(ages.Now, "age_ns", age_ns)
    at_a_wrong_time(clock, 7200, lambda: topic.put(b"ahead"))
    topic.put(b"code", ttl_seconds=60)
    clock.advance(3600)
    assert ready(group.consumer()) == [b"ahead", b"code"]
