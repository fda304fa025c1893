"""A large store is verified in a child. It looked at the pages first, without a snapshot, and so
called damaged what others were just writing."""

from __future__ import annotations

import threading

import pytest
from support.programs import run_python

import diskq
from diskq.repair import verify

FIRST_LOOK_MISLEADS = """
import sys
from diskq.repair import verify
check = verify.check_pages
def mislead(path):
    verify.check_pages = check
    return ["page 7 changed under this look at it"]
verify.check_pages = mislead
print(*verify.main(sys.argv[1]))
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "store"
    with diskq.open(path, durability="process") as store:
        store.queue("q").put_many([b"x" * 100] * 3_000)
    return path


def test_what_a_look_without_a_snapshot_finds_in_a_store_in_use_is_no_damage(path):
    """It was reported; now only what is wrong in a snapshot is."""
    with diskq.open(path):
        assert run_python(FIRST_LOOK_MISLEADS, path).stdout == "\n"


def test_what_it_finds_in_a_store_that_nobody_uses_is_damage(path):
    """The control: nobody can have changed it, and LMDB must not map what is damaged."""
    assert "page 7" in run_python(FIRST_LOOK_MISLEADS, path).stdout


def test_verifying_a_large_store_while_another_commits_finds_nothing(path, monkeypatch):
    """With commits going on, nearly each verify of a large store had findings."""
    monkeypatch.setattr(verify, "_LARGE_BYTES", 0)
    with diskq.open(path) as store:
        queue = store.queue("q")
        stop = threading.Event()

        def work():
            with queue.consumer() as consumer:
                while not stop.is_set():
                    queue.put_many([b"y" * 100] * 20)
                    consumer.ack_many(consumer.get_many(20, timeout=30))

        worker = threading.Thread(target=work)
        worker.start()
        try:
            found = [list(store.verify()) for _ in range(5)]
        finally:
            stop.set()
            worker.join()
        assert found == [[]] * 5
