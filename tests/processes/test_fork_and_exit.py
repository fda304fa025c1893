"""Forks, threads, several stores, leaks and Ctrl-C: a store survives what programs do."""

from __future__ import annotations

import sys
import threading
import time

import pytest
from support import workers
from support.workers import wait_for_blocked, wait_until

import diskq

WITHOUT_FORK_HANDLERS = """
import concurrent.futures, logging, os, random, runpy, sys, threading  # they have their own

register_at_fork, os.register_at_fork = os.register_at_fork, lambda **_: None
import diskq
from diskq.storage.engine import Engine
os.register_at_fork = register_at_fork
Engine.after_fork_in_child = lambda engine: setattr(engine, "_pid", os.getpid())  # noticed, no more
sys.argv[:] = sys.argv[3:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
UNHANDLED = sys.executable, "-c", WITHOUT_FORK_HANDLERS  # goes before a command


def check_busy_parent(path, start, *prefix):
    """Each fork comes while threads of the parent put, get, ack and look."""
    done = start("fork_with_threads", *prefix, path=path, forks=20).hear("done")
    assert done["codes"] == [0] * 20
    assert done["bodies"] == sorted(f"child {n}" for n in range(20))


def check_parents_consumer(path, start, *prefix):
    """A child cannot use the consumer of its parent, which goes on with it."""
    with diskq.open(path) as store:
        store.topic("q").put(b"")
    worker = start("use_parents_consumer", *prefix, path=path)
    assert worker.hear("outcomes")["outcomes"] == ["WrongProcess"] * 4
    worker.hear("done")
    assert worker.end() == 0


def check_holder(path, start, role, *prefix):
    """A message stays with its holder, whatever else its process does."""
    with diskq.open(path) as store:
        store.topic("q").put(b"")
    holder = start(role, *prefix, path=path)
    holder.hear("holding")
    assert start("look_once", path=path).hear("found")["count"] == 0
    holder.tell()
    holder.hear("done")


def test_children_of_a_busy_parent_use_the_inherited_store(path, start):
    check_busy_parent(path, start)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing_put_and_take(path, start, method):
    done = start("multiprocess", path=path, method=method).hear("done")
    assert done["codes"] == [0, 0]
    assert done["bodies"] == ["0", "1"]


def test_a_child_cannot_use_the_consumer_of_its_parent(path, start):
    check_parents_consumer(path, start)


@pytest.mark.parametrize("role", ["hold_and_fork", "hold_and_reopen"])
def test_a_message_stays_with_its_holder_whatever_else_its_process_does(path, start, role):
    """A POSIX lock is lost by closing any descriptor of the file: nobody may do that."""
    check_holder(path, start, role)


@pytest.fixture
def spoilt(tmp_path):
    """Path of a store of which nobody asks what becomes of it."""
    path = str(tmp_path / "spoilt")
    with diskq.open(path, durability="process") as store:
        store.queue("q")
    return path


def test_children_that_hang_are_found_out(spoilt, start, monkeypatch):
    """Negative control: without handlers of forks, a child waits for a lock that a thread of its
    parent had."""
    monkeypatch.setattr(workers, "DEADLINE_SECONDS", 3.0)
    with pytest.raises(AssertionError, match=r"did not tell 'done' in time|At index \d+ diff"):
        check_busy_parent(spoilt, start, *UNHANDLED)


def test_a_child_that_takes_its_parents_consumer_for_its_own_is_found_out(spoilt, start):
    """Negative control: so it does without handlers of forks."""
    with pytest.raises(AssertionError, match="'success' != 'WrongProcess'"):
        check_parents_consumer(spoilt, start, *UNHANDLED)


def test_a_child_that_gives_back_what_its_parent_holds_is_found_out(spoilt, start):
    """Negative control: so it does when it closes the store, without handlers of forks."""
    with pytest.raises(AssertionError, match="1 == 0"):
        check_holder(spoilt, start, "hold_and_fork", *UNHANDLED)


def test_64_threads_put_and_take_every_message_once(path):
    bodies: list[bytes] = []
    with diskq.open(path) as store:
        queue = store.queue("q")

        def put(number: int) -> None:
            for n in range(20):
                queue.put(b"%d-%d" % (number, n))

        def take() -> None:
            with queue.consumer() as consumer:
                while len(bodies) < 32 * 20:
                    for message in consumer.get_many(3, timeout=0.05):
                        bodies.append(message.body)
                        message.ack()

        threads = [threading.Thread(target=put, args=(n,)) for n in range(32)]
        threads += [threading.Thread(target=take) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(bodies) == sorted(b"%d-%d" % (a, b) for a in range(32) for b in range(20))
        assert queue.group.stats().acked == 32 * 20


def test_threads_share_one_consumer(path):
    taken: list[int] = []
    with diskq.open(path) as store:
        queue = store.queue("q")
        queue.put_many([b""] * 400)

        def take() -> None:
            while messages := queue.get_many(5, timeout=0):
                for message in messages:
                    with message:
                        taken.append(message.offset)

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(taken) == list(range(400))


def test_two_stores_in_one_process_know_nothing_of_each_other(path, tmp_path):
    with (
        diskq.open(path) as first,
        diskq.open(tmp_path / "second", durability="process") as second,
    ):
        first.queue("q").put(b"first")
        second.queue("q").put(b"second")
        assert first.queue("q").get(timeout=0).body == b"first"
        assert second.queue("q").get(timeout=0).body == b"second"


def test_a_store_opened_twice_is_one_store_and_outlives_the_first_close(path):
    first, second = diskq.open(path), diskq.open(path)
    first.queue("q").put(b"x")
    message = second.queue("q").get(timeout=0)
    first.close()
    message.ack()
    assert second.queue("q").qsize() == 0
    second.close()
    with pytest.raises(diskq.Closed):
        second.queue("q")


@pytest.mark.parametrize("role", ["leak", "leak_blocked_thread"])
def test_what_a_program_forgets_to_close_does_not_keep_it_from_ending(path, start, role):
    with diskq.open(path) as store:
        if role == "leak":
            store.topic("q").put(b"x")
        worker = start(role, path=path)
        worker.hear({"leak": "leaking", "leak_blocked_thread": "waiting"}[role])
        if role == "leak_blocked_thread":
            wait_for_blocked(store)
            worker.tell()
        assert worker.end() == 0
        if role == "leak":
            assert store.queue("q").get(timeout=20).body == b"x"


def test_ctrl_c_interrupts_a_blocked_get_and_the_consumer_goes_on(path, start):
    with diskq.open(path) as store:
        worker = start("be_interrupted", path=path)
        worker.hear("waiting")
        wait_for_blocked(store)
        begun = time.monotonic()
        worker.interrupt()
        assert worker.hear("interrupted")["at"] - begun < 10
        store.topic("q").put(b"")
        worker.tell()
        worker.hear("handling")
        worker.interrupt()
        worker.hear("interrupted again")
        worker.hear("done")
        assert worker.end() == 0
        message = store.queue("q").get(timeout=0)
        assert message.attempt == 1  # an interrupt is not the message's fault


def test_close_by_another_thread_ends_an_iteration(path):
    with diskq.open(path) as store:
        consumer = store.queue("q").consumer()
        seen: list[bytes] = []
        thread = threading.Thread(
            target=lambda: seen.extend(message.body for message in consumer), daemon=True
        )
        thread.start()
        store.topic("q").put(b"one")
        wait_until(lambda: seen)
        wait_for_blocked(store)
        consumer.close()
        thread.join(30)
        assert not thread.is_alive()
        assert seen == [b"one"]


def test_close_by_another_thread_ends_a_blocked_get(path):
    with diskq.open(path) as store:
        consumer = store.queue("q").consumer()
        outcome: list[str] = []

        def get() -> None:
            try:
                consumer.get()
            except diskq.Closed:
                outcome.append("closed")

        thread = threading.Thread(target=get, daemon=True)
        thread.start()
        wait_for_blocked(store)
        consumer.close()
        thread.join(30)
        assert outcome == ["closed"]


def test_closing_the_store_while_threads_are_blocked_in_it_ends_them_with_closed(path):
    outcomes: list[str] = []

    def get(store: diskq.Store) -> None:
        try:
            store.queue("q").consumer().get()
        except Exception as error:
            outcomes.append(type(error).__name__)

    for _ in range(10):
        store = diskq.open(path)
        threads = [threading.Thread(target=get, args=(store,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for_blocked(store, 4)
        store.close()
        for thread in threads:
            thread.join()
    assert outcomes == ["Closed"] * 40
