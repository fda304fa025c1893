"""A pipeline that settles and puts in one transaction has each effect exactly once, however often
its processes are killed (G2)."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.roles.lives import FULL
from support.workers import wait_until

import diskq
from diskq import Backoff

KILLS = 100 if FULL else 40


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """A durable store with two topics; of the first the producer is never far ahead. Leases are
    long: what comes back does so because its holder died."""
    path = str(tmp_path / "store")
    with diskq.open(path) as store:
        store.topic("in", max_messages=300).group(
            "squares", lease_seconds=600, max_deliveries=10_000, backoff=Backoff(0)
        )
        store.topic("out")
    yield path
    with diskq.open(path, create=False) as store:
        assert list(store.verify()) == []


def problems(store: diskq.Store, count: int) -> list[str]:
    """What is wrong with the results of the first `count` numbers, and with the group's account."""
    results = [tuple(map(int, m.body.split())) for m in store.topic("out").read()]
    times = Counter(number for number, _ in results)
    stats = store.topic("in").group("squares").stats()
    found = [f"{number} was lost" for number in range(count) if number not in times]
    found += [f"{number} came {n} times" for number, n in sorted(times.items()) if n > 1]
    found += [f"{number} was never put" for number in sorted(times) if number >= count]
    found += [f"{number} became {result}" for number, result in results if result != number**2]
    if (stats.acked, stats.lag, stats.dead) != (count, 0, 0):
        found.append(f"acked {stats.acked} of {count}, lag {stats.lag}, dead {stats.dead}")
    return found


@pytest.mark.timeout(600)
def test_each_input_has_one_result_though_its_processes_are_killed(path, start):
    chance = random.Random(7)
    feeder = start("lives.feed", path=path)
    feeder.hear("ready")
    pipes = [start("lives.square", path=path) for _ in range(2)]
    for pipe in pipes:
        pipe.hear("ready")
    begun = time.monotonic()
    for _ in range(KILLS):
        time.sleep(chance.random() * 0.05)  # no protocol: any moment will do
        victim = chance.randrange(2)
        pipes[victim].kill()
        pipes[victim] = start("lives.square", path=path)
        if chance.random() < 0.8:  # else it may be killed while it opens the store
            pipes[victim].hear("ready")
    feeder.tell("stop")
    count = feeder.hear("done")["count"]
    with diskq.open(path) as store:
        group = store.topic("in").group("squares")
        lag = group.stats().lag
        wait_until(lambda: group.stats().lag == 0)
        seconds = time.monotonic() - begun
        for pipe in pipes:
            pipe.kill()
        stats = group.stats()
        assert problems(store, count) == []
    print(
        f"\npipeline: {KILLS} kills, {count} inputs, {stats.redelivered} delivered again,"
        f" {stats.failed} charged, 0 lost, 0 doubled, {seconds:.1f} s"
    )
    assert lag > 0  # they never ran out of inputs
    assert stats.redelivered > KILLS // 10  # the kills did hit messages in hand


@pytest.fixture
def store(path: str) -> Iterator[diskq.Store]:
    """The store, open in the test's process too, with three inputs."""
    with diskq.open(path) as store:
        store.topic("in").put_many([b"%d" % number for number in range(3)])
        yield store


def finish(store: diskq.Store, start) -> None:
    """Let a pipeline without faults do what is left."""
    start("lives.square", path=store.path)
    group = store.topic("in").group("squares")
    wait_until(lambda: group.stats().lag == 0)


def test_a_pipeline_killed_before_its_commit_has_done_nothing(store, path, start):
    pipe = start("lives.square", path=path, way="slow transaction")
    pipe.hear("between")
    pipe.kill()
    assert list(store.topic("out").read()) == []
    finish(store, start)
    assert problems(store, 3) == []


def test_a_pipeline_stopped_past_its_lease_does_nothing_more(store, path, start):
    store.topic("in").group("squares").update(lease_seconds=0.2)
    pipe = start("lives.square", path=path, way="slow transaction")
    pipe.hear("between")
    pipe.stop()
    finish(store, start)
    pipe.wake()
    pipe.tell()
    assert pipe.hear("ended")["outcome"] == "LeaseLost"
    assert problems(store, 3) == []


@pytest.mark.parametrize(
    ("way", "problem"), [("put, ack", "0 came 2 times"), ("ack, put", "0 was lost")]
)
def test_a_pipeline_with_two_commits_is_found_out(store, path, start, way, problem):
    """Negative control: killed between the two, the first input is doubled or lost."""
    careless = start("lives.square", path=path, way=way)
    careless.hear("between")
    careless.kill()
    finish(store, start)
    assert problems(store, 3) == [problem]
