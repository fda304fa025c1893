"""Heartbeat: leases live as long as their holder, and no longer. On the real clock: short leases,
no bound on how long a test may take."""

from __future__ import annotations

import gc
import threading
import time

import pytest
from support.stores import bodies

import diskq
from diskq.api import heartbeat

LEASE_SECONDS = 1.0


@pytest.fixture
def store(real_store):
    return real_store


@pytest.fixture
def group(topic):
    return topic.group("g", lease_seconds=LEASE_SECONDS, backoff=diskq.Backoff(0))


def beats():
    """The heartbeat threads of this process."""
    return [thread for thread in threading.enumerate() if "heartbeat" in thread.name]


def wait_until(condition):
    """Come back when it is so."""
    while not condition():
        time.sleep(0.005)


def deadline_rises(message):
    """Whether the lease of this message is extended before its time is over."""
    before = message.deadline
    wait_until(lambda: message.deadline > before or time.monotonic() > before)
    return message.deadline > before


def test_a_lease_lives_longer_than_its_time(topic, group):
    topic.put(b"a")
    holder, other = group.consumer("holder", heartbeat=True), group.consumer("other")
    message = holder.get_nowait()
    end = message.deadline
    wait_until(lambda: time.monotonic() > end and message.deadline > end)
    assert other.get_many(1, timeout=0) == []
    message.ack()
    assert (group.stats().acked, group.stats().failed) == (1, 0)


def test_all_messages_of_a_consumer_are_kept(topic, group):
    topic.put_many([b"a", b"b", b"c"])
    holder, other = group.consumer("holder", heartbeat=True), group.consumer("other")
    messages = [holder.get_nowait(), *holder.get_many(2)]
    ends = [message.deadline for message in messages]
    wait_until(lambda: all(m.deadline > end for m, end in zip(messages, ends, strict=True)))
    wait_until(lambda: time.monotonic() > max(ends))
    assert other.get_many(3, timeout=0) == []
    holder.ack_many(messages)


def test_prefetched_messages_are_kept(topic, group):
    topic.put_many([b"a", b"b"])
    holder = group.consumer("holder", prefetch=2, heartbeat=True)
    first = holder.get_nowait()
    end = first.deadline
    wait_until(lambda: time.monotonic() > end and first.deadline > end)
    assert all(each.deadline_ns > end * 10**9 for each in group.pending())
    second = holder.get_nowait()
    holder.ack_many([first, second])
    assert group.stats().failed == 0


def test_without_a_heartbeat_a_lease_ends(topic, group):
    topic.put(b"a")
    holder, other = group.consumer("holder"), group.consumer("other")
    message = holder.get_nowait()
    assert other.get(timeout=30).attempt == 2
    with pytest.raises(diskq.LeaseLost):
        message.ack()


def test_a_settled_message_is_extended_no_more(topic, group):
    topic.put_many([b"a", b"b"])
    holder = group.consumer("holder", heartbeat=True)
    one, two = holder.get_nowait(), holder.get_nowait()
    one.release()
    holder.close()
    assert sorted(bodies(group.consumer("other").get_many(2))) == [b"a", b"b"]
    assert not two.settled


def test_a_close_stops_it(topic, group):
    consumer = group.consumer("closing", heartbeat=True)
    assert len(beats()) == 1
    topic.put(b"a")
    consumer.get_nowait()
    consumer.close()
    wait_until(lambda: not beats())
    assert group.stats().ready == 1


def test_the_close_of_the_store_stops_it(tmp_path):
    with diskq.open(tmp_path / "another", durability="process") as store:
        consumer = store.topic("t").group("g", lease_seconds=0.05).consumer(heartbeat=True)
        assert beats()
    wait_until(lambda: not beats())
    with pytest.raises(diskq.Closed):
        consumer.get_nowait()


def test_a_consumer_that_is_forgotten_stops_it_and_its_messages_come_back(topic, group):
    topic.put(b"a")
    consumer = group.consumer("forgotten", heartbeat=True)
    message = consumer.get_nowait()
    assert message.body == b"a"
    del message, consumer
    gc.collect()
    wait_until(lambda: gc.collect() is not None and not beats())
    assert group.consumer("heir").get(timeout=30).body == b"a"


def test_a_message_that_is_forgotten_is_extended_no_more(topic, group):
    topic.put(b"a")
    holder, other = group.consumer("holder", heartbeat=True), group.consumer("other")
    holder.get_nowait()
    gc.collect()
    assert other.get(timeout=30).body == b"a"


def test_it_goes_on_after_a_lease_was_lost(topic, group):
    topic.put_many([b"a", b"b"])
    holder = group.consumer("holder", heartbeat=True)
    lost = holder.get_nowait()
    group.seek(1)
    kept = holder.get_nowait()
    assert kept.body == b"b"
    assert deadline_rises(kept)
    with pytest.raises(diskq.LeaseLost):
        lost.ack()
    kept.ack()


def test_it_survives_the_end_of_its_group(topic, group):
    topic.put(b"a")
    consumer = group.consumer("holder", heartbeat=True)
    message = consumer.get_nowait()
    group.delete()
    with pytest.raises(diskq.NotFound):
        message.ack()
    consumer.close()
    wait_until(lambda: not beats())


def test_it_keeps_leases_that_an_update_made_shorter(topic, group):
    group.update(lease_seconds=1000)
    topic.put(b"a")
    holder = group.consumer("holder", heartbeat=True)
    group.update(lease_seconds=LEASE_SECONDS)
    message = holder.get_nowait()
    assert deadline_rises(message)


def test_it_is_a_yes_or_no(group):
    for odd in 1, "yes", None:
        with pytest.raises(TypeError, match="heartbeat"):
            group.consumer(heartbeat=odd)
    assert beats() == []


def test_a_lease_that_was_extended_for_longer_is_not_shortened(topic, group, monkeypatch):
    topic.put(b"a")
    consumer = group.consumer(heartbeat=True)
    message = consumer.get_nowait()
    message.extend(100)
    beaten = threading.Semaphore(0)
    extend = heartbeat._extend

    def beat(messages, at):
        at.tx.after.append(beaten.release)
        return extend(messages, at)

    monkeypatch.setattr(heartbeat, "_extend", beat)
    assert beaten.acquire(timeout=60)
    assert beaten.acquire(timeout=60)
    assert message.deadline > time.monotonic() + 30
    message.ack()
