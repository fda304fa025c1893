"""Duplicates: what a second put with the same dedup_id returns, for how long, after whatever."""

from __future__ import annotations

import threading

import pytest
from support.clock import NS
from support.stores import bodies, commits, nothing_changes

import diskq
from diskq import Outgoing
from diskq.base import limits


def remembered(store):
    """How many dedup rows the store has."""
    engine = store.handle.engine
    return engine.read(lambda tx: sum(1 for _ in tx.scan(b"", database=engine.dedup)))


def test_a_second_put_stores_nothing_and_returns_the_first_receipt(store, topic):
    first = topic.put(b"a", dedup_id="x")
    topic.put(b"between")
    with nothing_changes(store):
        second = topic.put(b"another body", dedup_id="x", key="k", headers={"a": "b"})
    assert not first.duplicate
    assert second == first._replace(duplicate=True)


def test_other_ids_other_topics_and_no_id_are_no_duplicates(store, topic):
    topic.put(b"", dedup_id="x")
    assert not topic.put(b"", dedup_id="X").duplicate
    assert not topic.put(b"", dedup_id="x ").duplicate
    assert not topic.put(b"").duplicate
    assert not store.topic("other").put(b"", dedup_id="x").duplicate
    assert topic.stats().stored == 4


def test_an_empty_id_is_refused(store, topic):
    for call in (
        lambda: topic.put(b"", dedup_id=""),
        lambda: topic.put_many([b"", diskq.Outgoing(b"", dedup_id="")]),
        lambda: store.transaction().put(topic, b"", dedup_id=""),
    ):
        with nothing_changes(store), pytest.raises(ValueError, match="must not be empty; leave it"):
            call()


def test_the_default_window_ends_after_two_minutes_to_the_nanosecond(topic, clock):
    first = topic.put(b"", dedup_id="x")
    clock.advance_ns(120 * NS - 1)
    assert topic.put(b"", dedup_id="x") == first._replace(duplicate=True)
    clock.advance_ns(1)
    assert topic.put(b"", dedup_id="x") == diskq.Receipt(1, False, None, first.commit_id + 1)


@pytest.mark.parametrize("phase", [0, 1, 5, 9, 9.999])
def test_the_window_is_the_same_at_whatever_time_it_begins(store, clock, phase):
    topic = store.topic("t", dedup_seconds=10)
    clock.advance(phase)
    topic.put(b"", dedup_id="x")
    clock.advance_ns(10 * NS - 1)
    assert topic.put(b"", dedup_id="x").duplicate
    clock.advance_ns(1)
    assert not topic.put(b"", dedup_id="x").duplicate


def test_duplicates_do_not_prolong_the_window(store, clock):
    topic = store.topic("t", dedup_seconds=10)
    topic.put(b"", dedup_id="x")
    for _ in range(9):
        clock.advance(1)
        assert topic.put(b"", dedup_id="x").duplicate
    clock.advance(1)
    assert not topic.put(b"", dedup_id="x").duplicate


def test_the_window_begins_anew_with_the_message_that_was_stored_after_it(store, clock):
    topic = store.topic("t", dedup_seconds=10)
    topic.put(b"", dedup_id="x")
    clock.advance(12)
    second = topic.put(b"", dedup_id="x")
    clock.advance(9)
    assert topic.put(b"", dedup_id="x") == second._replace(duplicate=True)


@pytest.mark.parametrize("step", [-1000, -1, 1, 1000, 10**9])
def test_a_step_of_the_clock_changes_no_window(store, clock, step):
    topic = store.topic("t", dedup_seconds=10)
    first = topic.put(b"", dedup_id="x")
    clock.step_wall(step)
    assert topic.put(b"", dedup_id="x") == first._replace(duplicate=True)
    clock.advance_ns(10 * NS - 1)
    assert topic.put(b"", dedup_id="x") == first._replace(duplicate=True)
    clock.advance_ns(1)
    assert not topic.put(b"", dedup_id="x").duplicate


def test_duplicates_within_one_put_many_are_stored_once(topic, consumer):
    receipts = topic.put_many(
        [Outgoing(b"a", dedup_id="x"), b"b", Outgoing(b"c", dedup_id="x"), Outgoing(b"d")]
    )
    assert [receipt.offset for receipt in receipts] == [0, 1, 0, 2]
    assert [receipt.duplicate for receipt in receipts] == [False, False, True, False]
    assert bodies(consumer.get_many(9, timeout=0)) == [b"a", b"b", b"d"]


def test_a_put_many_of_known_and_new_ids_stores_the_new_ones(topic, consumer):
    topic.put(b"a", dedup_id="a")
    receipts = topic.put_many([Outgoing(body, dedup_id=body.decode()) for body in (b"a", b"b")])
    assert [receipt.duplicate for receipt in receipts] == [True, False]
    assert bodies(consumer.get_many(9, timeout=0)) == [b"a", b"b"]


