"""Scheduled messages: when they get their offset, in which order, and how they are cancelled."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from support.clock import NS
from support.stores import bodies, nothing_changes, offsets

import diskq
from diskq import Outgoing
from diskq.base import limits


def in_seconds(clock, seconds):
    """The datetime so many seconds from now."""
    return datetime.fromtimestamp(clock.wall // NS, UTC) + timedelta(seconds=seconds)


def ready(consumer):
    """The bodies of all that can be delivered now."""
    return bodies(consumer.get_many(10_000, timeout=0))


def test_a_delayed_message_has_no_offset_until_it_is_due(topic, consumer, clock):
    receipt = topic.put(b"later", delay_seconds=5)
    assert receipt.offset is None
    assert not receipt.duplicate
    assert receipt.schedule_id
    assert topic.stats()[1:4] == (0, 1, 0)  # put, scheduled, stored
    with pytest.raises(diskq.Empty):
        consumer.get_nowait()
    clock.advance(5)
    assert consumer.get_nowait().offset == 0
    assert topic.stats()[1:4] == (1, 0, 1)


def test_a_message_is_due_at_its_nanosecond_and_not_before(topic, consumer, clock):
    topic.put(b"", delay_seconds=1)
    clock.advance_ns(NS - 1)
    with pytest.raises(diskq.Empty):
        consumer.get_nowait()
    clock.advance_ns(1)
    consumer.get_nowait().ack()


def test_offsets_are_in_order_of_due_time_not_of_put(topic, consumer, clock):
    for seconds in 3, 1, 2, 1:
        topic.put(b"%d" % seconds, delay_seconds=seconds)
    clock.advance(3)
    messages = consumer.get_many(10, timeout=0)
    assert bodies(messages) == [b"1", b"1", b"2", b"3"]
    assert offsets(messages) == [0, 1, 2, 3]


def test_messages_due_at_the_same_time_keep_the_order_of_their_puts(topic, consumer, clock):
    at = in_seconds(clock, 60)
    topic.put_many([Outgoing(b"%d" % number, at=at) for number in range(20)])
    clock.advance(60)
    assert ready(consumer) == [b"%d" % number for number in range(20)]


def test_a_delay_never_holds_back_what_is_put_later(topic, consumer, clock):
    topic.put(b"later", delay_seconds=1000)
    topic.put(b"now")
    consumer.get_nowait().ack()
    assert ready(consumer) == []
    clock.advance(1000)
    assert ready(consumer) == [b"later"]


def test_a_put_behind_the_due_time_comes_behind_the_due_message(topic, consumer, clock):
    topic.put(b"scheduled", delay_seconds=1)
    clock.advance(2)
    assert topic.put(b"put").offset == 1
    assert ready(consumer) == [b"scheduled", b"put"]


def test_a_time_in_the_past_or_now_and_a_delay_of_0_are_put_at_once(topic, clock):
    receipts = [
        topic.put(b"", at=in_seconds(clock, -1000)),
        topic.put(b"", at=in_seconds(clock, 0)),
        topic.put(b"", at=datetime(1970, 1, 1, tzinfo=UTC)),
        topic.put(b"", delay_seconds=0),
    ]
    assert [receipt.offset for receipt in receipts] == [0, 1, 2, 3]
    assert topic.stats().scheduled == 0


def test_a_naive_datetime_is_local_time(topic, consumer, clock):
    local = in_seconds(clock, 10).astimezone().replace(tzinfo=None)
    topic.put(b"", at=local)
    clock.advance(9)
    assert ready(consumer) == []
    clock.advance(1)
    assert ready(consumer) == [b""]


def test_one_put_many_has_its_receipts_in_the_order_of_its_messages(topic, clock):
    receipts = topic.put_many(
        [b"a", Outgoing(b"b", delay_seconds=1), Outgoing(b"c", key="k"), Outgoing(b"d", at=None)]
    )
    assert [receipt.offset for receipt in receipts] == [0, None, 1, 2]
    assert [bool(receipt.schedule_id) for receipt in receipts] == [False, True, False, False]
    assert len({receipt.commit_id for receipt in receipts}) == 1


def test_key_headers_and_body_are_those_that_were_scheduled(topic, consumer, clock):
    topic.put(b"body", key="k", headers={"a": "b"}, delay_seconds=1)
    clock.advance(1)
    message = consumer.get_nowait()
    assert (message.body, message.key, message.headers) == (b"body", "k", {"a": "b"})
    assert message.put_at_ns == clock.wall


def test_scheduled_lists_what_is_to_come_in_order_of_time(store, clock):
    topic = store.topic("t", priorities=2)
    first = topic.put(b"2", delay_seconds=2, priority=1, key="k", headers={"a": "b"})
    second = topic.put(b"1", delay_seconds=1)
    one, two = topic.scheduled()
    assert one == (second.schedule_id, clock.wall + NS, b"1", None, {}, 0)
    assert two == (first.schedule_id, clock.wall + 2 * NS, b"2", "k", {"a": "b"}, 1)


def test_scheduled_lists_all_pages(topic):
    topic.put_many([Outgoing(b"%d" % number, delay_seconds=9) for number in range(250)])
    assert [int(each.body) for each in topic.scheduled()] == list(range(250))


def test_more_than_one_commit_promotes_are_delivered_in_order(topic, consumer, clock):
    count = 2 * limits.MAX_DUE_MESSAGES + 1
    topic.put_many([Outgoing(b"%d" % number, delay_seconds=1) for number in range(count)])
    clock.advance(1)
    found = []
    while messages := consumer.get_many(10_000, timeout=0):
        found += messages
        consumer.ack_many(messages)
    assert [int(message.body) for message in found] == list(range(count))
    assert topic.stats().scheduled == 0


def test_a_cancelled_message_never_comes(topic, consumer, clock):
    wanted = topic.put(b"", delay_seconds=1)
    topic.put(b"other", delay_seconds=1)
    topic.cancel(wanted.schedule_id)
    assert topic.stats().scheduled == 1
    clock.advance(1)
    assert ready(consumer) == [b"other"]


def test_what_is_not_scheduled_cannot_be_cancelled(store, topic, consumer, clock):
    cancelled = topic.put(b"", delay_seconds=1).schedule_id
    topic.cancel(cancelled)
    fallen_due = topic.put(b"", delay_seconds=1).schedule_id
    clock.advance(1)
    consumer.get_nowait()
    elsewhere = store.topic("other").put(b"", delay_seconds=1).schedule_id
    wrong = ["", "-", "1", "1-", "-1", "a-b", "1-2-3", f"{2**64}-0", f"0-{2**64}", "-1-0", "0--1"]
    for schedule_id in [cancelled, fallen_due, elsewhere, *wrong]:
        with nothing_changes(store), pytest.raises(diskq.NotFound):
            topic.cancel(schedule_id)
    for odd in 5, None, b"1-2":
        with pytest.raises(TypeError):
            topic.cancel(odd)


def test_a_receipt_is_no_schedule_id_and_the_error_says_which_it_has(store, topic):
    receipt = topic.put(b"", delay_seconds=60)
    with nothing_changes(store), pytest.raises(TypeError, match=r"pass receipt\.schedule_id"):
        topic.cancel(receipt)
    topic.cancel(receipt.schedule_id)


def test_what_is_due_but_not_taken_note_of_can_still_be_cancelled(topic, consumer, clock):
    schedule_id = topic.put(b"", delay_seconds=1).schedule_id
    clock.advance(5)
    assert [each.schedule_id for each in topic.scheduled()] == [schedule_id]
    topic.cancel(schedule_id)
    assert ready(consumer) == []


def test_a_message_may_be_scheduled_again_after_it_was_cancelled(topic, consumer, clock):
    first = topic.put(b"x", delay_seconds=1)
    topic.cancel(first.schedule_id)
    second = topic.put(b"x", delay_seconds=1)
    assert second.schedule_id != first.schedule_id
    clock.advance(1)
    assert ready(consumer) == [b"x"]


def test_the_schedule_survives_reopening_and_a_reboot(open_store, clock):
    with open_store(durability="process") as store:
        store.topic("t").put(b"x", delay_seconds=60)
    clock.advance(30)
    clock.reboot()
    store = open_store()
    topic = store.topic("t")
    assert topic.stats().scheduled == 1
    consumer = topic.group("g").consumer()
    assert ready(consumer) == []
    clock.advance(30)
    assert ready(consumer) == [b"x"]


def test_a_group_that_starts_at_the_latest_gets_what_falls_due(topic, clock):
    topic.put(b"scheduled", delay_seconds=1)
    consumer = topic.group("g", start="latest").consumer()
    clock.advance(1)
    assert ready(consumer) == [b"scheduled"]


def test_a_deleted_topic_takes_its_schedule_with_it(store):
    topic = store.topic("t")
    topic.put(b"", delay_seconds=1)
    store.delete_topic("t")
    with pytest.raises(diskq.NotFound):
        list(topic.scheduled())
    assert store.topic("t").stats().scheduled == 0
    assert list(store.topic("t").scheduled()) == []


def test_delays_of_many_topics_are_kept_apart(store, clock):
    one, two = store.topic("one"), store.topic("two")
    one.put(b"1", delay_seconds=1)
    two.put(b"2", delay_seconds=1)
    clock.advance(1)
    assert ready(one.group("g").consumer()) == [b"1"]
    assert two.stats().scheduled == 1
    assert ready(two.group("g").consumer()) == [b"2"]


def test_delays_have_bounds(store, topic):
    topic.put(b"", delay_seconds=limits.MAX_DELAY_SECONDS)
    topic.put(b"", delay_seconds=0)
    for seconds in -1, -0.001, limits.MAX_DELAY_SECONDS + 1, float("inf"), float("nan"):
        with nothing_changes(store), pytest.raises(ValueError, match="delay_seconds"):
            topic.put(b"", delay_seconds=seconds)
    for seconds in "1", b"1", True, timedelta(seconds=1):
        with nothing_changes(store), pytest.raises(TypeError, match="delay_seconds"):
            topic.put(b"", delay_seconds=seconds)


def test_times_have_bounds(store, topic):
    topic.put(b"", at=datetime(2261, 12, 31, tzinfo=UTC))
    for when in datetime(1969, 12, 31, tzinfo=UTC), datetime(2263, 1, 1, tzinfo=UTC):
        with nothing_changes(store), pytest.raises(ValueError, match="at must be"):
            topic.put(b"", at=when)
    for when in datetime.min, datetime.max:
        with pytest.raises(ValueError, match="at must be"):
            topic.put(b"", at=when)
    for when in 5, 5.0, "2030-01-01", datetime(2030, 1, 1).date():
        with nothing_changes(store), pytest.raises(TypeError, match="at must be"):
            topic.put(b"", at=when)
    with pytest.raises(ValueError, match="not both"):
        topic.put(b"", at=datetime(2030, 1, 1), delay_seconds=1)


def test_a_bad_message_in_a_put_many_schedules_none_of_them(store, topic):
    with nothing_changes(store), pytest.raises(ValueError, match="priority"):
        topic.put_many([Outgoing(b"", delay_seconds=1), Outgoing(b"", priority=1)])


def test_a_blocked_get_wakes_when_a_message_falls_due(tmp_path):
    with diskq.open(tmp_path / "store", durability="process") as store:
        topic = store.topic("t")
        topic.put(b"before", delay_seconds=0.3)
        consumer = topic.group("g").consumer()
        assert consumer.get(timeout=30).body == b"before"
        found = []
        thread = threading.Thread(target=lambda: found.append(consumer.get(timeout=30)))
        thread.start()
        topic.put(b"while it is blocked", delay_seconds=0.2)
        thread.join(30)
        assert bodies(found) == [b"while it is blocked"]


def test_a_step_back_of_the_clock_delays_no_more_than_the_step(topic, consumer, clock):
    topic.put(b"", delay_seconds=10)
    clock.step_wall(-60)
    clock.advance(69)
    assert ready(consumer) == []
    clock.advance(1)
    assert ready(consumer) == [b""]


def test_a_delay_begins_now_though_the_clock_was_set_back_since_the_last_put(
    topic, consumer, clock
):
    topic.put(b"")
    clock.step_wall(-3600)
    topic.put(b"later", delay_seconds=10)
    clock.advance(10)
    assert ready(consumer) == [b"", b"later"]


def test_a_time_to_come_is_scheduled_though_the_clock_was_set_back_since_the_last_put(topic, clock):
    topic.put(b"")
    clock.step_wall(-3600)
    assert topic.put(b"", at=in_seconds(clock, 60)).schedule_id
