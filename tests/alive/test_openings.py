"""Opening beside a process that was stopped in the middle of its own, and what is inherited."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections import Counter

import pytest

import diskq
from diskq.storage import creation

LOCKS = """
import fcntl, sys
file = open(sys.argv[1] + "/lock.mdb", "r+b")
fcntl.lockf(file, fcntl.LOCK_EX, 1, 0)  # as LMDB does while it makes the file anew
print("locked", flush=True)
sys.stdin.readline()
"""
SOON = 20.0


@pytest.mark.parametrize("readonly", [False, True])
def test_opening_does_not_wait_for_ever_for_another_one(path, child, readonly):
    """LMDB waits for a lock there without a deadline, and no signal ends that."""
    diskq.open(path).close()
    locker = child(LOCKS, path)
    assert locker.stdout.readline() == "locked\n"
    os.kill(locker.pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(diskq.Busy, match="being opened"):
        diskq.open(path, readonly=readonly, busy_seconds=0.3)
    assert time.monotonic() - began < SOON
    locker.kill()
    locker.wait()
    diskq.open(path, readonly=readonly, busy_seconds=SOON).close()


def inherited_below(folder):
    """The open files in a directory that an executed program would have, too."""
    names = [
        os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}") and os.get_inheritable(int(name))
    ]
    return [name for name in names if str(folder) in name]


def test_what_is_executed_inherits_no_file_of_a_store(path, tmp_path):
    """LMDB left it data.mdb, open for writing: another user's program could read all bodies."""
    with diskq.open(path) as store:
        store.queue("q").put(b"private")
        assert inherited_below(os.path.dirname(path)) == []
        child = os.posix_spawn("/bin/ls", ["ls", "-l", "/proc/self/fd"], {}, file_actions=[
            (os.POSIX_SPAWN_OPEN, 1, str(tmp_path / "out"), os.O_WRONLY | os.O_CREAT, 0o600),
        ])  # fmt: skip
        os.waitpid(child, 0)
    assert str(path) not in (tmp_path / "out").read_text()


def test_a_store_that_is_being_made_is_not_inherited_either(tmp_path, monkeypatch):
    write_meta, found = creation.write_meta, []

    def look(*arguments):
        found.append(inherited_below(tmp_path))
        write_meta(*arguments)

    monkeypatch.setattr(creation, "write_meta", look)
    diskq.open(tmp_path / "new").close()
    assert found == [[]]


class Stop(Exception):
    """Raised in the middle of an opening."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # before a `with`
def test_the_error_of_an_opening_keeps_nothing_open(path):
    """At each line of it: whoever holds the error, with its frames, the next opening succeeds.
    LMDB refuses to open what is open in the process already."""
    diskq.open(path).close()
    package = os.path.dirname(diskq.__file__)
    kept = []  # of the last opening: with its frames, it keeps their maps of `slots`

    def interrupted(at):
        seen, times = 0, Counter()

        def trace(frame, event, _):
            nonlocal seen
            if not frame.f_code.co_filename.startswith(package):
                return None
            line = frame.f_code, frame.f_lineno
            times[line] += 1
            if event == "line" and times[line] < 4:  # one of them is in a loop over all open files
                seen += 1
                if seen == at:
                    raise Stop
            return trace

        sys.settrace(trace)
        try:
            diskq.open(path).close()
        except Stop as error:
            kept[:] = [error]
        finally:
            sys.settrace(None)
        return seen >= at

    for at in itertools.count(1):
        if not interrupted(at):
            break
        diskq.open(path).close()
    assert at > 300


def test_an_opening_inside_of_a_call_whose_store_is_closed_raises(path):
    """A handler closes the store that its thread is using, which happens when that call ends, and
    opens it again: LMDB would refuse that."""
    store = diskq.open(path)

    def operation(tx):
        store.close()
        with pytest.raises(diskq.Reentered):
            diskq.open(path)

    store.handle.commit(operation)
    with diskq.open(path) as again:
        again.topic("t").put(b"")
