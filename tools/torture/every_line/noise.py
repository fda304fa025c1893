"""Threads that put and ack on another topic of the store meanwhile, and what came of it."""

from __future__ import annotations

import sys
import threading
import traceback
from typing import Any

import diskq

TOPIC, GROUP = "noise", "noise"


class Noise:
    """Threads whose calls must all happen once, whatever happens to another thread."""

    def __init__(self, store: diskq.Store, count: int) -> None:
        self._store = store
        self._over = threading.Event()
        self._began = threading.Barrier(count + 1)
        self.put: list[str] = []
        self.acked: list[str] = []
        self.errors: list[str] = []
        sys.setswitchinterval(0.0005)
        topic = store.topic(TOPIC, retention="limits")
        self._group = topic.group(GROUP, lease_seconds=600)
        self._threads = [
            threading.Thread(target=self._work, args=[topic, n], daemon=True) for n in range(count)
        ]
        for thread in self._threads:
            thread.start()
        self._began.wait(60)

    def _work(self, topic: diskq.Topic, number: int) -> None:
        try:
            with self._group.consumer(f"noise-{number}") as consumer:
                self._began.wait(60)
                turn = 0
                while not self._over.is_set():
                    body = f"{number}-{turn}"
                    turn += 1
                    topic.put(body.encode())
                    self.put.append(body)
                    try:
                        message = consumer.get(timeout=0)
                    except (diskq.Empty, diskq.Busy):  # it may not wait for the other threads
                        continue
                    message.ack()
                    self.acked.append(message.body.decode())
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.errors.append(f"{type(error).__name__}: {error} ({where.name}:{where.lineno})")

    def end(self, seconds: float) -> dict[str, Any]:
        """Stop them; what they did."""
        self._over.set()
        for thread in self._threads:
            thread.join(seconds)
        hung = sum(thread.is_alive() for thread in self._threads)
        return {"put": self.put, "acked": self.acked, "errors": self.errors, "hung": hung}
