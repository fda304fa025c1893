"""Things in the place of a store's files that are no regular files, paths that cannot be one, and
limits of the system: each has its own error, nothing hangs, and nothing is written through it."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sys
from pathlib import Path

import pytest
from support import users
from support.programs import run_python
from support.stores import digest

import diskq

NAMES = "data.mdb", "lock.mdb", "slots", "boot"
PRECIOUS = "precious text\n"


@pytest.fixture
def path(tmp_path):
    with diskq.open(tmp_path / "store", durability="process") as store:
        store.queue("q").put(b"a")
    return tmp_path / "store"


def put_there(place, kind):
    """Something odd; what it leads to is beside the store."""
    target = place.parent.parent / "precious"
    if kind == "link":
        target.write_text(PRECIOUS)
        place.symlink_to(target)
    elif kind == "link to the real one":
        (place.parent / f"real {place.name}").rename(target)
        place.symlink_to(target)
    elif kind == "broken link":
        place.symlink_to(target)
    elif kind == "FIFO":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(place.parent)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(place.name)
        os.chdir(here)
    elif kind == "device":
        os.mknod(place, 0o600 | 0o020000, os.makedev(1, 3))


def uses(path, tmp_path):
    """Each way to open a store."""
    return {
        "open": lambda: diskq.open(path),
        "only open": lambda: diskq.open(path, create=False),
        "read": lambda: diskq.open(path, readonly=True),
        "salvage": lambda: diskq.salvage(path, tmp_path / "new"),
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "kind",
    ["link", "link to the real one", "broken link", "FIFO", "directory", "socket", "device"],
)
def test_what_is_no_regular_file_is_refused_and_nothing_written_through_it(
    path, tmp_path, name, kind
):
    if kind == "device" and os.geteuid() != 0:
        pytest.skip("only root can make a device")
    (path / name).rename(path / f"real {name}")
    put_there(path / name, kind)
    target = tmp_path / "precious"
    before = digest(target)
    for use in uses(path, tmp_path).values():
        with pytest.raises(diskq.NotAStore, match=r"no file of diskq|other files"):
            use()
    assert digest(target) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["lock.mdb", "slots"])
def test_what_becomes_a_link_while_the_store_is_open_is_not_written_through_in_a_child(
    path, tmp_path, name
):
    """A forked child opens the files anew."""
    (tmp_path / "precious").write_text(PRECIOUS)
    with diskq.open(path) as store:
        queue = store.queue("q")
        (path / name).unlink()
        (path / name).symlink_to(tmp_path / "precious")
        child = os.fork()
        if child == 0:
            try:
                queue.put(b"b")
            except diskq.DiskqError:
                os._exit(3)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert (tmp_path / "precious").read_text() == PRECIOUS


# Paths


@pytest.mark.parametrize("make", [str, os.fsencode, Path], ids=["str", "bytes", "Path"])
def test_a_path_may_be_of_any_type_that_is_one(tmp_path, make):
    with diskq.open(make(str(tmp_path / "store"))) as store:
        store.backup(make(str(tmp_path / "copy")))
        assert store.path == str(tmp_path / "store")
    result = diskq.salvage(make(str(tmp_path / "copy")), make(str(tmp_path / "new")))
    assert result == diskq.Salvaged([], [])


def test_a_path_that_is_not_text_is_one_too(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe"
    with diskq.open(path) as store:
        store.queue("q").put(b"a")
        store.backup(os.fsencode(tmp_path) + b"/\xfd")
    assert sorted(os.listdir(os.fsencode(tmp_path))) == [b"\xfd", b"\xff\xfe"]


@pytest.mark.parametrize("path", [5, None, 0.5, ["store"]])
def test_what_is_no_path_is_a_type_error(path, tmp_path):
    with pytest.raises(TypeError):
        diskq.open(path)
    with diskq.open(tmp_path / "store") as store, pytest.raises(TypeError):
        store.backup(path)


def circle(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    return tmp_path / "a" / "store"


ODD_PATHS = {
    "NUL": lambda tmp_path: f"{tmp_path}/st\0re",
    "empty": lambda tmp_path: "",
    "long name": lambda tmp_path: tmp_path / ("x" * 300),
    "long path": lambda tmp_path: f"{tmp_path}/{'x/' * 3000}store",
    "circle of links": circle,
    "circle": lambda tmp_path: circle(tmp_path).parent,
    "below a file": lambda tmp_path: Path(__file__) / "store",
    "below a file's name": lambda tmp_path: Path(__file__) / "no" / "store",
    "a device": lambda tmp_path: "/dev/null",
    "below a device": lambda tmp_path: "/dev/null/store",
    "proc": lambda tmp_path: "/proc/store",
    "sys": lambda tmp_path: "/sys/kernel",
}


@pytest.mark.parametrize("kind", ODD_PATHS)
@pytest.mark.parametrize("verb", ["open", "only open", "backup", "salvage", "salvage to"])
def test_a_path_that_cannot_be_a_store_has_an_error_of_diskq(tmp_path, path, kind, verb):
    odd = ODD_PATHS[kind](tmp_path)
    ways = {
        "open": lambda: diskq.open(odd),
        "only open": lambda: diskq.open(odd, create=False),
        "backup": lambda: diskq.open(path).backup(odd),
        "salvage": lambda: diskq.salvage(odd, tmp_path / "new"),
        "salvage to": lambda: diskq.salvage(path, odd),
    }
    with pytest.raises(diskq.DiskqError) as caught:
        ways[verb]()
    assert ";" in str(caught.value), "it does not say what to do"
    assert not (tmp_path / "new").exists()


def test_a_name_of_the_greatest_length_can_be_a_store(tmp_path):
    with diskq.open(tmp_path / ("x" * 255)) as store:
        store.queue("q").put(b"a")


def test_a_relative_path_without_a_current_directory_is_not_found(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(diskq.NotFound, match="absolute path"):
        diskq.open("store")


def test_a_store_can_be_checked_without_a_current_directory(path, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    with diskq.open(path) as store:
        monkeypatch.chdir(gone)
        gone.rmdir()
        store.backup(tmp_path / "copy")
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path)) == ["copy", "store"]


def test_a_copy_is_not_made_inside_of_its_store(path, tmp_path):
    """Whatever removes or moves the store would take its backup along."""
    with diskq.open(path) as store:
        (tmp_path / "link").symlink_to(path)
        for place in (path / "copy", path / "deep" / "copy", tmp_path / "link" / "copy"):
            place.parent.mkdir(exist_ok=True)
            with pytest.raises(diskq.NotAStore, match="outside"):
                store.backup(place)
        store.backup(f"{path}.copy")  # a name that begins in the same way
        (path / "deep").rmdir()
    assert all(each.is_file() for each in path.iterdir())


# Limits

FEW_FILES = """
import os, resource, sys
import diskq
from diskq.host import child
from diskq.repair import backup, salvage, verify
from diskq.storage import creation
from diskq.api import heartbeat
from diskq.base import options
from diskq.operate import stats
from diskq.cli import recovery
verb, folder = sys.argv[1:]
verify._LARGE_BYTES = 0
path = os.path.join(folder, "store")
stats.store_stats
diskq.open(path, durability="process").close()
store = diskq.open(path) if verb in ("backup", "verify") else None
held = []
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
first = os.dup(0)
os.close(first)
for free in range(25):
    resource.setrlimit(resource.RLIMIT_NOFILE, (first + free, hard))
    new = os.path.join(folder, f"new{free}")
    try:
        if verb == "create":
            diskq.open(new).close()
        elif verb == "open":
            diskq.open(path, create=False).close()
        elif verb == "backup":
            store.backup(new)
        elif verb == "verify":
            assert list(store.verify()) == []
        else:
            diskq.salvage(path, new)
        print("worked")
    except diskq.DiskqError as error:
        assert not isinstance(error, (diskq.Corrupt, diskq.NotFound)), error
        print(type(error).__name__, error)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    left = [name for name in os.listdir(folder) if name.startswith(".")]
    assert left == [], (free, left)
