"""Key order: of one key one message is in flight, the earliest, whatever happens to it."""

from __future__ import annotations

import gc

import pytest
from support.stores import bodies, nothing_changes, offsets

import diskq
from diskq import Outgoing
from diskq.base import limits


@pytest.fixture
def group(topic):
    return topic.group(
        "keyed", ordering="key", backoff=diskq.Backoff(0), lease_seconds=10, max_deliveries=2
    )


@pytest.fixture
def consumer(group):
    return group.consumer("ca")


@pytest.fixture
def other(group):
    return group.consumer("cb")


def put(topic, *names):
    """Put bodies like b"a1", whose first letter is their key; "-" is no key."""
    topic.put_many([Outgoing(name.encode(), None if name[0] == "-" else name[0]) for name in names])


def ready(consumer, n=10_000):
    """The bodies of all that can be delivered now."""
    return bodies(consumer.get_many(n, timeout=0))


def state(group):
    """How many are unread, ready, leased, waiting, parked and dead."""
    return group.stats()[3:9]


def test_the_next_of_a_key_comes_when_the_one_before_is_acked(topic, consumer, other):
    put(topic, "a1", "a2", "a3")
    for name in b"a1", b"a2", b"a3":
        message = consumer.get_nowait()
        assert message.body == name
        assert ready(other) == []
        message.ack()
    assert ready(other) == []


def test_other_keys_go_on_meanwhile(topic, group, consumer, other):
    put(topic, "a1", "a2", "b1", "a3", "c1", "b2")
    first = consumer.get_nowait()
    assert ready(other) == [b"b1", b"c1"]
    assert state(group) == (0, 0, 3, 0, 3, 0)
    first.ack()
    assert ready(consumer) == [b"a2"]


def test_a_batch_has_each_key_once(topic, group, consumer):
    put(topic, "a1", "b1", "a2", "c1", "b2", "a3")
    messages = consumer.get_many(10)
    assert bodies(messages) == [b"a1", b"b1", b"c1"]
    consumer.ack_many(messages)
    messages = consumer.get_many(10)
    assert bodies(messages) == [b"a2", b"b2"]
    consumer.ack_many(messages)
    assert ready(consumer) == [b"a3"]


def test_messages_without_a_key_wait_for_nobody(topic, consumer):
    put(topic, "-1", "-2", "a1", "-3", "a2")
    topic.put(b"plain")
    assert ready(consumer) == [b"-1", b"-2", b"a1", b"-3", b"plain"]


def test_one_hot_key_keeps_its_order_and_others_are_not_starved(topic, group, consumer):
    put(topic, *[f"h{number}" for number in range(200)], "a1")
    assert sorted(ready(consumer, 2)) == [b"a1", b"h0"]
    assert group.stats().parked == 199
    group.seek("earliest")
    found = []
    while messages := consumer.get_many(5, timeout=0):
        found += [message.body for message in messages if message.key == "h"]
        consumer.ack_many(messages)
    assert found == [b"h%d" % number for number in range(200)]


def test_a_batch_finds_free_keys_behind_many_of_a_busy_one(topic, consumer):
    put(topic, *[f"h{number}" for number in range(3000)], "a1")
    consumer.get_nowait()
    assert consumer.get_nowait().body == b"a1"


def test_small_batches_of_many_keys_deliver_each_once_and_in_order(topic, group):
    names = [f"{key}{number}" for number in range(20) for key in "abcdefg"]
    put(topic, *names)
    consumers = [group.consumer(f"c{number}") for number in range(3)]
    found = []
    while any(batches := [consumer.get_many(2, timeout=0) for consumer in consumers]):
        for consumer, batch in zip(consumers, batches, strict=True):
            found += bodies(batch)
            consumer.ack_many(batch)
    assert sorted(found) == sorted(name.encode() for name in names)
    for key in "abcdefg":
        its = [body for body in found if body[:1] == key.encode()]
        assert its == [f"{key}{number}".encode() for number in range(20)]


@pytest.mark.parametrize("seconds", [0, 5])
def test_a_nacked_message_keeps_its_key(topic, consumer, other, clock, seconds):
    put(topic, "a1", "a2", "b1")
    consumer.get_nowait().nack(delay_seconds=seconds)
    expected = [b"b1"] if seconds else [b"a1", b"b1"]
    assert ready(other) == expected
    clock.advance(seconds)
    if seconds:
        assert ready(other) == [b"a1"]
    assert ready(consumer) == []


