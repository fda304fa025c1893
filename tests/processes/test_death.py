"""What a killed consumer held is free at once, and only what it was handling is charged (G10).

Leases last 60 seconds here: whatever comes back within the deadline of a wait came back because the
kernel said that its holder is dead.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from support.workers import wait_for_blocked

import diskq
from diskq import Backoff

LEASE_SECONDS = 60.0
SOON_SECONDS = 20.0


@pytest.fixture
def store(path: str) -> Iterator[diskq.Store]:
    """The store, open in the test's process too; its group has long leases."""
    with diskq.open(path) as store:
        store.topic("q").group("default").delete()
        store.topic("q").group("default", lease_seconds=LEASE_SECONDS, backoff=Backoff(5.0))
        yield store


def put(store: diskq.Store, count: int) -> None:
    store.topic("q").put_many([b"%d" % n for n in range(count)])


def get(store: diskq.Store) -> diskq.Message:
    """Get one message, far sooner than a lease ends."""
    begun = time.monotonic()
    message = store.queue("q").get(timeout=SOON_SECONDS)
    assert time.monotonic() - begun < SOON_SECONDS
    return message


def test_a_message_comes_back_to_a_blocked_consumer(store, path, start):
    put(store, 1)
    holder = start("hold", path=path)
    holder.hear("holding")
    taker = start("take_one", path=path)
    wait_for_blocked(store)
    begun = time.monotonic()
    holder.kill()
    assert taker.hear("got")["attempt"] == 2
    assert time.monotonic() - begun < SOON_SECONDS


def test_a_message_comes_back_though_a_child_of_the_dead_lives(store, path, start):
    put(store, 1)
    holder = start("hold", path=path, fork=True)
    child = holder.hear("holding")["child"]
    try:
        holder.kill()
        assert get(store).attempt == 2
        os.kill(child, 0)  # still there
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_message_comes_back_to_who_starts_later(store, path, start):
    put(store, 1)
    holder = start("hold", path=path)
    holder.hear("holding")
    holder.kill()
    assert start("take_one", path=path).hear("got")["attempt"] == 2


def test_a_message_comes_back_after_the_slots_file_was_deleted(path, start):
    with diskq.open(path) as store:
        put(store, 1)
    holder = start("hold", path=path)
    holder.hear("holding")
    holder.kill()
    os.unlink(os.path.join(path, "slots"))
    with diskq.open(path) as store:
        assert get(store).body == b"0"


def test_a_message_comes_back_while_its_consumers_store_is_used_by_others(store, path, start):
    """Others take and leave slots before anybody looks at what the dead one held."""
    put(store, 1)
    holder = start("hold", path=path)
    holder.hear("holding")
    holder.kill()
    for _ in range(3):
        store.topic("other").group("g").consumer().close()
    assert get(store).attempt == 2


