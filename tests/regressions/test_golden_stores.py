"""Stores that released versions made are read, used up and left alone as they were then.

How to make a new one at a release that changes the format: see golden_stores.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import lmdb
import pytest
from clock import ManualClock
from golden_stores import clock_of, consume, describe, formats, unpack

import diskq
from diskq import codec

golden_stores = pytest.mark.parametrize("golden", formats(), ids=lambda golden: golden.name)


def contents_of(golden: Path):
    return json.loads((golden / "contents.json").read_text(encoding="ascii"))


def as_json(value):
    return json.loads(json.dumps(value))


def test_the_present_format_has_a_golden_store():
    assert f"format-{codec.FORMAT_VERSION}" in [golden.name for golden in formats()]


@golden_stores
def test_what_a_golden_store_has_is_all_there_and_can_be_used_up(golden, tmp_path):
    contents = contents_of(golden)
    unpack(golden, tmp_path / "store")
    clock = clock_of(contents)
    with diskq.open(tmp_path / "store", clock=clock) as store:
        assert list(store.verify()) == []
        described = as_json(describe(store))
        assert described == {name: contents[name] for name in described}
        assert as_json(consume(store, clock)) == contents["consumed"]
        assert list(store.verify()) == []
    with diskq.open(tmp_path / "store", clock=clock) as store:
        assert list(store.verify()) == []


@golden_stores
def test_a_golden_store_goes_on_where_it_was(golden, tmp_path):
    """Dedup ids are remembered, offsets go on, dead letters come back, tokens rise."""
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
    before = data.read_bytes()
    with diskq.open(tmp_path / "store", clock=clock_of(contents), readonly=True) as store:
        assert list(store.verify()) == []
        assert as_json(describe(store))["topics"] == contents["topics"]
        with pytest.raises(diskq.ReadOnly):
            store.topic("work").put(b"")
    assert data.read_bytes() == before


@golden_stores
@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("version", [0, 99, 2**16 - 1])
def test_a_store_of_an_unknown_format_is_refused_and_not_touched(
    golden, tmp_path, readonly, version
):
    data = unpack(golden, tmp_path / "store")
    set_format(tmp_path / "store", version)
    before = data.read_bytes()
    for _ in range(2):
        with pytest.raises(diskq.WrongFormat) as refused:
            diskq.open(tmp_path / "store", clock=ManualClock(), readonly=readonly)
        assert refused.value.found == version
        assert refused.value.supported == codec.FORMAT_VERSION
        assert f"version {version}," in str(refused.value)
    assert data.read_bytes() == before


def set_format(path: Path, version: int) -> None:
    with lmdb.open(str(path), max_dbs=8, lib_version=0) as env, env.begin(write=True) as txn:
        state = env.open_db(b"state", txn)
        row = txn.get(codec.META_KEY, db=state)
        txn.put(codec.META_KEY, version.to_bytes(2, "big") + row[2:], db=state)
