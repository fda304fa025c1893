"""Shared commits: threads that arrive together go together, and do not disturb each other."""

from __future__ import annotations

import threading

import pytest
from support.stores import bodies, commits

import diskq


class Gate:
    """Holds the writer up inside of an operation, so that others queue behind it."""

    def __init__(self, store):
        self.store = store
        self.inside, self.go = threading.Event(), threading.Event()
        self.threads = []
        self.run(lambda: store.handle.commit(self.wait))
        assert self.inside.wait(30)

    def wait(self, tx):
        self.inside.set()
        assert self.go.wait(30)

    def run(self, call):
        self.threads.append(threading.Thread(target=call))
        self.threads[-1].start()

    def queued(self, count):
        """Wait until so many operations queue."""
        for _ in range(3000):
            if self.store.handle.engine.in_line() >= count:
                return
            threading.Event().wait(0.01)
        raise AssertionError(f"{self.store.handle.engine.in_line()} operations queue, not {count}")

    def open(self):
        self.go.set()
        for thread in self.threads:
            thread.join()


def test_operations_that_queue_share_one_commit(store, topic):
    topic.put(b"opens the log")
    gate = Gate(store)
    receipts = []
    for number in range(16):
        gate.run(lambda body=b"%d" % number: receipts.append(topic.put(body)))
    gate.queued(16)
    gate.open()
    assert sorted(receipt.offset for receipt in receipts) == list(range(1, 17))
    assert len({receipt.commit_id for receipt in receipts}) == 1


def test_an_operation_that_raises_does_not_disturb_those_it_shares_a_commit_with(store, topic):
    topic.put(b"opens the log")
    gate = Gate(store)
    receipts, failed = [], []

    def refuse(tx):
        tx.put(b"Zzz", b"must not be there")
        raise RuntimeError("refused")

    def try_it():
        with pytest.raises(RuntimeError, match="refused") as refused:
            store.handle.commit(refuse)
        failed.append(refused.value)

    for number in range(8):
        gate.run(lambda body=b"%d" % number: receipts.append(topic.put(body)))
        gate.run(try_it)
    gate.queued(16)
    gate.open()
    assert len(failed) == 8
    assert sorted(receipt.offset for receipt in receipts) == list(range(1, 9))
    assert sorted(bodies(topic.read(1))) == [b"%d" % number for number in range(8)]
    assert store.handle.engine.read(lambda tx: tx.get(b"Zzz")) is None


def test_an_operation_that_raises_leaves_no_commit(store):
    before = commits(store)
    with pytest.raises(ZeroDivisionError):
        store.handle.commit(lambda tx: 1 / 0)
    assert commits(store) == before


def test_what_an_undone_commit_read_is_not_delivered_later(store, topic, consumer, monkeypatch):
    """A put and a get share a commit that is undone; then another put gets the same offset."""
    captured = []
    consumer._taking.emptied = None  # it takes without a look

    class Captured(Exception):
        pass

    def capture(operation, *_):
        captured.append(operation)
        raise Captured

    with monkeypatch.context() as patch:
        patch.setattr(store.handle.engine, "commit", capture)
        with pytest.raises(Captured):
            topic.put_many([b"undone", b"undone"])
        with pytest.raises(Captured):
            consumer.get_nowait()

    def undone(tx):
        for operation in captured:
            operation(tx)
        raise RuntimeError("and a third one fails")

    with pytest.raises(RuntimeError, match="third"):
        store.handle.commit(undone)
    topic.put_many([b"stored", b"stored"])
    assert consumer.get_nowait().body == b"stored"


def test_tokens_of_one_commit_do_not_repeat(store, topic, group):
    topic.put_many([b""] * 60)
    consumers = [group.consumer() for _ in range(6)]
    gate = Gate(store)
    taken = []
    for consumer in consumers:
        gate.run(lambda one=consumer: taken.extend(one.get_many(10, timeout=0)))
    gate.queued(6)
    gate.open()
    assert len({message.token for message in taken}) == len(taken) == 60
    assert all(isinstance(message, diskq.Message) for message in taken)
