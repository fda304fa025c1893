"""T1: a power cut loses nothing that a store's durability promises.

A sample of what `dev.py powercut` does; it explains how.
"""

from __future__ import annotations

from functools import partial

import pytest
from powercut import run as powercut
from powercut.disk import KINDS, SECTOR, Disk, choice
from powercut.trace import (
    CREATE,
    FLUSH,
    LINK,
    MKDIR,
    REMOVE,
    RENAME,
    WRITE,
    Event,
    read_trace,
)
from support import programs

HINDRANCE = powercut.hindrance()
run_tool = partial(programs.run_tool, "powercut", timeout=110)
needs_strace = pytest.mark.skipif(bool(HINDRANCE), reason=HINDRANCE)


@needs_strace
@pytest.mark.parametrize(
    ("durability", "states"), [("commit", 250), ("relaxed", 250), ("process", 80)]
)
def test_no_crash_state_breaks_what_its_durability_promises(durability, states):
    run = run_tool("--durability", durability, "--states", states)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{states} crash states" in run.stdout
    assert " 0 bad" in run.stdout


@needs_strace
@pytest.mark.parametrize(
    ("control", "states", "shown"),
    [
        ("boot-id", 40, ()),
        ("creation", 60, ("the store is gone", "backup0 was complete, and now it is absent")),
        ("nosync", 40, ("was acknowledged",)),
        ("nometasync", 40, ("was acknowledged, this is state",)),
        ("nosync-relaxed", 40, ("was acknowledged",)),
    ],
)
def test_a_planted_fault_is_found_and_its_states_are_kept(control, states, shown, tmp_path):
    run = run_tool("--control", control, "--states", states, "--keep", tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert all(text in run.stdout for text in ("bad: ", *shown)), run.stdout
    assert [each for folder in tmp_path.iterdir() for each in folder.iterdir()]


def test_without_strace_it_says_what_to_install(tmp_path):
    run = run_tool("--states", 1, PATH=str(tmp_path))
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "powercut needs strace: install the package strace\n"


# The disk that forgets


def disk_after(*events):
    disk = Disk("/r")
    for event in (Event(CREATE, "/r/a"), Event(FLUSH, "/r"), *events):
        disk.replay(event)
    return disk


def contents(disk, seeds=range(40)):
    """All that may be found in the file `a`."""
    choices = [choice(kind, seed, disk.pending()) for kind in KINDS for seed in seeds]
    return {disk.found(each, lambda path, size: bytes(size)).files.get("a") for each in choices}


def names(disk):
    """All sets of names that may be found."""
    choices = [choice(kind, seed, disk.pending()) for kind in KINDS for seed in range(40)]
    found = [disk.found(each, lambda path, size: bytes(size)) for each in choices]
    return {tuple(sorted([*each.files, *each.folders])) for each in found}


def test_what_was_flushed_is_always_found():
    disk = disk_after(Event(WRITE, "/r/a", 0, b"flushed"), Event(FLUSH, "/r/a"))
    assert contents(disk) == {b"flushed"}


def test_a_write_that_flushes_itself_does_not_flush_another():
    a, b = b"a" * SECTOR, b"b" * SECTOR
    disk = disk_after(Event(WRITE, "/r/a", 0, a), Event(WRITE, "/r/a", SECTOR, b, flushed=True))
    assert contents(disk) == {a + b, bytes(SECTOR) + b}


def test_of_what_was_not_flushed_any_sectors_and_any_size_may_be_found():
    two = bytes(2 * SECTOR)
    a, b = b"a" * SECTOR, b"b" * SECTOR
    disk = disk_after(
        Event(WRITE, "/r/a", 0, two), Event(FLUSH, "/r/a"), Event(WRITE, "/r/a", 0, a + b)
    )
    assert contents(disk) == {two, a + b, a + bytes(SECTOR), bytes(SECTOR) + b}
    grown = disk_after(Event(WRITE, "/r/a", 0, a))
    assert contents(grown) == {b"", a, bytes(SECTOR)}


def test_a_sector_written_twice_is_found_in_any_of_its_versions():
    disk = disk_after(
        Event(WRITE, "/r/a", 0, b"0"),
        Event(FLUSH, "/r/a"),
        Event(WRITE, "/r/a", 0, b"1"),
        Event(WRITE, "/r/a", 0, b"2"),
    )
    assert contents(disk) == {b"0", b"1", b"2"}


def test_flushing_a_file_does_not_flush_its_name():
    disk = Disk("/r")
    for event in (Event(CREATE, "/r/a"), Event(WRITE, "/r/a", 0, b"x"), Event(FLUSH, "/r/a")):
        disk.replay(event)
    assert names(disk) == {(), ("a",)}


def test_a_rename_that_was_not_flushed_is_there_or_not():
    disk = Disk("/r")
    for event in (Event(MKDIR, "/r/old"), Event(CREATE, "/r/old/a"), Event(FLUSH, "/r/old")):
        disk.replay(event)
    disk.replay(Event(FLUSH, "/r"))
    disk.replay(Event(RENAME, "/r/old", other="/r/new"))
    assert names(disk) == {("new", "new/a"), ("old", "old/a")}
    disk.replay(Event(FLUSH, "/r"))
    assert names(disk) == {("new", "new/a")}


def test_a_link_that_was_not_flushed_is_there_or_not_and_has_the_same_content():
    disk = disk_after(Event(WRITE, "/r/a", 0, b"x"), Event(FLUSH, "/r/a"))
    disk.replay(Event(LINK, "/r/a", other="/r/b"))
    assert names(disk) == {("a",), ("a", "b")}
    disk.replay(Event(FLUSH, "/r"))
    disk.replay(Event(REMOVE, "/r/a"))
    assert names(disk) == {("b",), ("a", "b")}
    assert disk.file("/r/b").cache == b"x"


# The trace


def hexadecimal(text):
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def test_a_trace_tells_where_each_write_went_and_which_were_flushed(tmp_path):
    data, ledger, root = hexadecimal("/r/a"), hexadecimal("/ledger"), hexadecimal("/")
    lines = [
        f'7 openat(AT_FDCWD<{root}>, "{data}", O_RDWR|O_CREAT, 0664) = 3<{data}>',
        f'7 openat(AT_FDCWD<{root}>, "{data}", O_WRONLY|O_DSYNC|O_CLOEXEC) = 4<{data}>',
        "7 clone3({flags=CLONE_VM|CLONE_FILES|CLONE_THREAD, exit_signal=0}, 88) = 8",
        f"7 lseek(3<{data}>, 512, SEEK_SET) = 512",
        f'8 writev(3<{data}>, [{{iov_base="\\x61", iov_len=1}}, {{iov_base="\\x62\\x63", '
        "iov_len=2}], 2 <unfinished ...>",
        f"7 fdatasync(3<{data}>) = 0",
        "8 <... writev resumed>) = 3",
        f'7 write(3<{data}>, "\\x64", 1) = 1',
        f'7 pwrite64(4<{data}>, "\\x65", 1, 7) = 1',
        f'7 pwrite64(3<{data}>, "\\x66", 1, 9) = -1 EIO (Input/output error)',
        f'7 write(5<{ledger}>, "\\x7b\\x7d\\x0a", 3) = 3',
    ]
    trace = tmp_path / "trace"
    trace.write_text("\n".join(lines) + "\n")
    assert read_trace(trace, "/r", "/ledger") == [
        Event(CREATE, "/r/a"),
        Event(FLUSH, "/r/a"),
        Event(WRITE, "/r/a", 512, b"abc"),
        Event(WRITE, "/r/a", 515, b"d"),
        Event(WRITE, "/r/a", 7, b"e", flushed=True),
        Event("told", "/ledger", data=b"{}"),
    ]
