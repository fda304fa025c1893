"""Programs that embed a store: servers that fork, pools of threads and processes, event loops.

What a single fork, a thread or a second opening does is in test_fork_and_exit.py.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import diskq


def test_a_server_that_opens_the_store_before_it_forks_can_reload(path, start):
    """Nothing that a worker put is lost, nothing is taken twice, and what a killed worker was
    handling comes back."""
    workers, requests, reloads = 4, 20, 3
    done = start(
        "embedding.preload", path=path, workers=workers, requests=requests, reloads=reloads
    ).hear("done")
    assert done["codes"] == [-signal.SIGKILL, 0, 0, 0] * reloads
    with diskq.open(path) as store:
        stats = store.queue("q").group.stats()
        assert (stats.acked, stats.lag) == (done["put"], 0)
        attempts: dict[int, int] = {}
        while len(attempts) < reloads:
            for message in store.queue("kept").get_many(10, timeout=20):
                attempts[message.offset] = message.attempt
        assert sum(attempts.values()) == reloads + reloads  # each kill was charged once


def test_a_family_of_forks_uses_the_inherited_store(path, start):
    done = start("embedding.fork_a_family", path=path).hear("done")
    assert done == {"what": "done", "codes": [0] * 8, "outcome": ["woken"]}
    with diskq.open(path) as store:
        bodies = sorted(message.body for message in store.topic("q").read())
    assert bodies == sorted(b"%d-%d" % (number, depth) for number in range(8) for depth in range(4))


def test_a_child_that_ends_normally_takes_nothing_from_its_parent(path, start):
    with diskq.open(path) as store:
        store.topic("q").put(b"")
        holder = start("embedding.end_a_child_normally", path=path)
        assert holder.hear("holding")["code"] == 0
        assert store.queue("q").get_many(1, timeout=0) == []
        holder.tell()
        holder.hear("done")
        assert store.queue("q").group.stats().acked == 1


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_pool_puts_and_takes(path, start, method):
    done = start("embedding.process_pool", path=path, method=method, tasks=40).hear("done")
    assert done["numbers"] == list(range(40))


def test_a_thread_pool_settles_what_the_main_thread_takes(path):
    with diskq.open(path) as store, ThreadPoolExecutor(8) as executor:
        queue = store.queue("q")
        queue.put_many([b"%d" % number for number in range(200)])
        bodies: list[bytes] = []

        def work(message: diskq.Message) -> None:
            with message:
                bodies.append(message.body)

        futures = []
        while messages := queue.get_many(7, timeout=0):
            futures += [executor.submit(work, message) for message in messages]
        for future in futures:
            future.result()
        assert sorted(bodies, key=int) == [b"%d" % number for number in range(200)]
        assert queue.group.stats().acked == 200


def test_an_event_loop_puts_and_takes_in_threads(path):
    """Ten coroutines wait for messages while ten others put them."""

    async def main(queue: diskq.Queue) -> list[bytes]:
        taken: list[bytes] = []

        async def take() -> None:
            for _ in range(20):
                message = await asyncio.to_thread(queue.get, timeout=60)
                taken.append(message.body)
                await asyncio.to_thread(message.ack)

        async def put(name: int) -> None:
            for number in range(20):
                await asyncio.to_thread(queue.put, b"%d-%d" % (name, number))

        async with asyncio.TaskGroup() as group:
            for name in range(10):
                group.create_task(take())
                group.create_task(put(name))
        return taken

    with diskq.open(path) as store:
        loop_threads = ThreadPoolExecutor(20)
        loop = asyncio.new_event_loop()
        loop.set_default_executor(loop_threads)
        taken = loop.run_until_complete(main(store.queue("q")))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert sorted(taken) == sorted(b"%d-%d" % (a, b) for a in range(10) for b in range(20))


def test_closing_the_consumer_ends_a_get_that_a_coroutine_waits_for(path):
    """A cancelled coroutine leaves its thread behind, blocked; this is how to end that one."""

    async def main(consumer: diskq.Consumer) -> str:
        waiting = asyncio.create_task(asyncio.to_thread(consumer.get))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.1)
        consumer.close()
        try:
            await waiting
        except diskq.Closed:
            return "closed"
        return "got one"

    with diskq.open(path) as store:
        assert asyncio.run(main(store.queue("q").consumer())) == "closed"


PICKLERS: dict[str, Callable[[object], object]] = {
    "pickle": pickle.dumps,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("pickler", PICKLERS)
def test_what_belongs_to_a_process_cannot_be_pickled(path, pickler):
    with diskq.open(path) as store:
        queue = store.queue("q")
        queue.put(b"")
        consumer = queue.consumer()
        message = consumer.get(timeout=0)
        mine = store, queue, queue.topic, queue.group, consumer, message, store.transaction()
        for each in mine:
            with pytest.raises(TypeError, match="pickle"):
                PICKLERS[pickler](each)
        message.ack()


def test_values_and_errors_can_be_pickled(path):
    with diskq.open(path) as store:
        queue = store.queue("q")
        receipt = queue.put(b"body", key="k", headers={"a": "b"})
        values = [receipt, store.stats(), queue.topic.stats(), *queue.topic.read()]
        values += [
            queue.topic.settings,
            queue.group.settings,
            diskq.Outgoing(b"x"),
            diskq.Backoff(),
        ]
        for value in values:
            assert pickle.loads(pickle.dumps(value)) == value
        with pytest.raises(diskq.NotFound) as error:
            store.delete_topic("nowhere")
        copied = pickle.loads(pickle.dumps(error.value))
        assert (type(copied), str(copied), copied.topic) == (
            diskq.NotFound, str(error.value), "nowhere",
        )  # fmt: skip
