"""Segments that all groups settled go, wherever they stand; what is left passes over the gaps."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import pytest
from support.clock import NS
from support.gaps import STORED, gaps_of, make_gaps, put_each, ready, settle_all_but
from support.stores import offsets

import diskq
from diskq import Outgoing
from diskq.base import limits
from diskq.base.model import LANE_BITS
from diskq.delivery import retention
from diskq.format.layout import ID_KEY
from diskq.format.rows import GroupRow
from diskq.tables import gaps, log


def row_of(topic):
    """The topic's row."""
    return topic.store.handle.engine.read(lambda tx: log.load(tx, topic.id, topic.name))


def trim_once(topic, at=None):
    """One commit of a trim: how many messages went, and where it would go on."""
    return topic.store.handle.commit(
        lambda tx: retention.trim(log.Log(tx, topic.id), topic.name, at)
    )


@pytest.fixture
def group(topic):
    """A group with long leases."""
    return topic.group("workers", lease_seconds=3600, backoff=diskq.Backoff(0))


# What goes


def test_a_million_messages_behind_one_that_is_slow_leave_one_segment(topic, group):
    topic.put(b"slow")
    slow = group.consumer("slow").get_nowait()
    quick = group.consumer("quick")
    for _ in range(100):
        topic.put_many([b"x" * 20] * 10_000)
        quick.ack_many(quick.get_many(10_000))
        assert topic.stats().segments < 400
    topic.trim()
    stats = topic.stats()
    assert (stats.put, stats.stored, stats.segments) == (1_000_001, 1, 1)
    assert os.stat(os.path.join(topic.store.path, "data.mdb")).st_size < 8 * limits.MIB
    assert gaps_of(topic) == [(1, 1_000_001)]
    assert group.stats().lag == 1
    slow.ack()
    topic.trim()
    assert (topic.stats().stored, gaps_of(topic)) == (0, [])


@pytest.mark.parametrize("verb", ["release", "extend"])
def test_messages_in_hand_or_given_back_keep_no_segment_but_their_own(topic, group, verb):
    slow = settle_all_but(topic, group, 0, 7, 8, 13)
    for message in slow:
        getattr(message, verb)()
    assert offsets(topic.read()) == [0, 7, 8, 13]
    assert gaps_of(topic) == [(1, 7), (9, 13), (14, 20)]
    assert topic.trim() == 0


def test_the_settled_middle_of_a_lease_goes(topic, group):
    put_each(topic, 10)
    consumer = group.consumer()
    messages = consumer.get_many(10)
    consumer.ack_many(messages[2:4] + messages[5:9])
    topic.trim()
    assert gaps_of(topic) == [(2, 4), (5, 9)]
    consumer.close()
    assert ready(group.consumer()) == [0, 1, 4, 9]


def test_a_waiting_or_dead_message_keeps_no_segment(topic, group):
    for message, verb in zip(settle_all_but(topic, group, 3, 4), ("nack", "reject"), strict=True):
        getattr(message, verb)()
    topic.trim()
    assert (topic.stats().stored, gaps_of(topic)) == (0, [])
    assert ready(group.consumer()) == [3]


def test_a_segment_goes_when_every_group_has_settled_it(topic, group):
    other = topic.group("other", lease_seconds=3600)
    settle_all_but(topic, group, 2, 9)
    assert topic.stats().stored == 20
    consumer = other.consumer()
    messages = consumer.get_many(20)
    consumer.ack_many(messages[:5] + messages[6:])
    topic.trim()
    assert offsets(topic.read()) == [2, 5, 9]
    assert gaps_of(topic) == [(3, 5), (6, 9), (10, 20)]


def test_each_priority_has_gaps_of_its_own(store):
    topic = store.topic("t", priorities=3)
    group = topic.group("g", lease_seconds=3600)
    for number in range(12):
        topic.put(b"%d" % number, priority=number % 3)
    consumer = group.consumer()
    for message in consumer.get_many(12):
        if message.offset & 3 in (1, 2) or message.priority == 1:
            message.ack()
    topic.trim()
    high = 2 << LANE_BITS
    assert gaps_of(topic) == [(1, 3), (high + 1, high + 3)]
    assert [message.priority for message in topic.read()] == [0, 0, 2, 2]
    assert sorted(ready(topic.group("late").consumer())) == [0, 3, high, high + 3]


