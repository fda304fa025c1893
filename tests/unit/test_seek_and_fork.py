"""Seek, fork, pause, update and pending: what they do to a group in the middle of its work."""

from __future__ import annotations

import gc
import threading
import time
from datetime import UTC, datetime

import pytest
from support.clock import NS
from support.stores import bodies, nothing_changes, offsets

import diskq
from diskq.base import limits


def ready(consumer):
    """The bodies of all that can be delivered now."""
    return bodies(consumer.get_many(10_000, timeout=0))


@pytest.fixture
def busy(topic, group, consumer):
    """Messages 0 to 7 in all states of the group, by state; 6 and 7 are unread."""
    topic.put_many([b"%d" % number for number in range(8)])
    acked, waiting, ready, dead, leased, again = consumer.get_many(6)
    again.nack()
    found = {"leased again": consumer.get_nowait(), "leased": leased}
    acked.ack()
    waiting.nack(delay_seconds=100)
    ready.release()
    dead.reject("no")
    stats = group.stats()
    assert stats[3:10] == (2, 1, 2, 1, 0, 1, 1)
    return found


# Seek


def test_a_seek_to_the_earliest_begins_anew(topic, group, consumer, busy):
    group.seek("earliest")
    stats = group.stats()
    assert stats[3:9] == (8, 0, 0, 0, 0, 0)
    assert (stats.lag, stats.acked) == (8, 1)
    messages = consumer.get_many(10)
    assert offsets(messages) == list(range(8))
    assert [message.attempt for message in messages] == [1] * 8


def test_a_seek_to_the_latest_leaves_only_dead_letters(topic, group, consumer, busy):
    group.seek("latest")
    assert group.stats()[3:9] == (0, 0, 0, 0, 0, 1)
    assert bodies(group.dead()) == [b"3"]
    topic.put(b"8")
    assert ready(consumer) == [b"8"]
    group.redrive()
    assert ready(consumer) == [b"3"]


@pytest.mark.parametrize("to", range(9))
def test_a_seek_to_an_offset_forgets_dead_letters_from_there_on(topic, group, consumer, busy, to):
    group.seek(to)
    assert group.stats()[3:9] == (8 - to, 0, 0, 0, 0, to > 3)
    assert ready(consumer) == [b"%d" % number for number in range(to, 8)]


def test_who_had_a_message_leased_loses_it(store, group, busy):
    group.seek("earliest")
    for message in busy.values():
        for settle in message.ack, message.nack, message.reject, message.release, message.extend:
            with nothing_changes(store), pytest.raises(diskq.LeaseLost):
                settle()


