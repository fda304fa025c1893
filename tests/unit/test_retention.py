"""Retention: what bounds take, what a full topic does to puts, and what makes room again."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest
from support.clock import NS
from support.stores import bodies, nothing_changes

import diskq
from diskq import Outgoing
from diskq.base import limits

NEW = {"max_messages": 3}
OLD = {"max_messages": 3, "discard": "old"}
LIMITS = {"max_messages": 3, "retention": "limits"}


def put_each(topic, *names):
    """Put each in a segment of its own."""
    for name in names:
        topic.put(name)


def ready(consumer):
    """The bodies of all that can be delivered now."""
    return bodies(consumer.get_many(10_000, timeout=0))


class Blocked:
    """A put in a thread, blocked until there is room."""

    def __init__(self, topic, body=b"blocked", timeout=30):
        self.result = None
        self.topic, self.body, self.timeout = topic, body, timeout
        self.thread = threading.Thread(target=self._put)
        self.thread.start()
        while self.thread.is_alive() and not topic.store.handle.engine.slots.watched(topic.id):
            self.thread.join(0.001)

    def _put(self):
        try:
            self.result = self.topic.put(self.body, timeout=self.timeout)
        except diskq.DiskqError as error:
            self.result = error

    def ends(self):
        """What the put returned or raised."""
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.result


# What goes


@pytest.mark.parametrize("settings", [OLD, LIMITS])
def test_the_oldest_go_when_there_are_too_many(store, settings):
    topic = store.topic("t", **settings)
    group = topic.group("g")
    put_each(topic, b"a", b"b", b"c")
    assert topic.stats().dropped == 0
    put_each(topic, b"d", b"e")
    assert bodies(topic.read()) == [b"c", b"d", b"e"]
    assert (topic.stats().dropped, group.stats().dropped, group.stats().unread) == (2, 2, 3)
    assert ready(group.consumer()) == [b"c", b"d", b"e"]


def test_limits_keep_what_every_group_has_passed(store):
    topic = store.topic("t", **LIMITS)
    group = topic.group("g")
    put_each(topic, b"a", b"b")
    consumer = group.consumer()
    consumer.ack_many(consumer.get_many(2))
    assert topic.trim() == 0
    assert ready(topic.group("later").consumer()) == [b"a", b"b"]


def test_interest_drops_what_was_passed_before_it_drops_what_was_not(store):
    topic = store.topic("t", **OLD)
    group = topic.group("g")
    put_each(topic, b"a", b"b", b"c")
    group.consumer().get_nowait().ack()
    topic.put(b"d")
    assert (topic.stats().dropped, group.stats().dropped) == (0, 0)
    topic.put(b"e")
    assert (topic.stats().dropped, group.stats().dropped) == (1, 1)


def test_groups_at_different_places_each_count_what_they_lost(store):
    topic = store.topic("t", **LIMITS)
    ahead, behind, late = (topic.group(name) for name in ("ahead", "behind", "late"))
    put_each(topic, b"a", b"b", b"c")
    consumer = ahead.consumer()
    consumer.ack_many(consumer.get_many(3))
    behind.consumer().get_nowait().ack()
    put_each(topic, b"d", b"e", b"f")
    dropped = [group.stats().dropped for group in (ahead, behind, late)]
    assert dropped == [0, 2, 3]
    assert topic.stats().dropped == 3


def test_a_leased_message_that_is_dropped_is_lost_to_its_holder(store):
    topic = store.topic("t", **LIMITS)
    group = topic.group("g")
    put_each(topic, b"a", b"b", b"c")
    consumer = group.consumer()
    one, two = consumer.get_many(2)
    topic.put(b"d")
    for settle in one.ack, one.nack, one.release, one.reject, one.extend:
        with nothing_changes(store), pytest.raises(diskq.LeaseLost):
            settle()
    two.ack()
    assert (group.stats().acked, group.stats().dropped, group.stats().leased) == (1, 1, 0)


def test_ready_messages_are_dropped_and_waiting_and_dead_ones_are_not(store):
    topic = store.topic("t", **LIMITS)
    group = topic.group("g", backoff=diskq.Backoff(0))
    put_each(topic, b"a", b"b", b"c")
    consumer = group.consumer()
    one, two, three = consumer.get_many(3)
    one.release()
    two.nack()
    three.reject()
    put_each(topic, b"d", b"e", b"f")
    assert group.stats().dropped == 1
    assert ready(consumer) == [b"b", b"d", b"e", b"f"]
    assert bodies(group.dead()) == [b"c"]


def test_a_dropped_holder_of_a_key_lets_the_parked_one_go(store):
    topic = store.topic("t", **LIMITS)
    group = topic.group("g", ordering="key")
    for name in b"a", b"b", b"c":
        topic.put(name, key="k")
    consumer = group.consumer()
    lost = consumer.get_nowait()
    assert ready(consumer) == []
    topic.put(b"d")
    with pytest.raises(diskq.LeaseLost):
        lost.ack()
    assert sorted(ready(consumer)) == [b"b", b"d"]


def test_only_as_many_segments_go_as_must(store):
    topic = store.topic("t", max_messages=100, retention="limits")
    topic.put_many([b"a"] * 90)
    put_each(topic, *[b"b"] * 10)
    topic.put_many([b"c"] * 50)
    assert (topic.stats().stored, topic.stats().dropped) == (60, 90)


def test_the_oldest_bytes_go(store):
    topic = store.topic("t", max_bytes=10_000, retention="limits")
    put_each(topic, *[b"%d" % number * 3000 for number in range(5)])
    assert [body[:1] for body in bodies(topic.read())] == [b"2", b"3", b"4"]
    assert topic.stats().bytes <= 10_000


def test_age_takes_messages_to_the_nanosecond(store, clock):
    topic = store.topic("t", max_age_seconds=10)
    group = topic.group("g")
    topic.put(b"a")
    clock.advance_ns(NS)
    topic.put(b"b")
    clock.advance_ns(9 * NS - 1)
    assert topic.trim() == 0
    clock.advance_ns(1)
    assert topic.trim() == 1
    assert ready(group.consumer()) == [b"b"]
    assert (group.stats().dropped, topic.stats().dropped) == (1, 1)


def test_what_is_too_old_is_not_delivered_though_nobody_trimmed(store, clock):
    topic = store.topic("t", max_age_seconds=10)
    group = topic.group("g")
    put_each(topic, b"a", b"b")
    consumer = group.consumer()
    consumer.get_nowait().release()
    clock.advance(10)
    assert ready(consumer) == []
    assert (group.stats().dropped, group.stats().ready, group.stats().unread) == (2, 0, 0)
    topic.trim()
    assert (topic.stats().stored, topic.stats().dropped, group.stats().dropped) == (0, 2, 2)


def test_a_put_takes_what_is_too_old(store, clock):
    topic = store.topic("t", max_age_seconds=10)
    topic.put(b"a")
    clock.advance(10)
    topic.put(b"b")
    assert bodies(topic.read()) == [b"b"]


def test_a_leased_message_that_grew_too_old_is_lost_when_it_is_trimmed(store, clock):
    topic = store.topic("t", max_age_seconds=10)
    consumer = topic.group("g", lease_seconds=100).consumer()
    topic.put(b"a")
    message = consumer.get_nowait()
    clock.advance(10)
    topic.trim()
    with pytest.raises(diskq.LeaseLost):
        message.ack()


def test_a_waiting_message_has_no_age(store, clock):
    topic = store.topic("t", max_age_seconds=10)
    group = topic.group("g", backoff=diskq.Backoff(100))
    topic.put(b"a")
    consumer = group.consumer()
    consumer.get_nowait().nack()
    clock.advance(100)
    topic.trim()
    assert ready(consumer) == [b"a"]


def test_all_bounds_together(store, clock):
    topic = store.topic(
        "t", max_age_seconds=100, max_bytes=50_000, max_messages=4, retention="limits"
    )
    group = topic.group("g")
    put_each(topic, *[b"a"] * 5)
    assert topic.stats().stored == 4
    put_each(topic, *[bytes(20_000)] * 2)
    assert topic.stats().stored == 4
    topic.put(bytes(20_000))
    assert topic.stats().bytes <= 50_000
    clock.advance(100)
    topic.trim()
    assert topic.stats().stored == 0
    assert (topic.stats().dropped, group.stats().dropped, group.stats().lag) == (8, 8, 0)


def test_a_topic_without_groups_obeys_its_bounds(store):
    topic = store.topic("t", **OLD)
    put_each(topic, b"a", b"b", b"c", b"d")
    assert bodies(topic.read()) == [b"b", b"c", b"d"]
    assert ready(topic.group("g").consumer()) == [b"b", b"c", b"d"]


def test_trim_obeys_bounds_that_were_lowered(store):
    topic = store.topic("t", max_messages=5, retention="limits")
    put_each(topic, *[b"%d" % number for number in range(5)])
    topic.update(max_messages=2)
    assert topic.trim() == 3
    assert bodies(topic.read()) == [b"3", b"4"]
    topic.update(max_messages=None)
    put_each(topic, *[b""] * 10)
    assert topic.stats().stored == 12


# A full topic


def test_a_full_topic_refuses_puts_and_changes_nothing(store):
    topic = store.topic("t", **NEW)
    topic.group("g")
    topic.put_many([b""] * 2)
    for put in (
        lambda: topic.put_many([b""] * 2, block=False),
        lambda: topic.put_many([b""] * 2, timeout=0),
        lambda: topic.put_many([Outgoing(b"", delay_seconds=1), b"", b""], block=False),
        lambda: topic.put_many([b""] * 2, timeout=0.01),
    ):
        with nothing_changes(store), pytest.raises(diskq.Full, match="topic 't' is full") as full:
            put()
        assert full.value.topic == "t"
    topic.put(b"", block=False)


def test_scheduled_messages_count_from_when_they_are_due(store, clock):
    topic = store.topic("t", **NEW)
    topic.put_many([Outgoing(b"", delay_seconds=1)] * 5)
    topic.put_many([b"now"] * 3, block=False)
    topic.put(b"", delay_seconds=1, block=False)
    with pytest.raises(diskq.Full):
        topic.put(b"", block=False)
    clock.advance(1)
    with pytest.raises(diskq.Full):
        topic.put(b"", block=False)
    assert len(ready(topic.group("g").consumer())) == 9


def test_what_never_fits_is_refused_at_once(store):
    few = store.topic("few", max_messages=3)
    few.put_many([b""] * 3)
    few.purge()
    with nothing_changes(store), pytest.raises(diskq.MessageTooLarge) as error:
        few.put_many([b""] * 4)
    assert (error.value.size, error.value.limit) == (4, 3)
    small = store.topic("small", max_bytes=5000, discard="old")
    small.put(bytes(4000))
    with nothing_changes(store), pytest.raises(diskq.MessageTooLarge) as error:
        small.put(bytes(5001))
    assert error.value.limit == 5000
    small.put(bytes(4000))


@pytest.mark.parametrize("body", [b"", b"x" * 4000])
def test_an_ack_makes_room_for_a_blocked_put(store, body):
    topic = store.topic("t", **NEW, max_bytes=20_000)
    consumer = topic.group("g").consumer()
    put_each(topic, body, body, body)
    blocked = Blocked(topic)
    message = consumer.get_nowait()
    assert blocked.result is None
    message.ack()
    assert blocked.ends().offset == 3


def test_one_ack_makes_room_for_one_of_several_blocked_puts(store):
    topic = store.topic("t", **NEW)
    consumer = topic.group("g").consumer()
    put_each(topic, b"", b"", b"")
    blocked = [Blocked(topic) for _ in range(3)]
    for count in 1, 2, 3:
        consumer.get_nowait().ack()
        while sum(each.result is not None for each in blocked) < count:
            blocked[0].thread.join(0.001)
    assert sorted(each.ends().offset for each in blocked) == [3, 4, 5]
    assert topic.stats().stored == 3


def test_a_reject_and_a_nack_make_room(store):
    topic = store.topic("t", **NEW)
    consumer = topic.group("g").consumer()
    put_each(topic, b"", b"", b"")
    blocked = Blocked(topic)
    consumer.get_nowait().nack(delay_seconds=100)
    assert blocked.ends().offset == 3
    blocked = Blocked(topic)
    consumer.get_nowait().reject()
    assert blocked.ends().offset == 4


def test_a_seek_makes_room(store):
    topic = store.topic("t", **NEW)
    group = topic.group("g")
    put_each(topic, b"", b"", b"")
    blocked = Blocked(topic)
    group.seek("latest")
    assert blocked.ends().offset == 3


def test_the_end_of_the_slowest_group_makes_room(store):
    topic = store.topic("t", **NEW)
    fast, slow = topic.group("fast").consumer(), topic.group("slow")
    put_each(topic, b"", b"", b"")
    fast.ack_many(fast.get_many(3))
    blocked = Blocked(topic)
    assert blocked.result is None
    slow.delete()
    assert blocked.ends().offset == 3


def test_a_purge_makes_room(store):
    topic = store.topic("t", **NEW)
    put_each(topic, b"", b"", b"")
    blocked = Blocked(topic)
    assert topic.purge(before=1) == 1
    assert blocked.ends().offset == 3


@pytest.mark.parametrize(
    "changes", [{"max_messages": 4}, {"max_messages": None}, {"discard": "old"}]
)
def test_other_bounds_make_room(store, changes):
    topic = store.topic("t", **NEW)
    put_each(topic, b"", b"", b"")
    blocked = Blocked(topic)
    topic.update(**changes)
    assert blocked.ends().offset == 3


def test_a_cancelled_schedule_makes_room(store):
    topic = store.topic("t", **NEW)
    receipts = topic.put_many([Outgoing(b"", delay_seconds=1000)] * 3)
    blocked = Blocked(topic)
    topic.cancel(receipts[1].schedule_id)
    assert blocked.ends().offset == 0


def test_a_commit_of_a_transaction_makes_room(store):
    topic = store.topic("t", **NEW)
    consumer = topic.group("g").consumer()
    put_each(topic, b"", b"", b"")
    blocked = Blocked(topic)
    with store.transaction() as transaction:
        transaction.ack(consumer.get_nowait())
    assert blocked.ends().offset == 3


def test_a_blocked_put_ends_with_full_after_its_timeout(store):
    topic = store.topic("t", **NEW)
    put_each(topic, b"", b"", b"")
    assert isinstance(Blocked(topic, timeout=0.05).ends(), diskq.Full)


def test_a_blocked_put_ends_when_its_topic_is_deleted(store):
    topic = store.topic("t", **NEW)
    put_each(topic, b"", b"", b"")
    blocked = Blocked(topic)
    store.delete_topic("t")
    assert isinstance(blocked.ends(), diskq.NotFound)


def test_a_timeout_is_a_number_of_seconds(store, topic):
    for odd in -1, float("nan"):
        with nothing_changes(store), pytest.raises(ValueError, match="timeout"):
            topic.put(b"", timeout=odd)
    for odd in "1", True:
        with nothing_changes(store), pytest.raises(TypeError, match="timeout"):
            topic.put(b"", timeout=odd)


def test_a_full_store_drops_the_oldest_of_the_topic_that_wants_it(open_store):
    store = open_store(durability="process", max_bytes=limits.MIN_STORE_BYTES)
    other = store.topic("other")
    other.put(b"kept")
    topic = store.topic("t", discard="old")
    group = topic.group("g")
    count = 300
    for number in range(count):
        topic.put(b"%d " % number + bytes(30_000))
    stats = topic.stats()
    assert 0 < stats.stored < count
    assert stats.dropped == count - stats.stored == group.stats().dropped
    last = next(topic.read(reverse=True, limit=1))
    assert last.body.startswith(b"%d " % (count - 1))
    assert bodies(other.read()) == [b"kept"]
    first = group.consumer().get_nowait()
    assert first.offset == stats.dropped


def test_a_full_store_refuses_a_put_at_once_whatever_the_timeout(open_store):
    store = open_store(durability="process", max_bytes=limits.MIN_STORE_BYTES)
    topic = store.topic("t")

    def fill():
        while True:
            topic.put(bytes(30_000), timeout=1000)

    with pytest.raises(diskq.Full):
        fill()
    assert topic.purge() > 50


def test_settings_have_bounds(store):
    bounds = {
        "max_messages": (1, limits.MAX_TOPIC_MESSAGES, 1),
        "max_bytes": (limits.PAGE_BYTES, limits.TIB, 1),
        "max_age_seconds": (limits.MIN_AGE_SECONDS, limits.MAX_DELAY_SECONDS, 0.0005),
    }
    for what, (least, most, step) in bounds.items():
        for number, value in enumerate([least, most]):
            name = f"{what}-{number}"
            assert getattr(store.topic(name, **{what: value}).settings, what) == value
        for value in least - step, most + 1, -1:
            with nothing_changes(store), pytest.raises(ValueError, match=what):
                store.topic("odd", **{what: value})
        for value in "5", True, [5]:
            with nothing_changes(store), pytest.raises(TypeError, match=what):
                store.topic("odd", **{what: value})
    for what in "retention", "discard":
        with nothing_changes(store), pytest.raises(ValueError, match=what):
            store.topic("odd", **{what: "some"})


def test_settings_are_updated_one_by_one_and_survive_reopening(open_store):
    with open_store(durability="process") as store:
        topic = store.topic("t")
        for what, value in {
            "retention": "limits",
            "max_age_seconds": 60.0,
            "max_bytes": 5000,
            "max_messages": 7,
            "discard": "old",
        }.items():
            assert getattr(topic.update(**{what: value}), what) == value
        topic.update(max_bytes=None)
    settings = open_store().topic("t").settings
    assert settings == diskq.TopicSettings("limits", 60.0, None, 7, "old")


def test_an_update_of_nothing_changes_nothing_but_returns_all(topic):
    assert topic.update() == topic.settings == diskq.TopicSettings()


def test_unknown_settings_and_none_are_refused(store, topic):
    with nothing_changes(store), pytest.raises(TypeError, match="no setting 'colour'"):
        topic.update(colour="red")
    with nothing_changes(store), pytest.raises(TypeError, match="no setting 'colour'"):
        topic.update(colour=None)
    with nothing_changes(store), pytest.raises(TypeError, match="no setting 'colour'"):
        store.topic("new", colour="red")
    for what in "retention", "discard", "priorities":
        with nothing_changes(store), pytest.raises(TypeError, match=what):
            topic.update(**{what: None})
    with nothing_changes(store), pytest.raises(ValueError, match="max_messages"):
        topic.update(max_messages=0, max_bytes=5000)


def test_an_update_of_a_deleted_topic_is_refused(store, topic):
    store.delete_topic("mail")
    with pytest.raises(diskq.NotFound):
        topic.update(max_messages=1)


def test_what_a_put_was_allowed_to_store_is_not_dropped_by_the_next_trim(store):
    topic = store.topic("t", max_bytes=4096, retention="limits")
    for size in range(4040, 4100):
        topic.purge()
        with suppress(diskq.MessageTooLarge):
            topic.put(bytes(size))
            topic.trim()
            assert topic.stats().stored == 1
