"""Transactions: puts and settles of several topics and groups, all of them or none."""

from __future__ import annotations

import warnings

import pytest
from support.stores import bodies, commits, nothing_changes, offsets

import diskq
from diskq import Outgoing

VERBS = "ack", "nack", "release", "reject"


@pytest.fixture
def target(store):
    """A topic to put results in."""
    return store.topic("results")


def ready(consumer):
    """The bodies of all that can be delivered now."""
    return bodies(consumer.get_many(10_000, timeout=0))


def test_a_message_is_moved_in_one_commit(store, topic, target, group, consumer):
    target.put(b"the first put of a process into a topic opens its log, in a commit of its own")
    target.purge()
    topic.put(b"in")
    message = consumer.get_nowait()
    before = commits(store)
    with store.transaction() as transaction:
        transaction.put(target, message.body + b" out", key="k", headers={"a": "b"})
        transaction.ack(message)
        assert commits(store) == before
    assert commits(store) == before + 1
    assert group.stats().acked == 1
    [found] = target.read()
    assert (found.body, found.key, found.headers) == (b"in out", "k", {"a": "b"})


def test_a_transaction_may_be_the_first_to_use_more_topics_than_a_map_may_grow(tmp_path):
    """Each log that had to be opened counted as if the map had grown: the store was called full."""
    names = [f"t{number}" for number in range(90)]
    with diskq.open(tmp_path / "store", durability="process") as store:
        for name in names:
            store.topic(name)
    with diskq.open(tmp_path / "store") as store:
        with store.transaction() as tx:
            for name in names:
                tx.put(store.topic(name), b"x")
        assert {store.topic(name).stats().stored for name in names} == {1}


def test_receipts_are_in_the_order_of_the_puts(store, topic, target):
    with store.transaction() as transaction:
        transaction.put(target, b"a")
        transaction.put_many(topic, [b"b", Outgoing(b"c", key="k")])
        transaction.put(target, b"d", delay_seconds=1)
        transaction.put(target, b"e")
        transaction.put_many(topic, [])
        assert list(transaction.receipts) == []
    assert offsets(transaction.receipts) == [0, 0, 1, None, 1]
    assert transaction.receipts[3].schedule_id
    assert len({receipt.commit_id for receipt in transaction.receipts}) == 1
    assert bodies(topic.read()) == [b"b", b"c"]
    assert bodies(target.read()) == [b"a", b"e"]


def test_all_verbs_in_one_commit_over_several_topics_and_groups(store, topic, target, clock):
    one = topic.group("one")
    two = topic.group("two", ordering="key")
    three = target.group("three")
    topic.put_many([Outgoing(b"%d" % number, key=f"{number}") for number in range(5)])
    target.put(b"t")
    consumer = one.consumer()
    acked, nacked, released, rejected, kept = consumer.get_many(5)
    keyed = two.consumer().get_nowait()
    third = three.consumer().get_nowait()
    with store.transaction() as transaction:
        transaction.ack(acked)
        transaction.nack(nacked, delay_seconds=5, error="later")
        transaction.release(released)
        transaction.reject(rejected, "never")
        transaction.ack(keyed)
        transaction.nack(third)
        assert one.stats().leased == 5
    stats = one.stats()
    assert (stats.acked, stats.waiting, stats.ready, stats.dead, stats.leased) == (1, 1, 1, 1, 1)
    assert next(one.dead()).error == "never"
    assert (two.stats().acked, three.stats().waiting) == (1, 1)
    kept.ack()
    clock.advance(5)
    again = consumer.get_nowait()
    assert (again.body, again.attempt) == (b"1", 2)
    assert ready(consumer) == [b"2"]


def test_an_exception_in_the_block_undoes_all_of_it(store, topic, target, consumer):
    topic.put(b"in")
    message = consumer.get_nowait()

    def fail():
        with store.transaction() as transaction:
            transaction.put(target, b"out")
            transaction.ack(message)
            assert message.settled
            raise RuntimeError

    with nothing_changes(store), pytest.raises(RuntimeError):
        fail()
    assert not message.settled
    message.ack()


def test_a_transaction_that_does_nothing_makes_no_commit(store, topic):
    before = commits(store)
    with store.transaction():
        pass
    store.transaction().commit()
    with store.transaction() as transaction:
        transaction.put_many(topic, [])
    assert commits(store) == before


