"""G18: waiting to write has a deadline, and says for whom; looking waits for no writer."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest
from support.stores import nothing_changes

import diskq

STOPS_IN_A_COMMIT = """
import os, signal, sys
import diskq
store = diskq.open(sys.argv[1])

def stop(tx):
    print("stopping", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)

store.handle.commit(stop)
print("went on", flush=True)
"""
LOOKS = """
import sys
import diskq
with diskq.open(sys.argv[1], readonly=True) as store:
    [consumer] = store.stats().consumers
    print(consumer.name, len(list(store.topic("q").read())), len(list(store.verify())))
    print(store.queue("q").group.stats().lag, store.queue("q").group.pending())
"""
PAST = datetime(2020, 1, 1, tzinfo=UTC)
SOON = 20.0  # seconds; what must not wait is over long before


@pytest.fixture
def stopped(path, child):
    """A process that is stopped in a commit; goes on or dies at the end."""
    process = child(STOPS_IN_A_COMMIT, path)
    assert process.stdout.readline() == "stopping\n"
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    return process


def calls_that_write(store):
    queue = store.queue("q")
    consumer = queue.consumer()
    message = consumer.get(timeout=0)

    def commit():
        with store.transaction() as tx:
            tx.put(queue, b"x")

    return {
        "put": lambda: queue.put(b"x"),
        "put_many": lambda: queue.put_many([b"x", b"y"]),
        "get": consumer.get,
        "get_many": lambda: consumer.get_many(3),
        "ack": message.ack,
        "nack": message.nack,
        "release": message.release,
        "reject": message.reject,
        "extend": message.extend,
        "transaction": commit,
        "topic": lambda: store.topic("new"),
        "group": lambda: queue.topic.group("new"),
        "seek": lambda: queue.group.seek("latest"),
        "purge": queue.topic.purge,
        "trim": queue.topic.trim,
        "update": lambda: queue.group.update(max_deliveries=7),
        "delete": queue.group.delete,
        "delete_topic": lambda: store.delete_topic("q"),
    }


def test_every_call_that_writes_has_a_deadline(path, child):
    with diskq.open(path, busy_seconds=0) as store:
        store.queue("q").put_many([b"a", b"b"])
        calls = calls_that_write(store)
        process = child(STOPS_IN_A_COMMIT, path)
        process.stdout.readline()
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        with nothing_changes(store):
            for name, call in calls.items():
                began = time.monotonic()
                with pytest.raises(diskq.Busy, match=f"process {process.pid} .*stopped") as busy:
                    call()
                assert time.monotonic() - began < SOON, name
                assert busy.value.pid == process.pid, name
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout.readline() == "went on\n"
        for name in ("get", "ack", "put"):
            calls[name]()


def test_timeouts_include_the_wait_for_the_lock(path, stopped):
    with diskq.open(path, readonly=True):  # else the next opening has to wait, too
        pass
    os.kill(stopped.pid, signal.SIGCONT)
    stopped.stdout.readline()
    with diskq.open(path, busy_seconds=math.inf) as store:
        store.queue("q").consumer()
        stop_again(store, stopped)


def stop_again(store, _process):
    """A timeout is obeyed though the store would wait without end: here another thread writes."""
    inside, go = threading.Event(), threading.Event()

    def hold(tx):
        inside.set()
        assert go.wait(60)

    thread = threading.Thread(target=store.handle.commit, args=[hold])
    thread.start()
    inside.wait(60)
    try:
        with pytest.raises(diskq.Busy, match="other threads"):
            store.queue("q").put(b"x", timeout=0.05)
        with pytest.raises(diskq.Busy):
            store.queue("q").put(b"x", block=False)
    finally:
        go.set()
        thread.join()


def test_opening_to_write_has_a_deadline(path, stopped):
    began = time.monotonic()
    with pytest.raises(diskq.Busy, match=str(stopped.pid)):
        diskq.open(path, busy_seconds=0.2)
    assert time.monotonic() - began < SOON


def test_looking_waits_for_no_writer(path, child):
    with diskq.open(path) as store:
        queue = store.queue("q")
        queue.put(b"a")
        consumer = queue.group.consumer("ca")
        message = consumer.get()
        process = child(STOPS_IN_A_COMMIT, path)
        process.stdout.readline()
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        looked = subprocess.run(
            [sys.executable, "-c", LOOKS, path],
            capture_output=True, text=True, timeout=SOON, check=True,
        )  # fmt: skip
        assert looked.stdout.startswith("ca 1 0\n1 [PendingMessage(offset=0, consumer='ca'")
        assert queue.group.stats().leased == 1  # and from here, too
        assert list(store.verify()) == []
        assert [each.body for each in queue.topic.read()] == [b"a"]
        os.kill(process.pid, signal.SIGCONT)
        process.stdout.readline()
        message.ack()


def calls_that_look(store):
    queue = store.queue("q")
    topic, group = queue.topic, queue.group
    return {
        "stats": store.stats,
        "verify": store.verify,
        "topic.stats": topic.stats,
        "read": lambda: list(topic.read()),
        "read by time": lambda: list(topic.read(start=PAST)),
        "follow": lambda: list(topic.follow("earliest", timeout=0)),
        "offset_at": lambda: topic.offset_at(PAST),
        "scheduled": lambda: list(topic.scheduled()),
        "group.stats": group.stats,
        "pending": group.pending,
        "waiting": lambda: list(group.waiting()),
        "dead": lambda: list(group.dead()),
        "peek": lambda: group.peek(10),
        "qsize": queue.qsize,
    }


def test_no_look_waits_for_a_writer_though_this_process_used_nothing_of_the_store_yet(path, child):
    with diskq.open(path) as store:
        queue = store.queue("q")
        queue.put_many([b"a", b"b", b"c"])
        queue.put(b"later", delay_seconds=600)
        with queue.consumer() as consumer:
            first, second = consumer.get_many(2)
            first.reject()
            second.nack(600)
    with diskq.open(path, busy_seconds=600) as store:
        process = child(STOPS_IN_A_COMMIT, path)
        process.stdout.readline()
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        for name, look in calls_that_look(store).items():
            began = time.monotonic()
            look()
            assert time.monotonic() - began < SOON, name
        process.kill()


def test_a_writer_that_dies_while_others_wait_holds_nobody_up(path, child):
    with diskq.open(path) as store:
        process = child(STOPS_IN_A_COMMIT, path)
        process.stdout.readline()
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        threading.Timer(0.3, process.kill).start()
        assert store.queue("q").put(b"x").offset == 0


def test_closing_never_waits_for_long(path, child):
    store = diskq.open(path)
    queue = store.queue("q")
    queue.put(b"a")
    consumer = queue.consumer()
    consumer.get()
    process = child(STOPS_IN_A_COMMIT, path)
    process.stdout.readline()
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    began = time.monotonic()
    store.close()
    assert time.monotonic() - began < SOON
    process.kill()
    process.wait()
    with diskq.open(path) as again:
        message = again.queue("q").get(timeout=SOON)
        assert (message.body, message.attempt) == (b"a", 1)  # nobody is charged
        message.ack()


def test_a_wait_can_be_interrupted(path, stopped):
    """Ctrl-C ends a process that waits for the lock."""
    code = """
import sys
import diskq
print("opening", flush=True)
diskq.open(sys.argv[1], busy_seconds=float("inf"))
"""
    waiting = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    waiting.stdout.readline()
    time.sleep(0.3)  # it waits by then, or soon
    waiting.send_signal(signal.SIGINT)
    _, errors = waiting.communicate(timeout=SOON)
    assert "KeyboardInterrupt" in errors
    stopped.kill()


@pytest.mark.parametrize("bad", [-1, "1", math.nan, True])
def test_busy_seconds_are_checked(tmp_path, bad):
    with pytest.raises((TypeError, ValueError), match="busy_seconds"):
        diskq.open(tmp_path / "s", busy_seconds=bad)
    assert not (tmp_path / "s").exists()
