"""A program whose threads handle messages, one of which kills it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import diskq

POISON = b"POISON"
WORK_SECONDS = 0.01
PATIENCE_SECONDS = 1.0
another = threading.Event()  # is in hand


def handle(message: diskq.Message) -> None:
    """Work; or die, if possible while another thread works."""
    if message.body == POISON:
        another.wait(10 * WORK_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)
    another.set()
    time.sleep(WORK_SECONDS)


def with_blocks(consumer: diskq.Consumer) -> None:
    while True:
        with consumer.get(timeout=PATIENCE_SECONDS) as message:
            handle(message)


def plain(consumer: diskq.Consumer) -> None:
    while True:
        message = consumer.get(timeout=PATIENCE_SECONDS)
        handle(message)
        message.ack()


def batches(consumer: diskq.Consumer) -> None:
    while messages := consumer.get_many(5, timeout=PATIENCE_SECONDS):
        for message in messages:
            handle(message)
            message.ack()


def with_in_batches(consumer: diskq.Consumer) -> None:
    while messages := consumer.get_many(5, timeout=PATIENCE_SECONDS):
        for message in messages:
            with message:
                handle(message)


WAYS: dict[str, Callable[[diskq.Consumer], None]] = {
    "with": with_blocks,
    "plain": plain,
    "batches": batches,
    "with in batches": with_in_batches,
}


def live(path: str, group: str, way: str, members: str, prefetch: int) -> None:
    """Two threads that share a consumer, or have one each, until nothing is left."""
    with diskq.open(path) as store:
        source = store.topic("mail").group(group)
        shared = source.consumer("shared", prefetch=prefetch)

        def work() -> None:
            own = members == "own"
            consumer = source.consumer("own", prefetch=prefetch) if own else shared
            with suppress(diskq.Empty):
                WAYS[way](consumer)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
