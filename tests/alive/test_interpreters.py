"""Work in a child process is done by diskq, or not believed: `sys.executable` may be anything."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time

import pytest
from support.programs import run_python

import diskq
from diskq.host import child, files
from diskq.repair import verify

PYTHON = sys.executable


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store that is verified in a child, however small it is."""
    monkeypatch.setattr(verify, "_LARGE_BYTES", 0)
    with diskq.open(tmp_path / "store", durability="process") as store:
        store.queue("q").put_many([b"x" * 1_000] * 500)
        yield store


def program(tmp_path, script):
    """A program that is taken for Python."""
    path = tmp_path / "python3"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def only(monkeypatch):
    """Let there be no other interpreter than those."""

    def choose(*programs):
        monkeypatch.setattr(child, "_interpreters", lambda: iter(programs))

    return choose


def damage(path):
    """Zero some pages of a store."""
    with open(path / files.DATA, "r+b") as file:
        for page in range(20, 120, 3):
            file.seek(page * 4096)
            file.write(bytes(4096))
    (path / files.BOOT).write_text("another boot")


NO_PYTHON = {
    "ends well": "exit 0",
    "fails": "echo no such option >&2; exit 2",
    "prints its arguments": 'echo "$@"; printf "%s\\n" "$@"',
    "crashes": "kill -SEGV $$",
    "aborts": "kill -ABRT $$",
    "says it found nothing": "echo done",
}


@pytest.mark.parametrize("kind", NO_PYTHON)
def test_what_is_no_python_is_not_believed(store, tmp_path, only, kind):
    only(program(tmp_path, NO_PYTHON[kind]))
    for work in (lambda: store.backup(tmp_path / "copy"), lambda: list(store.verify())):
        with pytest.raises(diskq.DiskqError, match="needs a Python interpreter") as caught:
            work()
        assert not isinstance(caught.value, diskq.Corrupt)
    assert sorted(os.listdir(tmp_path)) == ["python3", "store"]


@pytest.mark.parametrize("kind", NO_PYTHON)
def test_a_store_that_nobody_checked_is_not_opened_after_a_reboot(store, tmp_path, only, kind):
    path = tmp_path / "store"
    store.close()
    damage(path)
    only(program(tmp_path, NO_PYTHON[kind]))
    for readonly in (False, True, False):
        with pytest.raises(diskq.DiskqError, match="could not be checked") as caught:
            diskq.open(path, readonly=readonly)
        assert not isinstance(caught.value, diskq.Corrupt)
    only(PYTHON)
    with pytest.raises(diskq.Corrupt, match="salvage"):
        diskq.open(path)