def test_segments_that_a_purge_rewrote_go_too(topic, group):
    for number in range(9):
        topic.put_many([Outgoing(b"%d" % number, key="k"), Outgoing(b"", key="l")])
    consumer = group.consumer()
    kept = consumer.get_many(2)
    assert topic.purge(key="k") == 9
    consumer.ack_many(consumer.get_many(16))
    consumer.get_many(1, timeout=0)
    topic.trim()
    assert gaps_of(topic) == [(2, 18)]
    consumer.ack_many(kept)
    assert topic.trim() == 2


def test_a_partly_settled_segment_stays(topic, group):
    topic.put_many([b""] * 3)
    topic.put_many([b""] * 3)
    topic.put_many([b""] * 3)
    consumer = group.consumer()
    messages = consumer.get_many(9)
    consumer.ack_many(messages[1:3] + messages[4:])
    topic.trim()
    assert offsets(topic.read()) == list(range(6))
    assert gaps_of(topic) == [(6, 9)]


def test_gaps_that_meet_become_one_and_go_with_the_front(topic, group):
    slow = settle_all_but(topic, group, 0, 5, 10, 15)
    assert gaps_of(topic) == [(1, 5), (6, 10), (11, 15), (16, 20)]
    slow[2].ack()
    topic.trim()
    assert gaps_of(topic) == [(1, 5), (6, 15), (16, 20)]
    slow[0].ack()
    topic.trim()
    assert gaps_of(topic) == [(6, 15), (16, 20)]
    slow[3].ack()
    topic.trim()
    assert gaps_of(topic) == [(6, 20)]
    topic.put(b"20")
    assert gaps_of(topic) == [(6, 20)]
    slow[1].ack()
    topic.trim()
    assert (gaps_of(topic), row_of(topic).gaps) == ([], 0)
    assert ready(group.consumer()) == [20]


def test_one_trim_looks_at_some_runs_only_and_the_next_goes_on_there(topic, group, monkeypatch):
    monkeypatch.setattr(limits, "MAX_TRIM_RUNS", 4)
    put_each(topic, 60)
    consumer = group.consumer()
    messages = [consumer.get_nowait() for _ in range(60)]
    for message in messages:
        if message.offset % 2:
            message.ack()
    trims = [trim_once(topic) for _ in range(8)]
    assert trims[:2] == [(4, 8), (4, 16)]
    assert sum(count for count, _ in trims) == 30
    assert [message.offset % 2 for message in topic.read()] == [0] * 30


def test_one_trim_deletes_some_segments_only_and_the_next_goes_on_there(topic, group, monkeypatch):
    put_each(topic, 30)
    consumer = group.consumer()
    messages = [consumer.get_nowait() for _ in range(30)]
    consumer.ack_many(messages[1:15] + messages[16:])
    monkeypatch.setattr(limits, "MAX_TRIM_SEGMENTS", 5)
    assert [trim_once(topic)[0] for _ in range(8)] == [5, 5, 5, 5, 5, 3, 0, 0]
    assert gaps_of(topic) == [(1, 15), (16, 30)]


@pytest.mark.parametrize("runs", [1, 2, 7, 1000])
def test_a_whole_trim_finds_all_whatever_one_commit_looks_at(topic, group, monkeypatch, runs):
    monkeypatch.setattr(limits, "MAX_TRIM_RUNS", runs)
    monkeypatch.setattr(limits, "MAX_TRIM_SEGMENTS", 3)
    put_each(topic, 40)
    consumer = group.consumer()
    messages = consumer.get_many(20) + [consumer.get_nowait() for _ in range(20)]
    kept = {3, 4, 9, 17, 22, 30, 31, 39}
    consumer.ack_many(message for message in messages if message.offset not in kept)
    assert topic.trim() == 32
    assert set(offsets(topic.read())) == kept


def test_a_put_finds_room_before_the_place_where_the_last_trim_ended(store, monkeypatch):
    monkeypatch.setattr(limits, "MAX_TRIM_SEGMENTS", 2)
    topic = store.topic("t", max_messages=6)
    put_each(topic, 6)
    consumer = topic.group("g").consumer()
    messages = [consumer.get_nowait() for _ in range(6)]
    consumer.ack_many(messages[3:5])
    assert trim_once(topic) == (2, 3)
    messages[0].ack()
    put_each(topic, 3, block=False)
    assert offsets(topic.read()) == [1, 2, 5, 6, 7, 8]


