"""Threads that share a store or a consumer. Each test is named after what went wrong once."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import diskq

DEADLINE_SECONDS = 30


def in_one_commit(store, *calls):
    """Run calls in threads that reach the store in this order and share a commit."""
    errors = []

    def run(call):
        try:
            call()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[call]) for call in calls]
    # The first operation of all waits for the lock; those behind it queue up and go together.
    with store.handle.engine.writes.lock:
        blocker = threading.Thread(target=lambda: store.handle.commit(lambda tx: None))
        for count, thread in enumerate([blocker, *threads], 1):
            thread.start()
            until = time.monotonic() + DEADLINE_SECONDS
            while store.handle.engine.in_line() < count and time.monotonic() < until:
                time.sleep(0.001)
    for thread in [blocker, *threads]:
        thread.join()
    return errors


def test_a_message_is_acked_in_the_commit_that_extends_the_lease_it_shares(topic, group, consumer):
    topic.put_many([b"a", b"b", b"c", b"d"])
    first, second, third, fourth = consumer.get_many(4, timeout=0)
    errors = in_one_commit(
        topic.store, lambda: first.extend(100), second.ack, lambda: third.extend(200), fourth.nack
    )
    assert errors == []
    stats = group.stats()
    assert (stats.leased, stats.acked, stats.waiting) == (2, 1, 1)
    first.ack()
    third.ack()


def test_an_extension_that_was_undone_with_its_commit_leaves_the_lease_as_it_was(
    topic, group, consumer
):
    def fail(tx):
        raise ValueError("no")

    topic.put_many([b"a", b"b"])
    first, second = consumer.get_many(2, timeout=0)
    errors = in_one_commit(
        topic.store, lambda: first.extend(100), lambda: topic.store.handle.commit(fail), second.ack
    )
    assert [str(error) for error in errors] == ["no"]
    first.ack()
    assert group.stats().acked == 2


def test_two_loops_over_one_consumer_do_not_ack_each_others_messages(topic, group, consumer):
    topic.put_many([b"a", b"b", b"c"])
    one, other = iter(consumer), iter(consumer)
    held = [next(one), next(other)]
    assert [message.settled for message in held] == [False, False]
    assert group.stats().leased == 2
    next(one)
    assert [message.settled for message in held] == [True, False]


def test_a_message_left_by_break_is_not_acked_by_the_next_loop(topic, group, consumer):
    topic.put_many([b"a", b"b"])
    for message in consumer:
        left = message
        break
    for message in consumer:
        assert message.offset == 1
        break
    assert not left.settled
    assert group.stats().acked == 0


def test_two_threads_that_close_a_store_do_not_close_it_for_others(tmp_path):
    for round_ in range(20):
        path = tmp_path / str(round_)
        one, other = diskq.open(path, durability="process"), diskq.open(path)
        consumers = [one.queue("q").consumer() for _ in range(3)]
        threads = [threading.Thread(target=one.close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with other:
            other.queue("q").put(b"x")
        assert not any(consumer.usable for consumer in consumers)


def test_a_store_closed_while_another_thread_closes_its_consumer_raises_only_closed(group):
    """The consumer's slot was unlocked in a file that was closed already: ValueError was raised."""
    consumer, store = group.consumer("closing"), group.topic.store
    in_group = consumer.member.in_group

    def close_the_store_first(*arguments, **options):
        consumer.member.in_group = in_group  # closing the store closes the consumer, too
        thread = threading.Thread(target=store.close)
        thread.start()
        thread.join(DEADLINE_SECONDS)
        return in_group(*arguments, **options)

    consumer.member.in_group = close_the_store_first
    with suppress(diskq.Closed):
        consumer.close()
    assert not consumer.usable


def test_a_store_that_is_closed_while_consumers_are_made_closes_and_says_so(tmp_path):
    """RuntimeError (the set of consumers changed) left the store open; others got ValueError."""
    outcomes = set()

    def make(store):
        group = store.queue("q").group
        while True:
            group.consumer()

    def run(store):
        try:
            make(store)
        except Exception as error:
            outcomes.add(type(error))

    for round_ in range(30):
        store = diskq.open(tmp_path / "store", durability="process")
        store.queue("q").group.consumer()
        threads = [threading.Thread(target=run, args=[store]) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.0005 * (round_ % 10))
        store.close()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
        assert not any(thread.is_alive() for thread in threads)
    assert outcomes == {diskq.Closed}
