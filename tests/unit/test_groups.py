"""Groups: where they start, their settings, their dead letters, and how they end."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from support.clock import NS
from support.stores import bodies, dump, nothing_changes, offsets

import diskq
from diskq.base import limits
from diskq.operate import deletion


def taken(group):
    """All offsets the group can deliver now."""
    with group.consumer() as consumer:
        return offsets(consumer.get_many(1000, timeout=0))


def test_a_new_group_starts_at_the_earliest_message_unless_told_otherwise(topic):
    topic.put_many([b""] * 4)
    assert taken(topic.group("default")) == [0, 1, 2, 3]
    assert taken(topic.group("earliest", start="earliest")) == [0, 1, 2, 3]
    assert taken(topic.group("at", start=2)) == [2, 3]
    latest = topic.group("latest", start="latest")
    assert taken(latest) == []
    topic.put(b"")
    assert taken(latest) == [4]


def test_a_start_below_the_log_is_its_begin_and_one_beyond_its_end_is_refused(store, topic):
    for _ in range(3):
        topic.put(b"")
    first = topic.group("first").consumer()
    first.get_nowait().ack()
    first.close()  # the first segment has gone
    assert topic.stats().stored == 2
    assert taken(topic.group("gone", start=0)) == [1, 2]
    end = topic.group("end", start=3)
    assert taken(end) == []
    text = "offset 4 is beyond the end of topic 'mail', which is 3"
    with nothing_changes(store), pytest.raises(ValueError, match=text):
        topic.group("beyond", start=4)
    topic.put(b"")
    assert taken(end) == [3]


def test_a_start_in_time_takes_what_was_put_then_or_later(topic, clock):
    times = []
    for _ in range(3):
        topic.put(b"")
        times.append(datetime.fromtimestamp(clock.wall // NS, UTC))
        clock.advance(60)
    starts = {
        "exact": times[1],
        "before": times[0].replace(year=1980),
        "after": times[0].replace(year=2090),
    }
    groups = [topic.group(name, start=start) for name, start in starts.items()]
    assert [taken(group) for group in groups] == [[1, 2], [0, 1, 2], []]


def test_a_start_in_time_is_exact_to_the_microsecond(topic, clock):
    for step in range(50):
        clock.wall = 1_700_000_000 * NS + step * NS + step * 7_001_000
        topic.put(b"")
    start = 1_700_000_000 * NS
    for step in range(50):
        exact = start + step * NS + step * 7_001_000
        when = datetime.fromtimestamp(exact // NS, UTC).replace(microsecond=exact % NS // 1000)
        group = topic.group(f"g{step}", start=when)
        assert group.stats().unread == 50 - step


def test_start_is_of_no_account_for_a_group_that_exists(topic):
    topic.put_many([b""] * 3)
    topic.group("g", start=1)
    assert taken(topic.group("g", start="latest")) == [1, 2]


def test_settings_are_stored_and_survive_reopening(open_store):
    settings = {
        "lease_seconds": 2.5,
        "max_deliveries": 7,
        "backoff": diskq.Backoff(0.5, 3, 60),
        "max_in_flight": 11,
    }
    with open_store() as store:
        group = store.topic("t").group("g", **settings)
        assert group.settings == diskq.GroupSettings(**settings)
        assert store.topic("t").group("h").settings == diskq.GroupSettings()
    group = open_store().topic("t").group("g")
    assert group.settings == diskq.GroupSettings(**settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lease_seconds", 31),
        ("max_deliveries", 6),
        ("backoff", diskq.Backoff(1, 2, 299)),
        ("max_in_flight", 1),
    ],
)
def test_other_settings_than_the_stored_ones_are_refused(store, topic, name, value):
    topic.group("g")
    with nothing_changes(store), pytest.raises(diskq.ConfigConflict, match=name):
        topic.group("g", **{name: value})
    topic.group("other", **{name: value})
    topic.group("other", **{name: value})
    topic.group("other")


def test_the_stored_settings_may_be_said_again(topic):
    topic.group("g")
    topic.group(
        "g", lease_seconds=30, max_deliveries=5, backoff=diskq.Backoff(1, 2, 300), start="latest"
    )


def test_groups_and_topics_are_listed_by_name(store):
    for name in "b", "a.c", "a":
        store.topic(name).group("z")
        store.topic(name).group("y")
    assert [topic.name for topic in store.topics()] == ["a", "a.c", "b"]
    assert [group.name for group in store.topic("a").groups()] == ["y", "z"]


def test_groups_of_topics_whose_names_begin_alike_are_kept_apart(store):
    store.topic("a").group("g")
    store.topic("ab").group("h")
    assert [group.name for group in store.topic("a").groups()] == ["g"]
    assert store.topic("a").id != store.topic("ab").id


# Segments go, and stay


def test_a_segment_goes_when_every_group_has_passed_it(topic):
    one, two = topic.group("one"), topic.group("two")
    topic.put_many([b"a", b"b"])
    topic.put(b"c")
    for group in one, two:
        assert topic.stats().stored == 3
        with group.consumer() as consumer:
            consumer.ack_many(consumer.get_many(2, timeout=0))
    assert (topic.stats().stored, topic.stats().segments) == (1, 1)
    assert offsets(topic.read()) == [2]
    assert topic.stats().put == 3


def test_a_segment_stays_while_a_group_holds_one_of_its_messages(topic, group):
    topic.put_many([b"a", b"b", b"c"])
    consumer, other = group.consumer(), group.consumer()
    first = consumer.get_nowait()
    other.ack_many(other.get_many(2, timeout=0))
    other.close()
    assert topic.stats().stored == 3
    first.release()
    consumer.close()
    assert topic.stats().stored == 3
    with group.consumer() as last:
        last.get_nowait().ack()
    assert topic.stats().stored == 0


def test_what_waits_or_is_dead_does_not_keep_its_segment(topic, group):
    topic.put_many([b"a", b"b"])
    with group.consumer() as consumer:
        first, second = consumer.get_many(2, timeout=0)
        first.nack(delay_seconds=60)
        second.reject()
    assert topic.stats().stored == 0
    assert [letter.body for letter in group.dead()] == [b"b"]


def test_without_a_group_everything_stays(topic):
    topic.put_many([b"a", b"b"])
    assert topic.stats().stored == 2


def test_segments_go_while_a_consumer_works_on_and_on(topic, group, consumer):
    count = 5 * limits.TRIM_MESSAGES
    for _ in range(count):
        topic.put(b"")
    for number, _ in enumerate(consumer, 1):
        if number == count:
            break
    assert topic.stats().stored <= 2 * limits.TRIM_MESSAGES


def test_segments_of_large_messages_go_sooner(topic, group, consumer):
    for _ in range(8):
        topic.put(bytes(limits.TRIM_BYTES // 2))
    for number, _ in enumerate(consumer, 1):
        if number == 8:
            break
    assert topic.stats().stored <= 4


# Dead letters


def kill(group, *wanted):
    """Make dead letters of these offsets."""
    with group.consumer("killer") as consumer:
        for message in consumer.get_many(1000, timeout=0):
            message.reject(f"error {message.offset}") if message.offset in wanted else message.ack()


def test_dead_letters_are_listed_by_offset_from_where_one_likes(topic, group):
    topic.put_many([b"%d" % number for number in range(300)])
    kill(group, *range(0, 300, 2))
    assert offsets(group.dead()) == list(range(0, 300, 2))
    assert offsets(group.dead(start=201)) == list(range(202, 300, 2))
    assert [letter.error for letter in group.dead(start=298)] == ["error 298"]


def test_redriven_messages_have_all_deliveries_anew_and_keep_their_history(topic, group, clock):
    topic.put(b"a")
    consumer = group.consumer("ca")
    for _ in range(3):
        consumer.get_nowait().nack(error="old")
    clock.advance(5)
    assert group.redrive() == 1
    assert (group.stats().dead, group.stats().waiting, group.stats().lag) == (0, 1, 1)
    for attempt in 1, 2, 3:
        message = consumer.get_nowait()
        assert (message.attempt, message.body) == (attempt, b"a")
        message.nack(error="new")
    (letter,) = group.dead()
    assert letter.failures == 3
    causes = ["nack"] * 3 + ["redriven"] + ["nack"] * 3
    assert [entry.cause for entry in letter.history] == causes
    assert letter.error == "new"


def test_a_redriven_message_comes_before_unread_ones_and_can_be_acked(topic, group):
    topic.put_many([b"a", b"b"])
    consumer = group.consumer()
    consumer.get_nowait().reject()
    group.redrive()
    message = consumer.get_nowait()
    assert message.body == b"a"
    message.ack()
    assert (group.stats().dead, group.stats().lag) == (0, 1)


def test_redrive_takes_the_first_by_offset_up_to_a_limit(topic, group):
    topic.put_many([b""] * 6)
    kill(group, 1, 3, 5)
    assert group.redrive(limit=0) == 0
    assert group.redrive(limit=2) == 2
    assert offsets(group.dead()) == [5]
    assert group.redrive(limit=9) == 1
    assert group.redrive() == 0
    assert taken(group) == [1, 3, 5]


def test_redrive_takes_the_offsets_it_is_given(topic, group):
    topic.put_many([b""] * 6)
    kill(group, 1, 3, 5)
    assert group.redrive(offsets=[5, 1]) == 2
    assert offsets(group.dead()) == [3]
    assert group.redrive(offsets=[]) == 0


def test_redrive_with_an_unknown_offset_changes_nothing(store, topic, group):
    topic.put_many([b""] * 6)
    kill(group, 1, 3)
    for wrong in [1, 2], [1, 99], [1, 1], [0]:
        with nothing_changes(store), pytest.raises(diskq.NotFound) as missing:
            group.redrive(offsets=wrong)
        assert missing.value.offset == wrong[-1]


def test_redrive_works_through_more_than_one_commit(topic, group, monkeypatch):
    monkeypatch.setattr(limits, "MAX_REDRIVE_MESSAGES", 7)
    topic.put_many([b""] * 50)
    kill(group, *range(50))
    assert group.redrive(limit=20) == 20
    assert group.redrive() == 30
    assert group.stats().waiting == 50


def test_a_dead_letter_keeps_its_body_after_its_segment_went(topic, group):
    topic.put(b"a", key="k")
    kill(group, 0)
    assert topic.stats().stored == 0
    group.redrive()
    with group.consumer() as consumer:
        message = consumer.get_nowait()
    assert (message.body, message.key, message.offset) == (b"a", "k", 0)


# Deletion


def rows_of(store, prefix):
    return [key for key in dump(store)["state"] if key[:1] in prefix]


def test_a_deleted_group_leaves_nothing_behind(store, topic, group):
    topic.put_many([b""] * 6)
    other = topic.group("other")
    kill(group, 1)
    topic.put_many([b""] * 3)
    consumer = group.consumer()
    consumer.get_nowait().nack(delay_seconds=60)
    consumer.get_nowait()
    group.delete()
    assert topic.groups()[0].name == "other"
    assert len(rows_of(store, b"GH")) == 2
    assert rows_of(store, b"LDX") == []
    assert dump(store)["held"] == {}
    assert other.stats().unread == 9


def test_what_only_a_deleted_group_needed_leaves_the_log(topic):
    slow, fast = topic.group("slow"), topic.group("fast")
    topic.put(b"a")
    with fast.consumer() as consumer:
        consumer.get_nowait().ack()
    assert topic.stats().stored == 1
    slow.delete()
    assert topic.stats().stored == 0


def test_whoever_uses_a_deleted_group_is_told(store, topic, group):
    topic.put_many([b"a", b"b"])
    consumer = group.consumer()
    message = consumer.get_nowait()
    group.delete()
    with nothing_changes(store):
        for call in (
            consumer.get_nowait,
            lambda: consumer.get(timeout=5),
            lambda: consumer.get_many(2, timeout=0),
            message.ack,
            message.nack,
            message.release,
            message.reject,
            message.extend,
            group.stats,
            lambda: group.settings,
            group.redrive,
            lambda: list(group.dead()),
        ):
            with pytest.raises(diskq.NotFound, match="workers"):
                call()
    consumer.close()


def test_deleting_a_group_twice_says_which_one(group):
    group.delete()
    with pytest.raises(diskq.NotFound, match="workers"):
        group.delete()


def test_a_group_made_again_starts_anew_and_old_members_stay_out(topic, group):
    topic.put_many([b"a", b"b"])
    consumer = group.consumer()
    message = consumer.get_nowait()
    group.delete()
    again = topic.group("workers")
    with pytest.raises(diskq.NotFound):
        message.ack()
    assert again.stats().unread == 2
    assert again.stats().delivered == 0


def test_a_deleted_topic_leaves_nothing_behind_and_its_name_can_be_used_again(store, topic, group):
    topic.put_many([bytes(100)] * 500)
    kill(group, 3)
    log = store.handle.engine.log(topic.id)
    topic.put(b"")
    store.delete_topic("mail")
    assert store.topics() == []
    assert rows_of(store, b"TNGHLDX") == []
    assert dump(store)["held"] == {}
    assert store.handle.engine.read(lambda tx: list(tx.scan(b"", database=log))) == []
    again = store.topic("mail")
    assert again.put(b"new").offset == 0
    assert bodies(again.read()) == [b"new"]


def test_whoever_uses_a_deleted_topic_is_told(store, topic, group, consumer):
    topic.put(b"a")
    message = consumer.get_nowait()
    store.delete_topic("mail")
    with nothing_changes(store):
        for call in (
            lambda: topic.put(b""),
            lambda: topic.put_many([b""]),
            lambda: topic.group("new"),
            topic.stats,
            lambda: list(topic.read()),
            group.stats,
            message.ack,
            consumer.get_nowait,
            lambda: store.delete_topic("mail"),
        ):
            with pytest.raises(diskq.NotFound):
                call()


def test_an_interrupted_deletion_is_finished_at_the_next_open(open_store, monkeypatch):
    with open_store(durability="process") as store:
        topic = store.topic("mail")
        topic.put_many([bytes(5000)] * 100)
        kill(topic.group("g"), *range(50))
        topic.put_many([bytes(5000)] * 100)
        monkeypatch.setattr(deletion, "sweep", lambda *_: None)
        store.delete_topic("mail")
        assert rows_of(store, b"X")
        assert list(store.verify()) == []
        monkeypatch.undo()
    store = open_store()
    assert rows_of(store, b"TNGHLDX") == []
    assert dump(store)["held"] == {}


def test_a_deletion_is_swept_in_bounded_commits(store, topic, group, monkeypatch):
    monkeypatch.setattr(limits, "MAX_TRIM_SEGMENTS", 5)
    for _ in range(23):
        topic.put(b"")
    kill(group, *range(12))
    for _ in range(23):
        topic.put(b"")
    with group.consumer() as consumer:
        for message in consumer.get_many(23, timeout=0):
            message.nack(delay_seconds=60)
        store.delete_topic("mail")
    assert rows_of(store, b"TNGHLDX") == []
    assert dump(store)["held"] == {}


def test_a_store_can_have_more_topics_than_log_databases(monkeypatch, open_store):
    monkeypatch.setattr(limits, "MAX_LOG_DATABASES", 4)
    store = open_store(durability="process")
    topics = [store.topic(f"t{number}") for number in range(12)]
    for turn in range(3):
        for topic in topics:
            assert topic.put(f"{topic.name} {turn}".encode()).offset == turn
    groups = [topic.group("g") for topic in topics]
    for topic, group in zip(topics, groups, strict=True):
        expected = [f"{topic.name} {turn}".encode() for turn in range(3)]
        assert bodies(topic.read()) == expected
        with group.consumer() as consumer:
            messages = consumer.get_many(9, timeout=0)
            assert bodies(messages) == expected
            consumer.ack_many(messages)
        assert topic.stats().stored == 0
    topics[7].put_many([b"a", b"b"])
    store.delete_topic("t8")
    assert bodies(topics[7].read()) == [b"a", b"b"]
    assert list(topics[9].read()) == []
