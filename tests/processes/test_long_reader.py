"""A read that does not end keeps freed space from being used again: who it is can be seen, growth
is bounded where the store is, and the death of the reader ends it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import diskq

BODY = b"x" * 1_000
ENDLESS = 1_000_000


@pytest.fixture
def bounded(tmp_path):
    """A store of at most 8 MiB."""
    with diskq.open(tmp_path / "bounded", durability="process", max_bytes=8 * 2**20) as store:
        store.queue("q")
        yield store
        assert list(store.verify()) == []


def pass_through(store, count):
    """Put and ack so many messages, one by one."""
    queue = store.queue("q")
    with queue.consumer() as consumer:
        for _ in range(count):
            queue.put(BODY)
            consumer.get(timeout=0).ack()


def test_it_is_named_in_the_numbers_and_by_info(bounded, start):
    reader = start("lives.read_on", path=bounded.path)
    reader.hear("reading")
    pass_through(bounded, 60)
    stats = bounded.stats()
    assert stats.oldest_reader_pid == reader.pid
    assert stats.oldest_reader_lag >= 180  # a put, a get and an ack each
    command = [sys.executable, "-m", "diskq", "-s", bounded.path, "info"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert f"process {reader.pid} has been reading for" in run.stdout
    reader.tell()
    reader.hear("done")
    assert bounded.stats().oldest_reader_lag < 180


def test_in_a_bounded_store_puts_are_refused_with_its_name_and_settling_goes_on(bounded, start):
    queue = bounded.queue("q")
    queue.put_many([BODY] * 200)
    reader = start("lives.read_on", path=bounded.path)
    reader.hear("reading")
    with pytest.raises(diskq.Full, match=f"process {reader.pid} has been reading for"):
        pass_through(bounded, ENDLESS)
    size = os.stat(os.path.join(bounded.path, "data.mdb")).st_size
    assert size <= 10 * 2**20  # gets and acks go on until the next put looks
    with queue.consumer() as consumer:
        for message in consumer.get_many(50, timeout=0):
            message.ack()
    reader.tell()
    reader.hear("done")
    pass_through(bounded, 100)


def test_one_that_was_killed_pins_nothing_for_long(path, start):
    """Nobody opens the store anew and no bound is met: those who put look now and then."""
    with diskq.open(path) as store:
        pass_through(store, 1_000)
        reader = start("lives.read_on", path=path)
        reader.hear("reading")
        reader.kill()
        file = os.path.join(path, "data.mdb")
        pass_through(store, 4_000)
        before = os.stat(file).st_size
        pass_through(store, 4_000)
        assert store.stats().readers == 0
        assert os.stat(file).st_size <= before


def test_one_that_is_alive_lets_an_unbounded_file_grow(path, start):
    """Negative control, and the figure for the docs: LMDB has no remedy for this."""
    with diskq.open(path) as store:
        pass_through(store, 1_000)
        file = os.path.join(path, "data.mdb")
        before = os.stat(file).st_size
        reader = start("lives.read_on", path=path)
        reader.hear("reading")
        pass_through(store, 1_000)
        growth = os.stat(file).st_size - before
        print(f"\nlong reader: {growth / 3_000:.0f} bytes a commit")
        assert growth > 1_000 * 1_000
        reader.tell()
        reader.hear("done")
        size = os.stat(file).st_size
        pass_through(store, 1_000)
        assert os.stat(file).st_size <= 1.2 * size  # what is kept for settling grew with it
