"""Fixtures for all tests: a clock moved by hand, and stores that are verified when a test ends."""

from __future__ import annotations

from contextlib import suppress

import pytest
from support.clock import ManualClock

import diskq


@pytest.fixture
def clock():
    """A clock that stands still until the test moves it."""
    return ManualClock()


@pytest.fixture
def open_store(tmp_path, clock):
    """Opens the test's store, as often as wanted; when the test ends it must be sound, while it is
    open and after it was opened anew."""
    opened = []

    def open_it(**options):
        opened.append(diskq.open(tmp_path / "store", clock=clock, **options))
        return opened[-1]

    yield open_it
    for store in opened:
        with suppress(diskq.Closed):
            assert list(store.verify()) == []
        store.close()
    with diskq.open(tmp_path / "store", clock=clock) as store:
        assert list(store.verify()) == []


@pytest.fixture
def store(open_store):
    """A store on the manual clock; not durable against power cuts, which makes tests fast."""
    return open_store(durability="process")


@pytest.fixture
def real_store(tmp_path):
    """The same on the real clock, which other processes and threads share."""
    with diskq.open(tmp_path / "real", durability="process") as store:
        yield store
        assert list(store.verify()) == []


@pytest.fixture
def path(tmp_path):
    """Path of a new store with a queue "q", for several processes; sound at the end. A kill loses
    nothing in any durability, so the fastest will do."""
    path = str(tmp_path / "store")
    with diskq.open(path, durability="process") as store:
        store.queue("q")
    yield path
    with diskq.open(path, create=False) as store:
        assert list(store.verify()) == []


@pytest.fixture
def topic(store):
    """An empty topic."""
    return store.topic("mail")


@pytest.fixture
def group(topic):
    """A group that retries at once, with leases of ten seconds and three deliveries."""
    return topic.group("workers", lease_seconds=10, max_deliveries=3, backoff=diskq.Backoff(0))


@pytest.fixture
def consumer(group):
    """A member of that group."""
    return group.consumer("ca")
