"""A long run through a bounded queue: the file, LMDB's reader table and the memory must stay small.

One producer and two consumers live from the beginning to the end; now and then a visitor opens the
store, reads, and is killed with kill -9 while it does, so that it leaves a reader behind.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import lmdb

import diskq
from diskq import Store

MIB = 1 << 20
CONSUMERS = 2
BATCH = 100
SAMPLE_SECONDS = 0.25
WARM_UP = 0.1  # of all messages, until the high water is taken
MOST_GROWTH = 1.5  # of the file, over its high water ...
PINNED_BYTES = 32 * MIB  # ... and this, which readers may keep that died a moment ago
MOST_MEMORY = 1.1  # of the second half, over the first half ...
SLACK_BYTES = 2 * MIB  # ... and this
PATIENCE_SECONDS = 120.0


class Sample(NamedTuple):
    """A moment: messages acked so far, size of the file, and anonymous memory by process."""

    acked: int
    file_bytes: int
    memory: dict[str, int]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("--messages", type=int, default=1_000_000, help="to be put and acked")
    parser.add_argument("--max-messages", type=int, default=10_000, help="of the queue (10000)")
    parser.add_argument("--body-bytes", type=int, default=200, help="of each message (200)")
    parser.add_argument("--visits", type=float, default=1.0, help="killed readers a second (1)")
    parser.add_argument(
        "--durability",
        choices=("commit", "relaxed", "process"),
        default="process",
        help="of the store",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills (1)")
    parser.add_argument("--keep", metavar="DIR", help="work in this folder, and keep it")


class LongRun:
    """The processes, and what is seen of them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.path = options, folder / "store"
        self.samples: list[Sample] = []
        self.visits = 0
        self.stale = 0
        self._chance = random.Random(options.seed)
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._acked = memoryview(self._memory).cast("Q")  # by consumer
        self.pids: dict[str, int] = {}

    def run(self) -> list[str]:
        """Do it; returns what is wrong."""
        with diskq.open(self.path, durability=self.options.durability) as store:
            topic = store.topic("bounded", max_messages=self.options.max_messages)
            topic.group("g", lease_seconds=60)
        try:
            self.pids["producer"] = _spawn(self._produce)
            for number in range(CONSUMERS):
                self.pids[f"consumer {number}"] = _spawn(partial(self._consume, number))
            found = self._watch()
            self.stale = _stale_readers(self.path)
        finally:
            for pid in self.pids.values():
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
        return found + self.judge() + self._verify()

    # The processes

    def _produce(self) -> None:
        body = os.urandom(self.options.body_bytes)
        with diskq.open(self.path) as store:
            topic = store.topic("bounded")
            for first in range(0, self.options.messages, BATCH):
                count = min(BATCH, self.options.messages - first)
                topic.put_many([body] * count)
            signal.pause()

    def _consume(self, number: int) -> None:
        with diskq.open(self.path) as store, store.topic("bounded").group("g").consumer() as mine:
            while True:
                messages = mine.get_many(BATCH)
                mine.ack_many(messages)
                self._acked[number] += len(messages)

    def _visit(self) -> None:
        with diskq.open(self.path) as store:
            while True:
                store.handle.engine.read(lambda _: time.sleep(0.01))
                list(store.topic("bounded").read(limit=100))

    # Watching

    def _watch(self) -> list[str]:
        """Take samples until all is acked; kill visitors on the way."""
        before, until = 0, time.monotonic() + PATIENCE_SECONDS
        told_at = time.monotonic()
        while (acked := sum(self._acked[:CONSUMERS])) < self.options.messages:
            if acked > before:
                before, until = acked, time.monotonic() + PATIENCE_SECONDS
            if time.monotonic() > until:
                return [f"nothing was acked for {PATIENCE_SECONDS} s, after {acked} messages"]
            self._sample(acked)
            if time.monotonic() > told_at + 5:
                told_at = time.monotonic()
                print(f"{acked} acked, {self.samples[-1]}", file=sys.stderr, flush=True)
            if self._chance.random() < self.options.visits * SAMPLE_SECONDS:
                self._kill_a_visitor()
            else:
                time.sleep(SAMPLE_SECONDS)
        self._sample(acked)
        return []

    def _sample(self, acked: int) -> None:
        size = (self.path / "data.mdb").stat().st_size
        self.samples.append(
            Sample(acked, size, {who: anonymous_bytes(pid) for who, pid in self.pids.items()})
        )

    def _kill_a_visitor(self) -> None:
        pid = _spawn(self._visit)
        time.sleep(self._chance.uniform(0.05, 2 * SAMPLE_SECONDS))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.visits += 1

    # Judging

    def judge(self) -> list[str]:
        found = []
        largest = self.growth * self.high_water
        if largest > MOST_GROWTH * self.high_water + PINNED_BYTES * bool(self.visits):
            found.append(f"the file grew to {self.growth:.2f} times its high water after warm-up")
        for who, (first, second) in self.memory().items():
            if second > first * MOST_MEMORY + SLACK_BYTES:
                found.append(f"memory of {who} grew from {first} to {second} bytes")
        if self.stale:
            found.append(f"{self.stale} dead readers are in LMDB's table")
        return found

    @property
    def high_water(self) -> int:
        """Size of the file when the warm-up was over."""
        warm = WARM_UP * self.options.messages
        cold = [each for each in self.samples if each.acked < warm]
        return max(each.file_bytes for each in self.samples[: len(cold) + 1])

    @property
    def growth(self) -> float:
        """What became of the file, over its high water."""
        return max(each.file_bytes for each in self.samples) / self.high_water

    def memory(self) -> dict[str, tuple[int, int]]:
        """Of each process, the median of what it had in the first and in the second half."""
        middle = self.options.messages / 2

        def usual(who: str, second: bool) -> int:
            part = [each.memory for each in self.samples if (each.acked >= middle) == second]
            return int(median([each[who] for each in part] or [0]))

        return {who: (usual(who, False), usual(who, True)) for who in self.pids}

    def _verify(self) -> list[str]:
        with diskq.open(self.path, create=False) as store:
            [stats] = store.stats().topics
            found = [f"verify: {each.where}: {each.problem}" for each in store.verify()]
        [group] = stats.groups
        if (stats.put, group.acked, group.lag) != (self.options.messages, self.options.messages, 0):
            found.append(f"of {self.options.messages} messages, it says {stats}")
        return found


