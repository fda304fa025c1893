"""Priorities: higher ones first, each in its own order, through everything that moves messages."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support.clock import NS
from support.stores import bodies, nothing_changes

import diskq
from diskq import Outgoing
from diskq.base import limits
from diskq.base.model import LANE_BITS


@pytest.fixture
def lanes(store):
    """A topic with three priorities."""
    return store.topic("lanes", priorities=3)


@pytest.fixture
def group(lanes):
    return lanes.group("g", backoff=diskq.Backoff(0), lease_seconds=10)


@pytest.fixture
def consumer(group):
    return group.consumer()


def ready(consumer):
    """The bodies of all that can be delivered now."""
    return bodies(consumer.get_many(10_000, timeout=0))


def put(topic, *names):
    """Put bodies like b"2b", whose first digit is their priority."""
    topic.put_many([Outgoing(name.encode(), priority=int(name[0])) for name in names])


def test_higher_ones_are_delivered_first_each_in_its_order(lanes, consumer):
    put(lanes, "0a", "1a", "2a", "0b", "2b", "1b")
    assert [consumer.get_nowait().body for _ in range(6)] == [
        b"2a", b"2b", b"1a", b"1b", b"0a", b"0b"
    ]  # fmt: skip


def test_a_batch_is_in_the_same_order(lanes, consumer):
    put(lanes, "0a", "1a", "2a", "0b", "2b", "1b")
    assert ready(consumer) == [b"2a", b"2b", b"1a", b"1b", b"0a", b"0b"]


def test_a_high_one_overtakes_what_is_there(lanes, consumer):
    put(lanes, "0a", "0b")
    assert consumer.get_nowait().body == b"0a"
    put(lanes, "2a")
    assert ready(consumer) == [b"2a", b"0b"]


def test_offsets_are_dense_in_each_priority(lanes):
    receipts = lanes.put_many([Outgoing(b"", priority=priority) for priority in (0, 2, 0, 2, 1)])
    high, low = 2 << LANE_BITS, 1 << LANE_BITS
    assert [receipt.offset for receipt in receipts] == [0, high, 1, high + 1, low]
    assert lanes.put(b"", priority=2).offset == high + 2
    assert lanes.stats().put == 6


def test_a_message_knows_its_priority(lanes, consumer):
    put(lanes, "0a", "2a")
    assert [message.priority for message in consumer.get_many(2)] == [2, 0]
    assert [message.priority for message in lanes.read()] == [0, 2]


def test_released_ones_come_in_their_place(lanes, consumer):
    put(lanes, "0a", "0b", "1a", "1b")
    for message in consumer.get_many(4):
        message.release()
    put(lanes, "2a", "1c", "0c")
    assert ready(consumer) == [b"2a", b"1a", b"1b", b"1c", b"0a", b"0b", b"0c"]


def test_a_retry_that_is_due_comes_before_higher_ones(lanes, consumer, clock):
    put(lanes, "0a")
    consumer.get_nowait().nack(delay_seconds=1)
    put(lanes, "2a", "2b")
    assert consumer.get_nowait().body == b"2a"
    clock.advance(1)
    assert consumer.get_nowait().body == b"0a"
    assert consumer.get_nowait().body == b"2b"


def test_a_dead_letter_is_redriven_with_its_priority(lanes, group, consumer):
    put(lanes, "1a")
    consumer.get_nowait().reject("no")
    assert next(group.dead()).offset == 1 << LANE_BITS
    group.redrive(offsets=[1 << LANE_BITS])
    assert consumer.get_nowait().priority == 1


def test_a_scheduled_one_gets_its_offset_in_its_priority(lanes, consumer, clock):
    lanes.put(b"2a", priority=2, delay_seconds=1)
    put(lanes, "1a")
    clock.advance(1)
    assert ready(consumer) == [b"2a", b"1a"]


def test_a_group_starts_at_the_latest_or_earliest_of_all_priorities(lanes):
    put(lanes, "0a", "2a")
    latest = lanes.group("latest", start="latest").consumer()
    earliest = lanes.group("earliest").consumer()
    put(lanes, "0b", "2b")
    assert ready(latest) == [b"2b", b"0b"]
    assert ready(earliest) == [b"2a", b"2b", b"0a", b"0b"]


def test_a_start_by_offset_means_its_time_for_the_other_priorities(lanes, clock):
    for step in "a", "b", "c":
        put(lanes, "0" + step, "2" + step)
        clock.advance(1)
    assert ready(lanes.group("low", start=1).consumer()) == [b"2b", b"2c", b"0b", b"0c"]
    high = lanes.group("high", start=(2 << LANE_BITS) + 2).consumer()
    assert ready(high) == [b"2c", b"0c"]
    assert ready(lanes.group("end", start=3).consumer()) == []
    for beyond in 4, (2 << LANE_BITS) + 4, 3 << LANE_BITS, 2**64 - 1:
        with pytest.raises(ValueError, match=f"offset {beyond} is beyond the end"):
            lanes.group("beyond", start=beyond)


def test_a_priority_over_those_of_the_topic_says_how_to_get_it(lanes):
    text = r"over 2, the highest of topic '.*'; topic\.update\(priorities=6\) gives it more"
    with pytest.raises(ValueError, match=text):
        lanes.put(b"", priority=5)


def test_a_start_by_time_is_the_same_in_all_priorities(lanes, clock):
    put(lanes, "0a", "1a", "2a")
    clock.advance(1)
    when = datetime.fromtimestamp(clock.wall // NS, UTC)
    put(lanes, "0b", "2b")
    assert ready(lanes.group("then", start=when).consumer()) == [b"2b", b"0b"]


def test_a_seek_moves_all_priorities(lanes, group, consumer):
    put(lanes, "0a", "1a", "2a")
    consumer.ack_many(consumer.get_many(2))
    group.seek("earliest")
    assert group.stats().unread == 3
    assert consumer.get_nowait().body == b"2a"
    group.seek("latest")
    assert ready(consumer) == []
    put(lanes, "0b", "2b")
    assert ready(consumer) == [b"2b", b"0b"]


def test_read_has_the_lowest_priority_first_and_reversed_last(lanes):
    put(lanes, "0a", "1a", "2a", "0b", "2b")
    assert bodies(lanes.read()) == [b"0a", b"0b", b"1a", b"2a", b"2b"]
    assert bodies(lanes.read(reverse=True)) == [b"2b", b"2a", b"1a", b"0b", b"0a"]
    assert bodies(lanes.read(limit=3)) == [b"0a", b"0b", b"1a"]
    assert bodies(lanes.read(1, (2 << LANE_BITS) + 1)) == [b"0b", b"1a", b"2a"]
    assert bodies(lanes.read(1 << LANE_BITS, 2 << LANE_BITS, reverse=True)) == [b"1a"]


def test_trim_takes_what_is_passed_in_each_priority(lanes, consumer):
    for name in "0a", "1a", "2a", "0b":
        put(lanes, name)
    messages = consumer.get_many(4)
    assert bodies(messages) == [b"2a", b"1a", b"0a", b"0b"]
    consumer.ack_many([messages[0], messages[2]])
    assert lanes.trim() == 2
    assert bodies(lanes.read()) == [b"0b", b"1a"]


def test_bounds_drop_the_oldest_whatever_its_priority(store, clock):
    topic = store.topic("t", priorities=2, max_messages=2, retention="limits")
    group = topic.group("g")
    for name in "1a", "0a", "1b", "0b":
        put(topic, name)
        clock.advance(1)
    assert bodies(topic.read()) == [b"0b", b"1b"]
    assert group.stats().dropped == 2
    assert ready(group.consumer()) == [b"1b", b"0b"]


def test_purge_takes_all_priorities(lanes, group, consumer):
    put(lanes, "0a", "1a", "2a")
    held = consumer.get_nowait()
    assert lanes.purge() == 3
    with pytest.raises(diskq.LeaseLost):
        held.ack()
    assert (group.stats().purged, group.stats().lag) == (3, 0)
    put(lanes, "0b", "2b")
    assert ready(consumer) == [b"2b", b"0b"]


def test_purge_before_an_offset_goes_by_its_time_in_the_other_priorities(lanes, clock):
    for step in "a", "b":
        put(lanes, "0" + step, "1" + step, "2" + step)
        clock.advance(1)
    assert lanes.purge(before=(1 << LANE_BITS) + 1) == 3
    assert bodies(lanes.read()) == [b"0b", b"1b", b"2b"]


def test_priorities_may_be_raised_with_groups_that_are_there(store, clock):
    topic = store.topic("t")
    group = topic.group("g")
    other = topic.group("other", ordering="key")
    topic.put_many([b"0a", b"0b", b"0c"])
    consumer = group.consumer()
    first, second = consumer.get_many(2)
    first.release()
    with nothing_changes(store), pytest.raises(ValueError, match="priority 1"):
        topic.put(b"", priority=1)
    assert topic.update(priorities=2).priorities == 2
    put(topic, "1a")
    topic.put(b"0d")
    second.ack()
    assert ready(consumer) == [b"1a", b"0a", b"0c", b"0d"]
    assert ready(other.consumer()) == [b"1a", b"0a", b"0b", b"0c", b"0d"]
    assert list(store.verify()) == []
    topic.update(priorities=limits.MAX_PRIORITIES)
    put(topic, "9a")
    assert ready(group.fork("fork").consumer())[:2] == [b"9a", b"1a"]


def test_priorities_cannot_be_lowered(store, lanes):
    for priorities in 1, 2:
        with nothing_changes(store), pytest.raises(diskq.ConfigConflict, match="only grow"):
            lanes.update(priorities=priorities)
    lanes.update(priorities=3)


def test_priorities_survive_reopening(open_store):
    with open_store(durability="process") as store:
        put(store.topic("t", priorities=3), "0a", "2a")
    topic = open_store().topic("t")
    assert topic.settings.priorities == 3
    assert ready(topic.group("g").consumer()) == [b"2a", b"0a"]


def test_priorities_have_bounds(store, lanes):
    top = store.topic("top", priorities=limits.MAX_PRIORITIES)
    top.put(b"", priority=limits.MAX_PRIORITIES - 1)
    for priorities in 0, -1, limits.MAX_PRIORITIES + 1:
        with pytest.raises(ValueError, match="priorities"):
            store.topic("odd", priorities=priorities)
    for priorities in True, 2.0, "2":
        with pytest.raises(TypeError, match="priorities"):
            store.topic("odd", priorities=priorities)
    lanes.put(b"", priority=2)
    for priority in -1, 3, limits.MAX_PRIORITIES:
        with nothing_changes(store), pytest.raises(ValueError, match="priority"):
            lanes.put(b"", priority=priority)
    for priority in True, 1.5, "1", None:
        with nothing_changes(store), pytest.raises(TypeError, match="priority"):
            lanes.put(b"", priority=priority)


def test_one_bad_priority_in_a_put_many_stores_nothing(store, lanes):
    with nothing_changes(store), pytest.raises(ValueError, match="priority 3"):
        put(lanes, "0a", "3a")


def test_prefetched_ones_are_handed_out_by_priority(lanes, group):
    put(lanes, "0a", "1a", "2a", "0b")
    consumer = group.consumer("prefetching", prefetch=10)
    assert [consumer.get_nowait().body for _ in range(4)] == [b"2a", b"1a", b"0a", b"0b"]


def test_key_order_holds_across_priorities(lanes):
    group = lanes.group("keyed", ordering="key")
    consumer = group.consumer()
    lanes.put(b"low", key="k")
    low = consumer.get_nowait()
    lanes.put(b"high", key="k", priority=2)
    assert ready(consumer) == []
    low.ack()
    assert ready(consumer) == [b"high"]


def test_read_reversed_from_a_priority_ends_there(lanes):
    put(lanes, "0a", "2a")
    assert bodies(lanes.read(1 << LANE_BITS, reverse=True)) == [b"2a"]
