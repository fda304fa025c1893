"""The demo passes, and its verdict is able to fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

import diskq
from diskq.cli.demo_verdict import Outcome, comes_back, judge

GROUP = diskq.GroupStats(
    topic="files",
    group="digests",
    lag=0,
    unread=0,
    ready=0,
    leased=0,
    waiting=0,
    parked=0,
    dead=0,
    acked=2,
    delivered=3,
    redelivered=1,
    failed=1,
    expired=0,
    dropped=0,
    purged=0,
    paused=False,
)
GOOD = Outcome(
    expected={"a.py": "aa", "b.py": "bb"},
    digests={"a.py": {"aa"}, "b.py": {"bb"}},
    put=2,
    group=GROUP,
    findings=[],
    redelivery_seconds=0.02,
    redriven=1,
)


def test_the_fast_demo_passes_in_a_pipe(tmp_path):
    store = tmp_path / "store"
    command = [sys.executable, "-m", "diskq.cli.demo", "--fast", "--store", str(store)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    lines = run.stdout.splitlines()
    assert run.returncode == 0, run.stdout + run.stderr
    assert lines[-1].startswith("PASS: ")
    assert ", lost 0, redelivered " in lines[-2]
    assert "\x1b" not in run.stdout
    with diskq.open(store, create=False) as kept:
        assert not list(kept.verify())
        group = kept.topic("files").group("digests").stats()
        assert group.acked == kept.topic("files").stats().put
        assert group.redelivered >= 3


def test_an_interrupted_demo_leaves_no_process_behind(tmp_path):
    command = [sys.executable, "-m", "diskq.cli.demo", "--fast", "--store", str(tmp_path / "store")]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    with demo.stdout:
        demo.stdout.readline()  # it has started
        children = []
        until = time.monotonic() + 60
        while not children and time.monotonic() < until:
            time.sleep(0.05)
            children = children_of(demo.pid)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
    assert children
    assert not any(os.path.exists(f"/proc/{child}") for child in children)


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def test_a_store_that_was_used_before_is_refused(tmp_path):
    with diskq.open(tmp_path / "store") as store:
        store.topic("files")
    command = [sys.executable, "-m", "diskq.cli.demo", "--fast", "--store", str(tmp_path / "store")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 2
    assert "choose a new directory" in run.stderr


def test_the_verdict_is_good_if_all_is_right():
    assert judge(GOOD) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"digests": {"a.py": {"aa"}, "b.py": {"xx"}}},
        {"digests": {"a.py": {"aa"}}},
        {"digests": {"a.py": {"aa"}, "b.py": {"bb", "xx"}}},
        {"digests": {"a.py": {"aa"}, "b.py": {"bb"}, "c.py": {"cc"}}},
        {"put": 3},
        {"group": GROUP._replace(acked=1)},
        {"group": GROUP._replace(acked=1, dead=1)},
        {"group": GROUP._replace(leased=1)},
        {"findings": [diskq.Finding("topic files", "offset 7 is missing")]},
        {"redelivery_seconds": None},
        {"redriven": 0},
    ],
)
def test_the_verdict_names_what_is_wrong(wrong):
    assert judge(GOOD._replace(**wrong))


def lease(offset: int, token: int) -> diskq.PendingMessage:
    return diskq.PendingMessage(offset, "CB", token, deadline_ns=0, attempt=1)


@pytest.mark.parametrize(
    ("pending", "failures", "expected"),
    [
        ([lease(3, 10), lease(7, 11)], 0, True),  # the dead consumer's lease is still there
        ([lease(3, 10)], 1, True),  # another consumer took it back
        ([lease(7, 12)], 1, True),  # and is handling the message now
        ([], 1, True),  # or has acked it
        ([lease(3, 10)], 0, False),  # the killed consumer had acked it
        ([], 0, False),
    ],
)
def test_a_killed_consumers_message_comes_back_unless_its_last_commit_acked_it(
    pending, failures, expected
):
    assert comes_back(lease(7, 11), pending, failures) is expected