def _spawn(job: Callable[[], None]) -> int:
    """Run a job in a process of its own."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            job()
        finally:
            os._exit(3)
    return pid


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that is its own, without what it maps from files."""
    with suppress(OSError):
        for text in Path(f"/proc/{pid}/status").read_text().splitlines():
            if text.startswith("RssAnon:"):
                return int(text.split()[1]) * 1024
    return 0


def _stale_readers(path: Path) -> int:
    """Readers in LMDB's table whose processes are dead, once diskq has opened the store; others
    have it open meanwhile, so LMDB itself clears nothing."""
    with diskq.open(path, create=False) as store:
        table = _readers(store)
    with suppress(ValueError):
        return sum(not Path(f"/proc/{row.split()[0]}").exists() for row in table)
    return len(table)


def _readers(store: Store) -> list[str]:
    environment: lmdb.Environment = store.handle.engine.live()
    return environment.readers().splitlines()[1:]


def run(options: argparse.Namespace) -> int:
    """The verb."""
    began = time.monotonic()
    folder = Path(options.keep or tempfile.mkdtemp(prefix="diskq-long-"))
    folder.mkdir(parents=True, exist_ok=True)
    long = LongRun(options, folder)
    found = long.run()
    seconds = time.monotonic() - began
    print(
        f"{options.messages} messages through a queue of {options.max_messages},"
        f" {seconds:.1f} s, {long.visits} killed readers, {long.stale} of them left"
    )
    print(
        f"file {long.high_water / MIB:.1f} MiB after warm-up, at most {long.growth:.2f} times that"
    )
    for who, (first, second) in long.memory().items():
        print(f"memory of {who}: {first / MIB:.1f} MiB, then {second / MIB:.1f} MiB")
    for problem in found:
        print(problem)
    if found:
        samples = [each._asdict() for each in long.samples]
        (folder / "samples.json").write_text(json.dumps(samples))
        print(f"FAILED; the store and all samples are in {folder}")
        return 1
    if not options.keep:
        shutil.rmtree(folder)
    print("ok")
    return 0
