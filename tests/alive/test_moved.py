"""The path of an open store that has another store now, or none: the first call that would change
something is refused, and so is each wait. Nothing is written for nobody to read."""

from __future__ import annotations

import os
import shutil
import threading

import pytest
from support.stores import digest

import diskq

DEADLINE_SECONDS = 60


def remove(path):
    shutil.rmtree(path)


def rename(path):
    os.rename(path, f"{path}.old")


def restore(path):
    """An older copy takes the place."""
    with diskq.open(path) as store:
        store.backup(f"{path}.copy")
    os.rename(path, f"{path}.old")
    os.rename(f"{path}.copy", path)


def create(path):
    shutil.rmtree(path)
    with diskq.open(path) as store:
        store.queue("q").put(b"of another")


def replace_the_file(path):
    """As a tool does that writes a file anew and renames it."""
    shutil.copy(path / "data.mdb", path / "new")
    os.rename(path / "new", path / "data.mdb")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


WAYS = (remove, rename, restore, create, replace_the_file)


def in_another_process(work, path):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(path)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def calls_that_change(store):
    queue = store.queue("q")
    consumer = queue.consumer()
    first, second, third, fourth = consumer.get_many(4, timeout=0)

    def transact():
        with store.transaction() as tx:
            tx.put(queue, b"x")
            tx.ack(fourth)

    return {
        "put": lambda: queue.put(b"x"),
        "put_many": lambda: queue.put_many([b"x", b"y"]),
        "get": lambda: consumer.get(timeout=0),
        "get_many": lambda: consumer.get_many(3, timeout=0),
        "ack": first.ack,
        "nack": second.nack,
        "release": second.release,
        "reject": second.reject,
        "extend": third.extend,
        "transaction": transact,
        "topic": lambda: store.topic("new"),
        "group": lambda: queue.topic.group("new"),
        "purge": queue.topic.purge,
        "seek": lambda: queue.group.seek("latest"),
        "pause": queue.group.pause,
        "delete": queue.group.delete,
        "backup": lambda: store.backup(f"{store.path}.more"),
        "verify": store.verify,
    }


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_changed_through_a_path_that_has_moved(path, way):
    with diskq.open(path) as store:
        store.queue("q").put_many([b"a"] * 9)
        calls = calls_that_change(store)
        in_another_process(way, path)
        data = path / "data.mdb"
        before = digest(data)
        for name, call in calls.items():
            with pytest.raises(diskq.StoreMoved, match="open the path again"):
                print(name, call())
        assert digest(data) == before
    with diskq.open(path) as store:
        store.queue("q").put(b"goes on")
        assert list(store.verify()) == []


def outcome_of(call):
    try:
        return call()
    except diskq.DiskqError as error:
        return type(error)


@pytest.mark.parametrize("way", WAYS)
def test_whoever_waits_is_told_that_the_store_has_moved(path, way):
    with diskq.open(path) as store:
        queue, full = store.queue("q"), store.topic("full", max_messages=1)
        full.group("g")
        full.put(b"x")
        consumer, other = queue.consumer(), queue.consumer()
        waits = {
            "get": consumer.get,
            "iteration": lambda: next(iter(other)),
            "put": lambda: full.put(b"y", block=True),
            "follow": lambda: next(queue.topic.follow()),
        }
        outcomes = {}
        threads = [
            threading.Thread(
                target=lambda name, call: outcomes.update({name: outcome_of(call)}),
                args=each,
                daemon=True,
            )
            for each in waits.items()
        ]
        for thread in threads:
            thread.start()
        threads[-1].join(0.3)
        assert outcomes == {}
        in_another_process(way, path)
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
        assert outcomes == dict.fromkeys(waits, diskq.StoreMoved)


def test_a_store_that_was_moved_is_found_at_its_new_path(path):
    """The engine of the old path was found by the inode, and refused what it was asked to do."""
    new = path.with_name("new")
    old_store = diskq.open(path)
    queue = old_store.queue("q")
    os.rename(path, new)
    with pytest.raises(diskq.StoreMoved):
        queue.put(b"x")
    with diskq.open(new) as store:
        assert store.path == str(new)
        store.queue("q").put(b"a")
        old_store.close()
        store.queue("q").put(b"b")
        assert [each.body for each in store.topic("q").read()] == [b"a", b"b"]
        store.backup(f"{new}.copy")
        assert list(store.verify()) == []


def test_a_second_name_that_goes_breaks_nobody_who_used_the_first(path):
    link = path.with_name("link")
    diskq.open(path).close()
    link.symlink_to(path)
    for first, second in ((path, link), (link, path)):
        with diskq.open(first) as one, diskq.open(second) as other:
            link.unlink()
            one.queue("q").put(b"a")
            other.queue("q").put(b"b")
        link.symlink_to(path)


@pytest.mark.parametrize("way", WAYS)
def test_looking_at_a_store_that_has_moved_raises_no_error_of_the_system(path, way):
    with diskq.open(path) as store:
        queue = store.queue("q")
        queue.put(b"a")
        in_another_process(way, path)
        with pytest.raises(diskq.StoreMoved):
            store.stats()
        assert queue.group.stats().lag == 1
        assert [each.body for each in queue.topic.read()] == [b"a"]
