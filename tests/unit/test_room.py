"""A full store refuses puts and nothing else; the memory map grows when it must."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from support.programs import ROOT, run_python
from support.stores import nothing_changes, verified

import diskq
from diskq.base import limits

MIB = limits.MIB
MAX = limits.MIN_STORE_BYTES


@pytest.fixture
def small(open_store):
    """A store that may have 4 MiB."""
    return open_store(durability="process", max_bytes=MAX)


def fill(topic, body):
    """Put until the store is full; returns how many."""
    for count in range(100_000):
        try:
            topic.put(body)
        except diskq.Full:
            return count
    raise AssertionError("the store is never full")


def size_of(store):
    return store.stats().file_bytes


@pytest.mark.parametrize("size", [100, 5000, 70_000])
def test_a_full_store_raises_full_and_stores_nothing(small, size):
    topic = small.topic("t")
    group = topic.group("g")
    count = fill(topic, bytes(size))
    assert count * size < MAX
    assert topic.stats().put == group.stats().unread == count
    with nothing_changes(small):
        for call in (
            lambda: topic.put(bytes(size)),
            lambda: topic.put_many([bytes(size)] * 3),
            lambda: small.topic("t").put(bytes(100_000)),
        ):
            with pytest.raises(diskq.Full, match="full") as full:
                call()
            assert "consume" in str(full.value) or "room" in str(full.value)
    assert size_of(small) <= MAX


def test_a_store_uses_most_of_its_room_before_it_is_full(small):
    assert fill(small.topic("t"), bytes(8000)) * 8000 > MAX / 2


@pytest.mark.parametrize("size", [100, 4000, 70_000])
def test_in_a_full_store_messages_can_be_settled_and_then_put_again(small, size):
    topic = small.topic("t")
    group = topic.group("g", backoff=diskq.Backoff(0), max_deliveries=3)
    for _ in range(3):
        count = fill(topic, bytes(size))
        assert count > 0
        with group.consumer() as consumer:
            batch = consumer.get_many(9, timeout=0)
            batch[0].nack()
            batch[1].reject("no")
            batch[2].release()
            batch[3].extend()
            batch[3].ack()
            consumer.ack_many(batch[4:])
            while batch := consumer.get_many(1000, timeout=0):
                consumer.ack_many(batch)
        assert group.stats().lag == 0
        assert list(small.verify()) == []
    assert group.stats().dead == 3


@pytest.mark.parametrize("verb", ["nack", "reject"])
def test_in_a_full_store_much_can_fail_and_then_all_can_be_acked(small, verb):
    """What failed is copied, and still stored for the slow group; so it is bounded."""
    topic = small.topic("t")
    group = topic.group("g")
    topic.group("slow")  # keeps all segments
    count = fill(topic, bytes(3000))
    failed = 0
    with group.consumer() as consumer:
        while batch := consumer.get_many(100, timeout=0):
            for message in batch:
                try:
                    getattr(message, verb)()
                    failed += 1
                except diskq.Full:
                    message.ack()
            assert size_of(small) <= 1.5 * MAX
    assert count / 3 < failed < count
    with pytest.raises(diskq.Full):
        topic.put(bytes(3000))


def test_in_a_full_store_every_message_can_be_rejected_and_redriven_bit_by_bit(small):
    """Each is copied out of the log before its segment goes, which is what the reserve is for."""
    topic = small.topic("t")
    group = topic.group("g")
    count = fill(topic, bytes(1500))
    with group.consumer() as consumer:
        for number, message in enumerate(consumer):
            message.reject("no") if number % 2 else message.ack()
            if number + 1 == count:
                break
    dead = group.stats().dead
    assert dead == count // 2
    assert group.redrive() == dead
    with group.consumer() as consumer:
        while batch := consumer.get_many(50, timeout=0):
            consumer.ack_many(batch)
    assert group.stats().lag == 0
    assert fill(topic, bytes(1500)) > count // 2


def test_a_full_store_can_be_emptied_by_deleting(small):
    topic = small.topic("t")
    topic.group("g")
    count = fill(topic, bytes(5000))
    small.delete_topic("t")
    assert fill(small.topic("t"), bytes(5000)) >= count * 0.8
    assert size_of(small) <= MAX


def test_iterating_works_in_a_full_store(small):
    topic = small.topic("t")
    group = topic.group("g")
    count = fill(topic, bytes(3000))
    for number, message in enumerate(group.consumer(), 1):
        assert len(message.body) == 3000
        if number == count:
            break
    topic.put(bytes(3000))


def test_a_batch_that_does_not_fit_is_refused_whole(small):
    topic = small.topic("t")
    topic.put(b"")
    with nothing_changes(small), pytest.raises(diskq.Full):
        topic.put_many([bytes(100_000)] * 41)
    topic.put(b"")


def test_threads_that_fill_a_store_do_not_overrun_it(open_store):
    store = open_store(max_bytes=MAX)
    topic = store.topic("t")
    counts = []
    threads = [
        threading.Thread(target=lambda: counts.append(fill(topic, bytes(20_000)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert topic.stats().put == sum(counts)
    assert size_of(store) <= MAX


# Growth of the map


def test_the_map_grows_when_it_must(monkeypatch, open_store):
    monkeypatch.setattr(limits, "MAP_BYTES", (MIB,))
    store = open_store(durability="process", max_bytes=64 * MIB)
    topic = store.topic("t")
    group = topic.group("g")
    for number in range(60):
        topic.put(b"%d" % number + bytes(100_000))
    topic.put_many([bytes(50_000)] * 100)
    assert size_of(store) > 8 * MIB
    with group.consumer() as consumer:
        assert sum(1 for _ in topic.read()) == 160
        messages = consumer.get_many(160, timeout=0)
        assert messages[59].body.startswith(b"59")
        consumer.ack_many(messages)
    assert topic.stats().stored == 0


def test_threads_may_read_while_the_map_grows(monkeypatch, open_store):
    monkeypatch.setattr(limits, "MAP_BYTES", (MIB,))
    store = open_store(durability="process", max_bytes=64 * MIB)
    topic = store.topic("t")
    done = threading.Event()
    errors = []

    def read():
        try:
            while not done.is_set():
                bodies = [message.body for message in topic.read()]
                assert all(len(body) == 30_000 for body in bodies)
                store.stats()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(150):
        topic.put(bytes(30_000))
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert topic.stats().put == 150


GROW = """
import sys, diskq
from diskq.base import limits
limits.MAP_BYTES = (1024 * 1024,)
with diskq.open(sys.argv[1]) as store:
    topic = store.topic("t")
    for number in range(int(sys.argv[2])):
        topic.put(sys.argv[3].encode() + bytes(50_000))
        for message in topic.read(number, number + 1):
            assert len(message.body) == 50_001
