"""Stores and consumers that come and go: closed, forgotten, opened twice, forked, rebooted."""

from __future__ import annotations

import gc
import os
import threading
import time
import traceback

import pytest
from support.stores import bodies, dump, nothing_changes, offsets

import diskq
from diskq.base import limits
from diskq.delivery import waiting


def in_child(call):
    """Run `call` in a forked child; fail unless it returns there."""
    pid = os.fork()
    if pid == 0:
        try:
            call()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


# Consumers


def test_closing_a_consumer_gives_back_what_it_held_uncharged(topic, group, consumer):
    topic.put_many([b"a", b"b", b"c", b"d"])
    first, second, *_ = consumer.get_many(4, timeout=0)
    second.ack()
    consumer.close()
    assert group.stats().ready == 3
    assert group.stats().failed == 0
    again = group.consumer().get_many(9, timeout=0)
    assert [(m.offset, m.attempt) for m in again] == [(0, 1), (2, 1), (3, 1)]
    assert all(message.token > first.token for message in again)


def test_a_closed_consumer_refuses_everything(store, topic, consumer):
    topic.put_many([b"a", b"b"])
    message = consumer.get_nowait()
    consumer.close()
    consumer.close()
    with nothing_changes(store):
        for call in (
            consumer.get,
            consumer.get_nowait,
            lambda: consumer.get_many(1),
            lambda: consumer.ack_many([message]),
            message.ack,
            message.nack,
            message.reject,
            message.release,
            message.extend,
        ):
            with pytest.raises(diskq.Closed, match="ca"):
                call()
        assert list(consumer) == []


def test_a_consumer_is_closed_at_the_end_of_its_with(topic, group):
    topic.put(b"a")
    with group.consumer() as consumer:
        consumer.get_nowait()
    assert group.stats().ready == 1
    with pytest.raises(diskq.Closed):
        consumer.get_nowait()


def test_a_forgotten_consumer_frees_its_message_and_is_charged_for_it(topic, group):
    topic.put(b"a")
    consumer = group.consumer("lost")
    consumer.get_nowait()
    del consumer
    gc.collect()
    message = group.consumer("found").get_nowait()
    assert (message.body, message.attempt) == (b"a", 2)
    message.reject()
    causes = [(entry.cause, entry.consumer) for entry in next(group.dead()).history]
    assert causes == [("crashed", "lost"), ("reject", "found")]


def test_of_a_forgotten_batch_nobody_is_charged_and_it_comes_one_by_one(topic, group):
    topic.put_many([b"a", b"b", b"c", b"d"])
    consumer = group.consumer()
    consumer.get_many(4, timeout=0)[0].ack()
    del consumer
    gc.collect()
    other = group.consumer()
    for offset in 1, 2, 3:
        message = other.get_nowait()
        assert (message.offset, message.attempt) == (offset, 1)
        message.ack()
    assert group.stats().failed == 0


def test_after_a_crash_a_batch_taker_too_gets_one_by_one(topic, group):
    """Else all of the batch is charged by the second crash, though one message caused it."""
    topic.put_many([b"a", b"b", b"c"])
    for _ in range(2):
        consumer = group.consumer()
        consumer.get_many(3, timeout=0)
        del consumer
        gc.collect()
    group.consumer().get_nowait()
    assert group.stats().failed <= 1


def test_of_a_forgotten_batch_only_the_message_being_handled_is_charged(topic, group, clock):
    topic.put_many([b"a", b"b", b"c"])
    consumer = group.consumer("lost")
    consumer.get_many(3, timeout=0)[1].__enter__()
    del consumer
    gc.collect()
    heir = group.consumer()
    again = [heir.get_many(3, timeout=0)]
    clock.advance(limits.HAND_OVER_SECONDS)
    again.append(heir.get_many(3, timeout=0))
    assert [[(each.offset, each.attempt) for each in batch] for batch in again] == [
        [(1, 2)],
        [(0, 1), (2, 1)],
    ]