def test_a_seek_to_a_time_goes_to_what_was_put_then_or_later(topic, group, consumer, clock):
    topic.group("keeper")
    topic.put(b"a")
    clock.advance(1)
    when = datetime.fromtimestamp(clock.wall // NS, UTC)
    topic.put(b"b")
    group.seek("latest")
    group.seek(when)
    assert ready(consumer) == [b"b"]
    group.seek(when.replace(year=1990))
    assert ready(consumer) == [b"a", b"b"]
    group.seek(when.replace(year=2090))
    assert ready(consumer) == []


def test_a_seek_below_the_log_goes_to_its_begin(topic, group, consumer):
    for name in b"a", b"b":
        topic.put(name)
    consumer.get_nowait().ack()
    topic.trim()
    group.seek(0)
    assert ready(consumer) == [b"b"]


def test_a_seek_is_of_no_account_to_other_groups(topic, group, consumer):
    other = topic.group("other")
    topic.put_many([b"a", b"b"])
    message = other.consumer().get_nowait()
    group.seek("latest")
    message.ack()
    assert other.stats()[3:9] == (1, 0, 0, 0, 0, 0)
    assert topic.stats().stored == 2


def test_a_seek_to_the_latest_lets_the_log_go(topic, group):
    topic.put_many([b"a", b"b"])
    group.seek("latest")
    assert topic.stats().stored == 0


def test_seeks_forth_and_back_keep_the_balance(topic, group, consumer):
    keeper = topic.group("keeper")
    for round_ in range(5):
        topic.put_many([b"x"] * 10)
        messages = consumer.get_many(7, timeout=0)
        messages[0].ack()
        messages[1].nack()
        messages[2].reject()
        group.seek(round_ * 3)
        group.seek("latest" if round_ % 2 else "earliest")
    assert group.stats().acked == 5
    assert keeper.stats().unread == 50


def test_a_blocked_get_sees_a_seek(topic, group, consumer):
    topic.group("keeper")
    topic.put(b"a")
    consumer.get_nowait().ack()
    found = []
    thread = threading.Thread(target=lambda: found.append(consumer.get(timeout=30)))
    thread.start()
    group.seek("earliest")
    thread.join(30)
    assert bodies(found) == [b"a"]


def test_a_get_that_finds_nothing_says_if_the_group_is_paused(topic, group, consumer):
    topic.put(b"a")
    group.pause()
    with pytest.raises(diskq.Empty, match=r"group 'workers' is paused; resume\(\) lets it go on"):
        consumer.get_nowait()
    group.resume()
    consumer.get_nowait().ack()
    with pytest.raises(diskq.Empty, match="no message is ready"):
        consumer.get_nowait()


def test_the_wrong_place_is_refused(store, topic, group, busy):
    for odd in "first", "", -1, 2**64, datetime(1960, 1, 1):
        with nothing_changes(store), pytest.raises(ValueError, match="to must be"):
            group.seek(odd)
    for odd in 9, 2**64 - 1:
        text = f"offset {odd} is beyond the end of topic 'mail', which is 8"
        with nothing_changes(store), pytest.raises(ValueError, match=text):
            group.seek(odd)
    text = "to must be 'earliest', 'latest', an offset or a datetime, not float"
    with nothing_changes(store), pytest.raises(TypeError, match=text):
        group.seek(1.5)
    for odd in None, True, 1.0, b"earliest":
        with nothing_changes(store), pytest.raises(TypeError, match="to must be"):
            group.seek(odd)
    group.delete()
    with nothing_changes(store), pytest.raises(diskq.NotFound):
        group.seek(0)


# Fork


def test_a_fork_is_where_the_group_is(topic, group, consumer, busy, clock):
    copy = group.fork("copy")
    assert copy.settings == group.settings
    stats = copy.stats()
    assert stats[2:9] == (7 - 1, 2, 2, 0, 2, 0, 1)  # what was leased is ready, or waits
    assert (stats.acked, stats.delivered, stats.failed) == (0, 0, 0)
    other = copy.consumer()
    found = other.get_many(10)
    assert bodies(found) == [b"5", b"2", b"4", b"6", b"7"]
    assert [message.attempt for message in found] == [2, 1, 1, 1, 1]
    clock.advance(100)
    assert sorted(ready(other)) == [b"1", b"2", b"4", b"5", b"6", b"7"]  # all leases ended
    [letter] = copy.dead()
    [original] = group.dead()
    assert letter == original


def test_a_fork_leaves_the_group_as_it_was(group, consumer, busy):
    before = group.stats()
    group.fork("copy")
    assert group.stats() == before
    for message in busy.values():
        message.ack()
    assert group.stats().acked == 3


def test_the_two_are_independent_from_then_on(topic, group, consumer, busy):
    copy = group.fork("copy")
    other = copy.consumer()
    other.ack_many(other.get_many(10))
    copy.redrive()
    other.get_nowait().ack()
    assert copy.stats().dead == 0
    assert group.stats().dead == 1
    group.seek("latest")
    assert copy.stats().waiting == 1
    copy.delete()
    assert group.stats().dead == 1


def test_a_fork_keeps_the_log_for_itself(topic, group, consumer):
    topic.put_many([b"a", b"b"])
    message = consumer.get_nowait()
    copy = group.fork("copy")
    message.ack()
    consumer.get_nowait().ack()
    topic.trim()
    assert ready(copy.consumer()) == [b"a", b"b"]


def test_a_fork_of_a_fork_and_of_a_paused_group(topic, group):
    topic.put(b"a")
    group.pause()
    copy = group.fork("copy").fork("another")
    assert not copy.stats().paused
    assert ready(copy.consumer()) == [b"a"]
    assert group.stats().paused


def test_a_fork_needs_a_free_name(store, topic, group):
    for name in "workers", "other":
        topic.group(name)
        with nothing_changes(store), pytest.raises(diskq.ConfigConflict, match=name):
            group.fork(name)
    for odd in "", "a b", "-a", "x" * (limits.MAX_NAME_BYTES + 1):
        with nothing_changes(store), pytest.raises(ValueError, match="name"):
            group.fork(odd)
    with pytest.raises(TypeError, match="name"):
        group.fork(5)
    assert store.topic("elsewhere").group("g").fork("other").name == "other"
    group.delete()
    with pytest.raises(diskq.NotFound):
        group.fork("new")


def test_a_fork_survives_reopening(open_store):
    with open_store(durability="process") as store:
        topic = store.topic("t")
        topic.put_many([b"a", b"b"])
        group = topic.group("g")
        group.consumer().get_nowait()
        group.fork("copy")
    topic = open_store().topic("t")
    assert ready(topic.group("copy").consumer()) == [b"a", b"b"]


# Pause


def test_a_paused_group_delivers_nothing_until_it_is_resumed(topic, group, consumer, clock):
    topic.put_many([b"a", b"b"])
    message = consumer.get_nowait()
    group.pause()
    group.pause()
    assert group.stats().paused
    with pytest.raises(diskq.Empty):
        consumer.get_nowait()
    clock.advance(100)
    assert ready(consumer) == []
    message.extend()
    message.nack()
    assert ready(consumer) == []
    group.resume()
    group.resume()
    assert not group.stats().paused
    assert ready(consumer) == [b"a", b"b"]


def test_a_pause_survives_reopening(open_store):
    with open_store(durability="process") as store:
        store.topic("t").put(b"a")
        store.topic("t").group("g").pause()
    group = open_store().topic("t").group("g")
    assert group.stats().paused
    assert ready(group.consumer()) == []
    group.resume()
    assert ready(group.consumer()) == [b"a"]


def test_a_resume_wakes_blocked_gets(topic, group):
    topic.put_many([b"a", b"b"])
    group.pause()
    found = []
    consumers = [group.consumer(name) for name in ("one", "two")]
    threads = [
        threading.Thread(target=lambda each=each: found.append(each.get(timeout=30)))
        for each in consumers
    ]
    for thread in threads:
        thread.start()
    while sum(each.waiting for each in topic.store.stats().consumers) < 2:
        time.sleep(0.001)
    group.resume()
    for thread in threads:
        thread.join(30)
    assert sorted(bodies(found)) == [b"a", b"b"]


def test_a_pause_is_of_no_account_to_other_groups(topic, group):
    topic.put(b"a")
    group.pause()
    assert ready(topic.group("other").consumer()) == [b"a"]


def test_a_group_that_is_gone_cannot_be_paused(group):
    group.delete()
    for call in group.pause, group.resume, group.pending, group.update:
        with pytest.raises(diskq.NotFound):
            call()


# Update


def test_settings_are_updated_one_by_one_and_survive_reopening(open_store):
    changes = {
        "lease_seconds": 2.5,
        "max_deliveries": 7,
        "backoff": diskq.Backoff(0.5, 3, 60),
        "max_in_flight": 11,
        "keep_expired": True,
    }
    with open_store(durability="process") as store:
        group = store.topic("t").group("g")
        for what, value in changes.items():
            assert getattr(group.update(**{what: value}), what) == value
        assert group.update() == group.settings == diskq.GroupSettings(**changes)
        group.update(max_in_flight=None)
    settings = open_store().topic("t").group("g").settings
    assert settings == diskq.GroupSettings(**{**changes, "max_in_flight": None})


def test_unknown_settings_and_none_are_refused(store, group):
    with nothing_changes(store), pytest.raises(TypeError, match="no setting 'colour'"):
        group.update(colour="red")
    for what in "lease_seconds", "max_deliveries", "backoff", "keep_expired", "ordering":
        with nothing_changes(store), pytest.raises(TypeError, match=what):
            group.update(**{what: None})
    with nothing_changes(store), pytest.raises(ValueError, match="max_deliveries"):
        group.update(lease_seconds=5, max_deliveries=0)
    for what, odd in {
        "lease_seconds": "5",
        "max_deliveries": 1.5,
        "backoff": (1, 2, 3),
        "max_in_flight": True,
        "keep_expired": 1,
    }.items():
        with nothing_changes(store), pytest.raises(TypeError, match=what):
            group.update(**{what: odd})


def test_another_lease_time_is_for_what_is_delivered_from_now_on(topic, group, consumer, clock):
    topic.put_many([b"a", b"b"])
    consumer.get_nowait()
    group.update(lease_seconds=1000)
    consumer.get_nowait()
    clock.advance(10)
    assert ready(consumer) == [b"a"]


def test_more_in_flight_wakes_a_blocked_get(topic, group, consumer):
    group.update(max_in_flight=1)
    topic.put_many([b"a", b"b"])
    consumer.get_nowait()
    found = []
    thread = threading.Thread(target=lambda: found.append(consumer.get(timeout=30)))
    thread.start()
    group.update(max_in_flight=None)
    thread.join(30)
    assert bodies(found) == [b"b"]


def test_fewer_in_flight_than_are_leased_delivers_nothing_until_they_are_done(
    topic, group, consumer
):
    topic.put_many([b"%d" % number for number in range(6)])
    messages = consumer.get_many(4)
    group.update(max_in_flight=2)
    for message in messages[:2]:
        message.ack()
        assert ready(consumer) == []
    messages[2].ack()
    assert ready(consumer) == [b"4"]


def test_fewer_deliveries_kill_at_the_next_failure(topic, group, consumer):
    topic.put(b"a")
    consumer.get_nowait().nack()
    group.update(max_deliveries=1)
    consumer.get_nowait().nack()
    assert bodies(group.dead()) == [b"a"]


# Pending


def test_pending_lists_what_is_leased_by_the_end_of_the_leases(topic, group, clock):
    topic.put_many([b"a", b"b", b"c"])
    one, two = group.consumer("one"), group.consumer("two")
    first, second = one.get_many(2)
    clock.advance(1)
    third = two.get_nowait()
    end = clock.monotonic + 9 * NS
    assert group.pending() == [
        (0, "one", first.token, end, 1),
        (1, "one", second.token, end, 1),
        (2, "two", third.token, end + NS, 1),
    ]
    first.extend(60)
    assert offsets(group.pending()) == [2, 0, 1]
    second.nack()
    third.ack()
    assert offsets(group.pending()) == [0]
    again = two.get_nowait()
    assert [(each.offset, each.attempt) for each in group.pending()] == [(1, 2), (0, 1)]
    again.release()
    first.reject()
    assert group.pending() == []


def test_pending_has_what_is_late_until_it_is_taken(topic, group, consumer, clock):
    topic.put(b"a")
    consumer.get_nowait()
    clock.advance(100)
    [late] = group.pending()
    assert late.deadline_ns < clock.monotonic


def test_pending_names_no_consumer_that_died(topic, group):
    topic.put(b"a")
    consumer = group.consumer("dying")
    assert consumer.get_nowait().body == b"a"
    del consumer
    gc.collect()
    assert [each.consumer for each in group.pending()] == [""]
