"""Many processes put the same ids at once: each is stored once, and all are told where (G9)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import diskq

IDS = 1_000
WAYS = ("put", "put_many", "transaction")
PROCESSES = 8

Receipts = list[tuple[int, bool, int]]  # offset, duplicate, commit id; by id


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """Path of a store that must be sound at the end."""
    path = str(tmp_path / "store")
    yield path
    with diskq.open(path, create=False) as store:
        assert list(store.verify()) == []


def make(path: str, dedup_seconds: float) -> None:
    """A store with a topic and its one group."""
    with diskq.open(path, durability="process") as store:
        store.topic("ids", dedup_seconds=dedup_seconds).group("readers")


def put_at_once(path: str, start: Any) -> list[Receipts]:
    """What eight processes were told about the same ids."""
    processes = [
        start("lives.put_ids", path=path, way=WAYS[number % 3], count=IDS, seed=number)
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.hear("ready")
    for process in processes:
        process.tell()
    return [[tuple(each) for each in process.hear("done")["receipts"]] for process in processes]


def problems(told: list[Receipts]) -> list[str]:
    """What is wrong with receipts of ids that were all new."""
    found = []
    for number, receipts in enumerate(zip(*told, strict=True)):
        if [duplicate for _, duplicate, _ in receipts].count(False) != 1:
            found.append(f"id {number} was not stored once")
        if len({(offset, commit_id) for offset, _, commit_id in receipts}) != 1:
            found.append(f"id {number} has several receipts")
    offsets = {offset for receipts in told for offset, _, _ in receipts}
    if offsets != set(range(IDS)):
        found.append(f"the ids have {len(offsets)} offsets, not 0 to {IDS - 1}")
    return found


def test_of_ids_put_by_eight_processes_each_is_stored_once(path, start):
    make(path, dedup_seconds=3600)
    told = put_at_once(path, start)
    assert problems(told) == []
    first = [sum(not duplicate for _, duplicate, _ in receipts) for receipts in told]
    assert sum(first) == IDS
    assert sum(count > 0 for count in first) > 1  # they did put at once

    reader = start("lives.consume_ids", path=path, count=IDS)
    read = reader.hear("done")
    assert sorted(map(int, read["bodies"])) == list(range(IDS))
    assert read["stored"] == 0
    reader.end()

    again = put_at_once(path, start)
    for receipts, before in zip(again, told, strict=True):
        places = [(offset, commit_id) for offset, _, commit_id in before]
        assert receipts == [(offset, True, commit_id) for offset, commit_id in places]
    with diskq.open(path) as store:
        stats = store.topic("ids").stats()
        assert (stats.put, stats.stored, stats.groups[0].acked) == (IDS, 0, IDS)
    print(
        f"\ndedup: {PROCESSES * IDS} puts of {IDS} ids by {PROCESSES} processes: {sum(first)}"
        f" stored, {PROCESSES * IDS - sum(first)} duplicates; who stored them: {first};"
        f" {PROCESSES * IDS} puts after all were consumed and trimmed: 0 stored"
    )


def test_ids_that_are_soon_forgotten_are_found_out(path, start):
    """Negative control: with a window of a millisecond the same check finds ids stored twice."""
    make(path, dedup_seconds=0.001)
    found = problems(put_at_once(path, start))
    assert "id 0 was not stored once" in found
    assert "id 0 has several receipts" in found
