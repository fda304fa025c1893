"""Roles of producers and consumers: they share, die, fork, leak and are interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import diskq
from diskq import Consumer, Message

from . import tell, told

END = b"end"


# Sharing ----------------------------------------------------------------------------------------


def produce(path: str, name: str, count: int) -> None:
    """Put numbered messages, one by one."""
    with diskq.open(path) as store:
        topic = store.topic("q")
        tell("ready")
        told()
        for number in range(count):
            topic.put(b"%s-%d" % (name.encode(), number))
    tell("done")


def produce_batches(path: str, size: int) -> None:
    """Put batches without end; each body has the number of its batch."""
    with diskq.open(path) as store:
        topic = store.topic("q")
        for batch in range(sys.maxsize):
            tell("batch")
            topic.put_many([b"%d" % batch] * size)


def consume(path: str, way: str, work_seconds: float = 0.0) -> None:
    """Take messages in one of several ways until one says END; tell their bodies."""
    with diskq.open(path) as store, store.queue("q").consumer() as consumer:
        tell("ready")
        told()
        bodies = []
        for message in WAYS[way](consumer):
            if message.body == END:
                break
            bodies.append(message.body.decode())
            if work_seconds:
                time.sleep(work_seconds)
    tell("done", bodies=bodies)


def _one_by_one(consumer: Consumer) -> Iterator[Message]:
    while True:
        message = consumer.get()
        message.ack()
        yield message


def _batches(consumer: Consumer) -> Iterator[Message]:
    while True:
        messages = consumer.get_many(1000)
        consumer.ack_many(messages)
        yield from messages


def _iterate(consumer: Consumer) -> Iterator[Message]:
    for message in consumer:
        yield message
        if message.body == END:
            message.ack()


WAYS = {"get and ack": _one_by_one, "batches": _batches, "iteration": _iterate}


def serve(path: str) -> None:
    """Wait for messages, tell and ack each, until killed."""
    with diskq.open(path) as store, store.queue("q").consumer() as consumer:
        tell("ready")
        for message in consumer:
            tell("got", body=message.body.decode())
            message.ack()


# Death ------------------------------------------------------------------------------------------


def hold(path: str, count: int = 1, handle: int | None = None, fork: bool = False) -> None:
    """Lease messages, perhaps handle one of them, perhaps fork a child, and wait to be killed."""
    with diskq.open(path) as store, store.queue("q").consumer("holder") as consumer:
        messages = consumer.get_many(count)
        if handle is not None:
            messages[handle].__enter__()
        child = 0
        if fork:
            child = os.fork()
            if child == 0:
                signal.pause()
        tell("holding", offsets=[message.offset for message in messages], child=child)
        told()


def refused(path: str) -> None:
    """Try to open the store; tell why that was refused."""
    try:
        diskq.open(path)
    except diskq.Unsupported as error:
        tell("refused", why=str(error))


def handle_all(path: str, count: int, acked: int) -> None:
    """Lease a batch, handle and ack some of it, and wait to be killed between two messages."""
    with diskq.open(path) as store, store.queue("q").consumer() as consumer:
        for message in consumer.get_many(count)[:acked]:
            with message:
                pass
        tell("holding")
        told()


def die_of(path: str, group: str, body: str) -> None:
    """Take batches and ack each message, but die of one with this body, without naming it."""
    with diskq.open(path) as store, store.topic("q").group(group).consumer("victim") as consumer:
        while True:
            for message in consumer.get_many(5):
                if message.body == body.encode():
                    os.kill(os.getpid(), signal.SIGKILL)
                message.ack()


def take_one(path: str) -> None:
    """Wait for a message, tell it, keep it."""
    with diskq.open(path) as store, store.queue("q").consumer() as consumer:
        tell("waiting")
        message = consumer.get()
        tell("got", offset=message.offset, attempt=message.attempt)
        told()


def look_once(path: str) -> None:
    """Tell how many messages another process can get right now; give them back."""
    with diskq.open(path) as store, store.queue("q").consumer() as consumer:
        tell("found", count=len(consumer.get_many(100, timeout=0)))


# Zombies ----------------------------------------------------------------------------------------

VERBS = ("ack", "nack", "reject", "release", "extend", "ack_many", "with")


def outlive_lease(path: str) -> None:
    """Lease a message for each verb; when told a verb, try it and tell how it ended."""
    with diskq.open(path) as store, store.queue("q").consumer("zombie") as consumer:
        messages = dict(zip(VERBS, consumer.get_many(len(VERBS)), strict=True))
        tell("holding", tokens={verb: message.token for verb, message in messages.items()})
        while verb := told():
            try:
                _settle(consumer, verb, messages)
            except diskq.LeaseLost:
                tell("settled", outcome="LeaseLost")
            else:
                tell("settled", outcome="success")


def _settle(consumer: Any, verb: str, messages: dict[str, Message]) -> None:
    if verb == "ack_many":
        consumer.ack_many([messages[verb]])
    elif verb == "with":
        with messages[verb]:
            pass
    elif verb == "careless ack":
        _ack_without_token(consumer.group, messages["ack"].offset)
    else:
        getattr(messages[verb], verb)()


def _ack_without_token(group: diskq.Group, offset: int) -> None:
    """A planted fault: settle a message whoever has it, as queues do that ack by a bare id."""

    def operation(tx: Any) -> None:
        for key, _ in list(tx.scan(b"L")):
            if int.from_bytes(key[-8:], "big") == offset:
                tx.delete(key)

    group.topic.store.handle.engine.commit(operation)


# Histories --------------------------------------------------------------------------------------


def make_history(path: str, ledger: str, who: str, seed: int) -> None:
    """Take, work too long now and then, and settle at random, until killed or told to end; write
    what was tried and what came of it to an own ledger, a line each, before and after."""
    chance = random.Random(seed)
    ended = threading.Event()
    threading.Thread(target=lambda: (told(), ended.set()), daemon=True).start()
    file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(**entry: Any) -> None:
        entry.update(who=who, at=time.monotonic_ns())
        os.write(file, json.dumps(entry).encode() + b"\n")

    def attempt(verb: str, message: Message) -> None:
        write(phase="try", verb=verb, offset=message.offset, token=message.token)
        try:
            getattr(message, verb)()
        except diskq.LeaseLost:
            write(phase="lost", verb=verb, offset=message.offset, token=message.token)
        else:
            write(
                phase="ok",
                verb=verb,
                offset=message.offset,
                token=message.token,
                deadline=int(message.deadline * 1e9),
            )

    with diskq.open(path) as store, store.queue("q").consumer(who) as consumer:
        tell("ready")
        while not ended.is_set():
            begun = time.monotonic_ns()
            messages = consumer.get_many(chance.choice((1, 1, 4)), timeout=0.05)
            for message in messages:
                deadline = int(message.deadline * 1e9)
                write(
                    phase="got",
                    verb="get",
                    offset=message.offset,
                    token=message.token,
                    deadline=deadline,
                    begun=begun,
                    shared=[each.token for each in messages if each.lease is message.lease],
                )
            for message in messages:
                if chance.random() < 0.1:
                    time.sleep(chance.random() * 0.12)
                if chance.random() < 0.05:
                    attempt("extend", message)
                verb = chance.choices(("ack", "nack", "release"), (6, 3, 1))[0]
                attempt(verb, message)
        write(phase="try", verb="close", offset=-1, token=-1)
    tell("done")


# Forks, exits, interrupts -----------------------------------------------------------------------


def fork_with_threads(path: str, forks: int) -> None:
    """Fork again and again while threads read and write; each child uses the inherited store."""
    store = diskq.open(path)
    queue = store.queue("q")
    stop = threading.Event()

    def work() -> None:
        with queue.consumer() as consumer:
            while not stop.is_set():
                queue.put(b"parent")
                with suppress(diskq.Empty):
                    consumer.get(timeout=0.01).ack()
                store.stats()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    codes = []
    for number in range(forks):
        child = os.fork()
        if child == 0:
            _child(store, b"child %d" % number)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    for thread in threads:
        thread.join()
    bodies = sorted(message.body.decode() for message in store.queue("marks").get_many(1000))
    store.close()
    tell("done", codes=codes, bodies=bodies)


def _child(store: diskq.Store, mark: bytes) -> None:
    code = 1
    try:
        store.topic("marks").put(mark)
        queue = store.queue("q")
        queue.put(b"from a child")
        queue.get(timeout=20).ack()
        store.close()
        code = 0
    finally:
        os._exit(code)


def multiprocess(path: str, method: str) -> None:
    """Two processes of multiprocessing put and take."""
    import multiprocessing

    context = multiprocessing.get_context(method)
    store = diskq.open(path)
    target, first = (_use_inherited, store) if method == "fork" else (_use_path, path)
    children = [context.Process(target=target, args=(first, n)) for n in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    bodies = sorted(message.body.decode() for message in store.queue("marks").get_many(1000))
    store.close()
    tell("done", codes=[child.exitcode for child in children], bodies=bodies)


def _use_path(path: str, number: int) -> None:
    with diskq.open(path) as store:
        _use_inherited(store, number)


def _use_inherited(store: diskq.Store, number: int) -> None:
    store.topic("marks").put(b"%d" % number)
    queue = store.queue("q")
    queue.put(b"message")
    queue.get(timeout=20).ack()


def use_parents_consumer(path: str) -> None:
    """A forked child uses a consumer and a message of its parent; tell what it got."""
    store = diskq.open(path)
    consumer = store.queue("q").consumer()
    message = consumer.get()
    reading, writing = os.pipe()
    if os.fork() == 0:
        outcomes = []
        for use in (message.ack, message.nack, message.extend, consumer.get_nowait):
            try:
                use()
            except Exception as error:
                outcomes.append(type(error).__name__)
            else:
                outcomes.append("success")
        consumer.close()
        os.write(writing, json.dumps(outcomes).encode())
        os._exit(0)
    os.wait()
    tell("outcomes", outcomes=json.loads(os.read(reading, 1000)))
    message.ack()
    store.close()
    tell("done")


def hold_and_fork(path: str) -> None:
    """Hold a message while a child uses the inherited store, closes it and ends."""
    with diskq.open(path) as store, store.queue("q").consumer() as consumer:
        message = consumer.get()
        child = os.fork()
        if child == 0:
            store.topic("marks").put(b"")
            store.close()
            os._exit(0)
        os.waitpid(child, 0)
        tell("holding")
        told()
        message.ack()
    tell("done")


def hold_and_reopen(path: str) -> None:
    """Hold a message while the same store is opened a second time and closed."""
    with diskq.open(path) as store, store.queue("q").consumer() as consumer:
        message = consumer.get()
        with diskq.open(path) as again:
            again.stats()
        tell("holding")
        told()
        message.ack()
    tell("done")


def leak(path: str) -> None:
    """End with a store, a consumer and a message that nobody closed or settled."""
    store = diskq.open(path)
    consumer = store.queue("q").consumer()
    message = consumer.get()
    globals()["leaked"] = store, consumer, message
    tell("leaking")


def leak_blocked_thread(path: str) -> None:
    """End while a daemon thread is blocked in a get."""
    store = diskq.open(path)
    consumer = store.queue("q").consumer()
    threading.Thread(target=consumer.get, daemon=True).start()
    tell("waiting")
    told()


def be_interrupted(path: str) -> None:
    """Wait for a message that never comes; tell when Ctrl-C came through."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with diskq.open(path) as store, store.queue("q").consumer() as consumer:
        tell("waiting")
        try:
            consumer.get()
        except KeyboardInterrupt:
            tell("interrupted", at=time.monotonic())
        told()
        message = consumer.get()
        try:
            with message:
                tell("handling")
                signal.pause()
        except KeyboardInterrupt:
            tell("interrupted again")
    tell("done")
