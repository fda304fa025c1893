"""A heartbeat that was late once, because its process was stopped between the commit that leased a
message and the watch over it."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import diskq
from diskq.api import heartbeat

LEASE_SECONDS = 300
DEADLINE_SECONDS = 30


def test_it_beats_once_at_once_and_then_as_often_as_the_lease_needs(tmp_path, monkeypatch):
    """It took the little time that was left of the first lease for the time between all beats, and
    committed a thousand times a second for ever."""
    with diskq.open(tmp_path / "store", durability="process") as store:
        topic = store.topic("mail")
        group = topic.group("workers", lease_seconds=LEASE_SECONDS)
        topic.put(b"x")
        consumer = group.consumer(heartbeat=True)
        beats = threading.Semaphore(0)
        extend = heartbeat._extend

        def beat(messages, at):
            at.tx.after.append(beats.release)
            return extend(messages, at)

        def late():
            return time.monotonic() + LEASE_SECONDS

        monkeypatch.setattr(heartbeat, "_extend", beat)
        with monkeypatch.context() as stopped:
            stopped.setattr(heartbeat, "time", SimpleNamespace(monotonic=late))
            message = consumer.get_nowait()
        assert beats.acquire(timeout=DEADLINE_SECONDS)
        assert not beats.acquire(timeout=0.5)
        message.ack()