def test_a_released_message_keeps_its_key(topic, consumer, other):
    put(topic, "a1", "a2")
    consumer.get_nowait().release()
    message = other.get_nowait()
    assert message.body == b"a1"
    assert ready(consumer) == []
    message.ack()
    assert ready(consumer) == [b"a2"]


def test_a_released_retry_keeps_its_key(topic, consumer, other):
    put(topic, "a1", "a2")
    consumer.get_nowait().nack()
    consumer.get_nowait().release()
    assert ready(other) == [b"a1"]


def test_a_rejected_message_lets_the_next_one_go(topic, group, consumer):
    put(topic, "a1", "a2")
    consumer.get_nowait().reject("no")
    assert ready(consumer) == [b"a2"]
    assert bodies(group.dead()) == [b"a1"]


def test_the_last_delivery_lets_the_next_one_go(topic, group, consumer):
    put(topic, "a1", "a2")
    for _ in range(2):
        message = consumer.get_nowait()
        assert message.body == b"a1"
        message.nack()
    assert ready(consumer) == [b"a2"]


def test_a_redriven_message_waits_behind_the_holder_of_its_key(topic, group, consumer):
    put(topic, "a1", "a2", "a3")
    consumer.get_nowait().reject()
    second = consumer.get_nowait()
    assert group.redrive() == 1
    assert ready(consumer) == []
    second.ack()
    first = consumer.get_nowait()
    assert first.body == b"a1"  # the earliest of those that wait
    first.ack()
    assert ready(consumer) == [b"a3"]


def test_a_redriven_message_takes_its_key_if_that_is_free(topic, group, consumer):
    put(topic, "a1")
    consumer.get_nowait().reject()
    group.redrive()
    put(topic, "a2")
    message = consumer.get_nowait()
    assert message.body == b"a1"
    assert ready(consumer) == []
    message.ack()
    assert ready(consumer) == [b"a2"]


def test_several_dead_letters_of_one_key_are_redriven_in_order(topic, group, consumer):
    put(topic, "a1", "a2", "a3")
    for _ in range(3):
        consumer.get_nowait().reject()
    assert group.redrive() == 3
    for name in b"a1", b"a2", b"a3":
        message = consumer.get_nowait()
        assert message.body == name
        assert ready(consumer) == []
        message.ack()


def test_a_deadline_that_passed_keeps_the_key(topic, consumer, other, clock):
    put(topic, "a1", "a2")
    late = consumer.get_nowait()
    clock.advance(10)
    message = other.get_nowait()
    assert (message.body, message.attempt) == (b"a1", 2)
    with pytest.raises(diskq.LeaseLost):
        late.ack()
    assert ready(consumer) == []
    message.ack()
    assert ready(consumer) == [b"a2"]


def test_an_ack_after_the_deadline_lets_the_next_one_go(topic, consumer, other, clock):
    put(topic, "a1", "a2")
    late = consumer.get_nowait()
    clock.advance(100)
    late.ack()
    assert ready(other) == [b"a2"]


def test_an_extended_lease_keeps_and_passes_on_its_key(topic, consumer, other, clock):
    put(topic, "a1", "a2")
    message = consumer.get_nowait()
    clock.advance(9)
    message.extend(60)
    clock.advance(50)
    assert ready(other) == []
    message.ack()
    assert ready(other) == [b"a2"]


def test_the_key_of_a_consumer_that_was_forgotten_comes_again_first(topic, group, other, clock):
    put(topic, "a1", "a2", "b1")
    consumer = group.consumer("forgotten")
    message = consumer.get_nowait()
    assert message.body == b"a1"
    message.__enter__()  # it is being handled
    del consumer, message
    gc.collect()
    found = other.get_many(9, timeout=0)
    clock.advance(limits.HAND_OVER_SECONDS)
    found += other.get_many(9, timeout=0)
    assert bodies(found) == [b"a1", b"b1"]  # the first alone: it may kill again
    assert [message.attempt for message in found] == [2, 1]


def test_a_closed_consumer_gives_its_keys_back(topic, group, consumer, other):
    put(topic, "a1", "b1", "a2")
    consumer.get_many(3)
    consumer.close()
    assert state(group) == (0, 2, 0, 0, 1, 0)
    assert ready(other) == [b"a1", b"b1"]