ENDS = {
    "a commit": lambda transaction: transaction.commit(),
    "a rollback": lambda transaction: transaction.rollback(),
    "its block": lambda transaction: transaction.__exit__(None, None, None),
    "an exception in its block": lambda transaction: transaction.__exit__(OSError, None, None),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_after_its_end_a_transaction_does_nothing_any_more(store, topic, consumer, end):
    topic.put_many([b"in", b"in"])
    message, other = consumer.get_many(2)
    transaction = store.transaction()
    transaction.put(topic, b"out")
    transaction.ack(message)
    end(transaction)
    before = list(transaction.receipts)
    with nothing_changes(store):
        for call in (
            lambda: transaction.put(topic, b""),
            lambda: transaction.put_many(topic, [b""]),
            *(lambda verb=verb: getattr(transaction, verb)(other) for verb in VERBS),
            transaction.commit,
            transaction.__enter__,
        ):
            with pytest.raises(diskq.Closed) as refused:
                call()
            assert str(refused.value) == "the transaction is over; begin another"
        transaction.rollback()
    assert list(transaction.receipts) == before
    assert not other.settled


def test_a_commit_or_rollback_inside_of_the_block_ends_it(store, topic):
    with store.transaction() as transaction:
        transaction.put(topic, b"a")
        transaction.commit()
    with store.transaction() as transaction:
        transaction.put(topic, b"b")
        transaction.rollback()
    assert bodies(topic.read()) == [b"a"]


def test_a_commit_that_failed_ends_it(store, topic):
    full = store.topic("full", max_messages=1)
    full.put(b"")
    with store.transaction() as transaction:
        transaction.put(full, b"")
        with pytest.raises(diskq.Full):
            transaction.commit()
    with pytest.raises(diskq.Closed):
        transaction.commit()


def test_a_transaction_that_is_dropped_with_something_in_it_is_a_warning(store, topic, consumer):
    topic.put(b"in")
    transaction = store.transaction()
    transaction.put(topic, b"out")
    with pytest.warns(ResourceWarning, match="dropped: nothing of it happened"):
        del transaction
    transaction = store.transaction()
    transaction.ack(consumer.get_nowait())
    with pytest.warns(ResourceWarning):
        del transaction
    with warnings.catch_warnings(record=True) as caught:
        store.transaction()
        transaction = store.transaction()
        transaction.put(topic, b"out")
        transaction.rollback()
        del transaction
    assert caught == []
    assert topic.stats().put == 1


def test_one_lost_lease_undoes_all_of_it(store, topic, target, group, consumer, clock):
    topic.put_many([b"a", b"b"])
    lost = consumer.get_nowait()
    clock.advance(10)
    other = group.consumer("cb")
    assert other.get_nowait().body == b"a"
    held = other.get_nowait()
    transaction = store.transaction()
    transaction.put(target, b"out", dedup_id="x")
    transaction.put(target, b"out", delay_seconds=1)
    transaction.ack(held)
    transaction.ack(lost)
    with nothing_changes(store), pytest.raises(diskq.LeaseLost) as error:
        transaction.commit()
    assert error.value.offset == 0
    assert (held.settled, lost.settled) == (False, False)
    held.ack()
    assert not target.put(b"out", dedup_id="x").duplicate


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_fenced(store, topic, group, consumer, clock, verb):
    topic.put(b"a")
    lost = consumer.get_nowait()
    clock.advance(10)
    group.consumer("cb").get_nowait()
    transaction = store.transaction()
    getattr(transaction, verb)(lost)
    with nothing_changes(store), pytest.raises(diskq.LeaseLost):
        transaction.commit()


def test_a_lease_past_its_deadline_that_nobody_took_is_good_enough(store, topic, consumer, clock):
    topic.put(b"a")
    late = consumer.get_nowait()
    clock.advance(1000)
    with store.transaction() as transaction:
        transaction.ack(late)
    assert late.settled


def test_a_lease_that_a_seek_or_purge_took_undoes_all_of_it(store, topic, target, group, consumer):
    for take in lambda: group.seek("latest"), topic.purge, group.delete:
        topic.put(b"a")
        message = consumer.get_nowait()
        take()
        transaction = store.transaction()
        transaction.put(target, b"out")
        transaction.ack(message)
        with (
            nothing_changes(store),
            pytest.raises((diskq.LeaseLost, diskq.NotFound)),
        ):
            transaction.commit()
    assert target.stats().put == 0


def test_a_full_topic_undoes_all_of_it_at_once(store, topic, group, consumer):
    full = store.topic("full", max_messages=1)
    full.put(b"")
    topic.put(b"a")
    message = consumer.get_nowait()
    transaction = store.transaction()
    transaction.ack(message)
    transaction.put(topic, b"b")
    transaction.put(full, b"c")
    with nothing_changes(store), pytest.raises(diskq.Full, match="topic 'full' is full"):
        transaction.commit()
    assert not message.settled
    full.purge()
    with store.transaction() as transaction:
        transaction.ack(message)
        transaction.put(full, b"c")
    assert (group.stats().acked, full.stats().stored, topic.stats().put) == (1, 1, 1)


def test_what_a_transaction_puts_into_one_topic_is_counted_together(store):
    topic = store.topic("full", max_messages=2)
    transaction = store.transaction()
    for _ in range(3):
        transaction.put(topic, b"")
    with nothing_changes(store), pytest.raises(diskq.Full):
        transaction.commit()


def test_room_that_the_transaction_makes_itself_is_room(store):
    topic = store.topic("full", max_messages=1)
    consumer = topic.group("g").consumer()
    topic.put(b"1")
    for number in 2, 3, 4:
        with store.transaction() as transaction:
            transaction.ack(consumer.get_nowait())
            transaction.put(topic, b"%d" % number)
    assert bodies(topic.read()) == [b"4"]


def test_a_message_is_settled_once(store, topic, consumer):
    topic.put_many([b"a", b"b"])
    one, two = consumer.get_many(2)
    one.ack()
    transaction = store.transaction()
    with pytest.raises(diskq.AlreadySettled):
        transaction.ack(one)
    transaction.nack(two)
    for again in transaction.ack, transaction.nack, transaction.release, transaction.reject:
        with pytest.raises(diskq.AlreadySettled):
            again(two)
    with pytest.raises(diskq.AlreadySettled, match="settled before, or given to a transaction"):
        two.ack()
    with pytest.raises(diskq.AlreadySettled):
        store.transaction().ack(two)
    transaction.commit()
    with pytest.raises(diskq.AlreadySettled):
        two.ack()


def test_a_loop_does_not_ack_what_a_transaction_settled(store, topic, group, consumer):
    topic.put_many([b"a", b"b", b"c"])
    for message in consumer:
        with store.transaction() as transaction:
            transaction.reject(message)
        if message.body == b"c":
            break
    assert (group.stats().dead, group.stats().acked) == (3, 0)


def test_messages_of_one_lease_are_settled_each_in_its_way(store, topic, group, consumer):
    topic.put_many([b"%d" % number for number in range(6)])
    messages = consumer.get_many(6)
    with store.transaction() as transaction:
        for verb, message in zip(
            ["release", "ack", "reject", "release", "nack", "ack"], messages, strict=True
        ):
            getattr(transaction, verb)(message)
    stats = group.stats()
    assert (stats.ready, stats.acked, stats.dead, stats.waiting) == (2, 2, 1, 1)
    assert ready(consumer) == [b"4", b"0", b"3"]


def test_a_retry_is_settled_in_a_transaction(store, topic, group, consumer):
    topic.put(b"a")
    consumer.get_nowait().nack()
    with store.transaction() as transaction:
        transaction.ack(consumer.get_nowait())
    assert (group.stats().acked, group.stats().lag) == (1, 0)


def test_a_key_is_passed_on_by_a_transaction(store, topic):
    consumer = topic.group("keyed", ordering="key").consumer()
    topic.put_many([Outgoing(b"%d" % number, key="k") for number in range(3)])
    for number in range(3):
        message = consumer.get_nowait()
        assert message.body == b"%d" % number
        assert ready(consumer) == []
        with store.transaction() as transaction:
            transaction.ack(message)


def test_what_is_of_another_store_is_refused(store, topic, consumer, tmp_path, clock):
    with diskq.open(tmp_path / "another", clock=clock, durability="process") as another:
        elsewhere = another.topic("t")
        elsewhere.put(b"")
        message = elsewhere.group("g").consumer().get_nowait()
        transaction = store.transaction()
        with pytest.raises(ValueError, match="another store"):
            transaction.put(elsewhere, b"")
        with pytest.raises(ValueError, match="another store"):
            transaction.ack(message)
        message.ack()


def test_the_same_store_opened_twice_is_one_store(store, open_store, topic):
    topic.put(b"a")
    message = open_store().topic("mail").group("g").consumer().get_nowait()
    with store.transaction() as transaction:
        transaction.ack(message)
        transaction.put(open_store().topic("mail"), b"b")
    assert topic.group("g").stats().acked == 1


def test_a_queue_may_be_the_target(store):
    queue = store.queue("q")
    with store.transaction() as transaction:
        transaction.put(queue, b"a")
        transaction.put_many(queue, [b"b"])
    assert bodies(queue.get_many(9, timeout=0)) == [b"a", b"b"]


def test_a_deleted_topic_undoes_all_of_it(store, topic, target, consumer):
    topic.put(b"a")
    message = consumer.get_nowait()
    transaction = store.transaction()
    transaction.ack(message)
    transaction.put(target, b"")
    store.delete_topic("results")
    with nothing_changes(store), pytest.raises(diskq.NotFound, match="results"):
        transaction.commit()
    message.ack()


def test_bad_puts_are_refused_before_the_commit(store, topic):
    transaction = store.transaction()
    for odd in (
        lambda: transaction.put(topic, "text"),
        lambda: transaction.put(topic, None),
        lambda: transaction.put(topic, b"", colour="red"),
        lambda: transaction.put_many(topic, b"body"),
        lambda: transaction.put_many(topic, [b"", 5]),
    ):
        with pytest.raises(TypeError):
            odd()
    with pytest.raises(ValueError, match="delay_seconds"):
        transaction.put(topic, b"", delay_seconds=-1)
    transaction.put(topic, b"", priority=1)
    with nothing_changes(store), pytest.raises(ValueError, match="priority 1"):
        transaction.commit()


def test_bad_settles_are_refused_before_the_commit_and_leave_the_message(store, topic, consumer):
    topic.put(b"a")
    message = consumer.get_nowait()
    transaction = store.transaction()
    with pytest.raises(ValueError, match="delay_seconds"):
        transaction.nack(message, delay_seconds=-1)
    with pytest.raises(TypeError, match="error"):
        transaction.nack(message, error=b"bytes")
    with pytest.raises(TypeError, match="reason"):
        transaction.reject(message, None)
    assert not message.settled
    transaction.ack(message)
    transaction.commit()


def test_a_closed_consumer_or_store_is_refused(store, topic, group, tmp_path, clock):
    topic.put(b"a")
    consumer = group.consumer("closed")
    message = consumer.get_nowait()
    consumer.close()
    with pytest.raises(diskq.Closed):
        store.transaction().ack(message)
    another = diskq.open(tmp_path / "another", clock=clock, durability="process")
    transaction = another.transaction()
    transaction.put(another.topic("t"), b"")
    another.close()
    with pytest.raises(diskq.Closed):
        transaction.commit()


def test_a_consumer_that_was_closed_since_undoes_all_of_it(store, topic, target, group):
    topic.put(b"a")
    consumer = group.consumer("closed")
    transaction = store.transaction()
    transaction.ack(consumer.get_nowait())
    transaction.put(target, b"out")
    consumer.close()
    with nothing_changes(store), pytest.raises(diskq.LeaseLost):
        transaction.commit()


def test_a_store_open_for_reading_has_no_transactions(open_store, tmp_path, clock):
    open_store(durability="process").close()
    with (
        diskq.open(tmp_path / "store", readonly=True, clock=clock) as store,
        pytest.raises(diskq.ReadOnly),
    ):
        store.transaction()


def test_a_closed_store_has_no_transactions(tmp_path):
    store = diskq.open(tmp_path / "another", durability="process")
    store.close()
    with pytest.raises(diskq.Closed):
        store.transaction()


def test_a_large_transaction_is_one_commit(store, topic, target, consumer):
    target.put(b"")
    topic.put_many([b"%d" % number for number in range(1000)])
    before = commits(store)
    messages = consumer.get_many(1000)
    with store.transaction() as transaction:
        for message in messages:
            transaction.ack(message)
            transaction.put(target, message.body)
    assert commits(store) == before + 2
    assert offsets(transaction.receipts) == list(range(1, 1001))
    topic.trim()
    assert topic.stats().stored == 0


def test_what_is_no_message_or_topic_is_a_type_error(store):
    transaction = store.transaction()
    with pytest.raises(TypeError, match="Message"):
        transaction.ack(5)
    with pytest.raises(TypeError, match="Topic"):
        transaction.put("mail", b"")


def test_an_iteration_does_not_ack_what_a_failed_transaction_had(store, topic, group, consumer):
    full = store.topic("full", max_messages=1)
    full.put(b"")
    topic.put_many([b"a", b"b"])
    for message in consumer:
        if message.body == b"b":
            break
        transaction = store.transaction()
        transaction.put(full, message.body)
        transaction.ack(message)
        with pytest.raises(diskq.Full):
            transaction.commit()
    assert (group.stats().acked, group.stats().leased) == (0, 2)


def test_an_iteration_goes_on_after_a_lost_lease(topic, group, consumer, clock):
    topic.put_many([b"a", b"b"])
    other = group.consumer("other")
    seen = []
    for message in consumer:
        seen.append(message.body)
        if len(seen) == 2:
            break
        clock.advance(11)
        assert other.get_nowait().body == b"a"
        with pytest.raises(diskq.LeaseLost):
            message.ack()
    assert seen == [b"a", b"b"]
