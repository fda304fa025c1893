"""The verbs that are interrupted: what there is before, and what is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import diskq

RETRY = diskq.Backoff(300, 1, 300)  # what failed stays away while we look
SPARE = 3  # messages that nobody takes


class World:
    """A store, its topic and group, and what a scenario needs of them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.store: diskq.Store
        self.topic: diskq.Topic
        self.group: diskq.Group
        self.consumer: diskq.Consumer | None = None
        self.other: diskq.Topic
        self.messages: list[diskq.Message] = []
        self.steps: Iterator[diskq.Message]
        self.more: list[object] = []
        self.transaction: Any  # a diskq.Transaction

    def furnish(self) -> None:
        """Open the store, make it if need be."""
        if not hasattr(self, "store"):
            self.store = diskq.open(self.path, durability="process")
        self.topic = self.store.topic("t", retention="limits")
        self.group = self.topic.group("g", lease_seconds=600, backoff=RETRY)

    def fill(self, taken: int = 1) -> None:
        """Some messages, of which the consumer has taken so many."""
        self.furnish()
        self.topic.put_many([b"set-up %d" % n for n in range(SPARE + taken)])
        self.consumer = self.group.consumer("mine")
        if taken:
            self.messages = self.consumer.get_many(taken)

    def close(self) -> None:
        """As a program that goes on after an interrupt ends: consumers first."""
        self.messages.clear()
        self.more.clear()
        if self.consumer is not None:
            self.consumer.close()


Act = Callable[[World], object]


class Scenario(NamedTuple):
    """Each of `acts` happens once or not at all, in order. `ends`: the consumer or the store is
    closed by them."""

    prepare: Act
    acts: tuple[Act, ...]
    repeat: Act | None = None  # what a program does again when it was interrupted
    ends: str = ""
    forks: bool = False  # errors in Python's hooks for it are told, and swallowed, by Python
    in_child: bool = False


def _fill(w: World) -> None:
    w.fill()


def _one(act: Act, prepare: Act = _fill) -> Scenario:
    return Scenario(prepare, (act,))


def _first_put(w: World) -> None:
    w.topic.put(b"verb")


def _open(w: World) -> None:
    w.store = diskq.open(w.path, durability="process")


def _open_again(w: World) -> None:
    w.more.append(diskq.open(w.path))


def _topic(w: World) -> None:
    w.topic = w.store.topic("t", retention="limits")


def _group(w: World) -> None:
    w.group = w.topic.group("g", lease_seconds=600, backoff=RETRY)


def _closed_store(w: World) -> None:
    w.furnish()
    w.topic.put(b"set-up")
    w.store.close()
    del w.store, w.topic, w.group


def _with_other(w: World) -> None:
    w.fill(2)
    w.other = w.store.topic("u", retention="limits")
    w.transaction = tx = w.store.transaction()
    tx.ack(w.messages[0])
    tx.release(w.messages[1])
    tx.put(w.topic, b"verb 1")
    tx.put_many(w.other, [b"verb 2", b"verb 3"])


def _prefetching(w: World) -> None:
    w.fill(0)
    assert w.consumer
    w.consumer.close()
    w.consumer = w.group.consumer("mine", prefetch=2)


def _prefetched(w: World) -> None:
    _prefetching(w)
    assert w.consumer
    w.messages = [w.consumer.get()]


def _empty(w: World) -> None:
    w.furnish()
    w.consumer = w.group.consumer("mine")


def _get(w: World) -> None:
    assert w.consumer
    w.messages.append(w.consumer.get(timeout=0))


def _blocked(w: World) -> None:
    assert w.consumer
    with suppress(diskq.Empty):
        w.consumer.get(timeout=0.03)


def _get_many(w: World) -> None:
    assert w.consumer
    w.messages += w.consumer.get_many(2)


def _iterating(w: World) -> None:
    w.fill(0)
    assert w.consumer
    w.steps = iter(w.consumer)
    next(w.steps)


def _succeed(w: World) -> None:
    with w.messages[0]:
        pass


def _fail(w: World) -> None:
    with suppress(ZeroDivisionError), w.messages[0]:
        raise ZeroDivisionError


def _ack_many(w: World) -> None:
    assert w.consumer
    w.consumer.ack_many(w.messages)


def _consumer(w: World) -> None:
    w.consumer = w.group.consumer("mine")


