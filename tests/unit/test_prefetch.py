"""Prefetch: many messages in one commit, handed out one by one, and shared with who is idle."""

from __future__ import annotations

import gc
import os
import threading

import pytest
from support.stores import bodies, commits, nothing_changes, offsets

import diskq
from diskq import Outgoing
from diskq.base import limits


@pytest.fixture
def filled(topic):
    """The topic with messages 0 to 9."""
    topic.put_many([b"%d" % number for number in range(10)])
    return topic


def ready(consumer):
    """The bodies of all that one more get_many can have now."""
    return bodies(consumer.get_many(10_000, timeout=0))


def test_messages_are_leased_in_one_commit_and_handed_out_in_order(store, filled, group):
    consumer = group.consumer(prefetch=4)
    before = commits(store)
    found = [consumer.get_nowait() for _ in range(4)]
    assert commits(store) == before + 1
    assert offsets(found) == [0, 1, 2, 3]
    assert group.stats().leased == 4
    assert consumer.get_nowait().offset == 4
    assert commits(store) == before + 2
    assert group.stats().leased == 8


def test_a_batch_takes_what_was_fetched_first(filled, group):
    consumer = group.consumer(prefetch=4)
    assert consumer.get_nowait().offset == 0
    assert offsets(consumer.get_many(2)) == [1, 2]
    assert offsets(consumer.get_many(5)) == [3]
    assert offsets(consumer.get_many(5)) == [4, 5, 6, 7, 8]


def test_nobody_gets_a_message_twice_at_the_same_time(filled, group):
    consumers = [group.consumer(f"c{number}", prefetch=3) for number in range(3)]
    found = []
    while batch := [message for each in consumers for message in each.get_many(1, timeout=0)]:
        found += batch
    assert sorted(offsets(found)) == list(range(10))
    assert sorted(message.token for message in found) == sorted({each.token for each in found})
    for message in found:
        message.ack()
    assert group.stats().acked == 10


def test_an_idle_consumer_takes_the_later_half_of_what_is_left(filled, group):
    slow, idle = group.consumer("slow", prefetch=10), group.consumer("idle")
    first = slow.get_nowait()
    assert offsets(idle.get_many(10)) == [5, 6, 7, 8, 9]
    assert offsets(idle.get_many(1)) == [4]
    rest = []
    while messages := slow.get_many(1, timeout=0):
        rest += messages
    assert offsets(rest) == [1, 2, 3]
    for message in [first, *rest]:
        message.ack()
    assert group.stats().leased == 6


def test_an_idle_consumer_takes_no_more_than_it_asked_for(filled, group):
    slow, idle = group.consumer("slow", prefetch=10), group.consumer("idle")
    slow.get_nowait()
    assert offsets(idle.get_many(2)) == [8, 9]


def test_what_is_handled_is_never_taken_over(filled, group):
    slow, idle = group.consumer("slow", prefetch=10), group.consumer("idle")
    messages = [slow.get_nowait() for _ in range(10)]
    assert ready(idle) == []
    slow.ack_many(messages)


def test_a_batch_without_prefetch_is_never_taken_over(filled, group):
    slow, idle = group.consumer("slow"), group.consumer("idle")
    assert len(slow.get_many(10)) == 10
    assert ready(idle) == []


def test_who_is_idle_takes_new_messages_first(filled, group):
    slow, idle = group.consumer("slow", prefetch=5), group.consumer("idle")
    slow.get_nowait()
    assert idle.get_nowait().offset == 5


def test_what_was_taken_over_may_be_taken_over_again(filled, group):
    first, second, third = (group.consumer(name, prefetch=10) for name in ("a", "b", "c"))
    first.get_nowait()
    assert second.get_nowait().offset == 5
    assert sorted(third.get_nowait().offset for _ in range(2)) == [3, 4]


def test_a_message_that_was_taken_over_is_fenced(store, filled, group):
    slow, idle = group.consumer("slow", prefetch=10), group.consumer("idle")
    slow.get_nowait()
    taken = idle.get_nowait()
    lost = next(message for message in slow._taking.fetched if message.offset == taken.offset)
    with nothing_changes(store), pytest.raises(diskq.LeaseLost):
        lost.ack()
    taken.ack()


def test_a_blocked_get_takes_over(filled, group):
    slow, idle = group.consumer("slow", prefetch=10), group.consumer("idle")
    found = []
    thread = threading.Thread(target=lambda: found.append(idle.get(timeout=30)))
    slow.get_nowait()
    thread.start()
    thread.join(30)
    assert offsets(found) == [9]


def test_close_gives_back_all_uncharged(filled, group):
    with group.consumer("closing", prefetch=10) as consumer:
        consumer.get_nowait().ack()
        consumer.get_nowait()
    assert (group.stats().ready, group.stats().leased) == (9, 0)
    messages = group.consumer().get_many(10)
    assert offsets(messages) == list(range(1, 10))
    assert {message.attempt for message in messages} == {1}


def test_a_closed_consumer_hands_nothing_out(filled, group):
    consumer = group.consumer("closing", prefetch=10)
    consumer.get_nowait()
    consumer.close()
    for get in consumer.get_nowait, lambda: consumer.get_many(2), lambda: consumer.get(timeout=1):
        with pytest.raises(diskq.Closed):
            get()
    assert list(consumer) == []