def test_keys_survive_reopening_and_reboots(open_store, clock):
    with open_store(durability="process") as store:
        topic = store.topic("t")
        group = topic.group("g", ordering="key")
        put(topic, "a1", "a2", "b1", "b2")
        consumer = group.consumer()
        one, two = consumer.get_many(4)
        assert ready(consumer) == []
        two.nack(delay_seconds=100)
        assert bodies([one]) == [b"a1"]
    with open_store() as store:
        consumer = store.topic("t").group("g").consumer()
        assert ready(consumer) == [b"a1"]
        clock.reboot()
    store = open_store()
    consumer = store.topic("t").group("g").consumer()
    message = consumer.get_nowait()
    assert (message.body, message.attempt) == (b"a1", 1)
    message.ack()
    assert ready(consumer) == [b"a2"]
    clock.advance(100)
    assert ready(consumer) == [b"b1"]


def test_a_reboot_while_a_key_is_leased_voids_the_lease_and_keeps_the_order(open_store, clock):
    store = open_store(durability="process")
    topic = store.topic("t")
    put(topic, "a1", "a2")
    lost = topic.group("g", ordering="key").consumer()
    lost.get_nowait()
    assert ready(lost) == []
    clock.reboot()
    consumer = open_store().topic("t").group("g").consumer()
    message = consumer.get_nowait()
    assert message.body == b"a1"
    assert ready(consumer) == []
    message.ack()
    assert ready(consumer) == [b"a2"]


def test_a_seek_frees_all_keys(topic, group, consumer):
    put(topic, "a1", "a2", "a3")
    held = consumer.get_nowait()
    assert ready(consumer) == []
    group.seek(1)
    assert state(group) == (2, 0, 0, 0, 0, 0)
    with pytest.raises(diskq.LeaseLost):
        held.ack()
    message = consumer.get_nowait()
    assert message.body == b"a2"
    message.ack()
    assert ready(consumer) == [b"a3"]


@pytest.mark.parametrize("holding", ["leased", "ready", "waiting", "leased again"])
def test_a_fork_has_the_same_order(topic, group, consumer, holding):
    put(topic, "a1", "a2", "b1")
    first = consumer.get_nowait()
    assert ready(consumer) == [b"b1"]
    if holding == "ready":
        first.release()
    elif holding != "leased":
        first.nack(delay_seconds=0)
    if holding == "leased again":
        consumer.get_nowait()
    copy = group.fork("copy").consumer()
    messages = copy.get_many(9, timeout=0)
    assert sorted(bodies(messages)) == [b"a1", b"b1"]
    copy.ack_many(messages)
    assert ready(copy) == [b"a2"]


def test_the_original_of_a_fork_goes_on_by_itself(topic, group, consumer):
    put(topic, "a1", "a2")
    first = consumer.get_nowait()
    assert ready(consumer) == []
    copy = group.fork("copy").consumer()
    first.ack()
    assert ready(consumer) == [b"a2"]
    assert ready(copy) == [b"a1"]


def test_a_group_counts_what_is_parked_as_lag(topic, group, consumer):
    put(topic, "a1", "a2", "a3")
    consumer.get_nowait()
    assert ready(consumer) == []
    assert (group.stats().lag, group.stats().parked) == (3, 2)


def test_max_in_flight_and_key_order_together(topic):
    group = topic.group("both", ordering="key", max_in_flight=2)
    consumer = group.consumer()
    put(topic, "a1", "a2", "b1", "c1")
    messages = consumer.get_many(9)
    assert bodies(messages) == [b"a1", b"b1"]
    assert ready(consumer) == []
    messages[0].ack()
    assert ready(consumer) == [b"a2"]


def test_segments_go_while_messages_are_parked(topic, consumer):
    for name in "a1", "a2", "a3":
        put(topic, name)
    first = consumer.get_nowait()
    assert ready(consumer) == []
    first.ack()
    topic.trim()
    assert topic.stats().stored == 0
    for name in b"a2", b"a3":
        message = consumer.get_nowait()
        assert message.body == name
        message.ack()


