"""Messages with a TTL: what becomes of them unread, ready, waiting, parked and leased."""

from __future__ import annotations

from datetime import timedelta

import pytest
from support.clock import NS
from support.stores import bodies, nothing_changes, offsets

import diskq
from diskq import Outgoing
from diskq.base import limits


@pytest.fixture
def keeping(topic):
    """A group that keeps what expired as dead letters."""
    return topic.group("keeping", keep_expired=True, backoff=diskq.Backoff(0), max_deliveries=3)


def ready(consumer):
    """The bodies of all that can be delivered now."""
    return bodies(consumer.get_many(10_000, timeout=0))


def test_an_unread_message_expires_to_the_nanosecond(topic, group, clock):
    topic.put(b"a", ttl_seconds=1)
    topic.put(b"b", ttl_seconds=1)
    clock.advance_ns(NS - 1)
    consumer = group.consumer()
    assert consumer.get_nowait().body == b"a"
    clock.advance_ns(1)
    assert ready(consumer) == []
    assert group.stats().expired == 1
    assert group.stats().unread == 0


def test_what_is_between_expired_ones_is_delivered(topic, group, consumer, clock):
    topic.put_many([Outgoing(b"%d" % n, ttl_seconds=1 if n % 2 else None) for n in range(10)])
    clock.advance(1)
    messages = consumer.get_many(10, timeout=0)
    assert offsets(messages) == [0, 2, 4, 6, 8]
    consumer.ack_many(messages)
    assert (group.stats().expired, group.stats().acked, group.stats().lag) == (5, 5, 0)


def test_a_ready_message_expires(topic, group, consumer, clock):
    topic.put_many([Outgoing(b"a", ttl_seconds=5), b"b"])
    for message in consumer.get_many(2):
        message.release()
    clock.advance(5)
    assert ready(consumer) == [b"b"]
    assert (group.stats().expired, group.stats().ready) == (1, 0)


def test_a_waiting_message_expires(topic, group, consumer, clock):
    topic.put(b"a", ttl_seconds=5)
    consumer.get_nowait().nack(delay_seconds=2)
    clock.advance(5)
    assert ready(consumer) == []
    assert (group.stats().expired, group.stats().waiting, group.stats().dead) == (1, 0, 0)


def test_a_parked_message_expires_and_the_next_of_its_key_comes(topic, clock):
    group = topic.group("keyed", ordering="key")
    consumer = group.consumer()
    topic.put_many([Outgoing(b"a", "k"), Outgoing(b"b", "k", ttl_seconds=5), Outgoing(b"c", "k")])
    first = consumer.get_nowait()
    assert ready(consumer) == []
    assert group.stats().parked == 2
    clock.advance(5)
    first.ack()
    assert ready(consumer) == [b"c"]
    assert (group.stats().expired, group.stats().parked) == (1, 0)


def test_a_leased_message_may_be_acked_after_it_expired(topic, group, consumer, clock):
    topic.put(b"a", ttl_seconds=1)
    message = consumer.get_nowait()
    clock.advance(5)
    message.ack()
    assert (group.stats().acked, group.stats().expired) == (1, 0)


def test_a_message_that_expired_while_leased_does_not_come_again(topic, group, consumer, clock):
    topic.put(b"a", ttl_seconds=1)
    message = consumer.get_nowait()
    clock.advance(5)
    message.nack()
    assert ready(consumer) == []
    assert (group.stats().failed, group.stats().expired) == (1, 1)


def test_groups_expire_messages_each_for_itself(topic, group, clock):
    other = topic.group("other")
    topic.put(b"a", ttl_seconds=1)
    group.consumer().get_nowait().ack()
    clock.advance(1)
    assert ready(other.consumer()) == []
    assert (group.stats().acked, group.stats().expired) == (1, 0)
    assert (other.stats().acked, other.stats().expired) == (0, 1)
    topic.trim()
    assert topic.stats().stored == 0


def test_a_group_may_keep_what_expired_unread(topic, keeping, clock):
    topic.put(b"body", key="k", headers={"a": "b"}, ttl_seconds=1)
    clock.advance(1)
    assert ready(keeping.consumer()) == []
    [letter] = keeping.dead()
    assert (letter.offset, letter.body, letter.key, letter.headers) == (0, b"body", "k", {"a": "b"})
    assert (letter.reason, letter.failures, letter.dead_at_ns) == ("expired", 0, clock.wall)
    assert [failure.cause for failure in letter.history] == ["ttl"]
    assert (keeping.stats().dead, keeping.stats().expired) == (1, 0)


@pytest.mark.parametrize("state", ["ready", "waiting"])
def test_a_group_may_keep_what_expired_later(topic, keeping, clock, state):
    consumer = keeping.consumer("ca")
    topic.put(b"a", ttl_seconds=5)
    message = consumer.get_nowait()
    if state == "ready":
        message.release()
    else:
        message.nack(error="no")
    clock.advance(5)
    assert ready(consumer) == []
    [letter] = keeping.dead()
    assert letter.reason == "expired"
    causes = [failure.cause for failure in letter.history]
    assert causes == (["ttl"] if state == "ready" else ["nack", "ttl"])