def can_unshare() -> bool:
    try:
        command = ["unshare", "-pf", "--mount-proc", "--kill-child", "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_unshare(), reason="PID namespaces need privileges")
def test_a_message_comes_back_from_another_pid_namespace(store, path, start):
    put(store, 1)
    holder = start("hold", "unshare", "-pf", "--mount-proc", "--kill-child", path=path)
    holder.hear("holding")
    with pytest.raises(diskq.Empty):
        store.queue("q").get(timeout=0.2)
    holder.kill()
    assert get(store).attempt == 2


@pytest.mark.skipif(not can_unshare(), reason="PID namespaces need privileges")
def test_a_process_with_the_pid_of_another_is_refused_and_takes_nothing(store, path, start):
    """Two containers, each with a process 1: LMDB cannot tell their readers apart."""
    put(store, 2)
    namespace = ("unshare", "-pf", "--mount-proc", "--kill-child")
    first = start("hold", *namespace, path=path)
    assert first.hear("holding")["offsets"] == [0]
    assert "another PID namespace" in start("refused", *namespace, path=path).hear("refused")["why"]
    message = get(store)
    assert (message.offset, message.attempt) == (1, 1)
    message.ack()
    first.kill()
    assert get(store).offset == 0


def test_of_a_batch_only_the_message_being_handled_is_charged(store, path, start):
    put(store, 10)
    holder = start("hold", path=path, count=10, handle=4)
    holder.hear("holding")
    holder.kill()
    attempts = {}
    while len(attempts) < 10:
        for message in store.queue("q").get_many(10, timeout=SOON_SECONDS):
            attempts[message.offset] = message.attempt
    assert attempts == {offset: 1 + (offset == 4) for offset in range(10)}


def test_a_batch_that_named_no_message_comes_back_one_by_one(store, path, start):
    put(store, 5)
    holder = start("hold", path=path, count=5)
    holder.hear("holding")
    holder.kill()
    queue = store.queue("q")
    for offset in range(5):
        (message,) = queue.get_many(5, timeout=SOON_SECONDS)
        assert (message.offset, message.attempt) == (offset, 1)
        message.ack()


def test_of_a_batch_of_retries_that_named_no_message_not_all_are_charged(store, path, start):
    put(store, 3)
    for message in store.queue("q").get_many(3):
        message.nack(delay_seconds=0)
    holder = start("hold", path=path, count=3)
    assert holder.hear("holding")["offsets"] == [0, 1, 2]
    holder.kill()
    attempts = {}
    while len(attempts) < 3:
        for message in store.queue("q").get_many(3, timeout=SOON_SECONDS):
            attempts[message.offset] = message.attempt
    assert attempts == {0: 2, 1: 2, 2: 2}


def test_a_message_that_kills_its_consumers_ends_dead_and_its_batch_mates_do_not(
    store, path, start
):
    """Each consumer dies of message 2 without naming it."""
    group = store.topic("q").group("strict", max_deliveries=2, backoff=Backoff(0.0))
    put(store, 5)
    consumer = group.consumer()
    attempts = {}
    for _ in range(3):
        assert start("die_of", path=path, group="strict", body="2").end() == -signal.SIGKILL
    while messages := consumer.get_many(5, timeout=0):
        attempts.update((message.body, message.attempt) for message in messages)
        consumer.ack_many(messages)  # or this thread would get nothing more for a second
    assert [letter.body for letter in group.dead()] == [b"2"]
    assert attempts == {b"3": 1, b"4": 1}


def test_messages_that_were_done_before_the_death_are_not_charged_or_redelivered(
    store, path, start
):
    put(store, 5)
    holder = start("handle_all", path=path, count=5, acked=2)
    holder.hear("holding")
    holder.kill()
    queue = store.queue("q")
    attempts = {}
    while len(attempts) < 3:
        for message in queue.get_many(5, timeout=SOON_SECONDS):
            attempts[message.offset] = message.attempt
    assert attempts == {2: 1, 3: 1, 4: 1}
    assert queue.get_many(5, timeout=0) == []


def test_the_history_of_a_dead_letter_names_who_died_of_it(store, path, start):
    group = store.topic("q").group("strict", max_deliveries=1)
    put(store, 1)
    victim = start("die_of", path=path, group="strict", body="0")
    assert victim.end() == -signal.SIGKILL
    with group.consumer() as consumer, pytest.raises(diskq.Empty):
        consumer.get(block=False)
    (letter,) = group.dead()
    assert [(failure.cause, failure.consumer) for failure in letter.history] == [
        ("crashed", "victim")
    ]


@pytest.mark.parametrize("size", [1, 100, 20_000])
def test_a_producer_killed_in_mid_batch_leaves_all_or_nothing(path, start, size):
    for _ in range(4):
        producer = start("produce_batches", path=path, size=size)
        for _ in range(2):
            producer.hear("batch")
        producer.kill()
    with diskq.open(path) as store:
        queue = store.queue("q")
        bodies = []
        while messages := queue.get_many(10_000, timeout=0):
            bodies += [message.body for message in messages]
    assert bodies
    assert len(bodies) % size == 0
    for begin in range(0, len(bodies), size):
        assert len(set(bodies[begin : begin + size])) == 1
