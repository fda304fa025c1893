"""Purge: what goes, who loses what, what is counted, and that the rest is left as it was."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from support.clock import NS
from support.stores import bodies, nothing_changes, offsets

import diskq
from diskq import Outgoing
from diskq.base import limits


def now(clock):
    """The time as a datetime."""
    return datetime.fromtimestamp(clock.wall // NS, UTC)


def ready(consumer):
    """The bodies of all that can be delivered now."""
    return bodies(consumer.get_many(10_000, timeout=0))


def numbers(*values):
    """Bodies made of numbers."""
    return [b"%d" % value for value in values]


def test_a_purge_takes_all_there_is_and_nothing_that_comes(topic, group, consumer):
    topic.put_many(numbers(*range(5)))
    topic.put(b"later", delay_seconds=1)
    assert topic.purge() == 6
    assert list(topic.read()) == []
    assert list(topic.scheduled()) == []
    assert topic.stats()[1:6] == (5, 0, 0, 0, 0)  # put, scheduled, stored, segments, bytes
    assert (group.stats().purged, group.stats().lag) == (5, 0)
    assert topic.put(b"new").offset == 5
    assert ready(consumer) == [b"new"]


def test_an_empty_topic_may_be_purged(topic, group):
    assert topic.purge() == topic.purge(before=0) == topic.purge(before=99) == 0
    assert topic.purge(key="k") == topic.purge(before="latest") == 0
    topic.put(b"")
    assert topic.purge(before="earliest") == 0
    assert topic.purge() == 1
    assert topic.purge() == 0
    assert group.stats().purged == 1


def test_a_topic_without_groups_may_be_purged(topic):
    topic.put_many(numbers(1, 2))
    assert topic.purge() == 2
    topic.put(b"3")
    assert ready(topic.group("g").consumer()) == [b"3"]


@pytest.mark.parametrize("before", range(12))
def test_a_purge_before_an_offset_ends_in_the_middle_of_a_segment(topic, group, consumer, before):
    topic.put_many(numbers(0, 1, 2, 3))
    topic.put_many(numbers(4))
    topic.put_many([Outgoing(b"%d" % number, key="k") for number in range(5, 10)])
    gone = min(before, 10)
    assert topic.purge(before=before) == gone
    assert offsets(topic.read()) == list(range(gone, 10))
    assert topic.stats().stored == 10 - gone
    assert (group.stats().purged, group.stats().unread) == (gone, 10 - gone)
    assert ready(consumer) == numbers(*range(gone, 10))
    assert topic.put(b"new").offset == 10


def test_a_purge_before_a_time_takes_what_was_put_before_it(topic, consumer, clock):
    topic.put_many(numbers(0, 1))
    clock.advance(1)
    when = now(clock)
    topic.put_many(numbers(2, 3))
    assert topic.purge(before=when - timedelta(seconds=2)) == 0
    assert topic.purge(before=when) == 2
    assert ready(consumer) == numbers(2, 3)
    assert topic.purge(before=when + timedelta(days=1)) == 2


def test_a_purge_before_an_offset_leaves_the_schedule(topic, clock):
    topic.put_many(numbers(1, 2))
    topic.put(b"later", delay_seconds=1)
    assert topic.purge(before="latest") == 2
    assert topic.stats().scheduled == 1


def test_a_consumer_that_read_the_segment_before_sees_what_is_left_of_it(topic, group, consumer):
    topic.put_many(numbers(*range(10)))
    one = consumer.get_nowait()
    topic.purge(before=4)
    with pytest.raises(diskq.LeaseLost):
        one.ack()
    assert ready(consumer) == numbers(*range(4, 10))


def test_who_handles_a_purged_message_loses_it_and_others_keep_theirs(store, topic, group):
    topic.put_many(numbers(0, 1, 2, 3))
    consumer = group.consumer()
    messages = consumer.get_many(4)
    assert topic.purge(before=2) == 2
    for message in messages[:2]:
        for settle in message.ack, message.nack, message.reject, message.release:
            with nothing_changes(store), pytest.raises(diskq.LeaseLost):
                settle()
    messages[2].extend()
    consumer.ack_many(messages[2:])
    assert (group.stats().acked, group.stats().purged, group.stats().leased) == (2, 2, 0)


def test_what_is_left_of_a_purged_lease_is_given_back(topic, group, consumer):
    topic.put_many(numbers(0, 1, 2, 3))
    consumer.get_many(4)
    topic.purge(before=2)
    consumer.close()
    assert group.stats().ready == 2
    assert ready(group.consumer()) == numbers(2, 3)


def test_ready_and_waiting_messages_go_and_dead_letters_stay(topic, group, consumer):
    topic.put_many(numbers(0, 1, 2, 3))
    one, two, three, four = consumer.get_many(4)
    one.release()
    two.nack(delay_seconds=1)
    three.reject()
    four.ack()
    assert topic.purge() == 4
    stats = group.stats()
    assert (stats.purged, stats.lag, stats.dead, stats.acked) == (2, 0, 1, 1)
    assert bodies(group.dead()) == [b"2"]
    group.redrive()
    assert ready(consumer) == [b"2"]


def test_waiting_messages_behind_the_offset_stay(topic, group, consumer, clock):
    topic.put_many(numbers(0, 1, 2))
    for message in consumer.get_many(3):
        message.nack(delay_seconds=1)
    topic.purge(before=2)
    assert (group.stats().waiting, group.stats().purged) == (1, 2)
    clock.advance(1)
    assert ready(consumer) == [b"2"]


def test_groups_count_what_they_lost_each_for_itself(topic, group, consumer):
    other = topic.group("other")
    topic.put_many(numbers(0, 1, 2))
    consumer.ack_many(consumer.get_many(2))
    topic.purge()
    assert (group.stats().purged, other.stats().purged) == (1, 3)
    assert (group.stats().acked, other.stats().acked) == (2, 0)


def test_a_purge_of_more_segments_than_one_commit_takes_all_of_them(topic, group):
    count = 2 * limits.MAX_TRIM_SEGMENTS + 10
    for _ in range(count // 10):
        topic.put_many([bytes(limits.SEGMENT_BYTES // 2 + 100)] * 10)
    assert topic.stats().segments == count
    assert topic.purge() == count
    assert (group.stats().purged, topic.stats().stored) == (count, 0)


def test_a_purge_of_more_scheduled_ones_than_one_commit_takes_all_of_them(topic):
    count = 2 * limits.MAX_TRIM_SEGMENTS + 10
    topic.put_many([Outgoing(b"", key="k", delay_seconds=1)] * count)
    topic.put(b"other", delay_seconds=1)
    assert topic.purge(key="k") == count
    assert topic.purge() == 1


def test_a_purge_in_keyed_groups_frees_the_keys(topic):
    group = topic.group("keyed", ordering="key")
    consumer = group.consumer()
    topic.put_many([Outgoing(b"%d" % number, key="k") for number in range(4)])
    held = consumer.get_nowait()
    assert ready(consumer) == []
    topic.purge(before=2)
    with pytest.raises(diskq.LeaseLost):
        held.ack()
    assert (group.stats().purged, group.stats().parked, group.stats().waiting) == (2, 1, 1)
    message = consumer.get_nowait()
    assert message.body == b"2"
    message.ack()
    assert ready(consumer) == [b"3"]


def test_the_log_is_trimmed_of_what_is_left(topic, consumer):
    topic.put_many(numbers(0, 1, 2, 3))
    topic.purge(before=2)
    consumer.ack_many(consumer.get_many(4))
    topic.trim()
    assert topic.stats().stored == 0


def test_a_purge_survives_reopening(open_store):
    with open_store(durability="process") as store:
        topic = store.topic("t")
        topic.group("g")
        topic.put_many([Outgoing(b"%d" % n, key="ab"[n % 2]) for n in range(6)])
        topic.purge(before=1)
        topic.purge(key="b")
    topic = open_store().topic("t")
    assert bodies(topic.read()) == numbers(2, 4)
    assert ready(topic.group("g").consumer()) == numbers(2, 4)


# Of one key


def test_a_purge_of_a_key_takes_only_that_key(topic, group, consumer):
    topic.put_many([Outgoing(b"%d" % n, key="ab"[n % 2], headers={"n": "1"}) for n in range(6)])
    topic.put(b"plain")
    topic.put(b"later a", key="a", delay_seconds=1)
    topic.put(b"later b", key="b", delay_seconds=1)
    assert topic.purge(key="a") == 4
    assert bodies(topic.read()) == [b"1", b"3", b"5", b"plain"]
    assert bodies(topic.scheduled()) == [b"later b"]
    messages = consumer.get_many(10)
    assert bodies(messages) == [b"1", b"3", b"5", b"plain"]
    assert messages[0].headers == {"n": "1"}
    assert (group.stats().purged, group.stats().lag) == (3, 4)
    assert topic.purge(key="a") == 0
    assert topic.purge(key="nobody's") == 0


def test_an_empty_key_is_not_the_lack_of_a_key(topic, consumer):
    topic.put_many([Outgoing(b"1", headers={"a": "b"}), b"2"])
    assert topic.purge(key="") == 0
    assert ready(consumer) == [b"1", b"2"]


def test_a_purge_of_a_key_frees_its_bytes(topic):
    topic.put(bytes(100_000), key="k")
    topic.purge(key="k")
    assert topic.stats().bytes < 1000


def test_a_purge_of_a_key_before_an_offset_takes_both(topic, consumer):
    topic.put_many([Outgoing(b"%d" % n, key="ab"[n % 2]) for n in range(6)])
    assert topic.purge(key="a", before=3) == 2
    assert ready(consumer) == numbers(1, 3, 4, 5)


def test_a_purge_of_a_key_before_a_time_takes_both(topic, consumer, clock):
    topic.put(b"1", key="a")
    clock.advance(1)
    topic.put(b"2", key="a")
    assert topic.purge(key="a", before=now(clock)) == 1
    assert ready(consumer) == [b"2"]


def test_who_handles_a_message_of_a_purged_key_may_ack_it(topic, group, consumer):
    topic.put_many([Outgoing(b"%d" % number, key="k") for number in range(3)])
    one, two, three = consumer.get_many(3)
    topic.purge(key="k")
    one.ack()
    two.nack()
    three.release()
    assert ready(consumer) == []
    assert (group.stats().acked, group.stats().purged, group.stats().lag) == (1, 2, 0)


def test_a_message_of_a_purged_key_whose_deadline_passed_does_not_come_again(
    topic, group, consumer, clock
):
    topic.put(b"a", key="k")
    consumer.get_nowait()
    topic.purge(key="k")
    clock.advance(10)
    assert ready(consumer) == []
    assert (group.stats().purged, group.stats().failed) == (1, 0)


def test_a_rejected_message_of_a_purged_key_is_no_dead_letter(topic, group, consumer):
    topic.put(b"a", key="k")
    message = consumer.get_nowait()
    topic.purge(key="k")
    message.reject()
    assert list(group.dead()) == []
    assert group.stats().purged == 1


def test_ready_and_waiting_messages_of_a_purged_key_go(topic, group, consumer):
    topic.put_many([Outgoing(b"%d" % number, key="ab"[number % 2]) for number in range(4)])
    one, two, three, four = consumer.get_many(4)
    one.nack(delay_seconds=1)
    two.nack()
    three.release()
    four.release()
    topic.purge(key="a")
    assert ready(consumer) == [b"1", b"3"]
    assert group.stats().purged == 2


def test_a_purge_of_a_key_keeps_its_dead_letters(topic, group, consumer):
    topic.put(b"a", key="k")
    consumer.get_nowait().reject()
    topic.purge(key="k")
    assert bodies(group.dead()) == [b"a"]


def test_a_purge_of_a_key_finds_it_in_many_segments(topic, group, consumer):
    count = limits.MAX_PURGE_SEGMENTS + 20
    for number in range(count):
        topic.put_many([Outgoing(b"%d" % number, key="a"), Outgoing(b"b", key="b")])
    assert topic.purge(key="a") == count
    assert ready(consumer) == [b"b"] * count
    assert group.stats().purged == count


def test_a_purged_key_after_a_seek_and_in_a_fork_is_gone(topic, group, consumer):
    topic.put_many([Outgoing(b"a", key="a"), Outgoing(b"b", key="b")])
    topic.purge(key="a")
    consumer.ack_many(consumer.get_many(9))
    topic.put(b"c")
    copy = group.fork("copy")
    group.seek(0)
    assert ready(consumer) == [b"b", b"c"]
    copy.seek(0)
    assert ready(copy.consumer()) == [b"b", b"c"]


def test_the_wrong_is_refused(store, topic):
    topic.put(b"", key="k")
    for odd in "first", "", -1, 2**64, datetime(1960, 1, 1):
        with nothing_changes(store), pytest.raises(ValueError, match="before"):
            topic.purge(before=odd)
    for odd in True, 1.0, b"x", (1,):
        with nothing_changes(store), pytest.raises(TypeError, match="before"):
            topic.purge(before=odd)
    for odd in 5, b"k":
        with nothing_changes(store), pytest.raises(TypeError, match="key"):
            topic.purge(key=odd)
    store.delete_topic("mail")
    for call in topic.purge, topic.trim:
        with pytest.raises(diskq.NotFound):
            call()


def test_a_store_open_for_reading_cannot_be_purged(open_store, tmp_path, clock):
    with open_store(durability="process") as store:
        store.topic("t").put(b"", key="k")
    with diskq.open(tmp_path / "store", readonly=True, clock=clock) as store:
        topic = store.topic("t")
        for call in topic.purge, topic.trim, lambda: topic.purge(key="k"):
            with pytest.raises(diskq.ReadOnly):
                call()


# What is handled again


def test_who_handles_a_retry_loses_it_to_a_purge(topic, group, consumer):
    topic.put(b"a")
    consumer.get_nowait().nack()
    message = consumer.get_nowait()
    topic.purge()
    with pytest.raises(diskq.LeaseLost):
        message.ack()


def test_a_retry_of_a_purged_key_that_fails_again_does_not_come_again(topic, consumer):
    topic.put(b"a", key="k")
    consumer.get_nowait().nack()
    message = consumer.get_nowait()
    topic.purge(key="k")
    message.nack()
    assert ready(consumer) == []


def test_prefetched_messages_of_a_purged_key_are_not_taken_over(topic, group):
    topic.put_many([Outgoing(b"%d" % number, key="k") for number in range(6)])
    slow, idle = group.consumer("slow", prefetch=10), group.consumer("idle")
    slow.get_nowait()
    topic.purge(key="k")
    assert ready(idle) == []