def test_acks_trim_behind_a_slow_message(topic, group):
    put_each(topic, 1)
    slow = group.consumer("slow").get_nowait()
    consumer = group.consumer()
    for _ in range(3 * limits.TRIM_MESSAGES):
        topic.put(b"")
        consumer.get_nowait().ack()
    assert topic.stats().stored <= limits.TRIM_MESSAGES + 2
    slow.ack()


def test_a_put_finds_room_behind_a_slow_message(store):
    topic = store.topic("t", max_messages=5)
    group = topic.group("g")
    put_each(topic, 1)
    slow = group.consumer("slow").get_nowait()
    consumer = group.consumer()
    for _ in range(20):
        topic.put(b"", block=False)
        consumer.get_nowait().ack()
    assert group.stats().dropped == 0
    slow.ack()


# What is left


@pytest.fixture
def gappy(topic, group):
    """Lets the topic have gaps; the messages that are left, which the group still has."""
    return make_gaps(topic, group)


def after(offset):
    """What is stored from an offset on."""
    return [stored for stored in STORED if stored >= offset]


@pytest.mark.parametrize("start", [*range(21), "earliest", "latest"])
def test_a_group_begins_and_seeks_at_what_is_stored(topic, group, gappy, start):
    expected = {"earliest": [*STORED], "latest": []}.get(start) if isinstance(start, str) else None
    expected = after(start) if expected is None else expected
    late = topic.group("late", start=start)
    assert (late.stats().unread, late.stats().lag) == (len(expected), len(expected))
    consumer = late.consumer()
    assert ready(consumer) == expected
    assert late.stats().unread == 0
    late.seek("latest")
    assert late.preview_seek(start)[0] == len(expected)
    late.seek(start)
    assert late.stats().unread == len(expected)
    fork = late.fork("fork")
    late.seek("latest")
    assert fork.stats().unread == len(expected)
    put_each(topic, 1)
    assert ready(fork.consumer()) == [*expected, 20]