def test_a_passed_deadline_charges_only_what_was_handed_out(filled, group, clock):
    slow, other = group.consumer("slow", prefetch=10), group.consumer("other")
    handled = [slow.get_nowait() for _ in range(3)]
    handled[1].ack()
    clock.advance(10)
    attempts = {message.offset: message.attempt for message in other.get_many(10)}
    assert attempts == {0: 2, 2: 2, **dict.fromkeys(range(3, 10), 1)}
    with pytest.raises(diskq.LeaseLost):
        handled[0].ack()


def test_what_expired_while_it_was_fetched_is_fetched_again(filled, group, clock):
    consumer = group.consumer("slow", prefetch=10)
    consumer.get_nowait().ack()
    clock.advance(10)
    other = group.consumer("other")
    assert offsets(other.get_many(4)) == [1, 2, 3, 4]
    assert consumer.get_nowait().offset == 5


def test_a_death_charges_only_what_was_handled(filled, group):
    consumer = group.consumer("dying", prefetch=10)
    consumer.get_nowait().ack()
    consumer.get_nowait()
    del consumer
    gc.collect()
    heir = group.consumer("heir")
    assert [(message.offset, message.attempt) for message in heir.get_many(10)] == [(1, 2)]
    rest = [(message.offset, message.attempt) for message in heir.get_many(10)]
    assert rest == [(offset, 1) for offset in range(2, 10)]


def test_a_death_between_two_messages_charges_nobody(filled, group):
    consumer = group.consumer("dying", prefetch=10)
    consumer.get_nowait().ack()
    del consumer
    gc.collect()
    messages = group.consumer("heir").get_many(10)
    assert [message.attempt for message in messages] == [1] * 9


def test_a_loop_acks_each_message(filled, group):
    consumer = group.consumer(prefetch=4)
    found = []
    for message in consumer:
        found.append(message.offset)
        if len(found) == 10:
            break
    assert found == list(range(10))
    assert group.stats().acked == 9


def test_a_seek_takes_back_what_was_fetched(filled, group):
    consumer = group.consumer(prefetch=10)
    consumer.get_nowait()
    group.seek(3)
    assert consumer.get_nowait().offset == 3


def test_a_purge_takes_back_what_was_fetched(filled, group):
    consumer = group.consumer(prefetch=10)
    consumer.get_nowait()
    filled.purge(before=5)
    assert consumer.get_nowait().offset == 5


def test_retries_come_each_alone(filled, group):
    consumer = group.consumer(prefetch=4)
    for _ in range(3):
        consumer.get_nowait().nack()
    assert consumer.get_nowait().offset == 3
    found = [consumer.get_nowait() for _ in range(4)]
    assert [(message.offset, message.attempt) for message in found] == [
        (0, 2), (1, 2), (2, 2), (4, 1)
    ]  # fmt: skip


def test_no_more_are_fetched_than_may_be_in_flight(filled):
    group = filled.group("few", max_in_flight=3)
    consumer = group.consumer(prefetch=10)
    consumer.get_nowait()
    assert group.stats().leased == 3
    assert len(ready(consumer)) == 2
    assert ready(consumer) == []


def test_prefetch_and_key_order_fetch_each_key_once(topic):
    group = topic.group("keyed", ordering="key")
    topic.put_many([Outgoing(b"%d" % number, key=str(number % 3)) for number in range(9)])
    consumer = group.consumer(prefetch=10)
    consumer.get_nowait()
    assert (group.stats().leased, group.stats().parked) == (3, 6)


def test_prefetch_has_bounds(group):
    for count in 1, limits.MAX_GET_MESSAGES:
        group.consumer(prefetch=count).close()
    for count in 0, -1, limits.MAX_GET_MESSAGES + 1:
        with pytest.raises(ValueError, match="prefetch"):
            group.consumer(prefetch=count)
    for odd in True, 1.5, "1", None:
        with pytest.raises(TypeError, match="prefetch"):
            group.consumer(prefetch=odd)


def test_threads_that_share_a_prefetching_consumer_get_each_message_once(topic, group):
    topic.put_many([b""] * 2000)
    consumer = group.consumer(prefetch=50)
    found, errors = [], []

    def work():
        try:
            while messages := consumer.get_many(1, timeout=0):
                found.append(messages[0].offset)
                messages[0].ack()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(found) == list(range(2000))
    assert (group.stats().acked, group.stats().failed) == (2000, 0)


def test_a_forked_child_gets_nothing_of_what_was_fetched(filled, group):
    consumer = group.consumer(prefetch=10)
    consumer.get_nowait()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            consumer.get_nowait()
        except diskq.WrongProcess:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_closed_consumer_says_nothing_about_the_one_that_has_its_slot(filled, group):
    old = group.consumer("old", prefetch=3)
    old.get_nowait()
    old.close()
    new, idle = group.consumer("new", prefetch=3), group.consumer("idle")
    handled = [new.get_nowait() for _ in range(3)]
    ready(idle)  # nothing is left but what is handled
    with pytest.raises(diskq.Closed):
        old.get_nowait()
    assert ready(idle) == []
    new.ack_many(handled)