if store is not None:
    store.queue("q").put(b"x")
    store.close()
"""


@pytest.mark.parametrize("verb", ["create", "open", "backup", "verify", "salvage"])
def test_a_process_with_too_many_open_files_is_told_so_and_leaves_nothing(tmp_path, verb):
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] > 100
    lines = run_python(FEW_FILES, verb, tmp_path).stdout.splitlines()
    assert lines[-1] == "worked", lines
    assert any("too many open files" in line or "Too many" in line for line in lines), lines


def test_no_store_is_made_where_all_is_mounted_read_only(tmp_path):
    code = """
import sys, diskq
for path in (sys.argv[1], sys.argv[1] + "/store"):
    try:
        diskq.open(path)
    except diskq.ReadOnly as error:
        print(error)
"""
    script = 'mount -t tmpfs -o ro none "$1" && exec "$2" -c "$3" "$1"'
    done = users.run_mounted(script, tmp_path, sys.executable, code)
    if done is None:
        pytest.skip("needs mounts of its own: unshare")
    assert done.stdout.count("mounted read-only; mount it writable") == 2


def test_a_store_whose_directory_is_removed_while_it_is_verified_or_copied_has_moved(path):
    with diskq.open(path) as store:
        shutil.rmtree(path)
        with pytest.raises(diskq.StoreMoved, match="open the path again"):
            list(store.verify())
        with pytest.raises(diskq.StoreMoved):
            store.backup(path.parent / "copy")
    assert os.listdir(path.parent) == []