def test_duplicates_within_a_transaction_are_stored_once(store, topic):
    with store.transaction() as transaction:
        transaction.put(topic, b"a", dedup_id="x")
        transaction.put(topic, b"b", dedup_id="x")
        transaction.put_many(topic, [Outgoing(b"c", dedup_id="x"), Outgoing(b"d", dedup_id="y")])
    assert [receipt.offset for receipt in transaction.receipts] == [0, 0, 0, 1]
    assert [receipt.duplicate for receipt in transaction.receipts] == [False, True, True, False]
    assert topic.put(b"", dedup_id="x").duplicate


def test_ids_of_a_transaction_that_was_undone_are_not_remembered(store, topic):
    transaction = store.transaction()
    transaction.put(topic, b"", dedup_id="x")
    transaction.rollback()
    assert not topic.put(b"", dedup_id="x").duplicate


def test_ids_of_a_put_that_was_refused_are_not_remembered(store):
    topic = store.topic("t", max_messages=1)
    topic.put(b"")
    with pytest.raises(diskq.Full):
        topic.put(b"", dedup_id="x", block=False)
    topic.purge()
    assert not topic.put(b"", dedup_id="x", block=False).duplicate


def test_a_duplicate_is_known_after_ack_trim_purge_reopening_and_reboot(open_store, clock):
    with open_store(durability="process") as store:
        topic = store.topic("t")
        first = topic.put(b"", dedup_id="x")
        topic.group("g").consumer().get_nowait().ack()
        assert topic.put(b"", dedup_id="x") == first._replace(duplicate=True)
        assert topic.trim() == 1
        assert topic.put(b"", dedup_id="x") == first._replace(duplicate=True)
        topic.purge()
    clock.advance(60)
    clock.reboot()
    topic = open_store().topic("t")
    assert topic.put(b"", dedup_id="x") == first._replace(duplicate=True)
    assert topic.stats().stored == 0


def test_a_duplicate_of_a_scheduled_message_names_it_even_when_it_fell_due(topic, consumer, clock):
    first = topic.put(b"", dedup_id="x", delay_seconds=10)
    assert topic.put(b"", dedup_id="x") == first._replace(duplicate=True)
    clock.advance(10)
    consumer.get_nowait().ack()
    assert topic.put(b"", dedup_id="x") == first._replace(duplicate=True)
    assert topic.stats()[1:3] == (1, 0)  # put, scheduled


def test_a_cancelled_message_keeps_its_id_in_use(topic, clock):
    first = topic.put(b"", dedup_id="x", delay_seconds=10)
    topic.cancel(first.schedule_id)
    assert topic.put(b"", dedup_id="x") == first._replace(duplicate=True)
    assert not topic.put(b"", dedup_id="y").duplicate
    clock.advance(120)
    assert not topic.put(b"", dedup_id="x").duplicate


def test_the_ids_of_a_deleted_topic_are_forgotten(store):
    store.topic("t").put(b"", dedup_id="x")
    store.delete_topic("t")
    assert remembered(store) == 0
    assert not store.topic("t").put(b"", dedup_id="x").duplicate


def test_old_ids_are_forgotten_as_new_ones_come(store, clock):
    topic = store.topic("t", dedup_seconds=10)
    for number in range(200):
        topic.put(b"", dedup_id=str(number))
        clock.advance(1)
    assert remembered(store) <= 31


def test_of_many_threads_that_put_one_id_one_stores_it(topic):
    receipts = []
    start = threading.Barrier(8)

    def put():
        start.wait()
        receipts.append(topic.put(b"", dedup_id="x"))

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(receipt.duplicate for receipt in receipts) == [False] + [True] * 7
    assert len({receipt[::2] for receipt in receipts}) == 1
    assert topic.stats().put == 1