"""


def test_a_log_can_be_opened_after_another_process_let_the_map_grow(monkeypatch, open_store):
    monkeypatch.setattr(limits, "MAP_BYTES", (MIB,))
    store = open_store(durability="process", max_bytes=64 * MIB)
    topic = store.topic("t")
    run_python(GROW, store.path, 80, "a")
    assert topic.put(b"").offset == 80


def test_two_processes_may_let_the_map_grow(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "MAP_BYTES", (MIB,))
    path = tmp_path / "s"
    with diskq.open(path, durability="process", max_bytes=64 * MIB) as store:
        topic = store.topic("t")
        runs = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", GROW, path, "80", name],
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name in ("a", "b")
        ]
        for _ in range(80):
            topic.put(b"c" + bytes(50_000))
        said = [run.communicate(timeout=100)[1] for run in runs]
        assert [text[-500:] for text in said] == ["", ""]
        assert [run.returncode for run in runs] == [0, 0]
        bodies = [message.body[:1] for message in topic.read()]
        assert {name: bodies.count(name) for name in (b"a", b"b", b"c")} == {
            b"a": 80,
            b"b": 80,
            b"c": 80,
        }
        assert size_of(store) > 8 * MIB
    assert verified(path) == []


def test_a_store_opens_with_a_map_smaller_than_its_file(monkeypatch, open_store):
    with open_store(durability="process") as store:
        store.topic("t").put_many([bytes(100_000)] * 50)
    monkeypatch.setattr(limits, "MAP_BYTES", (MIB,))
    with open_store() as store:
        assert sum(1 for _ in store.topic("t").read()) == 50
        with store.topic("t").group("g").consumer() as consumer:
            consumer.ack_many(consumer.get_many(50, timeout=0))


ADDRESS_SPACE = """
import resource, sys, diskq
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
with diskq.open(sys.argv[1]) as store:
    print(store.queue("q").put(b"a").offset, store.queue("q").get_nowait().body.decode())
"""


@pytest.mark.parametrize("gib", [8, 2])
def test_a_store_opens_where_address_space_is_scarce(tmp_path, gib):
    run = run_python(ADDRESS_SPACE, tmp_path / "s", gib * limits.GIB)
    assert run.stdout == "0 a\n"
