"""Processes that died beside this one: seen once, whoever inherited what they had."""

from __future__ import annotations

import os
import threading
import time

import pytest
from support.programs import run_python

import diskq
from diskq.host import process

HOLDS = """
import sys
import diskq
consumer = diskq.open(sys.argv[1]).queue("q").consumer()
message = consumer.get()
print("holding", flush=True)
sys.stdin.readline()
"""
MAKES = """
import ctypes, os, sys, threading, time
import diskq
group = diskq.open(sys.argv[1]).queue("q").group

def make():
    while True:
        group.consumer().close()

threading.Thread(target=make, daemon=True).start()
time.sleep(float(sys.argv[2]))
child = ctypes.CDLL(None).fork()  # Python's own part of a fork does not run
if child == 0:
    ctypes.CDLL(None).pause()
print(child, flush=True)
sys.stdin.readline()
"""
DEADLINE_SECONDS = 60
SOON = 20.0


def test_a_blocked_get_of_a_paused_group_rests_though_a_holder_died(path, child):
    """The dead consumer was found again at once, for ever: the get used a whole processor."""
    with diskq.open(path) as store:
        queue = store.queue("q")
        queue.put(b"a")
        holder = child(HOLDS, path)
        assert holder.stdout.readline() == "holding\n"
        queue.group.pause()
        with queue.consumer() as consumer:
            holder.kill()
            holder.wait()
            used = time.process_time()
            assert consumer.get_many(1, timeout=1.5) == []
            assert time.process_time() - used < 0.5
            queue.group.resume()
            assert consumer.get(timeout=DEADLINE_SECONDS).body == b"a"


@pytest.mark.parametrize("moment", [0.01 * number for number in range(8)])
def test_a_process_that_died_while_it_made_consumers_holds_up_nobody(path, child, moment):
    """Its child, forked in C, kept the lock that it had in that moment."""
    with diskq.open(path, durability="process", busy_seconds=SOON) as store:
        group = store.queue("q").group
        maker = child(MAKES, path, moment)
        forked = int(maker.stdout.readline())
        maker.kill()
        maker.wait()
        try:
            began = time.monotonic()
            for _ in range(20):
                group.consumer().close()
            assert time.monotonic() - began < SOON / 2
        finally:
            os.kill(forked, 9)


def test_a_process_that_lives_is_never_taken_for_one_that_ended(child):
    """One thread asked with a descriptor that another one had closed."""
    neighbour = child("import sys; sys.stdin.readline()")
    its_stat = process._stat(neighbour.pid)
    mine = process.this_process()
    its = process.Process(neighbour.pid, mine.namespace, int(its_stat[process._STARTED]))
    watch = process.Watch(mine)
    answers, over = [], threading.Event()

    def ask():
        while not over.is_set():
            answers.append(watch.is_gone(its))
            watch.forget(its)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    over.set()
    for thread in threads:
        thread.join()
    assert len(answers) > 100
    assert not any(answers)
    neighbour.kill()
    neighbour.wait()
    assert watch.is_gone(its)
    watch.close()


FORKED_IN_C = """
import ctypes, os, signal, sys
import diskq
from diskq.storage import engine; from diskq.host import process
if sys.argv[2] == "without the page":  # Linux before 4.14
    engine.HERE = process._Pid()
queue = diskq.open(sys.argv[1]).queue("q")
queue.put(b"from the parent")
child = ctypes.CDLL(None).fork()
if child == 0:
    signal.alarm(30)
    queue.put(b"from the child")
    os._exit(queue.qsize())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
print(queue.qsize())
"""


@pytest.mark.parametrize("how", ["with the page", "without the page"])
def test_a_fork_in_c_is_noticed_with_and_without_a_page_that_it_wipes(tmp_path, how):
    assert run_python(FORKED_IN_C, tmp_path / "store", how).stdout == "2\n"


def test_few_descriptors_are_kept_for_other_processes(path, child):
    """They are the program's own: with many peers its files could not be opened."""
    with diskq.open(path, durability="process") as store:
        group = store.queue("q").group
        peers = [
            child(
                "import diskq, sys\n"
                "consumer = diskq.open(sys.argv[1]).queue('q').consumer()\n"
                "print(flush=True)\nsys.stdin.readline()",
                path,
            )
            for _ in range(process._MOST_PIDFDS + 4)
        ]
        for peer in peers:
            peer.stdout.readline()
        with group.consumer() as consumer:
            before = len(os.listdir("/proc/self/fd"))
            assert consumer.get_many(1, timeout=0.2) == []
            assert len(os.listdir("/proc/self/fd")) <= before + process._MOST_PIDFDS


def locks_of(thing, seen):
    """The locks of an object of diskq, and of those that it has."""
    if id(thing) not in seen and type(thing).__module__.startswith("diskq."):
        seen.add(id(thing))
        for its in vars(thing).values() if hasattr(thing, "__dict__") else ():
            if isinstance(its, type(threading.RLock())):
                yield its
            else:
                yield from locks_of(its, seen)


def test_no_commit_waits_for_a_lock_that_a_thread_has_outside_of_commits(path, child):
    """A handler that interrupts that thread may want to commit: they waited for each other."""
    with diskq.open(path) as store:
        queue = store.queue("q")
        queue.put_many([b"of the dead", b"b", b"c"])
        holder = child(HOLDS, path)
        assert holder.stdout.readline() == "holding\n"
        with queue.consumer() as consumer:
            locks = set(locks_of(store.handle.engine, set())) - set(store.handle.engine.locks())
            assert locks
            held, over = threading.Event(), threading.Event()

            def hold():
                for lock in locks:
                    lock.acquire()
                held.set()
                over.wait()
                for lock in locks:
                    lock.release()

            thread = threading.Thread(target=hold)
            thread.start()
            held.wait()
            try:
                began = time.monotonic()
                messages = consumer.get_many(2, timeout=0)
                holder.kill()
                holder.wait()
                messages += consumer.get_many(1, timeout=SOON)
                consumer.ack_many(messages)
                queue.put(b"d")
                assert [each.body for each in messages] == [b"b", b"c", b"of the dead"]
                assert time.monotonic() - began < SOON / 4
            finally:
                over.set()
                thread.join()
