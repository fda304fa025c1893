"""Roles of processes in other PID namespaces."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from typing import Any

import diskq

from . import tell, told

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
AS_NUMBER_1 = NAMESPACE
AS_NUMBER_2 = (*NAMESPACE, "sh", "-c", '"$@"; exit $?', "sh")  # the shell is 1


def keep_snapshot(path: str, careless: bool = False) -> None:
    """Read all messages twice in one read transaction, while others change everything in between;
    tell whether they are the same. The `careless` one has lost the lock by which LMDB knows that it
    lives, as happens to a process that closes any descriptor of the lock file: the engine sees what
    came of that, and reads again."""
    with diskq.open(path, create=False) as store:
        log = store.handle.engine.log(store.topic("q").id)

        def digest(tx: Any) -> str:
            return hashlib.sha256(b"".join(value for _, value in tx.lmdb.cursor(log))).hexdigest()

        looks: list[None] = []

        def look(tx: Any) -> bool:
            looks.append(None)
            if len(looks) > 1:
                return False
            if careless:
                os.close(os.open(os.path.join(path, "lock.mdb"), os.O_RDONLY))
            before = digest(tx)
            tell("reading", pid=os.getpid())
            told()
            return digest(tx) == before

        tell("looked", same=store.handle.engine.read(look))


def hold_and_read(path: str, count: int) -> None:
    """Hold leases and a read transaction, and wait to be killed."""
    with diskq.open(path, create=False) as store, store.queue("q").consumer("holder") as consumer:
        offsets = [message.offset for message in consumer.get_many(count, timeout=20)]

        def wait(_: Any) -> None:
            tell("holding", offsets=offsets, pid=os.getpid())
            told()

        store.handle.engine.read(wait)


def take_and_look(path: str, count: int, fault: bool = False) -> None:
    """Take messages at once, and tell who is in LMDB's table of readers. With the planted `fault`,
    diskq does not see that it has the number of a dead process."""
    if fault:
        os.getpid = lambda: 2**22 + 1  # more than any process has
    with diskq.open(path, create=False) as store, store.queue("q").consumer() as consumer:
        attempts: dict[int, int] = {}
        while len(attempts) < count:
            for message in consumer.get_many(count, timeout=20):
                attempts[message.offset] = message.attempt
                message.ack()
        tell("took", attempts=sorted(attempts.items()), readers=store.stats().readers)
        told()


def work(path: str, name: str, count: int) -> None:
    """Put messages and take as many, while others do the same."""
    with diskq.open(path, create=False) as store:
        queue = store.queue("q")
        tell("ready", pid=os.getpid())
        told()
        bodies = []
        for number in range(count):
            queue.put(b"%s-%d" % (name.encode(), number))
            message = queue.get(timeout=30)
            bodies.append(message.body.decode())
            message.ack()
        tell("done", bodies=bodies)


def pool(path: str, threads: int, fork: bool) -> None:
    """A pool of threads, each with a consumer that holds a message; perhaps a child lives on."""
    store = diskq.open(path, create=False)
    queue = store.queue("q")
    holding = threading.Barrier(threads + 1)

    def hold() -> None:
        with queue.consumer() as consumer, consumer.get(timeout=20):
            holding.wait()
            threading.Event().wait()

    for _ in range(threads):
        threading.Thread(target=hold, daemon=True).start()
    holding.wait()
    child = 0
    if fork:
        child = os.fork()
        if child == 0:
            os.close(1)
            signal.pause()
    tell("holding", child=child)
    told()
