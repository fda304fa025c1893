"""Read, offset_at and follow: looking at the log without taking anything from it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from support.clock import NS
from support.stores import bodies, commits, offsets

import diskq
from diskq import Outgoing


@pytest.fixture
def ten(topic):
    """The topic with messages 0 to 9 in segments of different lengths."""
    for run in (0, 1, 2), (3,), (4, 5, 6, 7), (8, 9):
        topic.put_many([b"%d" % number for number in run])
    return topic


def in_seconds(clock, seconds):
    """The datetime so many seconds from now."""
    return datetime.fromtimestamp(clock.wall // NS, UTC) + timedelta(seconds=seconds)


# Read


@pytest.mark.parametrize("reverse", [False, True])
def test_every_range_is_read_as_a_list_would_be(ten, reverse):
    for start in range(11):
        for stop in [*range(start, 12), None]:
            expected = list(range(10))[start:stop]
            for limit in None, 0, 1, 2, 5, 10, 11:
                found = offsets(ten.read(start, stop, limit=limit, reverse=reverse))
                assert found == (expected[::-1] if reverse else expected)[:limit]


def test_messages_are_read_whole_and_stay(topic, group, clock):
    topic.put(b"body", key="k", headers={"a": "b"})
    topic.put(b"plain")
    for _ in range(2):
        one, two = topic.read()
        assert one == (0, b"body", "k", {"a": "b"}, clock.wall)
        assert two == (1, b"plain", None, {}, clock.wall)
        assert (one.priority, two.priority) == (0, 0)
    assert group.stats().unread == 2


def test_reading_commits_nothing(store, ten):
    before = commits(store)
    list(ten.read())
    list(ten.read(reverse=True, limit=3))
    assert commits(store) == before


def test_an_empty_topic_and_an_empty_range(ten, store):
    assert list(store.topic("empty").read()) == []
    assert list(store.topic("empty").read(reverse=True)) == []
    assert list(ten.read(5, 5)) == list(ten.read(7, 3)) == list(ten.read(7, 3, reverse=True)) == []
    assert list(ten.read(2**64)) == list(ten.read(2**64 - 1)) == []


def test_messages_put_meanwhile_are_read_too(topic):
    topic.put(b"0")
    found = []
    for message in topic.read():
        found.append(message.offset)
        if message.offset < 5:
            topic.put(b"")
    assert found == list(range(6))


def test_what_is_trimmed_meanwhile_is_left_out(ten):
    reading = ten.read()
    assert next(reading).offset == 0
    ten.purge(before=5)
    assert offsets(reading) == [1, 2, 5, 6, 7, 8, 9]  # the first segment was read already


def test_what_was_purged_is_left_out_and_not_counted(topic):
    topic.put_many([Outgoing(b"%d" % number, key="ab"[number % 2]) for number in range(10)])
    topic.purge(key="a")
    assert offsets(topic.read()) == [1, 3, 5, 7, 9]
    assert offsets(topic.read(limit=2)) == [1, 3]
    assert offsets(topic.read(limit=2, reverse=True)) == [9, 7]
    assert offsets(topic.read(2, 3)) == []


def test_a_log_with_a_trimmed_begin(ten, group, consumer):
    consumer.ack_many(consumer.get_many(5))
    ten.trim()
    assert offsets(ten.read()) == list(range(4, 10))
    assert offsets(ten.read(2, 6)) == [4, 5]
    assert offsets(ten.read(reverse=True, limit=3)) == [9, 8, 7]
    assert offsets(ten.read(2, 6, reverse=True)) == [5, 4]
    assert offsets(ten.read(0, 4)) == offsets(ten.read(0, 4, reverse=True)) == []


def test_bodies_larger_than_a_segment(topic):
    sizes = [10, 100_000, 20_000, 5]
    topic.put_many([bytes(size) for size in sizes])
    assert [len(body) for body in bodies(topic.read())] == sizes
    assert [len(body) for body in bodies(topic.read(reverse=True))] == sizes[::-1]


def test_topics_that_share_a_database_are_kept_apart(store):
    topics = [store.topic(f"t{number}") for number in range(130)]
    for topic in topics[-20:]:
        topic.put_many([topic.name.encode()] * 3)
    for topic in topics[-20:]:
        assert bodies(topic.read(1)) == [topic.name.encode()] * 2
        assert bodies(topic.read(reverse=True, limit=2)) == [topic.name.encode()] * 2
        assert bodies(topic.read(3)) == []
    assert bodies(topics[-21].read(reverse=True)) == []


def test_the_wrong_is_refused(store, topic):
    for arguments in (-1,), (0, -1), (2**64 + 1,), (0, 2**64 + 1):
        with pytest.raises(ValueError, match=r"start|stop"):
            list(topic.read(*arguments))
    with pytest.raises(ValueError, match="limit"):
        list(topic.read(limit=-1))
    for arguments in ("0",), (0, "1"):
        with pytest.raises(ValueError, match="earliest"):
            list(topic.read(*arguments))
    for arguments in (0.0,), (True,), (0, b"latest"):
        with pytest.raises(TypeError, match=r"start|stop"):
            list(topic.read(*arguments))
    store.delete_topic("mail")
    with pytest.raises(diskq.NotFound):
        list(topic.read())


def test_a_store_open_for_reading_may_be_read_but_not_followed(open_store, tmp_path, clock):
    with open_store(durability="process") as store:
        store.topic("t").put(b"a")
    with diskq.open(tmp_path / "store", readonly=True, clock=clock) as store:
        topic = store.topic("t")
        assert bodies(topic.read()) == bodies(topic.read(reverse=True)) == [b"a"]
        assert topic.offset_at(in_seconds(clock, 0)) == 0
        with pytest.raises(diskq.ReadOnly):
            topic.follow()


@pytest.mark.parametrize("stop", range(1, 6))
@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_before_the_log_is_empty(topic, stop, reverse):
    topic.put_many([b"%d" % number for number in range(20)])
    topic.purge(before=stop + 1)
    assert offsets(topic.read(0, stop, reverse=reverse)) == []


def test_what_is_behind_the_log_is_empty(ten):
    assert list(ten.read(11, 20, reverse=True)) == []


# offset_at


def test_offset_at_finds_the_first_message_put_then_or_later(topic, clock):
    start = clock.wall // NS
    for _ in range(20):
        topic.put_many([b"", b""])
        clock.advance(2)
    for step in range(20):
        for seconds, offset in (2 * step, 2 * step), (2 * step + 1, 2 * step + 2):
            when = datetime.fromtimestamp(start + seconds, UTC)
            assert topic.offset_at(when) == offset
    assert topic.offset_at(datetime(1970, 1, 1, tzinfo=UTC)) == 0
    assert topic.offset_at(datetime(2200, 1, 1, tzinfo=UTC)) == 40


def test_offset_at_of_an_empty_or_trimmed_topic(topic, clock):
    when = in_seconds(clock, 0)
    assert topic.offset_at(when) == 0
    topic.put_many([b"", b""])
    topic.purge(before=1)
    assert topic.offset_at(when) == 1
    topic.purge()
    assert topic.offset_at(when) == 2


def test_offset_at_takes_a_datetime(store, topic):
    for odd in 5, "2020-01-01", None:
        with pytest.raises(TypeError, match="when"):
            topic.offset_at(odd)
    with pytest.raises(ValueError, match="when"):
        topic.offset_at(datetime(1950, 1, 1))
    store.delete_topic("mail")
    with pytest.raises(diskq.NotFound):
        topic.offset_at(datetime(2020, 1, 1))


# Follow


def test_follow_without_time_ends_with_what_is_there(ten):
    assert offsets(ten.follow("earliest", timeout=0)) == list(range(10))
    assert offsets(ten.follow(7, timeout=0)) == [7, 8, 9]
    assert offsets(ten.follow(timeout=0)) == []
    assert offsets(ten.follow(10, timeout=0)) == []
    with pytest.raises(
        ValueError, match="offset 11 is beyond the end of topic 'mail', which is 10"
    ):
        ten.follow(11, timeout=0)


def test_follow_starts_where_it_was_called(ten):
    following = ten.follow(timeout=0)
    ten.put(b"10")
    assert offsets(following) == [10]


def test_follow_from_a_time(topic, clock):
    topic.put(b"a")
    clock.advance(1)
    topic.put(b"b")
    assert bodies(topic.follow(in_seconds(clock, 0), timeout=0)) == [b"b"]


def test_follow_takes_nothing(ten, group):
    list(ten.follow("earliest", timeout=0))
    assert group.stats().unread == 10


def test_follow_sees_all_priorities_whatever_their_order(store):
    topic = store.topic("t", priorities=3)
    following = topic.follow(timeout=0.2)
    topic.put(b"0a")
    assert next(following).body == b"0a"
    topic.put_many([Outgoing(b"2a", priority=2), Outgoing(b"1a", priority=1), b"0b"])
    assert sorted(bodies(following)) == [b"0b", b"1a", b"2a"]


def test_follow_leaves_out_what_was_purged(topic):
    topic.put_many([Outgoing(b"a", key="a"), Outgoing(b"b", key="b"), b"c"])
    following = topic.follow("earliest", timeout=0)
    topic.purge(key="b")
    assert bodies(following) == [b"a", b"c"]


def test_follow_sees_puts_of_another_thread(topic):
    count = 50
    putting = threading.Thread(target=lambda: [topic.put(b"%d" % n) for n in range(count)])
    found = []
    following = topic.follow("latest", timeout=30)
    putting.start()
    for message in following:
        found.append(message.body)
        if len(found) == count:
            break
    putting.join()
    assert found == [b"%d" % number for number in range(count)]


def test_two_that_follow_see_the_same(topic):
    found = [[], []]
    following = [islice(topic.follow(timeout=30), 20) for _ in found]
    followers = [
        threading.Thread(target=lambda its=its, each=each: its.extend(bodies(each)))
        for its, each in zip(found, following, strict=True)
    ]
    for thread in followers:
        thread.start()
    for number in range(20):
        topic.put(b"%d" % number)
    for thread in followers:
        thread.join()
    assert found[0] == found[1] == [b"%d" % number for number in range(20)]


def test_follow_puts_what_falls_due(topic, clock):
    topic.put(b"later", delay_seconds=10)
    assert bodies(topic.follow("earliest", timeout=0)) == []
    clock.advance(10)
    assert bodies(topic.follow("earliest", timeout=0)) == [b"later"]
    assert topic.stats().scheduled == 0


def test_follow_sees_messages_fall_due_while_it_waits(tmp_path):
    with diskq.open(tmp_path / "real", durability="process") as store:
        topic = store.topic("t")
        topic.put(b"before", delay_seconds=0.2)
        following = topic.follow("earliest", timeout=30)
        assert next(following).body == b"before"
        found = []
        thread = threading.Thread(target=lambda: found.append(next(following)))
        thread.start()
        topic.put(b"meanwhile", delay_seconds=0.2)
        thread.join(30)
        assert bodies(found) == [b"meanwhile"]


def test_follow_ends_with_its_topic(store, topic):
    following = topic.follow(timeout=30)
    store.delete_topic("mail")
    with pytest.raises(diskq.NotFound):
        next(following)
    with pytest.raises(diskq.NotFound):
        topic.follow()


def test_follow_refuses_the_wrong_at_once(topic):
    with pytest.raises(ValueError, match="start"):
        topic.follow("first")
    with pytest.raises(TypeError, match="start"):
        topic.follow(None)
    with pytest.raises(ValueError, match="timeout"):
        topic.follow(timeout=-1)
    with pytest.raises(TypeError, match="timeout"):
        topic.follow(timeout="1")


def test_follow_sees_priorities_that_were_added_since(topic):
    following = topic.follow(timeout=0.2)
    topic.update(priorities=2)
    topic.put(b"high", priority=1)
    assert bodies(following) == [b"high"]
