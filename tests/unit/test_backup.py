"""A backup is the store as of one commit: whole, sound, and its tokens are apart."""

from __future__ import annotations

import os
import stat
import threading

import pytest
from support.stores import bodies, dump, offsets

import diskq
from diskq.storage import creation

NEW = "copy"


@pytest.fixture
def copy(tmp_path):
    return tmp_path / NEW


def drain(store, name="mail", group="workers"):
    with store.topic(name).group(group).consumer() as consumer:
        found = consumer.get_many(1_000, timeout=0)
        consumer.ack_many(found)
    return found


def test_a_backup_has_all_that_the_store_has(store, topic, group, consumer, copy, clock):
    topic.put_many([b"a", b"b", b"c", b"d", b"e"])
    topic.put(b"later", delay_seconds=100)
    topic.put(b"once", dedup_id="id")
    consumer.get().ack()
    consumer.get().nack()
    consumer.get().reject("no")
    consumer.close()
    before = dump(store)
    store.backup(copy)
    with diskq.open(copy, clock=clock) as other:
        after = dump(other)
        assert after["held"] == before["held"]
        assert after["log of mail"] == before["log of mail"]
        assert list(other.verify()) == []
        assert other.topic("mail").put(b"twice", dedup_id="id").duplicate
        assert sorted(bodies(drain(other))) == [b"c", b"d", b"e", b"once"]
        assert len(list(other.topic("mail").scheduled())) == 1


def test_a_backup_leaves_the_store_as_it_was(store, topic, consumer, copy):
    topic.put_many([b"a", b"b"])
    message = consumer.get()
    before = dump(store)
    store.backup(copy)
    assert dump(store) == before
    message.ack()


def test_leases_are_not_valid_in_a_backup_and_nobody_is_charged(
    store, topic, consumer, copy, clock
):
    topic.put(b"a")
    consumer.get()
    store.backup(copy)
    with diskq.open(copy, clock=clock) as other:
        [message] = drain(other)
        assert (message.body, message.attempt) == (b"a", 1)


def test_tokens_of_a_backup_are_larger_than_those_that_the_store_gives_out_after_it(
    store, topic, consumer, copy, clock
):
    topic.put_many([b"a"] * 200)
    store.backup(copy)
    last = [consumer.get().token for _ in range(150)][-1]
    with diskq.open(copy, clock=clock) as other:
        [first, *_] = drain(other)
        assert first.token > last


def test_a_backup_of_a_backup_goes_on_with_larger_tokens(store, topic, group, copy, tmp_path):
    topic.put_many([b"a"] * 3)
    tokens = []
    for number in range(3):
        next_path = tmp_path / f"generation {number}"
        store.backup(next_path)
        store = diskq.open(next_path)
        tokens.append(store.topic("mail").group("workers").consumer().get_nowait().token)
    assert tokens == sorted(tokens)
    assert len(set(tokens)) == 3
    assert tokens[-1] < 2**63


def test_a_clock_that_is_far_ahead_leaves_tokens_within_their_range(
    store, topic, group, copy, monkeypatch
):
    topic.put(b"a")
    monkeypatch.setattr(creation.time, "time", lambda: 4e9)
    commit_id = creation.later(1, creation.COPIED)
    assert creation.later(commit_id, creation.COPIED) < 2**40  # what 64 bits leave for it


def test_a_backup_keeps_the_durability(open_store, copy, tmp_path):
    open_store(durability="relaxed").backup(copy)
    with diskq.open(copy) as other:
        assert other.stats().durability == "relaxed"


def test_the_backup_of_a_store_that_is_not_flushed_is_checked_when_it_is_opened(store, topic, copy):
    topic.put_many([b"x" * 2_000] * 100)
    store.backup(copy)
    size = (copy / "data.mdb").stat().st_size
    with open(copy / "data.mdb", "r+b") as file:
        file.seek(size // 2)
        file.write(bytes(8192))
    with pytest.raises(diskq.Corrupt, match="salvage"):
        diskq.open(copy)


@pytest.mark.parametrize("there", ["store", "file", "full directory"])
def test_a_backup_never_replaces_anything(store, topic, copy, there):
    if there == "store":
        store.backup(copy)
    elif there == "file":
        copy.write_text("mine")
    else:
        (copy / "mine").mkdir(parents=True)
    before = sorted(copy.parent.iterdir())
    with pytest.raises(diskq.NotAStore, match="choose"):
        store.backup(copy)
    assert sorted(copy.parent.iterdir()) == before


def test_a_backup_into_a_missing_directory_names_it(store, topic, tmp_path):
    with pytest.raises(diskq.NotFound, match="missing does not exist"):
        store.backup(tmp_path / "missing" / "copy")


def test_a_backup_that_fails_leaves_nothing(store, topic, tmp_path, monkeypatch):
    def rename(source, target, **folders):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(diskq.Full):
        store.backup(tmp_path / NEW)
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_a_closed_store_makes_no_backup(store, copy):
    store.close()
    with pytest.raises(diskq.Closed):
        store.backup(copy)


def test_a_read_only_store_can_be_backed_up(open_store, copy, tmp_path):
    with diskq.open(tmp_path / "other") as store:
        store.topic("mail").put(b"a")
    with diskq.open(tmp_path / "other", readonly=True) as store:
        store.backup(copy)
    with diskq.open(copy) as other:
        assert offsets(other.topic("mail").read()) == [0]


def test_others_go_on_while_a_backup_is_made_and_it_is_of_one_commit(store, topic, group, copy):
    """Each transaction puts one message and acks one: in any snapshot there are ten unread."""
    topic.put_many([b"x" * 1_000] * 10)
    stop = threading.Event()

    def work():
        with group.consumer() as consumer:
            while not stop.is_set():
                message = consumer.get(timeout=10)
                with store.transaction() as tx:
                    tx.put(topic, b"x" * 1_000)
                    tx.ack(message)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for number in range(5):
            store.backup(copy.with_name(f"copy {number}"))
    finally:
        stop.set()
        worker.join()
    for number in range(5):
        with diskq.open(copy.with_name(f"copy {number}")) as other:
            assert list(other.verify()) == []
            assert other.topic("mail").group("workers").stats().lag == 10


@pytest.mark.parametrize("way", ["backup", "salvage"])
def test_a_copy_has_the_permissions_of_the_store(tmp_path, copy, way):
    path = tmp_path / "shared"
    with diskq.open(path, durability="process") as store:
        store.topic("mail").put(b"a")
        path.chmod(0o2770)
        for name, mode in (("data.mdb", 0o640), ("lock.mdb", 0o660)):
            (path / name).chmod(mode)
        if way == "backup":
            store.backup(copy)
    if way == "salvage":
        diskq.salvage(path, copy)
    modes = [stat.S_IMODE((copy / name).stat().st_mode) for name in ("", "data.mdb", "lock.mdb")]
    assert modes == [0o2770, 0o640, 0o660]