def test_a_keyed_group_may_keep_what_expired_parked(topic, clock):
    group = topic.group("keyed", ordering="key", keep_expired=True)
    consumer = group.consumer()
    topic.put_many([Outgoing(b"a", "k"), Outgoing(b"b", "k", ttl_seconds=5)])
    first = consumer.get_nowait()
    assert ready(consumer) == []
    clock.advance(5)
    first.ack()
    assert ready(consumer) == []
    assert bodies(group.dead()) == [b"b"]
    assert group.redrive() == 1
    assert ready(consumer) == [b"b"]


def test_a_redriven_message_expires_no_more(topic, keeping, clock):
    topic.put(b"a", ttl_seconds=1)
    clock.advance(1)
    consumer = keeping.consumer()
    assert ready(consumer) == []
    keeping.redrive()
    clock.advance(1000)
    message = consumer.get_nowait()
    assert message.attempt == 1
    message.nack()
    clock.advance(1000)
    consumer.get_nowait().ack()
    assert keeping.stats().acked == 1


def test_a_rejected_message_with_a_ttl_stays_dead_and_expires_no_more(
    topic, group, consumer, clock
):
    topic.put(b"a", ttl_seconds=1)
    consumer.get_nowait().reject("bad")
    clock.advance(100)
    assert bodies(group.dead()) == [b"a"]
    group.redrive()
    assert ready(consumer) == [b"a"]


def test_keep_expired_can_be_changed_for_what_expires_from_now_on(topic, group, consumer, clock):
    topic.put(b"a", ttl_seconds=1)
    clock.advance(1)
    assert group.update(keep_expired=True).keep_expired
    assert ready(consumer) == []
    assert bodies(group.dead()) == [b"a"]


def test_a_ttl_begins_when_a_scheduled_message_is_put(topic, consumer, clock):
    topic.put(b"a", delay_seconds=100, ttl_seconds=1)
    clock.advance(100)
    assert ready(consumer) == [b"a"]


def test_more_expired_ones_than_one_commit_passes_do_not_hide_the_living_one(
    topic, group, consumer, clock
):
    count = 2 * limits.MAX_COPIED_MESSAGES + 500
    topic.put_many([Outgoing(b"", ttl_seconds=1)] * count)
    topic.put(b"living")
    clock.advance(1)
    assert consumer.get_nowait().body == b"living"
    assert group.stats().expired == count


def test_more_waiting_ones_that_expired_than_one_commit_passes_do_not_hide_the_living_one(
    topic, group, consumer, clock
):
    count = limits.MAX_COPIED_MESSAGES + 10
    topic.put_many([Outgoing(b"", ttl_seconds=1)] * count)
    for message in consumer.get_many(count):
        message.nack()
    topic.put(b"living")
    clock.advance(1)
    assert consumer.get_nowait().body == b"living"
    assert group.stats().expired == count


@pytest.mark.parametrize("ordering", ["none", "key"])
def test_a_large_batch_with_many_expired_ones_loses_none_of_the_living(tmp_path, clock, ordering):
    with diskq.open(tmp_path / "another", clock=clock, durability="process") as store:
        topic = store.topic("t")
        consumer = topic.group("g", ordering=ordering).consumer()
        topic.put_many([Outgoing(b"", ttl_seconds=1)] * (limits.MAX_COPIED_MESSAGES + 1))
        topic.put_many([b"living"] * 5)
        clock.advance(1)
        assert ready(consumer) == [b"living"] * 5
        assert list(store.verify()) == []


def test_many_expired_ones_in_small_batches_lose_none_of_the_living(topic, consumer, clock):
    for _ in range(30):
        topic.put_many([Outgoing(b"", ttl_seconds=1)] * 90 + [b"living"] * 10)
    clock.advance(1)
    found = []
    while messages := consumer.get_many(50, timeout=0):
        found += bodies(messages)
    assert found == [b"living"] * 300


def test_prefetched_messages_that_expired_are_not_taken_over(topic, group, clock):
    topic.put_many([Outgoing(b"%d" % number, ttl_seconds=5) for number in range(6)])
    slow, idle = group.consumer("slow", prefetch=10), group.consumer("idle")
    slow.get_nowait()
    clock.advance(7)
    assert ready(idle) == []


def test_a_reboot_changes_no_ttl(open_store, clock):
    with open_store(durability="process") as store:
        topic = store.topic("t")
        topic.put_many([Outgoing(b"a", ttl_seconds=10), Outgoing(b"b", ttl_seconds=100)])
        topic.group("g").consumer().get_many(2)
    clock.reboot()
    clock.advance(50)
    assert ready(open_store().topic("t").group("g").consumer()) == [b"b"]


def test_a_clock_that_was_set_back_expires_nothing(topic, consumer, clock):
    topic.put(b"a", ttl_seconds=1)
    clock.step_wall(-3600)
    assert ready(consumer) == [b"a"]


def test_a_ttl_has_bounds(store, topic):
    for seconds in limits.MIN_AGE_SECONDS, limits.MAX_DELAY_SECONDS:
        topic.put(b"", ttl_seconds=seconds)
    for seconds in 0, -1, limits.MIN_AGE_SECONDS / 2, limits.MAX_DELAY_SECONDS + 1, float("nan"):
        with nothing_changes(store), pytest.raises(ValueError, match="ttl_seconds"):
            topic.put(b"", ttl_seconds=seconds)
    for seconds in "1", True, timedelta(seconds=1):
        with nothing_changes(store), pytest.raises(TypeError, match="ttl_seconds"):
            topic.put(b"", ttl_seconds=seconds)
    with pytest.raises(TypeError, match="keep_expired"):
        topic.group("odd", keep_expired=1)