def test_a_crash_can_be_the_last_delivery(topic):
    group = topic.group("g", max_deliveries=1)
    topic.put(b"a")
    consumer = group.consumer("lost")
    consumer.get_nowait()
    del consumer
    gc.collect()
    assert group.consumer().get_many(1, timeout=0) == []
    (letter,) = group.dead()
    assert (letter.reason, letter.history[0].cause) == ("max_deliveries", "crashed")


def test_live_consumers_can_be_seen(store, topic, group):
    topic.put(b"a")
    with group.consumer("ca"), group.consumer("cb") as other:
        message = other.get_nowait()
        with message:
            seen = store.stats().consumers
        assert sorted(seen) == [
            diskq.ConsumerInfo("ca", os.getpid(), "mail", "workers", False, None),
            diskq.ConsumerInfo("cb", os.getpid(), "mail", "workers", False, 0),
        ]
    assert store.stats().consumers == ()


def test_a_consumer_without_a_name_is_named_after_its_process(store, group):
    with group.consumer() as consumer:
        assert consumer.name == f"pid-{os.getpid()}"
        assert store.stats().consumers[0].name == consumer.name


def test_the_longest_name_of_a_consumer_is_kept_whole(store, group):
    name = "c" * limits.MAX_NAME_BYTES
    with group.consumer(name):
        assert store.stats().consumers[0].name == name


def test_more_than_1024_consumers_are_refused_until_one_leaves(store, group):
    consumers = [group.consumer() for _ in range(limits.MAX_CONSUMERS)]
    with pytest.raises(diskq.Unsupported, match="1024"):
        group.consumer()
    assert len(store.stats().consumers) == limits.MAX_CONSUMERS
    consumers[500].close()
    group.consumer().close()


# Waiting


def test_a_blocked_get_wakes_when_a_message_is_put(topic, consumer):
    found = []
    thread = threading.Thread(target=lambda: found.append(consumer.get(timeout=60)))
    thread.start()
    topic.put(b"a")
    thread.join(60)
    assert bodies(found) == [b"a"]


def test_a_blocked_get_gives_up_in_time(consumer):
    start = time.monotonic()
    with pytest.raises(diskq.Empty):
        consumer.get(timeout=0.05)
    assert consumer.get_many(3, timeout=0.05) == []
    assert time.monotonic() - start >= 0.1


def test_not_blocking_means_not_waiting(consumer):
    with pytest.raises(diskq.Empty):
        consumer.get(block=False)
    with pytest.raises(diskq.Empty):
        consumer.get(timeout=0)
    with pytest.raises(diskq.Empty):
        consumer.get_nowait()


def wait_until_blocked(store, count=1):
    """Wait until so many consumers are blocked in a get."""
    for _ in range(6000):
        if sum(consumer.waiting for consumer in store.stats().consumers) == count:
            return
        threading.Event().wait(0.005)
    raise AssertionError("nobody waits")


def outcome_of(call, found):
    try:
        found.append(call())
    except BaseException as error:
        found.append(error)


def test_a_blocked_get_ends_when_its_consumer_is_closed(store, consumer):
    found = []
    thread = threading.Thread(target=outcome_of, args=(consumer.get, found))
    thread.start()
    wait_until_blocked(store)
    consumer.close()
    thread.join(60)
    assert [type(one) for one in found] == [diskq.Closed], found


@pytest.mark.parametrize("turn", range(3))
def test_a_blocked_get_ends_when_its_store_is_closed(store, consumer, turn):
    found = []
    thread = threading.Thread(target=outcome_of, args=(consumer.get, found))
    thread.start()
    wait_until_blocked(store)
    store.close()
    thread.join(60)
    assert [type(one) for one in found] == [diskq.Closed], found


def test_a_blocked_loop_ends_when_its_store_is_closed(store, topic, consumer):
    found = []
    thread = threading.Thread(target=outcome_of, args=(lambda: list(consumer), found))
    thread.start()
    wait_until_blocked(store)
    store.close()
    thread.join(60)
    assert found == [[]]