def test_an_id_has_a_largest_size(store, topic):
    for size in limits.MAX_DEDUP_BYTES - 1, limits.MAX_DEDUP_BYTES:
        topic.put(b"", dedup_id="x" * size)
    for odd in "x" * (limits.MAX_DEDUP_BYTES + 1), "é" * (limits.MAX_DEDUP_BYTES // 2 + 1):
        with nothing_changes(store), pytest.raises(diskq.MessageTooLarge, match="dedup_id"):
            topic.put(b"", dedup_id=odd)
    for odd in b"x", 5, True:
        with nothing_changes(store), pytest.raises(TypeError, match="dedup_id"):
            topic.put(b"", dedup_id=odd)


def test_the_window_has_bounds(store):
    least, most = limits.MIN_AGE_SECONDS, limits.MAX_DEDUP_SECONDS
    assert store.topic("least", dedup_seconds=least).settings.dedup_seconds == least
    assert store.topic("most", dedup_seconds=most).settings.dedup_seconds == most
    for seconds in 0, least / 2, -1, most + 1, float("nan"):
        with pytest.raises(ValueError, match="dedup_seconds"):
            store.topic("odd", dedup_seconds=seconds)
    topic = store.topic("least")
    topic.update(dedup_seconds=least)
    with nothing_changes(store), pytest.raises(ValueError, match="dedup_seconds"):
        topic.update(dedup_seconds=most + 1)
    with nothing_changes(store), pytest.raises(TypeError, match="dedup_seconds"):
        topic.update(dedup_seconds=None)


@pytest.mark.parametrize("old", [1, 20, 100, 86400])
@pytest.mark.parametrize("new", [1, 20, 100, 86400])
def test_a_new_window_counts_for_what_was_put_before(store, clock, old, new):
    """But what the old one had passed over stays forgotten."""
    topic = store.topic("t", dedup_seconds=old)
    put_at = {}
    for number in range(40):
        topic.put(b"", dedup_id=str(number))
        put_at[number] = clock.wall
        clock.advance(old / 30 + new / 90)
    changed_at = clock.wall
    topic.update(dedup_seconds=new)
    assert topic.settings.dedup_seconds == new
    for seconds in (0, new / 3, new / 2, new):
        clock.advance(seconds)
        for number, since in list(put_at.items()):
            known = changed_at - since < old * NS and clock.wall - since < new * NS
            receipt = topic.put(b"", dedup_id=str(number))
            assert receipt.duplicate == known, (number, seconds)
            if not known:
                del put_at[number]


def test_many_ids_are_forgotten_in_bounded_commits_before_a_window_changes(
    store, clock, monkeypatch
):
    monkeypatch.setattr(limits, "MAX_FORGOTTEN_IDS", 10)
    topic = store.topic("t", dedup_seconds=10)
    topic.put_many([Outgoing(b"", dedup_id=str(number)) for number in range(35)])
    clock.advance(20)
    before = commits(store)
    topic.update(dedup_seconds=100)
    assert commits(store) == before + 5
    assert not any(
        receipt.duplicate
        for receipt in topic.put_many([Outgoing(b"", dedup_id=str(n)) for n in range(35)])
    )


def test_all_options_in_one_put_many(store, clock):
    topic = store.topic("t", priorities=2)
    group = topic.group("g")
    both = {"priority": 1, "delay_seconds": 10, "ttl_seconds": 5, "dedup_id": "x", "key": "k"}
    receipts = topic.put_many(
        [Outgoing(b"a", **both), Outgoing(b"b", **both), Outgoing(b"low", ttl_seconds=100)]
    )
    assert [receipt.duplicate for receipt in receipts] == [False, True, False]
    assert receipts[0].schedule_id == receipts[1].schedule_id
    clock.advance(14)
    found = group.consumer().get_many(9, timeout=0)  # its TTL begins when it is put, that is now
    assert bodies(found) == [b"a", b"low"]
    assert [message.priority for message in found] == [1, 0]
    assert topic.put(b"c", **both) == receipts[1]


def test_a_duplicate_that_finds_messages_over_the_topics_age_leaves_the_store_sound(
    tmp_path, clock
):
    with diskq.open(tmp_path / "another", clock=clock, durability="process") as store:
        topic = store.topic("t", max_age_seconds=10)
        topic.put(b"", dedup_id="x")
        clock.advance(20)
        assert topic.put(b"", dedup_id="x").duplicate
        assert list(store.verify()) == []


def test_duplicates_within_one_put_many_need_no_room(store):
    topic = store.topic("t", max_messages=1)
    receipts = topic.put_many([Outgoing(b"", dedup_id="x")] * 2, block=False)
    assert [receipt.duplicate for receipt in receipts] == [False, True]


def test_a_duplicate_needs_no_room_in_a_topic_whose_bounds_were_lowered(store):
    topic = store.topic("t", max_messages=2)
    topic.put_many([Outgoing(b"", dedup_id="x"), b""])
    topic.update(max_messages=1)
    assert topic.put(b"", dedup_id="x", block=False).duplicate


def test_a_duplicate_needs_no_room_in_a_full_topic(store):
    topic = store.topic("t", max_messages=1)
    topic.put(b"", dedup_id="x")
    assert topic.put(b"", dedup_id="x", block=False).duplicate


@pytest.mark.parametrize("setting", ["dedup_seconds", "max_age_seconds"])
def test_a_duration_that_is_no_whole_number_of_nanoseconds_may_be_said_again(store, setting):
    store.topic("t", **{setting: 1 / 3})
    store.topic("t", **{setting: 1 / 3})