@pytest.mark.parametrize("seconds", range(-1, 22))
def test_a_time_means_the_next_stored_message(topic, group, gappy, clock, seconds):
    begun = clock.wall - 20 * NS
    when = datetime.fromtimestamp(begun // NS, UTC) + timedelta(seconds=seconds)
    expected = after(max(seconds, 0))
    assert topic.offset_at(when) == (expected[0] if expected else 20)
    assert ready(topic.group("late", start=when).consumer()) == expected
    assert [message.offset for message in topic.follow(when, timeout=0)] == expected


@pytest.mark.parametrize("low", range(0, 21, 3))
@pytest.mark.parametrize("high", range(0, 23, 3))
def test_a_read_passes_over_gaps_both_ways(topic, group, gappy, low, high):
    expected = [offset for offset in STORED if low <= offset < high]
    assert offsets(topic.read(low, high)) == expected
    assert offsets(topic.read(low, high, reverse=True)) == expected[::-1]
    assert offsets(topic.read(low, high, limit=2)) == expected[:2]


def test_a_seek_says_that_some_are_gone(topic, group, gappy):
    assert group.preview_seek("earliest") == (4, True)
    assert group.preview_seek(13) == (1, True)
    assert group.preview_seek(15) == (0, True)
    assert group.preview_seek("latest") == (0, False)
    put_each(topic, 2)
    assert group.preview_seek(20) == (2, False)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_a_late_group_counts_gaps_as_skipped(topic, group, gappy, limit):
    late = topic.group("late")
    consumer = late.consumer()
    found = []
    while messages := consumer.get_many(limit, timeout=0):
        found += offsets(messages)
        consumer.ack_many(messages)
        assert late.stats().unread == 4 - len(found)
    assert found == [*STORED]
    row = topic.store.handle.engine.read(lambda tx: GroupRow(tx.get(ID_KEY.pack(b"G", late.id))))
    assert (row.acked, row.skipped, row.ahead, row.next) == (4, 16, 0, [20])


def test_a_lease_is_over_messages_without_a_gap_between_them(topic, group, gappy):
    late = topic.group("late", lease_seconds=10)
    messages = late.consumer().get_many(4)
    assert offsets(messages) == [*STORED]
    assert len({message.lease for message in messages}) == 3
    assert [row.count for row in {message.lease: message.lease for message in messages}] == [
        1,
        2,
        1,
    ]


def test_what_is_parked_keeps_no_segment_and_key_order_passes_over_gaps(topic):
    group = topic.group("g", ordering="key", lease_seconds=3600)
    for number in range(12):
        topic.put(b"%d" % number, key="ab"[number % 2])
    consumer = group.consumer()
    slow = consumer.get_nowait()
    for _ in range(6):
        consumer.get_nowait().ack()
    assert group.stats().parked == 5
    topic.trim()
    assert gaps_of(topic) == [(1, 12)]
    for number in range(12, 15):
        topic.put(b"%d" % number, key="ab"[number % 2])
    late = topic.group("late", ordering="key").consumer()
    assert offsets(late.get_many(5)) == [0, 13]
    slow.ack()
    assert offsets(consumer.get_many(2)) == [2, 13]


@pytest.mark.parametrize("before", range(21))
def test_a_purge_before_a_place_in_a_gap(topic, group, gappy, before):
    late = topic.group("late")
    gone = 4 - len(after(before))
    assert topic.purge(before=before) == gone
    assert offsets(topic.read()) == after(before)
    assert (late.stats().purged, late.stats().unread) == (gone, 4 - gone)
    assert group.stats().purged == gone
    assert [first for first, _ in gaps_of(topic)] == [
        gap for gap in (1, 9, 14) if after(before) and gap > after(before)[0]
    ]
    assert ready(late.consumer()) == after(before)


def test_a_purge_of_all_leaves_no_gap(topic, group, gappy):
    late = topic.group("late")
    assert topic.purge() == 4
    assert (gaps_of(topic), row_of(topic).gaps) == ([], 0)
    assert (group.stats().lag, late.stats().lag) == (0, 0)
    for message in gappy:
        with pytest.raises(diskq.LeaseLost):
            message.ack()


def test_what_a_bound_drops_counts_no_gap(topic, group, gappy):
    late = topic.group("late")
    topic.update(max_messages=2, discard="old")
    topic.trim()
    assert offsets(topic.read()) == [8, 13]
    assert topic.stats().dropped == late.stats().dropped == group.stats().dropped == 2
    assert late.stats().unread == 2
    put_each(topic, 2)
    assert ready(late.consumer()) == [20, 21]
    assert late.stats().dropped == 4


def test_age_passes_over_gaps(topic, group, gappy, clock):
    late = topic.group("late")
    topic.update(max_age_seconds=13)
    assert topic.trim() == 2
    assert (late.stats().dropped, group.stats().dropped) == (2, 2)
    assert ready(late.consumer()) == [8, 13]


def test_a_topic_that_keeps_everything_from_now_on_keeps_its_gaps(topic, group, gappy):
    topic.update(retention="limits")
    for message in gappy:
        message.ack()
    assert topic.trim() == 0
    assert ready(topic.group("late").consumer()) == [*STORED]


def test_the_end_of_all_groups_leaves_gaps_that_a_new_one_passes(topic, group, gappy):
    group.delete()
    assert offsets(topic.read()) == [*STORED]
    assert ready(topic.group("late").consumer()) == [*STORED]


def test_a_deleted_topic_leaves_no_gap(store, topic, group, gappy):
    store.delete_topic(topic.name)
    assert gaps_of(topic) == []


def test_a_dead_letter_whose_message_is_gone_stays_at_a_seek(topic, group):
    slow = settle_all_but(topic, group, 0, 5)
    slow[1].reject("never")
    topic.trim()
    assert gaps_of(topic) == [(1, 20)]
    group.seek("earliest")
    assert (group.stats().dead, group.stats().unread) == (1, 1)
    group.redrive()
    assert sorted(ready(group.consumer())) == [0, 5]


def test_more_priorities_leave_gaps_alone(topic, group, gappy):
    late = topic.group("late")
    topic.update(priorities=2)
    topic.put(b"", priority=1)
    assert ready(late.consumer()) == [1 << LANE_BITS, *STORED]


def test_numbers_cost_the_same_with_any_number_of_gaps(topic, group, monkeypatch):
    """No gap is read for stats, nor for a get of a group that has passed them all."""
    settle_all_but(topic, group, *range(0, 40, 4), count=40)
    late = topic.group("late")
    monkeypatch.setattr(gaps, "rows", None)
    assert (late.stats().unread, topic.stats().stored) == (10, 10)
    put_each(topic, 3)
    assert ready(group.consumer()) == [40, 41, 42]
