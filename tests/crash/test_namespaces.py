"""Death, and processes that LMDB could take for one another: containers on one store (G10, T9).

LMDB's table of readers names processes by their numbers, and tells whether one lives by a POSIX
lock on the byte of that number. So processes of several PID namespaces get on as long as their
numbers differ; who comes second with the same number is refused; and a number that comes again, as
1 does in a container that was started anew, must not keep the rows of who had it before.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from support.roles.namespaces import AS_NUMBER_1, AS_NUMBER_2, NAMESPACE
from support.workers import DEADLINE_SECONDS, Worker, worker_starter

import diskq
from diskq import Backoff

Start = Callable[..., Worker]
LEASE_SECONDS = 600.0  # what comes back in a test comes back because its holder is dead


def may_unshare() -> bool:
    try:
        return (
            subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode == 0
        )
    except OSError:
        return False


namespaces = pytest.mark.skipif(not may_unshare(), reason="needs the right to make PID namespaces")


@pytest.fixture(params=["commit", "process"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A store with a queue of 40 messages."""
    path = str(tmp_path / "store")
    with diskq.open(path, durability=request.param) as store:
        topic = store.topic("q")
        topic.group("default", lease_seconds=LEASE_SECONDS, backoff=Backoff(0))
        for number in range(40):
            topic.put(b"%d" % number + bytes(5000))
    yield path
    with diskq.open(path, create=False) as store:
        assert list(store.verify()) == []


start = pytest.fixture(worker_starter, name="start")


def change_everything(path: str) -> None:
    """Take all messages and put others, so that every free page is used again."""
    with diskq.open(path, create=False) as store:
        queue = store.queue("q")
        for number in range(5):
            for message in queue.get_many(1000, timeout=0):
                message.ack()
            store.topic("q").trim()
            queue.put_many([b"%d" % number * 5000] * 60)


def snapshot_survives(path: str, start: Start, **options: Any) -> bool:
    """Whether a reader of another namespace sees the same all the time, though processes outside
    clear LMDB's table of dead readers and write."""
    reader = start("namespaces.keep_snapshot", *AS_NUMBER_2, path=path, **options)
    assert reader.hear("reading")["pid"] != os.getpid()
    change_everything(path)
    reader.tell()
    try:
        return bool(reader.hear("looked")["same"])
    except AssertionError:
        return False  # it died of what it read


@namespaces
def test_a_reader_of_another_namespace_keeps_what_it_reads(path, start):
    assert snapshot_survives(path, start)


@namespaces
def test_a_reader_that_counts_as_dead_would_be_found(path, start):
    assert not snapshot_survives(path, start, careless=True)


@namespaces
def test_processes_of_several_namespaces_work_on_one_store(path, start):
    count = 50
    with diskq.open(path) as store:
        queue = store.queue("q")
        while messages := queue.get_many(100, timeout=0):
            for message in messages:
                message.ack()
    prefixes = {"1": AS_NUMBER_1, "2": AS_NUMBER_2, "outside": ()}
    workers = [
        start("namespaces.work", *prefix, path=path, name=name, count=count)
        for name, prefix in prefixes.items()
    ]
    assert len({worker.hear("ready")["pid"] for worker in workers}) == 3
    for worker in workers:
        worker.tell()
    bodies = [body for worker in workers for body in worker.hear("done")["bodies"]]
    assert sorted(bodies) == sorted(f"{name}-{n}" for name in prefixes for n in range(count))


@namespaces
def test_who_has_the_number_of_a_live_process_is_refused_and_harms_nobody(path, start):
    reader = start("namespaces.keep_snapshot", *AS_NUMBER_1, path=path)
    assert reader.hear("reading")["pid"] == 1
    why = start("refused", *NAMESPACE, path=path).hear("refused")["why"]
    assert "PID namespace" in why
    change_everything(path)
    reader.tell()
    assert reader.hear("looked")["same"]


@namespaces
@pytest.mark.parametrize("watched", [False, True], ids=["alone", "beside another"])
def test_a_container_that_starts_anew_finds_its_leases_free_and_no_trace_of_itself(
    path, start, watched
):
    """Process 1 is killed with leases and an open read transaction; the next process 1 takes the
    messages, and no row of the dead one stays, which would keep pages from being used again. If
    another process has the store open all the time, nobody begins with an empty table."""
    with diskq.open(path) if watched else nullcontext():
        for _ in range(3):
            assert readers_after_a_new_start(path, start) == 0


@namespaces
def test_a_row_of_a_dead_reader_that_stays_would_be_found(path, start):
    with diskq.open(path) as store:
        if store.stats().durability == "process":
            pytest.skip("opens twice, and so forgets its number's rows anyway")
        assert readers_after_a_new_start(path, start, fault=True) == 1


def readers_after_a_new_start(path: str, start: Start, **options: Any) -> int:
    """Rows in LMDB's table of readers, after process 1 died in the middle of reading, and the next
    process 1 took what that one held."""
    holder = start("namespaces.hold_and_read", *AS_NUMBER_1, path=path, count=3)
    told = holder.hear("holding")
    assert told["pid"] == 1
    holder.kill()
    taker = start("namespaces.take_and_look", *AS_NUMBER_1, path=path, count=3, **options)
    took = taker.hear("took")
    assert [offset for offset, _ in took["attempts"]] == told["offsets"]
    taker.tell()
    assert taker.end() == 0
    return int(took["readers"])


@namespaces
def test_leases_come_back_from_another_namespace(path, start):
    holder = start("namespaces.hold_and_read", *AS_NUMBER_2, path=path, count=40)
    holder.hear("holding")
    with diskq.open(path) as store:
        assert store.queue("q").get_many(40, timeout=0) == []
        holder.kill()
        assert redelivered(store, 40) == 40


@pytest.mark.parametrize("fork", [False, True], ids=["alone", "with a child alive"])
def test_what_a_pool_of_threads_held_comes_back_when_it_is_killed(path, start, fork):
    holder = start("namespaces.pool", path=path, threads=8, fork=fork)
    child = holder.hear("holding")["child"]
    try:
        with diskq.open(path) as store:
            queue = store.queue("q")
            assert len(queue.get_many(100, timeout=0)) == 32
            holder.kill()
            assert redelivered(store, 8) == 8
        if fork:
            os.kill(child, 0)  # still there
    finally:
        if child:
            os.kill(child, signal.SIGKILL)


def redelivered(store: diskq.Store, count: int) -> int:
    """How many messages come back, far sooner than their leases end."""
    until = time.monotonic() + DEADLINE_SECONDS
    found: set[int] = set()
    while len(found) < count and time.monotonic() < until:
        found.update(message.offset for message in store.queue("q").get_many(count, timeout=1))
    return len(found)
