"""Roles of programs that embed a store."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from typing import NoReturn

import diskq

from . import tell, told

# A server that opens the store before it forks its workers --------------------------------------


def preload(path: str, workers: int, requests: int, reloads: int) -> None:
    """Open the store and use it, fork workers, kill one of them in the middle of a message, let the
    others end, open the store anew, fork again. Each worker puts what it was asked, takes messages
    and acks them; tell how workers ended, and how many requests were put."""
    codes: list[int] = []
    put = 0
    for _ in range(reloads):
        store = diskq.open(path)
        queue = store.queue("q")
        consumer = queue.consumer()  # the master uses the store before and after the fork
        queue.put(b"master")
        put += 1
        with suppress(diskq.Empty):
            consumer.get(timeout=0).ack()
        pids = [_fork(store, number, requests) for number in range(workers)]
        put += (workers - 1) * requests
        os.kill(pids[0], signal.SIGKILL)
        codes += [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        while messages := consumer.get_many(100, timeout=0):
            consumer.ack_many(messages)
        store.close()
    tell("done", codes=codes, put=put)


def _fork(store: diskq.Store, number: int, requests: int) -> int:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        os.read(reading, 1)  # it is at work
        os.close(reading)
        return pid
    code = 1
    try:
        queue = store.queue("q")
        if number == 0:
            store.topic("kept").put(b"first")  # the one to be killed puts nothing to be counted
            message = store.queue("kept").get(timeout=20)
            with message:
                os.write(writing, b"x")
                signal.pause()
        os.write(writing, b"x")
        for request in range(requests):
            queue.put(b"%d" % request)
            with suppress(diskq.Empty):
                queue.get(timeout=0).ack()
        store.close()
        code = 0
    finally:
        os._exit(code)


# Forks ------------------------------------------------------------------------------------------


def fork_a_family(path: str) -> None:
    """Children fork grandchildren, each before or after it used the inherited store, while threads
    of the first process are in commits and in a blocked get."""
    store = diskq.open(path)
    topic, idle = store.topic("q"), store.queue("idle")
    stop = threading.Event()
    outcome: list[bytes] = []
    thread = threading.Thread(target=lambda: outcome.append(idle.get(timeout=60).body))
    thread.start()

    def work() -> None:
        while not stop.is_set():
            store.topic("noise").put(b"x")

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    codes = []
    for number in range(8):
        child = os.fork()
        if child == 0:
            _generation(topic, number, depth=3)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    for worker in workers:
        worker.join()
    idle.put(b"woken")
    thread.join()
    store.close()
    tell("done", codes=codes, outcome=[body.decode() for body in outcome])


def _generation(topic: diskq.Topic, number: int, depth: int) -> NoReturn:
    code = 1
    try:
        if (number + depth) % 2:
            topic.put(b"%d-%d" % (number, depth))
        if depth:
            child = os.fork()
            if child == 0:
                _generation(topic, number, depth - 1)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        else:
            code = 0
        if not (number + depth) % 2:
            topic.put(b"%d-%d" % (number, depth))
    finally:
        os._exit(code)


def end_a_child_normally(path: str) -> None:
    """Hold a message while a child ends with all that Python does at the end of a process."""
    store = diskq.open(path)
    message = store.queue("q").get(timeout=20)
    child = os.fork()
    if child == 0:
        store.topic("marks").put(b"child")
        sys.exit()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    tell("holding", code=code)
    told()
    message.ack()
    store.close()
    tell("done")


# Pools ------------------------------------------------------------------------------------------

_store: diskq.Store | None = None


def _open(path: str) -> None:
    global _store  # noqa: PLW0603 - as programs with a process pool do
    _store = diskq.open(path)


def _task(number: int) -> int:
    assert _store is not None
    queue = _store.queue("q")
    queue.put(b"%d" % number)
    with queue.get(timeout=20) as message:
        return int(message.body)


def process_pool(path: str, method: str, tasks: int) -> None:
    """A process pool whose processes open the store once, or inherit it."""
    context = multiprocessing.get_context(method)
    if method == "fork":
        _open(path)  # before the pool forks
    initializer = None if method == "fork" else _open
    with ProcessPoolExecutor(
        4, mp_context=context, initializer=initializer, initargs=(path,) if initializer else ()
    ) as executor:
        numbers = sorted(executor.map(_task, range(tasks)))
    tell("done", numbers=numbers)
