"""Real processes for tests: start one in a role, hear what it tells, stop, wake or kill it.

No test sleeps to let another process get somewhere: it waits until that process says so, or until
the store shows it, and every wait has a deadline far behind what a slow machine needs.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import diskq

from .programs import child_environment

DEADLINE_SECONDS = 60.0


class Worker:
    """A process in one of the roles, see roles/. It tells lines of JSON, and is told words."""

    def __init__(self, role: str, *prefix: str, **options: Any) -> None:
        self.role = role
        self.tellings: list[dict[str, Any]] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "support.roles", role, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=child_environment(),
            start_new_session=True,
        )
        self.pid = self._process.pid
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def hear(self, what: str) -> dict[str, Any]:
        """Wait until the worker tells this; what it told before is in `tellings`."""
        until = time.monotonic() + DEADLINE_SECONDS
        while True:
            try:
                line = self._lines.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                raise AssertionError(f"{self.role} did not tell {what!r} in time") from None
            if line is None:
                raise AssertionError(f"{self.role} ended before it told {what!r}")
            telling: dict[str, Any] = json.loads(line)
            self.tellings.append(telling)
            if telling["what"] == what:
                return telling

    def tell(self, word: str = "go") -> None:
        """Send the worker a word it waits for."""
        assert self._process.stdin
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """SIGSTOP, and wait until it has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def wake(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def interrupt(self) -> None:
        """SIGINT, as Ctrl-C sends it."""
        os.kill(self.pid, signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is dead."""
        self._process.kill()
        self._process.wait(DEADLINE_SECONDS)

    def end(self) -> int:
        """Wait until it has ended by itself; its exit code."""
        return self._process.wait(DEADLINE_SECONDS)

    def clean_up(self) -> None:
        """Leave nothing behind, of what it forked neither."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(DEADLINE_SECONDS)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def worker_starter() -> Iterator[Callable[..., Worker]]:
    """For a fixture: start a worker in a role, with options as keywords; none is left
    behind."""
    workers: list[Worker] = []

    def start(role: str, *prefix: str, **options: Any) -> Worker:
        workers.append(Worker(role, *prefix, **options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.clean_up()


def wait_until(true: Callable[[], object]) -> None:
    """Wait for something that only looking can tell."""
    until = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < until, "it did not become true in time"
        time.sleep(0.002)


def wait_for_blocked(store: diskq.Store, count: int = 1) -> None:
    """Wait until `count` consumers of the store, in whatever process, are blocked in a get."""
    wait_until(lambda: sum(consumer.waiting for consumer in store.stats().consumers) >= count)


def jain(shares: list[int]) -> float:
    """Jain's fairness index: 1 when all are equal, 1/n when one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))
