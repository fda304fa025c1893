"""Stores that released versions made are read, used up and left alone as they were then.

How to make a new one at a release that changes the format: see golden_stores.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest
from support.clock import ManualClock
from support.golden import clock_of, consume, describe, formats, unpack
from support.stores import digest

import diskq
from diskq.base import limits
from diskq.format.layout import DEAD, FORMAT_VERSION, ID_KEY, META_KEY
from diskq.format.rows import GroupRow
from diskq.tables import held
from diskq.tables.group_tx import GroupTx

golden_stores = pytest.mark.parametrize("golden", formats(), ids=lambda golden: golden.name)


def contents_of(golden: Path):
    return json.loads((golden / "contents.json").read_text(encoding="ascii"))


def as_json(value):
    return json.loads(json.dumps(value))


@contextmanager
def no_byte_changes(data: Path) -> Iterator[None]:
    """Fail if a byte of this file differs at the end."""
    before = digest(data)
    yield
    assert digest(data) == before


def differences(found: Any, expected: Any, place: str = "") -> Iterator[str]:
    """The places in two values from JSON that differ, or that only one of them has."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in [*expected, *(found.keys() - expected.keys())]:
            inner = found.get(name, ...), expected.get(name, ...)
            yield from differences(*inner, f"{place}/{name}")
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for number, inner in enumerate(zip(found, expected, strict=True)):
            yield from differences(*inner, f"{place}/{number}")
    elif found != expected:
        yield place


def use_up(contents, path):
    """Look at a store, then take all there is; where it differs from these contents."""
    clock = clock_of(contents)
    with diskq.open(path, clock=clock) as store:
        assert list(store.verify()) == []
        found = as_json(describe(store))
        found["consumed"] = as_json(consume(store, clock))
        assert list(store.verify()) == []
    with diskq.open(path, clock=clock) as store:
        assert list(store.verify()) == []
    expected = {name: value for name, value in contents.items() if name != "clock"}
    return list(differences(found, expected))


def test_the_present_format_has_a_golden_store():
    assert f"format-{FORMAT_VERSION}" in [golden.name for golden in formats()]


@golden_stores
def test_what_a_golden_store_has_is_all_there_and_can_be_used_up(golden, tmp_path):
    unpack(golden, tmp_path / "store")
    assert use_up(contents_of(golden), tmp_path / "store") == []


def count_one_delivery(store: diskq.Store) -> None:
    group = store.topic("work").group("workers")

    def operation(tx: Any) -> None:
        name = ID_KEY.pack(b"G", group.id)
        row = GroupRow(tx.get(name))
        row.delivered += 1
        tx.put(name, row.encode())

    store.handle.commit(operation)


def change_a_letter(store: diskq.Store) -> None:
    """Of the first dead letter; with a checksum that is right."""
    group = store.topic("work").group("workers")

    def operation(tx: Any) -> None:
        offset, row = next(held.rows(tx, group.id, DEAD))
        row.record = row.record[:-1] + bytes([row.record[-1] ^ 1])
        held.put(GroupTx(tx, group.place), DEAD, offset, row)

    store.handle.commit(operation)


def put_one_more(store: diskq.Store) -> None:
    store.topic("work").put(b"")


def cancel_one(store: diskq.Store) -> None:
    topic = store.topic("planned")
    topic.cancel(next(iter(topic.scheduled())).schedule_id)


CHANGES: dict[Callable[[diskq.Store], None], str] = {  # and what then differs, besides others
    count_one_delivery: "/topics/work/groups/workers/stats/delivered",
    change_a_letter: "/topics/work/groups/workers/dead/0/body",
    put_one_more: "/topics/work/messages",
    cancel_one: "/topics/planned/scheduled",
}


@golden_stores
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_store_that_has_something_else_is_found_out(golden, tmp_path, change):
    """Negative control: the same store after one change, and each time sound."""
    contents = contents_of(golden)
    unpack(golden, tmp_path / "store")
    with diskq.open(tmp_path / "store", clock=clock_of(contents)) as store:
        change(store)
    found = use_up(contents, tmp_path / "store")
    assert CHANGES[change] in found
    if change in (count_one_delivery, change_a_letter):
        assert len(found) == 1


@golden_stores
def test_a_golden_store_goes_on_where_it_was(golden, tmp_path, monkeypatch):
    """Dedup ids are remembered, offsets go on, dead letters come back, tokens rise."""
    monkeypatch.setattr(limits, "HAND_OVER_SECONDS", 0)  # a letter that comes back is a suspect
    contents = contents_of(golden)
    unpack(golden, tmp_path / "store")
    with diskq.open(tmp_path / "store", clock=clock_of(contents)) as store:
        work, planned = store.topic("work"), store.topic("planned")
        old = contents["topics"]["work"]
        receipt = work.put(b"another first", dedup_id="one")
        assert (receipt.offset, receipt.duplicate) == (0, True)
        assert planned.put(b"", dedup_id="later").schedule_id is not None
        assert planned.put(b"", dedup_id="now").duplicate
        assert work.put(b"next").offset == old["stats"]["put"]
        group = work.group("workers")
        dead = {letter["offset"] for letter in old["groups"]["workers"]["dead"]}
        assert group.redrive() == len(dead) > 0
        with group.consumer() as consumer:
            taken = {}
            while messages := consumer.get_many(10, timeout=0):
                taken.update((message.offset, message) for message in messages)
            assert dead <= set(taken)
            newest = max(message["token"] for message in old["groups"]["workers"]["pending"])
            assert min(message.token for message in taken.values()) > newest
        assert list(store.verify()) == []


@golden_stores
def test_looking_at_a_golden_store_changes_no_byte_of_it(golden, tmp_path):
    contents = contents_of(golden)
    data = unpack(golden, tmp_path / "store")
    with (
        no_byte_changes(data),
        diskq.open(tmp_path / "store", clock=clock_of(contents), readonly=True) as store,
    ):
        assert list(store.verify()) == []
        assert as_json(describe(store))["topics"] == contents["topics"]
        with pytest.raises(diskq.ReadOnly):
            store.topic("work").put(b"")


@golden_stores
def test_an_opening_that_writes_is_found_out(golden, tmp_path):
    """Negative control: one for writing goes on with the deletion that was cut off."""
    data = unpack(golden, tmp_path / "store")
    clock = clock_of(contents_of(golden))
    with pytest.raises(AssertionError), no_byte_changes(data):
        diskq.open(tmp_path / "store", clock=clock).close()


@golden_stores
@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("version", [0, 1, 99, 2**16 - 1])
def test_a_store_of_an_unknown_format_is_refused_and_not_touched(
    golden, tmp_path, readonly, version
):
    data = unpack(golden, tmp_path / "store")
    set_format(tmp_path / "store", version)
    with no_byte_changes(data):
        for _ in range(2):
            with pytest.raises(diskq.WrongFormat) as refused:
                diskq.open(tmp_path / "store", clock=ManualClock(), readonly=readonly)
            assert refused.value.found == version
            assert refused.value.supported == FORMAT_VERSION
            assert f"version {version}," in str(refused.value)


def set_format(path: Path, version: int) -> None:
    with lmdb.open(str(path), max_dbs=8, lib_version=0) as env, env.begin(write=True) as txn:
        state = env.open_db(b"state", txn)
        row = txn.get(META_KEY, db=state)
        txn.put(META_KEY, version.to_bytes(2, "big") + row[2:], db=state)
