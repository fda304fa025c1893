"""A bounded topic stays small whatever passes through it, and a producer waits for room without
polling."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.roles.lives import FULL
from support.workers import Worker, wait_until

import diskq

MESSAGES = 1_000_000 if FULL else 100_000
BATCH = 100
BODY_BYTES = 500
ROUNDS = 100
BOUNDS = {"max_messages=1000": {"max_messages": 1000}, "max_bytes=1 MiB": {"max_bytes": 2**20}}


def pass_through(store: diskq.Store, start: Any, count: int) -> list[int]:
    """Let so many messages pass from one process to another, in order, once some wait; the sizes of
    the data file after each tenth."""
    producer = start("lives.fill", path=store.path, count=count, batch=BATCH, size=BODY_BYTES)
    group = store.topic("bounded").group("g")
    wait_until(lambda: group.stats().unread >= 1_000)  # as full as it gets
    consumer = start("lives.drain", path=store.path, count=count, batch=BATCH)
    tenths = [consumer.hear("tenth") for _ in range(10)]
    producer.hear("done")
    assert tenths[-1]["in_order"]
    return [tenth["file_bytes"] for tenth in tenths]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bound", BOUNDS)
def test_the_file_does_not_grow_with_what_passes_through_a_bounded_topic(path, start, bound):
    with diskq.open(path) as store:
        store.topic("bounded", discard="new", **BOUNDS[bound]).group("g")
        begun = time.monotonic()
        sizes = pass_through(store, start, MESSAGES)
        seconds = time.monotonic() - begun
        stats = store.topic("bounded").stats()
    assert (stats.put, stats.dropped, stats.groups[0].acked) == (MESSAGES, 0, MESSAGES)
    print(
        f"\nbounded, {bound}: {MESSAGES} messages of {BODY_BYTES} bytes,"
        f" {MESSAGES * BODY_BYTES} bytes in all; data file {sizes[0]} bytes after a tenth,"
        f" {sizes[-1]} at the end, {sizes[-1] / sizes[0]:.2f} times; {seconds:.1f} s,"
        f" {MESSAGES / seconds:.0f} messages/s"
    )
    assert sizes[-1] <= 1.5 * sizes[0]


def test_a_file_that_grows_is_found_out(path, start):
    """Negative control: without a bound, and with a group that takes nothing, all of it stays."""
    with diskq.open(path) as store:
        topic = store.topic("bounded")
        for name in ("g", "idle"):
            topic.group(name)
        early = pass_through(store, start, 1_000)
        late = pass_through(store, start, 9_000)
    assert late[-1] > 1.5 * early[-1]


def wait_for_room(store: diskq.Store, producer: Worker) -> None:
    """Wait until the producer sleeps because the topic is full."""
    topic = store.topic("bounded")
    stat = Path(f"/proc/{producer.pid}/stat")
    wait_until(lambda: store.handle.engine.slots.watched(topic.id))
    wait_until(lambda: stat.read_text().rsplit(")", 1)[1].split()[0] == "S")


def wake_seconds(store: diskq.Store, start: Any, rounds: int) -> list[float]:
    """How long after the ack that makes room the put of another process returns."""
    topic = store.topic("bounded", max_messages=1, discard="new")
    found = []
    with topic.group("g").consumer() as consumer:
        producer = start("lives.put_and_tell", path=store.path)
        producer.hear("put")
        for _ in range(rounds):
            wait_for_room(store, producer)
            consumer.get(timeout=0).ack()
            acked = time.monotonic()
            found.append(producer.hear("put")["at"] - acked)
    producer.kill()
    return sorted(found)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_an_ack_wakes_a_producer_that_waits_for_room(path, start):
    with diskq.open(path) as store:
        seconds = wake_seconds(store, start, ROUNDS)
    p50, p99 = statistics.median(seconds), seconds[int(len(seconds) * 0.99) - 1]
    print(f"\nack to put in another process: p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms")
    assert p50 < 0.05


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_producer_that_nobody_wakes_is_found_out(path, start, monkeypatch):
    """Negative control: without the wake-up it finds the room only when it looks by itself."""
    with diskq.open(path) as store:
        monkeypatch.setattr(store.handle.engine.slots, "announce", lambda _topic, _value: None)
        seconds = wake_seconds(store, start, 3)
    print(f"\nwithout a wake-up: {statistics.median(seconds) * 1e3:.0f} ms")
    assert statistics.median(seconds) > 0.05