def test_a_lease_lost_passes_no_key_on(store, topic, consumer, clock):
    put(topic, "a1", "a2")
    late = consumer.get_nowait()
    clock.advance(10)
    consumer.get_nowait()
    for settle in late.ack, late.nack, late.reject, late.release:
        with nothing_changes(store), pytest.raises(diskq.LeaseLost):
            settle()


def test_prefetching_keeps_key_order(topic, group):
    put(topic, "a1", "a2", "b1", "b2", "c1")
    consumer = group.consumer("prefetching", prefetch=10)
    found = []
    while True:
        try:
            message = consumer.get_nowait()
        except diskq.Empty:
            break
        found.append(message.body)
        message.ack()
    assert found == [b"a1", b"b1", b"c1", b"a2", b"b2"]


def test_what_an_idle_consumer_takes_over_keeps_its_key(topic, group, other):
    put(topic, "a1", "b1", "c1", "d1", "a2", "b2", "c2", "d2")
    slow = group.consumer("slow", prefetch=10)
    slow.get_nowait()
    taken = other.get_many(9, timeout=0)
    assert bodies(taken) == [b"c1", b"d1"]
    assert ready(other) == [b"b1"]
    other.ack_many(taken)
    assert ready(other) == [b"c2", b"d2"]


def test_a_message_whose_key_is_free_again_is_not_parked(topic, group, consumer):
    put(topic, "a1")
    consumer.get_nowait().ack()
    put(topic, "a2")
    assert ready(consumer) == [b"a2"]
    assert group.stats().parked == 0


def test_offsets_of_a_batch_rise(topic, consumer):
    put(topic, "a1", "b1", "a2", "b2")
    assert offsets(consumer.get_many(9)) == [0, 1]


def test_ordering_cannot_change(store, topic, group):
    with nothing_changes(store), pytest.raises(diskq.ConfigConflict, match="ordering"):
        group.update(ordering="none")
    with nothing_changes(store), pytest.raises(diskq.ConfigConflict, match="ordering"):
        topic.group("keyed", ordering="none")
    for odd in "keys", "", 5:
        with pytest.raises(ValueError, match="ordering"):
            topic.group("odd", ordering=odd)


# Purging a key


@pytest.mark.parametrize("holding", ["leased", "waiting", "ready"])
def test_purging_a_key_takes_its_unread_and_parked_messages(topic, group, consumer, holding):
    put(topic, "a1", "a2", "b1", "b2")
    first = consumer.get_nowait()
    assert ready(consumer) == [b"b1"]
    if holding == "waiting":
        first.nack(delay_seconds=100)
    elif holding == "ready":
        first.release()
    put(topic, "a3")
    topic.purge(key="a")
    if holding == "leased":
        first.ack()
    assert ready(consumer) == []
    assert group.stats().parked == 1
    assert group.stats().purged == (2 if holding == "leased" else 3)
    put(topic, "a4")
    assert ready(consumer) == [b"a4"]


def test_purging_a_key_leaves_another_one_as_it_is(topic, group, consumer):
    put(topic, "a1", "b1", "b2")
    messages = consumer.get_many(9)
    topic.purge(key="a")
    messages[1].ack()
    assert ready(consumer) == [b"b2"]


def test_a_purged_message_that_fails_does_not_come_again_and_frees_its_key(topic, consumer):
    put(topic, "a1")
    message = consumer.get_nowait()
    topic.purge(key="a")
    put(topic, "a2")
    message.nack()
    assert ready(consumer) == [b"a2"]


@pytest.mark.parametrize("ttl_seconds", [None, 100])
def test_what_was_purged_unread_behind_its_key_is_not_delivered(topic, consumer, ttl_seconds):
    topic.put_many([Outgoing(b"a%d" % n, "a", ttl_seconds=ttl_seconds) for n in (1, 2)])
    first = consumer.get_nowait()
    topic.purge(key="a")
    assert ready(consumer) == []
    first.ack()
    assert ready(consumer) == []


# Verify


def test_verify_reads_only_what_is_left_of_a_lease(tmp_path, clock):
    with diskq.open(tmp_path / "another", clock=clock, durability="process") as store:
        topic = store.topic("t")
        consumer = topic.group("g", ordering="key").consumer()
        for name in "a1", "b1":
            put(topic, name)
        first, second = consumer.get_many(2)
        first.ack()
        topic.trim()
        assert list(store.verify()) == []
        second.ack()
