"""A store at a path for several processes, sound at the end; workers, none left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import diskq

from .support import worker_starter


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """Path of a new store with a queue "q": kill -9 loses nothing in any durability, so the
    fastest will do."""
    path = str(tmp_path / "store")
    with diskq.open(path, durability="process") as store:
        store.queue("q")
    yield path
    with diskq.open(path, create=False) as store:
        assert list(store.verify()) == []


start = pytest.fixture(worker_starter, name="start")
