"""Putting: offsets, receipts, times, what travels with a body, and reading without taking."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
from support.clock import NS
from support.stores import bodies, commits, offsets

import diskq


def test_offsets_are_dense_from_0_in_the_order_of_commits(topic):
    receipts = [topic.put(b"a"), *topic.put_many([b"b"] * 3), topic.put(b"c")]
    assert [receipt.offset for receipt in receipts] == [0, 1, 2, 3, 4]
    ids = [receipt.commit_id for receipt in receipts]
    assert ids == sorted(ids)
    assert len(set(ids)) == 3


def test_each_topic_counts_from_0(store):
    assert store.topic("one").put(b"").offset == 0
    assert store.topic("two").put(b"").offset == 0


def test_a_batch_is_one_commit(store, topic):
    topic.put(b"the first one opens the log")
    before = commits(store)
    topic.put_many([bytes(100)] * 1000)
    assert commits(store) == before + 1


def test_receipts_of_a_batch_behave_like_a_list(topic):
    topic.put(b"")
    receipts = topic.put_many([b"x"] * 5)
    assert len(receipts) == 5
    assert [receipt.offset for receipt in receipts] == [1, 2, 3, 4, 5]
    assert receipts[0] == diskq.Receipt(1, False, None, receipts.commit_id)
    assert receipts[-1].offset == 5
    assert [receipt.offset for receipt in receipts[1:3]] == [2, 3]
    assert receipts[2] in receipts
    assert repr(receipts) == "Receipts(range(1, 6))"
    with pytest.raises(IndexError):
        receipts[5]


def test_an_empty_batch_puts_nothing(store, topic):
    before = commits(store)
    assert list(topic.put_many([])) == []
    assert commits(store) == before


def test_a_batch_may_be_any_iterable(topic):
    assert len(topic.put_many(b"%d" % number for number in range(3))) == 3
    assert bodies(topic.read()) == [b"0", b"1", b"2"]


def test_key_and_headers_travel_with_the_body(topic, consumer):
    topic.put(b"plain")
    topic.put(b"rich", key="k\u00e9y", headers={"Content-Type": "text/plain", "": ""})
    topic.put_many([b"plain", diskq.Outgoing(b"rich", "key", {"a": "b"})])
    expected = [
        (b"plain", None, {}),
        (b"rich", "k\u00e9y", {"Content-Type": "text/plain", "": ""}),
        (b"plain", None, {}),
        (b"rich", "key", {"a": "b"}),
    ]
    for messages in topic.read(), consumer.get_many(4, timeout=0):
        assert [(m.body, m.key, m.headers) for m in messages] == expected


def test_bytearrays_and_memoryviews_are_taken_as_they_are_now(topic):
    buffer = bytearray(b"now")
    topic.put(buffer)
    topic.put(memoryview(buffer)[:2])
    buffer[:] = b"new"
    assert bodies(topic.read()) == [b"now", b"no"]


def test_empty_and_large_bodies_come_back_whole(topic, consumer):
    wanted = [b"", bytes(range(256)) * 5000, b"", b"\0"]
    topic.put_many(wanted)
    topic.put(wanted[1])
    assert bodies(topic.read()) == [*wanted, wanted[1]]
    assert bodies(consumer.get_many(9, timeout=0)) == [*wanted, wanted[1]]


def test_times_of_messages_never_go_back_though_the_wall_clock_does(topic, clock):
    times = []
    for step in 0, 5, -3600, 1, 7200:
        clock.step_wall(step)
        topic.put(b"")
        times.append(list(topic.read())[-1].put_at_ns)
    assert times == sorted(times)
    assert times[2] == times[1]
    assert times[-1] == clock.wall
    assert topic.stats().last_put_ns == clock.wall


def test_reading_takes_nothing_and_has_bounds(topic, group):
    topic.put_many([b"%d" % number for number in range(10)])
    topic.put(b"10")
    assert bodies(topic.read(3, 6)) == [b"3", b"4", b"5"]
    assert offsets(topic.read(8)) == [8, 9, 10]
    assert offsets(topic.read(limit=2)) == [0, 1]
    assert offsets(topic.read(9, limit=5)) == [9, 10]
    assert (
        offsets(topic.read(11)) == offsets(topic.read(5, 5)) == offsets(topic.read(limit=0)) == []
    )
    assert group.stats().unread == 11


def test_reading_works_first_thing_after_opening(open_store):
    with open_store(durability="process") as store:
        store.topic("mail").put_many([b"a", b"b"])
    assert bodies(open_store().topic("mail").read()) == [b"a", b"b"]


def test_who_reads_sees_what_is_put_meanwhile(topic):
    topic.put(b"a")
    reader = topic.read()
    assert next(reader).body == b"a"
    topic.put(b"b")
    assert next(reader).body == b"b"


def test_puts_of_many_threads_all_get_their_own_offset(open_store):
    topic = open_store().topic("mail")  # durable: threads share commits
    receipts = {}
    together = threading.Barrier(16)

    def put(number):
        together.wait()
        receipts[number] = [topic.put(b"%d" % number) for _ in range(20)]

    threads = [threading.Thread(target=put, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [receipt.offset for mine in receipts.values() for receipt in mine]
    assert sorted(found) == list(range(320))
    stored = bodies(topic.read())
    for number, mine in receipts.items():
        assert offsets(mine) == sorted(offsets(mine))
        assert all(stored[receipt.offset] == b"%d" % number for receipt in mine)


def test_a_new_group_can_start_at_a_time(topic, clock):
    for number in range(3):
        topic.put(b"%d" % number)
        clock.advance(10)
    start = datetime.fromtimestamp(clock.wall // NS - 20, UTC)
    consumer = topic.group("late", start=start).consumer()
    assert bodies(consumer.get_many(9, timeout=0)) == [b"1", b"2"]
