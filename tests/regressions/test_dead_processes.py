"""Processes that were killed, in places where that once harmed others."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
from support.programs import ROOT, child_environment, run_python
from support.stores import verified

import diskq
from diskq.api import waiting
from diskq.base import limits

PREPARE = """
import os, signal, sys, diskq
store = diskq.open(sys.argv[1])
topic = store.topic("mail")
group = topic.group("workers")
def tell(*words):
    print(*words, flush=True)
"""
READ = """
def look(tx):
    tx.get(b"M")
    tell("reading")
    sys.stdin.readline()
store.handle.engine.read(look)
"""
DIE_HANDLING_THE_THIRD = """
consumer = group.consumer()
messages = [consumer.get_nowait() for _ in range(5)]
with messages[2]:
    os.kill(os.getpid(), signal.SIGKILL)
"""
DIE_IDLE = """
member = group.consumer("dead").member.leaser
tell(member.slot, member.owner)
os._exit(9)
"""
HOLD_THE_FIRST = """
consumer = group.consumer(prefetch=3)
sys.stdin.readline()
message = consumer.get()
tell("holding")
sys.stdin.readline()
"""
TAKE_THE_FIRST_SLOT = """
import diskq.host.slots
diskq.host.slots.MAX_CONSUMERS = 1
consumer = None
while consumer is None:
    sys.stdin.readline()
    try:
        consumer = group.consumer("live")
    except diskq.Unsupported:
        tell("busy")
tell("taken")
sys.stdin.readline()
message = consumer.get_nowait()
tell("leased")
sys.stdin.readline()
message.ack()
tell("acked")
"""


class Process:
    """Another process with the store open; it is told to go on, and tells how far it is."""

    def __init__(self, path, code):
        self.run = subprocess.Popen(
            [sys.executable, "-c", PREPARE + code, path],
            cwd=ROOT,
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def hear(self):
        return self.run.stdout.readline().strip()

    def ask(self):
        self.run.stdin.write("\n")
        return self.hear()

    def kill(self):
        self.run.kill()
        self.run.wait()


@contextmanager
def process(path, code):
    started = Process(path, code)
    try:
        yield started
    finally:
        started.kill()
        started.run.stdin.close()
        started.run.stdout.close()


@pytest.fixture
def path(tmp_path):
    """Where a store of the smallest size is, whose processes share the real clock."""
    found = tmp_path / "store"
    diskq.open(found, durability="process", max_bytes=limits.MIN_STORE_BYTES).close()
    yield found
    assert verified(found) == []


def test_a_file_stays_in_its_bounds_after_a_process_was_killed_while_it_read(path):
    with diskq.open(path) as store, process(path, READ) as reader:
        topic = store.topic("mail")
        consumer = topic.group("workers").consumer()
        topic.put(b"x")
        assert reader.hear() == "reading"
        reader.kill()
        for _ in range(400):
            topic.put(bytes(3000))
            consumer.get_nowait().ack()
        assert os.stat(path / "data.mdb").st_size <= limits.MIN_STORE_BYTES


def test_only_the_named_one_of_many_leases_of_a_dead_consumer_is_charged(path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_DEAD_OWNERS_LEASES", 2)
    with diskq.open(path) as store:
        topic = store.topic("mail")
        group = topic.group("workers", backoff=diskq.Backoff(0))
        topic.put_many([b"x"] * 5)
        run_python(PREPARE + DIE_HANDLING_THE_THIRD, path, check=False)
        consumer = group.consumer()
        attempts = {}
        while len(attempts) < 5:
            for message in consumer.get_many(5, timeout=30):
                attempts[message.offset] = message.attempt
        assert attempts == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1}
        assert group.stats().failed == 1


def test_the_slot_of_a_dead_consumer_is_not_cleared_under_the_one_that_took_it(path, monkeypatch):
    with diskq.open(path) as store, process(path, TAKE_THE_FIRST_SLOT) as other:
        topic = store.topic("mail")
        group = topic.group("workers")
        topic.put(b"x")
        index, owner = map(int, run_python(PREPARE + DIE_IDLE, path, check=False).stdout.split())
        slots = store.handle.engine.slots
        fill, told = slots._fill, []

        def fill_late(*arguments):
            told.append(other.ask())  # the other process wants the slot just now
            fill(*arguments)

        monkeypatch.setattr(slots, "_fill", fill_late)
        slots.forget(index, owner)
        monkeypatch.undo()
        if told == ["busy"]:
            told.append(other.ask())
        assert told[-1] == "taken"
        assert [slot.name for slot in slots.live()] == ["live"]
        assert other.ask() == "leased"
        assert group.consumer().get_many(1, timeout=0) == []
        assert other.ask() == "acked"


def test_what_a_dead_consumer_of_a_paused_group_handled_is_charged(path, monkeypatch):
    """A get that waited for the group to go on forgot the dead one, and with it what it handled:
    nobody was charged, so a message that kills its consumers came back for ever."""
    with diskq.open(path) as store, process(path, HOLD_THE_FIRST) as other:
        topic = store.topic("mail")
        group = topic.group("workers", lease_seconds=600, backoff=diskq.Backoff(0))
        topic.put_many([b"x"] * 3)
        assert other.ask() == "holding"
        consumer = group.consumer()
        group.pause()
        other.kill()
        looks, look = [], waiting.look

        def look_thrice(*arguments):
            looks.append(arguments)
            if len(looks) == 3:  # it saw the death, slept no more, and is about to forget it
                monkeypatch.undo()
                raise diskq.Closed("enough")
            return look(*arguments)

        monkeypatch.setattr(waiting, "look", look_thrice)
        with pytest.raises(diskq.Closed):
            consumer.get(timeout=30)
        group.resume()
        attempts = {}
        while len(attempts) < 3:
            for message in consumer.get_many(3, timeout=30):
                attempts[message.offset] = message.attempt
        assert attempts == {0: 2, 1: 1, 2: 1}
        assert group.stats().failed == 1
