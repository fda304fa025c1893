"""Paths that are no store, or no sound one: each has its own error, and the process survives."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import sys

import lmdb
import pytest
from support.programs import ROOT, run_python
from support.stores import digest, verified

import diskq
from diskq.format.layout import FORMAT_VERSION
from diskq.format.rows import format_version

OPEN = """
import sys, diskq
try:
    with diskq.open(sys.argv[1], create=False) as store:
        for topic in store.topics():
            for message in topic.read():
                pass
        print("sound" if not list(store.verify()) else "found")
except diskq.DiskqError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def path(tmp_path):
    """Where a store with some messages and rows is."""
    with diskq.open(tmp_path / "s") as store:
        topic = store.topic("t")
        for _ in range(50):
            topic.put(bytes(3000))
        consumer = topic.group("g").consumer()
        for message in consumer.get_many(20, timeout=0):
            message.nack(60)
        consumer.ack_many(consumer.get_many(10, timeout=0))
    assert verified(tmp_path / "s") == []
    return tmp_path / "s"


def tree(path):
    """Everything below a path."""
    return {
        found: found.read_bytes() if found.is_file() else None for found in sorted(path.rglob("*"))
    }


def refused(path, error, text, **options):
    """Opening must raise this, twice, and leave all files as they are."""
    before = tree(path.parent)
    for _ in range(2):
        with pytest.raises(error, match=text) as caught:
            diskq.open(path, **options)
        assert type(caught.value) is error
    assert tree(path.parent) == before


def test_a_file_is_not_a_store(tmp_path):
    (tmp_path / "file").write_text("text")
    refused(tmp_path / "file", diskq.NotAStore, "is a file")