def test_a_batch_leaves_their_share_to_consumers_that_wait(store, topic, group, clock, monkeypatch):
    monkeypatch.setattr(limits, "WAIT_SECONDS", 60)
    looks = []
    look = waiting.seconds_to_wait
    greedy = group.consumer()
    topic.put_many([b""] * 40)
    for message in greedy.get_many(40, timeout=0):
        message.nack(delay_seconds=1000)
    monkeypatch.setattr(
        waiting,
        "seconds_to_wait",
        lambda *at, **stuck: looks.append(look(*at, **stuck)) or looks[-1],
    )
    found = []
    threads = [
        threading.Thread(target=outcome_of, args=(group.consumer().get, found)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    while len(looks) < 3:  # each has looked for the last time before it sleeps
        time.sleep(0.01)
    wait_until_blocked(store, 3)
    clock.advance(1000)  # all are due, but that wakes nobody
    assert len(greedy.get_many(40, timeout=0)) == 10
    topic.put_many([b""] * 3)
    for thread in threads:
        thread.join(60)
    assert len(found) == 3


# Stores


def test_a_closed_store_refuses_everything(store, topic, group):
    consumer = group.consumer()
    queue = store.queue("q")
    store.close()
    store.close()
    for call in (
        lambda: store.topic("new"),
        lambda: store.queue("new"),
        store.topics,
        store.stats,
        lambda: list(store.verify()),
        lambda: store.delete_topic("mail"),
        lambda: store.path,
        lambda: topic.put(b""),
        lambda: topic.group("new"),
        lambda: list(topic.read()),
        topic.stats,
        topic.groups,
        group.stats,
        group.consumer,
        group.redrive,
        group.delete,
        consumer.get_nowait,
        queue.get_nowait,
        queue.qsize,
    ):
        with pytest.raises(diskq.Closed):
            call()
    assert repr(store) == "<Store closed>"


def test_closing_a_store_closes_its_consumers_uncharged(open_store):
    store = open_store()
    topic = store.topic("t")
    topic.put_many([b"a", b"b"])
    consumer = topic.group("g").consumer()
    consumer.get_many(2, timeout=0)
    store.close()
    again = open_store().topic("t").group("g")
    assert (again.stats().ready, again.stats().failed) == (2, 0)
    with pytest.raises(diskq.Closed):
        consumer.get_nowait()


def test_two_stores_on_one_path_share_an_environment_and_one_can_be_closed(open_store, tmp_path):
    one, two = open_store(), open_store()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    three = diskq.open(tmp_path / "link")
    assert one.handle.engine is two.handle.engine is three.handle.engine
    three.close()
    topic = one.topic("t")
    topic.put_many([b"a", b"b"])
    mine, other = topic.group("g").consumer(), two.topic("t").group("g").consumer()
    mine.get_nowait()
    message = other.get_nowait()
    one.close()
    message.ack()
    with pytest.raises(diskq.Closed):
        mine.get_nowait()
    assert offsets(other.get_many(9, timeout=0)) == [0]
    two.topic("t").put(b"c")
    two.close()
    assert open_store().topic("t").stats().put == 3


def test_two_stores_in_one_process_do_not_meet(tmp_path):
    with diskq.open(tmp_path / "one") as one, diskq.open(tmp_path / "two") as two:
        one.queue("q").put(b"1")
        two.queue("q").put(b"2")
        assert one.queue("q").get_nowait().body == b"1"
        assert two.queue("q").get_nowait().body == b"2"


def test_a_store_made_anew_at_the_same_path_is_another_one(tmp_path):
    path = tmp_path / "store"
    with diskq.open(path) as old:
        old.topic("t").put(b"old")
        path.rename(tmp_path / "moved")
        with diskq.open(path) as new:
            assert new.topics() == []
            new.topic("t").put(b"new")
        assert bodies(old.topic("t").read()) == [b"old"]


def test_durability_is_stored_and_another_one_is_refused(tmp_path):
    for durability in None, "commit", "relaxed", "process":
        path = tmp_path / str(durability)
        with diskq.open(path, durability=durability) as store:
            assert store.stats().durability == (durability or "commit")
            store.topic("t").put(b"a")
            for other in {"commit", "relaxed", "process"} - {durability or "commit"}:
                with pytest.raises(diskq.ConfigConflict, match="durability"):
                    diskq.open(path, durability=other)
        for other in {"commit", "relaxed", "process"} - {durability or "commit"}:
            with pytest.raises(diskq.ConfigConflict, match="durability"):
                diskq.open(path, durability=other)
        with diskq.open(path) as store:
            assert store.stats().durability == (durability or "commit")
            assert list(store.verify()) == []


def test_max_bytes_is_stored_and_another_one_is_refused(tmp_path):
    with diskq.open(tmp_path / "s", max_bytes=limits.MIN_STORE_BYTES) as store:
        assert store.stats().limit_bytes == limits.MIN_STORE_BYTES
    with pytest.raises(diskq.ConfigConflict, match="max_bytes"):
        diskq.open(tmp_path / "s", max_bytes=limits.MIN_STORE_BYTES + 1)
    with diskq.open(tmp_path / "s") as store:
        assert store.stats().limit_bytes == limits.MIN_STORE_BYTES


def test_a_conflict_leaves_no_open_environment_behind(tmp_path):
    diskq.open(tmp_path / "s").close()
    with pytest.raises(diskq.ConfigConflict):
        diskq.open(tmp_path / "s", durability="process")
    diskq.open(tmp_path / "s", readonly=True).close()


def test_a_new_boot_voids_all_leases_and_charges_nobody(open_store, clock):
    store = open_store()
    topic = store.topic("t")
    group = topic.group("g", backoff=diskq.Backoff(0))
    topic.put_many([b""] * 6)
    consumer = group.consumer()
    consumer.get_nowait().nack()
    consumer.get_many(4, timeout=0)[2].ack()
    before = dump(store)
    consumer.member.close = lambda: None  # it dies with the machine
    store.close()
    clock.reboot()
    store = open_store()
    assert dump(store) != before
    group = store.topic("t").group("g")
    stats = group.stats()
    assert (stats.leased, stats.failed, stats.lag) == (0, 1, 5)
    again = group.consumer().get_many(9, timeout=0)
    assert [(m.offset, m.attempt) for m in again] == [(0, 2), (1, 1), (3, 1), (4, 1), (5, 1)]


def test_the_same_boot_keeps_leases(open_store):
    store = open_store()
    topic = store.topic("t")
    topic.put_many([b"a", b"b"])
    consumer = topic.group("g").consumer()
    consumer.get_many(2, timeout=0)
    consumer.member.close = lambda: None  # its process dies, or so it seems
    store.close()
    assert open_store().topic("t").group("g").stats().leased == 2


# Read-only


@pytest.fixture
def written(open_store):
    """A store that was closed, with a message and a dead letter."""
    with open_store(durability="process") as store:
        topic = store.topic("t")
        topic.put_many([b"a", b"b"])
        with topic.group("g").consumer() as consumer:
            consumer.get_nowait().reject("no")


def test_a_store_opened_read_only_can_be_read(written, open_store):
    with open_store(readonly=True) as store:
        (topic,) = store.topics()
        assert bodies(topic.read()) == [b"a", b"b"]
        assert bodies(store.topic("t").group("g").dead()) == [b"a"]
        assert store.stats().topics[0].put == 2
        assert store.stats().consumers == ()
        assert list(store.verify()) == []
        (group,) = topic.groups()
        assert group.settings == diskq.GroupSettings()


def test_a_store_opened_read_only_cannot_be_changed(written, open_store):
    with open_store(readonly=True) as store:
        topic = store.topic("t")
        (group,) = topic.groups()
        with nothing_changes(store):
            for call in (
                lambda: topic.put(b""),
                lambda: topic.put_many([b""]),
                group.redrive,
                lambda: group.redrive(offsets=[0]),
                group.delete,
                group.consumer,
                lambda: store.delete_topic("t"),
                lambda: store.handle.commit(lambda tx: None),
                lambda: store.topic("new"),
            ):
                with pytest.raises(diskq.ReadOnly):
                    call()
            with pytest.raises((diskq.NotFound, diskq.ReadOnly)):
                topic.group("new")
        gc.collect()


def test_a_read_only_handle_on_an_open_store_changes_nothing(store, topic, group, open_store):
    topic.put(b"a")
    reader = open_store(readonly=True)
    mine = reader.topic("mail")
    (workers,) = mine.groups()
    with nothing_changes(store):
        for call in (
            lambda: mine.put(b""),
            lambda: workers.redrive(offsets=[0]),
            workers.delete,
            lambda: reader.delete_topic("mail"),
            lambda: reader.topic("new"),
        ):
            with pytest.raises(diskq.ReadOnly):
                call()
        with pytest.raises((diskq.NotFound, diskq.ReadOnly)):
            mine.group("new")


def test_a_read_only_handle_on_an_open_store_has_no_consumers(topic, group, open_store):
    topic.put(b"a")
    (workers,) = open_store(readonly=True).topic("mail").groups()
    with pytest.raises(diskq.ReadOnly):
        workers.consumer().get_nowait().ack()


def test_a_read_only_handle_on_an_open_store_can_look_at_a_group(topic, group, open_store):
    topic.put(b"a")
    assert open_store(readonly=True).topic("mail").group("workers").stats().unread == 1


def test_a_store_open_read_only_cannot_be_opened_for_writing_at_the_same_time(open_store):
    open_store().close()
    reader = open_store(readonly=True)
    with pytest.raises(diskq.Unsupported, match="read-only"):
        open_store()
    reader.close()
    open_store()


# Forks


def test_a_store_works_in_a_forked_child_and_in_its_parent(store, topic, group):
    topic.put(b"a")

    def child():
        topic.put(b"b")
        with group.consumer() as consumer:
            assert consumer.get_nowait().body == b"a"

    in_child(child)
    assert bodies(topic.read()) == [b"a", b"b"]
    assert group.consumer().get_nowait().body == b"a"


def test_consumers_and_messages_belong_to_the_process_that_made_them(store, topic, group):
    topic.put_many([b"a", b"b"])
    consumer = group.consumer()
    message = consumer.get_nowait()

    def child():
        for call in (
            consumer.get_nowait,
            lambda: consumer.get_many(1),
            lambda: next(iter(consumer)),
            lambda: consumer.ack_many([message]),
            message.ack,
            message.nack,
            message.release,
            message.reject,
            message.extend,
        ):
            with pytest.raises(diskq.WrongProcess):
                call()
        consumer.close()
        assert group.stats().leased == 1

    in_child(child)
    message.ack()
    assert group.stats().acked == 1


# Queue, the simple face


def test_a_queue_is_a_topic_with_one_group(store):
    queue = store.queue("q")
    assert queue.empty()
    assert queue.put(b"a", key="k", headers={"h": "v"}).offset == 0
    assert len(queue.put_many([b"b", b"c"])) == 2
    assert queue.qsize() == 3
    message = queue.get()
    assert (message.body, message.key, message.headers) == (b"a", "k", {"h": "v"})
    assert queue.qsize() == 3  # not done yet
    message.ack()
    assert queue.qsize() == 2
    assert bodies(queue.get_many(5, timeout=0)) == [b"b", b"c"]
    with pytest.raises(diskq.Empty):
        queue.get_nowait()
    assert [group.name for group in store.topic("q").groups()] == ["default"]
    with queue.consumer("other") as consumer:
        assert consumer.name == "other"


def test_reprs_say_what_things_are(store, topic, group, consumer):
    assert repr(store) == f"<Store {store.path}>"
    assert repr(topic) == "<Topic mail>"
    assert repr(group) == "<Group mail/workers>"
    assert repr(consumer) == "<Consumer ca of mail/workers>"
    assert repr(store.queue("q")) == "<Queue q>"