def _close_consumer(w: World) -> None:
    if w.consumer:
        w.consumer.close()


def _handed_out(w: World) -> None:
    w.fill(0)
    assert w.consumer
    w.consumer.ack_many(w.consumer.get_many(2))


def _acked_interest(w: World) -> None:
    w.fill(0)
    w.other = w.store.topic("u")
    group = w.other.group("gu")
    with group.consumer() as consumer:
        for n in range(4):
            w.other.put(b"u %d" % n)
            w.other.trim()
        consumer.ack_many(consumer.get_many(2))


def _dead(w: World) -> None:
    w.fill(2)
    for message in w.messages:
        message.reject("no")


def _fork(w: World) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _alone(w: World) -> None:
    w.fill(0)
    _close_consumer(w)
    w.consumer = None


def _put_again(w: World) -> None:
    w.topic.put(b"verb", dedup_id="the same")


def _put_before(w: World) -> None:
    w.fill()
    _put_again(w)


def _with_priorities(w: World) -> None:
    w.fill()
    w.other = w.store.topic("u", priorities=3)


def _backup(w: World) -> None:
    w.store.backup(w.path + f".backup{len(w.more)}")


SCENARIOS = {
    "first put": Scenario(lambda w: None, (_open, _topic, _first_put)),
    "open": _one(_open, _closed_store),
    "second open": _one(_open_again),
    "put": _one(_first_put),
    "put with options": _one(
        lambda w: w.topic.put(b"verb", key="k", headers={"a": "b"}, dedup_id="d", ttl_seconds=900)
    ),
    "put of a duplicate": _one(_put_again, _put_before),
    "put with a delay": _one(lambda w: w.topic.put(b"verb", delay_seconds=900)),
    "put_many": _one(lambda w: w.topic.put_many([b"verb %d" % n for n in range(5)])),
    "put with a priority": _one(
        lambda w: w.other.put(b"verb", priority=2),
        _with_priorities,
    ),
    "get": _one(_get, lambda w: w.fill(0)),
    "get_many": _one(_get_many, lambda w: w.fill(0)),
    "get with prefetch": _one(_get, _prefetching),
    "get of what was prefetched": _one(_get, _prefetched),
    "blocked get": _one(_blocked, _empty),
    "iteration": _one(lambda w: w.messages.append(next(w.steps)), _iterating),
    "ack": _one(lambda w: w.messages[0].ack()),
    "ack_many": _one(_ack_many, lambda w: w.fill(3)),
    "nack": _one(lambda w: w.messages[0].nack(error="no")),
    "release": _one(lambda w: w.messages[0].release()),
    "reject": _one(lambda w: w.messages[0].reject("no")),
    "extend": _one(lambda w: w.messages[0].extend(900)),
    "with message": _one(_succeed),
    "with message that fails": _one(_fail),
    "transaction": _one(lambda w: w.transaction.commit(), _with_other),
    "consumer": Scenario(
        _alone, (_consumer, _get, _close_consumer), repeat=_close_consumer, ends="consumer"
    ),
    "close of a consumer": Scenario(
        lambda w: w.fill(2), (_close_consumer,), repeat=_close_consumer, ends="consumer"
    ),
    "topic and group": Scenario(
        _open, (_topic, _group, lambda w: w.group.update(max_in_flight=50))
    ),
    "seek": _one(lambda w: w.group.seek("earliest"), _handed_out),
    "purge": _one(lambda w: w.topic.purge()),
    "redrive": _one(lambda w: w.group.redrive(), _dead),
    "trim": _one(lambda w: w.other.trim(), _acked_interest),
    "read": _one(lambda w: list(w.topic.read())),
    "stats": _one(lambda w: w.store.stats()),
    "pending": _one(lambda w: w.group.pending()),
    "verify": _one(lambda w: list(w.store.verify())),
    "backup": _one(_backup),
    "close of the store": Scenario(
        lambda w: w.fill(2), (lambda w: w.store.close(),), lambda w: w.store.close(), "store"
    ),
    "fork in the parent": Scenario(lambda w: w.fill(), (_fork,), forks=True),
    "fork in the child": Scenario(_alone, (lambda w: None,), forks=True, in_child=True),
    "put in a forked child": Scenario(_alone, (_first_put,), in_child=True),
}
