"""Roles for the harnesses of transactions, key order, dedup, bounds and hot keys."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import diskq
from diskq import Message, Outgoing, Receipt, Topic

from . import tell, told

FULL = bool(os.environ.get("DISKQ_TEST_FULL"))  # sizes that take minutes


def _once_told() -> threading.Event:
    """An event that is set when the test tells something."""
    event = threading.Event()
    threading.Thread(target=lambda: (told(), event.set()), daemon=True).start()
    return event


# A pipeline -------------------------------------------------------------------------------------


def feed(path: str) -> None:
    """Put numbers, three in a commit, until told to stop; tell how many."""
    stop = _once_told()
    count = 0
    with diskq.open(path) as store:
        topic = store.topic("in")
        tell("ready")
        while not stop.is_set():
            topic.put_many([b"%d" % number for number in range(count, count + 3)])
            count += 3
    tell("done", count=count)


def square(path: str, way: str = "transaction") -> None:
    """For each number of one topic put the number and its square into another, until killed. `way`
    says in which commits; all but "transaction" tell and wait before the last one."""
    with diskq.open(path) as store, store.topic("in").group("squares").consumer() as consumer:
        out = store.topic("out")
        tell("ready")
        for message in consumer:
            number = int(message.body)
            result = b"%d %d" % (number, number * number)
            if way == "transaction":
                with store.transaction() as tx:
                    tx.put(out, result)
                    tx.ack(message)
            elif way == "slow transaction":
                tell("ended", outcome=_square_slowly(store, message, result))
                break
            elif way == "put, ack":
                out.put(result)
                _pause()
                message.ack()
            else:
                message.ack()
                _pause()
                out.put(result)


def _pause() -> None:
    tell("between")
    told()


def _square_slowly(store: diskq.Store, message: Message, result: bytes) -> str:
    try:
        with store.transaction() as tx:
            tx.put(store.topic("out"), result)
            tx.ack(message)
            _pause()
    except diskq.LeaseLost:
        return "LeaseLost"
    return "success"


# Key order --------------------------------------------------------------------------------------


def consume_keys(path: str, ledger: str, who: str, seed: int, prefetch: int) -> None:
    """Take messages, one or some, and settle them in any order, now and then by a nack or release
    or in a transaction, until killed or told to end. An own ledger has a line for each message
    got, and one before and one after each settle."""
    chance = random.Random(seed)
    ended = _once_told()
    file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(phase: str, verb: str, message: Message) -> None:
        entry = {
            "who": who,
            "phase": phase,
            "verb": verb,
            "offset": message.offset,
            "key": message.key,
            "token": message.token,
            "at": time.monotonic_ns(),
        }
        os.write(file, json.dumps(entry).encode() + b"\n")

    with diskq.open(path) as store:
        group = store.topic("q").group("default")
        with group.consumer(who, prefetch=prefetch) as consumer:
            tell("ready")
            while not ended.is_set():
                messages = consumer.get_many(chance.choice((1, 1, 4)), timeout=0.05)
                for message in messages:
                    write("got", "get", message)
                chance.shuffle(messages)
                for message in messages:
                    if chance.random() < 0.1:
                        time.sleep(chance.random() * 0.005)
                    verb = chance.choices(("ack", "nack", "release"), (8, 2, 1))[0]
                    write("try", verb, message)
                    if chance.random() < 0.3:
                        with store.transaction() as tx:
                            getattr(tx, verb)(message)
                    else:
                        getattr(message, verb)()
                    write("ok", verb, message)
    tell("done")


# Dedup ------------------------------------------------------------------------------------------


def put_ids(path: str, way: str, count: int, seed: int) -> None:
    """Put messages with the ids 0 to `count`, in any order, in one of several ways; tell the
    receipts by id: offset, duplicate, commit id."""
    ids = list(range(count))
    random.Random(seed).shuffle(ids)
    messages = [Outgoing(b"%d" % number, dedup_id=f"id {number}") for number in ids]
    with diskq.open(path) as store:
        topic = store.topic("ids")
        tell("ready")
        told()
        receipts = PUTS[way](topic, messages)
    by_id = sorted(zip(ids, receipts, strict=True))
    tell("done", receipts=[(each.offset, each.duplicate, each.commit_id) for _, each in by_id])


def _put_each(topic: Topic, messages: list[Outgoing]) -> list[Receipt]:
    return [topic.put(message.body, dedup_id=message.dedup_id) for message in messages]


def _put_batches(topic: Topic, messages: list[Outgoing]) -> list[Receipt]:
    batches = (messages[at : at + 50] for at in range(0, len(messages), 50))
    return [receipt for batch in batches for receipt in topic.put_many(batch)]


def _put_in_transactions(topic: Topic, messages: list[Outgoing]) -> list[Receipt]:
    receipts: list[Receipt] = []
    for at in range(0, len(messages), 10):
        with topic.store.transaction() as tx:
            for message in messages[at : at + 5]:
                tx.put(topic, message.body, dedup_id=message.dedup_id)
            tx.put_many(topic, messages[at + 5 : at + 10])
        receipts += tx.receipts
    return receipts


PUTS: dict[str, Callable[[Topic, list[Outgoing]], list[Receipt]]] = {
    "put": _put_each,
    "put_many": _put_batches,
    "transaction": _put_in_transactions,
}


def consume_ids(path: str, count: int) -> None:
    """Ack so many messages, and trim; tell their bodies and what is stored then."""
    with diskq.open(path) as store:
        topic = store.topic("ids")
        bodies = []
        with topic.group("readers").consumer() as consumer:
            while len(bodies) < count and (messages := consumer.get_many(100, timeout=30)):
                bodies += [message.body.decode() for message in messages]
                consumer.ack_many(messages)
            bodies += [message.body.decode() for message in consumer.get_many(100, timeout=0)]
        topic.trim()
        tell("done", bodies=bodies, stored=topic.stats().stored)


# Bounded topics ---------------------------------------------------------------------------------


def fill(path: str, count: int, batch: int, size: int) -> None:
    """Put numbered messages of `size` bytes in batches; wait whenever the topic is full."""
    with diskq.open(path) as store:
        topic = store.topic("bounded")
        for first in range(0, count, batch):
            topic.put_many([b"%0*d" % (size, first + at) for at in range(batch)])
    tell("done")


def drain(path: str, count: int, batch: int) -> None:
    """Take and ack so many messages; after each tenth tell whether all came in order, and how large
    the data file is."""
    expected = 0
    in_order = True
    with diskq.open(path) as store, store.topic("bounded").group("g").consumer() as consumer:
        for tenth in range(1, 11):
            while expected < count * tenth // 10:
                messages = consumer.get_many(batch)
                for message in messages:
                    in_order &= int(message.body) == expected
                    expected += 1
                consumer.ack_many(messages)
            size = Path(path, "data.mdb").stat().st_size
            tell("tenth", file_bytes=size, in_order=in_order)


def put_and_tell(path: str) -> None:
    """Put messages without end, and tell when each put returned."""
    with diskq.open(path) as store:
        topic = store.topic("bounded")
        while True:
            topic.put(b"")
            tell("put", at=time.monotonic())


# Hot keys ---------------------------------------------------------------------------------------


def hold_one(path: str, topic: str) -> None:
    """Lease one message and keep it; tell which."""
    with diskq.open(path) as store, store.topic(topic).group("g").consumer() as consumer:
        message = consumer.get()
        tell("holding", offset=message.offset)
        told()


def read_on(path: str) -> None:
    """Begin to read, and do not end it before the test says so."""
    with diskq.open(path) as store:

        def read(_: object) -> None:
            tell("reading")
            told()

        store.handle.engine.read(read)
        tell("done")
