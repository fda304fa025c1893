"""Blocked batches share what comes evenly, whoever is the first to wake (G13)."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from support.programs import ROOT

import diskq
from diskq.api import taking

DEADLINE_SECONDS = 60
MEMBER = """
import sys, diskq
consumer = diskq.open(sys.argv[1]).topic("mail").group("workers").consumer()
print(len(consumer.get_many(9, timeout=60)), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def store(real_store):
    return real_store


def wait_for_blocked(store, count):
    """Wait until so many threads of all processes count as waiting."""
    until = time.monotonic() + DEADLINE_SECONDS
    while sum(slot.waiting for slot in store.handle.engine.slots.live()) < count:
        assert time.monotonic() < until
        time.sleep(0.002)


class Blocked:
    """Threads that wait in get_many, each of one of these consumers."""

    def __init__(self, store, consumers, timeout=DEADLINE_SECONDS):
        self.found = [None] * len(consumers)
        self.threads = [
            threading.Thread(target=self.get, args=(number, consumer, timeout))
            for number, consumer in enumerate(consumers)
        ]
        for thread in self.threads:
            thread.start()
        wait_for_blocked(store, len(consumers))

    def get(self, number, consumer, timeout):
        self.found[number] = consumer.get_many(9, timeout=timeout)

    def shares(self):
        for thread in self.threads:
            thread.join(DEADLINE_SECONDS)
        return sorted(map(len, self.found))


def test_three_processes_that_wait_get_three_of_nine_each(store, topic, group):
    for _ in range(3):
        run = [sys.executable, "-c", MEMBER, store.path]
        members = [
            subprocess.Popen(
                run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
            for _ in range(3)
        ]
        wait_for_blocked(store, 3)
        topic.put_many([b"x"] * 9)
        assert [int(each.stdout.readline()) for each in members] == [3, 3, 3]
        for each in members:
            each.communicate("\n")
        while messages := group.consumer().get_many(9, timeout=0):
            messages[0].member.ack_many(messages)


@pytest.mark.parametrize("members", [(0, 1, 2), (0, 0, 1), (0, 0, 0)])
def test_each_blocked_thread_counts(store, topic, group, members):
    consumers = [group.consumer() for _ in range(3)]
    for _ in range(10):
        blocked = Blocked(store, [consumers[each] for each in members])
        topic.put_many([b"x"] * 9)
        assert blocked.shares() == [3, 3, 3]
        assert not any(slot.waiting for slot in store.handle.engine.slots.live())


def test_retries_that_are_not_due_yet_do_not_count_as_something_to_share(store, topic, group):
    topic.put_many([b"x"] * 50)
    for message in group.consumer().get_many(50, timeout=0):
        message.nack(delay_seconds=1000)
    blocked = Blocked(store, [group.consumer() for _ in range(3)])
    topic.put_many([b"x"] * 9)
    assert blocked.shares() == [3, 3, 3]


def test_what_may_be_in_flight_is_shared_too(store, topic):
    group = topic.group("few", max_in_flight=6)
    blocked = Blocked(store, [group.consumer() for _ in range(3)])
    topic.put_many([b"x"] * 100)
    assert blocked.shares() == [2, 2, 2]


def test_one_whose_time_is_over_when_messages_come_takes_the_share_that_others_left_to_it(
    store, topic, group, monkeypatch
):
    """It has looked for the last time, but not said yet that it gives up."""
    late, others = group.consumer("late"), [group.consumer(), group.consumer()]
    wait, gives_up, go_on = taking.wait_for_message, threading.Event(), threading.Event()

    def give_up_late(member, *arguments, **options):
        came = wait(member, *arguments, **options)
        if member is late.member and not came:
            gives_up.set()
            go_on.wait(DEADLINE_SECONDS)
        return came

    monkeypatch.setattr(taking, "wait_for_message", give_up_late)
    last = Blocked(store, [late], timeout=0.1)
    assert gives_up.wait(DEADLINE_SECONDS)
    rest = Blocked(store, others)
    wait_for_blocked(store, 3)
    topic.put_many([b"x"] * 9)
    assert rest.shares() == [3, 3]
    go_on.set()
    assert last.shares() == [3]


def test_one_that_gave_up_counts_no_more(store, topic, group):
    assert group.consumer("late").get_many(9, timeout=0.05) == []
    blocked = Blocked(store, [group.consumer() for _ in range(2)])
    topic.put_many([b"x"] * 8)
    assert blocked.shares() == [4, 4]


def test_a_closed_consumer_leaves_nobody_waiting(store, group):
    consumer = group.consumer()

    def get():
        with suppress(diskq.Closed):
            consumer.get()

    blocked = threading.Thread(target=get)
    blocked.start()
    wait_for_blocked(store, 1)
    consumer.close()
    blocked.join(DEADLINE_SECONDS)
    assert not any(slot.waiting for slot in store.handle.engine.slots.live())
