"""Consumers share a queue: all of it, nothing twice, in fair parts (G4, G13)."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from support.roles.deliveries import END
from support.workers import jain, wait_for_blocked, wait_until

import diskq
from diskq.delivery import waiting

MESSAGES = 30_000


def finish(store: diskq.Store, consumers) -> list[list[str]]:
    """Put an END for each consumer; what each got before."""
    for _ in consumers:
        store.topic("q").put(END)
    return [consumer.hear("done")["bodies"] for consumer in consumers]


def begin(start, ways, *prefix, **options):
    """Consumers that are all ready, then told to go."""
    consumers = [start("consume", *prefix, way=way, **options) for way in ways]
    for consumer in consumers:
        consumer.hear("ready")
    for consumer in consumers:
        consumer.tell()
    return consumers


def test_three_producers_and_three_consumers_lose_nothing_and_double_nothing(path, start):
    consumers = begin(start, ["iteration"] * 3, path=path)
    producers = [
        start("produce", path=path, name=name, count=MESSAGES // 3) for name in ("a", "b", "c")
    ]
    for producer in producers:
        producer.hear("ready")
    for producer in producers:
        producer.tell()
    for producer in producers:
        producer.hear("done")
    with diskq.open(path) as store:
        parts = finish(store, consumers)
    bodies = Counter(body for part in parts for body in part)
    assert bodies == Counter(f"{name}-{n}" for name in "abc" for n in range(MESSAGES // 3))
    for part in parts:  # each producer's messages stay in order
        for name in "abc":
            numbers = [int(body[2:]) for body in part if body[0] == name]
            assert numbers == sorted(numbers)
    assert jain([len(part) for part in parts]) >= 0.9


WORKING = 0.001, 0.97  # seconds of work a message, and the least index then
IDLE = 0.0, 0.5


def check_shares(path, start, count, work_seconds, least, *prefix):
    """Three equal consumers get about equal shares of so many messages."""
    with diskq.open(path) as store:
        store.topic("q").put_many([b"%d" % n for n in range(count)])
        ways = ["get and ack"] * 3
        parts = finish(store, begin(start, ways, *prefix, path=path, work_seconds=work_seconds))
    assert sum(map(len, parts)) == count
    assert jain([len(part) for part in parts]) >= least


def test_equal_consumers_that_work_get_equal_shares(path, start):
    """With a millisecond of work a message: what the work is, not who is quick at the lock,
    decides."""
    check_shares(path, start, 3000, *WORKING)


def test_consumers_that_do_nothing_else_do_not_starve_each_other(path, start):
    """LMDB's lock is not fair: without a turn for each, the quickest took most of a backlog."""
    check_shares(path, start, 10_000, *IDLE)


UNFAIR_LOCK = """
import runpy, sys, time
from diskq.storage.writes import Writes

transact = Writes._transact

def unfair(self, *calls):
    if min(self._engine.slots._mine, default=0) > 0:
        time.sleep(0.02)
    transact(self, *calls)

Writes._transact = unfair
sys.argv[:] = sys.argv[3:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("work", [WORKING, IDLE], ids=["working", "idle"])
def test_consumers_that_starve_are_found_out(path, start, work):
    """Negative control: a lock that is always late for all but the first consumer."""
    with pytest.raises(AssertionError, match=r"jain\("):
        check_shares(path, start, 300, *work, sys.executable, "-c", UNFAIR_LOCK)


def test_a_slow_consumer_does_not_hold_up_the_others(path, start):
    """Its share is what it manages; it holds one message at a time, the others go on."""
    with diskq.open(path) as store:
        store.topic("q").put_many([b"%d" % n for n in range(2000)])
        (slow,) = begin(start, ["get and ack"], path=path, work_seconds=0.2)
        quick = begin(start, ["get and ack"] * 2, path=path)
        wait_until(lambda: store.queue("q").group.stats().unread == 0)
        parts = finish(store, [*quick, slow])
    assert sum(map(len, parts)) == 2000
    assert len(parts[2]) < 200


def check_batch(path, start):
    """Who asks for 1,000 while two others wait gets at most about a third."""
    with diskq.open(path) as store:
        waiting = [start("serve", path=path) for _ in range(2)]
        for consumer in waiting:
            consumer.hear("ready")
        wait_for_blocked(store, 2)
        consumer = store.queue("q").consumer()
        for consumer_process in waiting:
            consumer_process.stop()  # still waiting: woken, but not yet there
        store.topic("q").put_many([b"%d" % n for n in range(900)])
        assert len(consumer.get_many(1000)) == 300
        for consumer_process in waiting:
            consumer_process.wake()
        for consumer_process in waiting:
            consumer_process.hear("got")


def test_a_batch_taker_leaves_waiting_consumers_their_share(path, start):
    check_batch(path, start)


def test_a_batch_taker_that_leaves_nothing_is_found_out(path, start, monkeypatch):
    """Negative control: a batch takes all there is, whoever waits."""
    monkeypatch.setattr(waiting, "fair_share", lambda _group, _topic, _member, limit: limit)
    with pytest.raises(AssertionError, match="900 == 300"):
        check_batch(path, start)


def test_a_batch_taker_alone_gets_all_it_asks_for(path):
    with diskq.open(path) as store:
        store.topic("q").put_many([b""] * 1500)
        idle = store.queue("q").consumer()
        assert len(store.queue("q").consumer().get_many(1000)) == 1000
        idle.close()


def count_sleeps(workers) -> int:
    """How often the main threads of these processes went to sleep so far."""
    count = 0
    for worker in workers:
        status = Path(f"/proc/{worker.pid}/status").read_text()
        count += int(status.split("voluntary_ctxt_switches:")[1].split()[0])
    return count


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_message_wakes_one_of_many_waiting_consumers(path, start):
    """Ten wait; each message must wake about one of them. Besides, a waiting consumer looks for
    the dead every 50 ms while others hold leases."""
    messages, count = 200, 10
    with diskq.open(path) as store:
        consumers = [start("serve", path=path) for _ in range(count)]
        for consumer in consumers:
            consumer.hear("ready")
        wait_for_blocked(store, count)
        topic, group = store.topic("q"), store.queue("q").group
        begun, before = time.monotonic(), count_sleeps(consumers)
        for number in range(messages):
            topic.put(b"%d" % number)
            wait_until(lambda number=number: group.stats().acked > number)
        wait_for_blocked(store, count)
        sleeps, seconds = count_sleeps(consumers) - before, time.monotonic() - begun
    assert sleeps - seconds * count * 21 <= 2 * messages
