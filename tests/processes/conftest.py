"""A store at a path for several processes, sound at the end; workers, none left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import diskq

from .support import Worker


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


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    """Start a worker in a role of roles.py, with options as keywords."""
    workers: list[Worker] = []

    def start(role: str, *prefix: str, **options: Any) -> Worker:
        workers.append(Worker(role, *prefix, **options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.clean_up()