@pytest.mark.parametrize("kind", NO_PYTHON)
def test_another_interpreter_does_the_work(store, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(sys, "executable", program(tmp_path, NO_PYTHON[kind]))
    store.backup(tmp_path / "copy")
    assert list(store.verify()) == []
    with diskq.open(tmp_path / "copy") as copy:
        assert copy.queue("q").qsize() == 500


@pytest.mark.parametrize("executable", ["", None, "/nowhere/python", "/bin/true", "/"])
def test_interpreters_are_found_without_a_right_executable(
    store, tmp_path, monkeypatch, executable
):
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(sys, "_base_executable", executable)
    store.backup(tmp_path / "copy")
    assert diskq.open(tmp_path / "copy").queue("q").qsize() == 500


def test_a_frozen_program_is_never_started_in_place_of_python(store, tmp_path, monkeypatch):
    """It would begin all over."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "executable", program(tmp_path, f"touch {tmp_path}/started"))
    for prefix in ("exec_prefix", "base_exec_prefix"):
        monkeypatch.setattr(sys, prefix, "/nowhere")
    with pytest.raises(diskq.DiskqError, match=re.escape(str(tmp_path / "python3"))):
        store.backup(tmp_path / "copy")
    assert not (tmp_path / "started").exists()


def test_a_program_that_is_started_in_place_of_python_and_does_the_same_does_not_begin_again(
    tmp_path,
):
    """Neither does it fork without end: it is told apart by its environment."""
    script = tmp_path / "program.py"
    script.write_text(
        "import os, sys, diskq\n"
        f"open({str(tmp_path / 'started')!r}, 'a').write('x')\n"
        "from diskq.host import child\n"
        f"child._interpreters = lambda: iter([{str(tmp_path / 'program')!r}])\n"
        f"diskq.open({str(tmp_path / 'store')!r}).backup({str(tmp_path / 'copy')!r})\n"
    )
    start = f"#!/bin/sh\nexec {shlex.quote(PYTHON)} {shlex.quote(str(script))}\n"
    (tmp_path / "program").write_text(start)
    (tmp_path / "program").chmod(0o755)
    run = run_python(script.read_text(), check=False)
    assert "in place" in run.stderr or "started this program as Python" in run.stderr
    assert (tmp_path / "started").read_text() == "xx"
    assert not (tmp_path / "copy").exists()


def test_a_program_that_never_ends_is_given_up(store, tmp_path, only, monkeypatch):
    only(program(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 1000"), PYTHON)
    monkeypatch.setattr(child, "_START_SECONDS", 5)
    store.backup(tmp_path / "copy")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_ctrl_c_ends_the_child(store, tmp_path, only, monkeypatch):
    only(program(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 1000"))
    sleep = time.sleep

    def interrupt_when_it_runs(seconds):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            os.kill(os.getpid(), signal.SIGINT)
        sleep(seconds)

    monkeypatch.setattr(child.time, "sleep", interrupt_when_it_runs)
    with pytest.raises(KeyboardInterrupt):
        store.backup(tmp_path / "copy")
    monkeypatch.undo()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert sorted(os.listdir(tmp_path)) == ["pid", "python3", "store"]


@pytest.mark.parametrize("missing", ["data.mdb", "some of data.mdb", "nothing"])
def test_a_copy_that_is_none_is_an_error_and_leaves_nothing(store, tmp_path, monkeypatch, missing):
    """Even if the child says that it made it."""
    run = child.run

    def run_and_spoil(call, *arguments):
        lines = run(call, *arguments)
        [place] = tmp_path.glob(".diskq-unfinished*")
        if missing == "data.mdb":
            (place / "data.mdb").unlink()
        elif missing == "some of data.mdb":
            os.truncate(place / "data.mdb", 8192)
        return lines

    monkeypatch.setattr(child, "run", run_and_spoil)
    if missing == "nothing":
        store.backup(tmp_path / "copy")
        return
    with pytest.raises(diskq.DiskqError, match="cannot be read"):
        store.backup(tmp_path / "copy")
    assert os.listdir(tmp_path) == ["store"]


def test_a_child_that_dies_while_it_checks_is_a_finding_and_one_that_is_killed_is_not(
    store, monkeypatch
):
    codes = iter((-signal.SIGBUS, -signal.SIGKILL, 0, 1, None))

    def run(call, *arguments):
        raise child.Died("it ended", code=next(codes))

    monkeypatch.setattr(child, "run", run)
    assert list(store.verify()) == [("store", "checking it ended with SIGBUS")]
    for _ in range(4):
        with pytest.raises(diskq.DiskqError, match="could not be checked"):
            list(store.verify())


@pytest.mark.parametrize("when", ["before", "while it runs"])
@pytest.mark.parametrize("verb", ["backup", "verify"])
def test_another_store_at_the_path_is_neither_copied_nor_checked(
    store, tmp_path, monkeypatch, when, verb
):
    diskq.open(tmp_path / "other").close()
    run = child.run

    def move(*_):
        (tmp_path / "store").rename(tmp_path / "moved")
        (tmp_path / "other").rename(tmp_path / "store")

    def move_and_run(call, *arguments):
        move()
        return run(call, *arguments)

    if when == "before":
        move()
    else:
        monkeypatch.setattr(child, "run", move_and_run)
    with pytest.raises(diskq.StoreMoved, match="open the path again"):
        store.backup(tmp_path / "copy") if verb == "backup" else list(store.verify())
    assert sorted(os.listdir(tmp_path)) == ["moved", "store"]


def test_the_error_of_a_child_is_that_of_its_parent(store, tmp_path, monkeypatch):
    with pytest.raises(diskq.NotFound, match="is not there any more"):
        child.run("repair.verify:main", str(tmp_path / "nowhere"))
