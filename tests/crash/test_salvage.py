"""Out of a sound store, salvage makes an equal one; out of a damaged one, a sound one that tells
what it lost."""

from __future__ import annotations

import os
import struct
import subprocess
import sys

import pytest
from support import damaging
from support.programs import ROOT
from support.stores import dump

import diskq
from diskq.format.meta_page import META_BYTES, meta_pages
from diskq.host import files
from diskq.repair.pages import check_pages

PAGE = 4096


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A store with everything in it, and the messages that are to come in each topic."""
    memory = tmp_path_factory.mktemp("built")
    expected, *_ = damaging.build(memory / "store")
    return memory / "store", expected


@pytest.fixture
def copy(built, tmp_path):
    """A copy of it to be damaged."""
    path = tmp_path / "store"
    path.mkdir()
    for name in os.listdir(built[0]):
        (path / name).write_bytes((built[0] / name).read_bytes())
    return path


def test_a_sound_store_comes_out_equal_but_for_the_row_of_the_store(built, tmp_path):
    path, expected = built
    outcome = diskq.salvage(path, tmp_path / "new")
    assert outcome.findings == []
    with diskq.open(path) as old, diskq.open(tmp_path / "new") as new:
        before, after = dump(old), dump(new)
        assert before["state"].keys() == after["state"].keys()
        assert [key for key in before["state"] if before["state"][key] != after["state"][key]] in (
            [],
            [b"M"],
        )
        assert {**before, "state": None} == {**after, "state": None}
        for topic in old.topics():
            mine = list(topic.scheduled())
            assert mine == list(new.topic(topic.name, **_settings(topic)).scheduled())
    assert damaging.consume(tmp_path / "new") == expected


def _settings(topic):
    return {name: value for name, value in topic.settings._asdict().items() if value is not None}


def test_the_receipts_of_dedup_ids_come_along(built, tmp_path):
    diskq.salvage(built[0], tmp_path / "new")
    with diskq.open(tmp_path / "new") as store:
        assert store.topic("mail", priorities=3).put(b"again", dedup_id="id 7").duplicate


def test_tokens_go_on_behind_those_of_the_damaged_store(built, copy, tmp_path):
    diskq.salvage(copy, tmp_path / "new")
    with diskq.open(copy) as old, diskq.open(tmp_path / "new") as new:
        tokens = [
            store.topic("b").group("g").consumer().get(timeout=0).token for store in (old, new)
        ]
    assert tokens[0] < tokens[1]


def break_the_row_of_the_group(path, topic):
    with diskq.open(path) as store:
        group = store.topic(topic).group("g")

        def break_it(tx):
            key = b"G" + struct.pack(">I", group.id)
            row = bytearray(tx.get(key))
            row[7] ^= 1  # how many are acked
            tx.put(key, bytes(row))

        store.handle.engine.commit(break_it)
        assert list(store.verify())


def test_what_waited_or_was_parked_is_kept_when_its_group_starts_again(built, copy, tmp_path):
    break_the_row_of_the_group(copy, "keyed")
    outcome = diskq.salvage(copy, tmp_path / "new")
    [topic] = [each for each in outcome.topics if each.topic == "keyed"]
    assert topic.restarted == ("g",)
    with diskq.open(tmp_path / "new") as store:
        stats = store.topic("keyed").group("g").stats()
        assert list(store.verify()) == []
    assert stats.waiting > 0
    assert stats.parked > 0
    found = damaging.consume(tmp_path / "new")["keyed"]
    assert set(found) >= set(built[1]["keyed"])
    by_key = {number: [body for body in found if int(body) % 10 == number] for number in range(10)}
    assert all(bodies == sorted(bodies, key=int) for bodies in by_key.values())


def test_a_group_whose_rows_do_not_add_up_starts_again(built, copy, tmp_path):
    break_the_row_of_the_group(copy, "b")
    outcome = diskq.salvage(copy, tmp_path / "new")
    [topic] = [each for each in outcome.topics if each.topic == "b"]
    assert topic.restarted == ("g",)
    with diskq.open(tmp_path / "new") as store:
        assert list(store.verify()) == []
        stats = store.topic("b").group("g").stats()
        assert stats.lag == stats.unread == topic.stored


def test_messages_of_a_topic_whose_row_is_lost_are_kept_under_another_name(built, copy, tmp_path):
    with diskq.open(copy) as store:
        topic = store.topic("b")
        count = topic.stats().stored
        key = b"T" + struct.pack(">I", topic.id)
        store.handle.engine.commit(lambda tx: tx.put(key, b"nonsense"))
    outcome = diskq.salvage(copy, tmp_path / "new")
    with diskq.open(tmp_path / "new") as store:
        assert list(store.verify()) == []
        [name] = [each.name for each in store.topics() if each.name.startswith("salvaged-")]
        assert store.topic(name).stats().stored == count
    assert outcome.findings


def test_both_meta_pages_lost_is_an_error_and_leaves_nothing(copy, tmp_path):
    with open(copy / files.DATA, "r+b") as file:
        file.write(bytes(2 * PAGE))
    with pytest.raises(diskq.DiskqError):
        diskq.salvage(copy, tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["store"]


@pytest.mark.parametrize("which", [0, 1])
def test_one_meta_page_lost_costs_the_last_commit_at_most(built, copy, tmp_path, which):
    with open(copy / files.DATA, "r+b") as file:
        file.seek(which * PAGE)
        file.write(bytes(PAGE))
    outcome = diskq.salvage(copy, tmp_path / "new")
    assert sum(topic.lost for topic in outcome.topics) == 0
    with diskq.open(tmp_path / "new") as store:
        assert list(store.verify()) == []


def test_the_pages_of_a_sound_store_have_no_findings(built):
    assert check_pages(str(built[0])) == []


@pytest.mark.parametrize(
    ("at", "value", "finding"),
    [
        (0, struct.pack("=Q", 7), "is not a"),  # its number
        (10, struct.pack("=H", 4), "is not a"),  # a leaf or branch that is an overflow page
        (12, struct.pack("=H", 65_535), "wrong bounds"),
        (16, struct.pack("=H", 5), "a node outside the page"),
        (16, struct.pack("=H", 4_090), "a node outside the page"),
    ],
)
def test_a_page_that_cannot_be_what_its_parent_says_is_found(built, copy, at, value, finding):
    root = _root_of_the_list_of_databases(copy)
    with open(copy / files.DATA, "r+b") as file:
        file.seek(root * PAGE + at)
        file.write(value)
    assert any(finding in each for each in check_pages(str(copy)))


def _root_of_the_list_of_databases(path):
    with open(path / files.DATA, "rb") as file:
        latest = max(meta_pages(os.pread(file.fileno(), META_BYTES, 0)))
    return struct.unpack("=Q", latest.main[-8:])[0]


def test_a_tree_that_leads_back_to_itself_ends(built, copy):
    """A branch page whose first child is the page itself."""
    data = bytearray((copy / files.DATA).read_bytes())
    for start in range(2 * PAGE, len(data), PAGE):
        number, _, flags, lower = struct.unpack_from("=QHHH", data, start)
        if flags == 1 and number == start // PAGE and lower > 18:
            (node,) = struct.unpack_from("=H", data, start + 16)
            struct.pack_into("=IH", data, start + node, number & 0xFFFFFFFF, number >> 32)
    (copy / files.DATA).write_bytes(data)
    assert any("in two places" in each or "is not a" in each for each in check_pages(str(copy)))


@pytest.mark.parametrize("commits_ago", [0, 1])
def test_a_lost_meta_page_is_told_as_one_commit_that_may_be_lost(tmp_path, commits_ago):
    """Salvage printed "0 lost" with exit code 0, though it may have been that of the latest one."""
    with diskq.open(tmp_path / "store") as store:
        topic = store.topic("mail")
        topic.put(b"before")
        topic.put_many(b"message %d" % number for number in range(5_000))
    with open(tmp_path / "store" / files.DATA, "r+b") as file:
        latest = max(meta_pages(os.pread(file.fileno(), META_BYTES, 0))).txn_id
        file.seek((latest - commits_ago) % 2 * PAGE)
        file.write(bytes(PAGE))
    done = subprocess.run(
        [sys.executable, "-m", "diskq", "-s", tmp_path / "store", "salvage", tmp_path / "new"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    assert "the latest commit may be lost" in done.stdout
    with diskq.open(tmp_path / "new") as store:
        assert list(store.verify()) == []
        assert next(iter(store.topic("mail").read())).body == b"before"


def test_messages_of_a_commit_whose_meta_page_is_lost_are_found(tmp_path):
    """They are on pages behind the last one that the older meta page knows: nobody looked there."""
    with diskq.open(tmp_path / "store") as store:
        topic = store.topic("mail")
        topic.put(b"before")
        topic.put_many(b"message %d" % number for number in range(5_000))
    with open(tmp_path / "store" / files.DATA, "r+b") as file:
        file.seek(max(meta_pages(os.pread(file.fileno(), META_BYTES, 0))).txn_id % 2 * PAGE)
        file.write(bytes(PAGE))
    diskq.salvage(tmp_path / "store", tmp_path / "new")
    with diskq.open(tmp_path / "new") as store:
        assert list(store.verify()) == []
        bodies = [message.body for message in store.topic("mail").read()]
    assert bodies == [b"before", *(b"message %d" % number for number in range(5_000))]
