"""Heartbeat: extends the leases of a consumer's messages for as long as the process holds them.

It shows that the process lives, not that its work goes on: a handler that hangs keeps its message.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from .errors import DiskqError

if TYPE_CHECKING:
    from .consumer import Consumer
    from .message import Message

_PER_LEASE = 3  # extensions in the time that a lease lasts


class Heartbeat:
    """A thread of a consumer. It ends with it, closed or forgotten."""

    def __init__(self, consumer: Consumer) -> None:
        self._messages: weakref.WeakSet[Message] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        seconds = consumer.group.settings.lease_seconds / _PER_LEASE
        arguments = weakref.ref(consumer), seconds
        name = f"diskq heartbeat of {consumer.name}"
        threading.Thread(target=self._run, args=arguments, name=name, daemon=True).start()

    def watch(self, messages: Iterable[Message]) -> None:
        """Extend the leases of these messages, until they are settled or nobody has them."""
        with self._lock:
            self._messages.update(messages)

    def stop(self) -> None:
        """Extend nothing any more."""
        self._stopped.set()

    def _run(self, consumer: weakref.ref[Consumer], seconds: float) -> None:
        while not self._stopped.wait(seconds):
            living = consumer()
            if living is None or not living.usable:
                return
            with self._lock:
                self._messages -= {message for message in self._messages if message.settled}
                messages = list(self._messages)
            with suppress(DiskqError):  # the next settle says so
                living.extend_all(messages)
            del living, messages