def test_a_broken_link_is_not_a_store(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    refused(tmp_path / "link", diskq.NotAStore, "is a symbolic link to what is not there")


def test_a_directory_of_other_files_is_not_a_store(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("text")
    refused(tmp_path / "other", diskq.NotAStore, "other files")


def test_a_device_is_not_a_store():
    with pytest.raises(diskq.NotAStore):
        diskq.open("/dev/null")


def test_an_empty_directory_can_become_a_store(tmp_path):
    (tmp_path / "empty").mkdir()
    with diskq.open(tmp_path / "empty") as store:
        store.queue("q").put(b"a")
    assert verified(tmp_path / "empty") == []


def test_a_store_can_be_at_a_relative_path_and_one_that_ends_with_a_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with diskq.open("s/") as store:
        store.queue("q").put(b"a")
    with diskq.open("./s", create=False) as store:
        assert store.queue("q").qsize() == 1
    assert os.listdir(tmp_path) == ["s"]


def test_the_current_directory_can_become_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with diskq.open(".") as store:
        store.queue("q").put(b"a")
    assert verified(tmp_path) == []


def test_an_empty_path_is_refused(tmp_path, monkeypatch):
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "file").write_text("text")
    monkeypatch.chdir(tmp_path / "dir")
    with pytest.raises((ValueError, diskq.DiskqError)):
        diskq.open("")


def test_a_store_whose_parent_is_missing_is_not_made(tmp_path):
    refused(tmp_path / "no" / "store", diskq.NotFound, "does not exist")
    assert not (tmp_path / "no").exists()


def test_a_store_is_not_made_where_it_should_only_be_opened(tmp_path):
    refused(tmp_path / "s", diskq.NotFound, "no store", create=False)
    refused(tmp_path / "s", diskq.NotFound, "no store", readonly=True)
    assert list(tmp_path.iterdir()) == []


def test_a_store_made_leaves_nothing_else_behind(path):
    assert [found.name for found in path.parent.iterdir()] == ["s"]
    assert sorted(found.name for found in path.iterdir()) == ["data.mdb", "lock.mdb", "slots"]


def test_another_format_version_is_refused(path):
    with diskq.open(path) as store:
        row = store.handle.engine.read(lambda tx: tx.get(b"M"))
        assert format_version(row) == FORMAT_VERSION
        store.handle.commit(
            lambda tx: tx.put(b"M", (99).to_bytes(2, "big") + b"what version 99 has")
        )
    data = digest(path / "data.mdb")
    for _ in range(2):
        with pytest.raises(diskq.WrongFormat, match="version 99") as wrong:
            diskq.open(path)
        assert (wrong.value.found, wrong.value.supported) == (99, FORMAT_VERSION)
    assert digest(path / "data.mdb") == data


def test_a_store_whose_own_row_is_damaged_is_corrupt(path):
    with diskq.open(path) as store:
        store.handle.commit(lambda tx: tx.put(b"M", FORMAT_VERSION.to_bytes(2, "big")))
    with pytest.raises(diskq.DiskqError):
        diskq.open(path)


@pytest.mark.parametrize("rows", ["nothing", "other databases", "plain rows", "an odd state"])
def test_an_lmdb_environment_of_others_is_not_a_store(tmp_path, rows):
    with lmdb.open(str(tmp_path / "s"), max_dbs=4) as env, env.begin(write=True) as txn:
        if rows == "other databases":
            txn.put(b"key", b"value", db=env.open_db(b"users", txn))
        elif rows == "plain rows":
            txn.put(b"key", b"value")
        elif rows == "an odd state":
            txn.put(b"M", b"", db=env.open_db(b"other", txn))
            txn.put(b"Z", b"value", db=env.open_db(b"state", txn))
    data = digest(tmp_path / "s" / "data.mdb")
    for _ in range(2):
        with pytest.raises(diskq.NotAStore, match="not a diskq store"):
            diskq.open(tmp_path / "s")
    assert digest(tmp_path / "s" / "data.mdb") == data


def test_an_lmdb_environment_with_a_row_named_as_our_database_is_refused(tmp_path):
    with lmdb.open(str(tmp_path / "s"), max_dbs=4) as env, env.begin(write=True) as txn:
        txn.put(b"state", b"a plain row")
    with pytest.raises(diskq.DiskqError):
        diskq.open(tmp_path / "s")


def test_a_data_file_of_no_length_is_corrupt(path):
    (path / "data.mdb").write_bytes(b"")
    with pytest.raises(diskq.Corrupt, match="empty"):
        diskq.open(path)
    assert (path / "data.mdb").stat().st_size == 0


@pytest.mark.parametrize("written", [b"x", b"text " * 5000, bytes(4096), bytes(200_000)])
def test_a_data_file_of_another_kind_is_not_a_store(tmp_path, written):
    (tmp_path / "s").mkdir()
    data = tmp_path / "s" / "data.mdb"
    data.write_bytes(written)
    before = digest(data)
    with pytest.raises((diskq.NotAStore, diskq.Corrupt)):
        diskq.open(tmp_path / "s")
    assert digest(data) == before


def test_no_data_file_cut_short_ends_the_process(path):
    file = path / "data.mdb"
    whole = file.read_bytes().rstrip(b"\0")  # without the room that is kept behind it
    whole += bytes(-len(whole) % 4096)
    lengths = [1, 16, 100, 4095, 4096, 4097, 8191, 8192, 12288, len(whole) // 2]
    lengths += [len(whole) - 4096, len(whole) - 1]
    for length in lengths:
        (path / "data.mdb").write_bytes(whole[:length])
        run = run_python(OPEN, path, check=False)
        assert run.returncode == 0, (length, run.returncode, run.stderr)
        said = run.stdout.split()[0]
        # The last pages may be unused: then nothing is missing.
        sound = {"sound"} if length >= len(whole) - 4096 else set()
        assert said in {"Corrupt", "NotAStore"} | sound, (length, run.stdout)
    (path / "data.mdb").write_bytes(whole)
    assert run_python(OPEN, path).stdout == "sound\n"


def test_a_file_that_rightly_ends_before_the_last_page_is_opened(path):
    """LMDB does not write a page that was freed in the transaction that took it. See mdb.c,
    MDB_meta: mm_last_pg is 136 bytes into a meta page, behind its header."""
    data = bytearray((path / "data.mdb").read_bytes())
    for at in 136, 4096 + 136:
        (last,) = struct.unpack_from("=Q", data, at)
        struct.pack_into("=Q", data, at, last + 1)
    (path / "data.mdb").write_bytes(data)
    with diskq.open(path) as store:
        assert list(store.verify()) == []
        assert store.topic("t").put(b"").offset == 50
    assert verified(path) == []


def test_a_damaged_segment_is_found_and_not_delivered(path):
    with diskq.open(path) as store:
        topic = store.topic("t")
        log = store.handle.engine.log(topic.id)

        def damage(tx):
            key, value = list(tx.scan(b"", database=log))[-1]
            tx.lmdb.put(key, value[:-1] + b"x", db=log)

        store.handle.commit(damage)
        (finding,) = store.verify()
        assert "topic t" in finding.where
        assert "49" in finding.problem
        with pytest.raises(diskq.Corrupt) as corrupt:
            list(topic.read(49))
        assert corrupt.value.offset == 49
        consumer = topic.group("g").consumer()
        assert len(consumer.get_many(19, timeout=0)) == 19
        for _ in range(2):
            with pytest.raises(diskq.Corrupt):
                consumer.get_nowait()


ROOT_OR_NOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


@ROOT_OR_NOT
def test_a_store_without_write_permission_is_refused(path):
    for found in path.iterdir():
        found.chmod(stat.S_IRUSR)
    with pytest.raises(diskq.ReadOnly):
        diskq.open(path)


@ROOT_OR_NOT
def test_a_place_without_write_permission_is_refused(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(diskq.ReadOnly):
            diskq.open(tmp_path / "s")
    finally:
        tmp_path.chmod(stat.S_IRWXU)


@ROOT_OR_NOT
def test_a_place_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "s").mkdir(mode=0)
    try:
        with pytest.raises(diskq.DiskqError):
            diskq.open(tmp_path / "s")
    finally:
        (tmp_path / "s").chmod(stat.S_IRWXU)


def test_many_processes_that_make_one_store_all_get_it(tmp_path):
    code = """
import sys, diskq
with diskq.open(sys.argv[1]) as store:
    print(store.stats().store_id, store.topic("t").put(b"").offset)
"""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "s"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(4)
    ]
    said = [run.communicate(timeout=60)[0].split() for run in runs]
    assert len({store_id for store_id, _ in said}) == 1
    assert sorted(offset for _, offset in said) == ["0", "1", "2", "3"]
    assert [found.name for found in tmp_path.iterdir()] == ["s"]
    assert verified(tmp_path / "s") == []
