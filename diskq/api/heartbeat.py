"""Heartbeat: extends the leases of a consumer's messages for as long as the process holds them.

It shows that the process lives, not that its work goes on: a handler that hangs keeps its message.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from ..base.clock import nanoseconds
from ..base.errors import DiskqError, LeaseLost, Unsupported
from ..delivery import settle
from ..tables.group_tx import GroupTx
from .membership import Membership
from .message import Message

_PER_LEASE = 3  # extensions in the time that a lease lasts
_LEAST_SECONDS = 0.001


class Heartbeat:
    """A thread of a consumer. It ends with it, closed or forgotten."""

    def __init__(self, member: Membership, lease_seconds: float) -> None:
        self._messages: weakref.WeakSet[Message] = weakref.WeakSet()
        self._lock = threading.RLock()  # a signal handler may get a message, too
        self._changes: queue.SimpleQueue[None] = queue.SimpleQueue()  # its put is reentrant
        self._stopped = False
        self._seconds = lease_seconds / _PER_LEASE
        name = f"diskq heartbeat of {member.name}"
        target = weakref.ref(member)
        thread = threading.Thread(target=self._run, args=(target,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise Unsupported(
                f"no thread is to be had for the heartbeat of {member.name!r} ({error}); raise"
                " the limit (ulimit -u), or go without"
            ) from error
        member.at_close.append(self.stop)

    def watch(self, messages: Iterable[Message]) -> None:
        """Extend the leases of these messages, until they are settled or nobody has them."""
        with self._lock:
            self._messages.update(messages)
            for message in messages:  # the group's lease_seconds may have changed
                seconds = (message.deadline - time.monotonic()) / _PER_LEASE
                if seconds < self._seconds:
                    self._seconds = max(seconds, _LEAST_SECONDS)
                    self._changes.put(None)

    def stop(self) -> None:
        """Extend nothing any more. May be called from `__del__`."""
        self._stopped = True
        self._changes.put(None)

    def _run(self, member: weakref.ref[Membership]) -> None:
        while not self._stopped:
            with suppress(queue.Empty):
                self._changes.get(timeout=self._seconds)
                continue
            living = member()
            if living is None or not living.usable:
                return
            with self._lock:
                self._messages -= {message for message in self._messages if message.settled}
                messages = list(self._messages)
            with suppress(DiskqError):  # the next settle says so
                if messages:
                    seconds = living.in_group(partial(_extend, messages))
                    self._seconds = seconds / _PER_LEASE
            del living, messages


def _extend(messages: Iterable[Message], group: GroupTx) -> float:
    """Extend each lease once, though several messages may share it and some of them may be lost,
    unless it was extended for longer. Returns the group's lease_seconds, which may have changed."""
    until_ns = group.clock.monotonic_ns() + nanoseconds(group.settings.lease_seconds)
    extended = set()
    for message in messages:
        if message.lease not in extended and message.lease.deadline_ns < until_ns:
            with suppress(LeaseLost):
                settle.extend(group, message.lease, message.offset, None)
                extended.add(message.lease)
    return group.settings.lease_seconds
