"""Full and failing disks: nothing acknowledged is lost, and settling has room (G12).

The drills are in support/drills.py: verbs at random, at whatever point a disk, a file or a store is
full, or a write fails, beside a ledger that is compared with the store at the end. With
DISKQ_TEST_FULL in the environment they run much longer.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from support.drills import MIB, Drill
from support.programs import ROOT, child_environment

import diskq
from diskq.base import limits

FULL = bool(os.environ.get("DISKQ_TEST_FULL"))
DEADLINE_SECONDS = 600 if FULL else 100
MOUNTED = ("unshare", "--map-root-user", "--mount")
COPYING = ("nack", "reject", "redrive")  # need room for a body


def seeds(few: int, many: int) -> list[int]:
    return list(range(many if FULL else few))


def run(role: str, *prefix: str, environment: dict[str, str] | None = None, **options: object):
    """What a role of support/roles/disks.py tells."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "support.roles", f"disks.{role}", json.dumps(options)],
        env=child_environment(**(environment or {})),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def wrong(runs) -> list[object]:
    return [(run["seed"], run["wrong"]) for run in runs if run["wrong"]]


@pytest.fixture(scope="session")
def mounted(tmp_path_factory) -> tuple[str, ...]:
    """The start of a command that may mount small disks of its own."""
    command = [*MOUNTED, "mount", "-t", "tmpfs", "none", str(tmp_path_factory.mktemp("probe"))]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs small disks, and may not mount them: {error}")
    return MOUNTED


@pytest.fixture(scope="session")
def failing(tmp_path_factory) -> dict[str, str]:
    """The environment of a process whose disk can fail."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, for a disk that fails")
    library = tmp_path_factory.mktemp("failing") / "failing.so"
    source = Path(__file__).with_name("failing.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


# Full


@pytest.mark.parametrize("bound", ["max_bytes", "map"])
def test_a_full_store_settles_all_it_has_and_then_takes_puts_again(tmp_path, monkeypatch, bound):
    """Whatever fills it, in whatever state it is full: no verb but put may fail; where `max_bytes`
    bounds copies too, nor may those that need none."""
    options, few, may = {"max_bytes": 4 * MIB}, 4, dict.fromkeys(COPYING, diskq.Full)
    if bound == "map":
        monkeypatch.setattr(limits, "MAP_BYTES", (4 * MIB,))
        options, few, may = {}, 2, {}
    for seed in seeds(few, 200):
        drill = Drill(str(tmp_path / str(seed)), seed, may, durability="process", **options)
        for _ in range(2):
            drill.fill()
            drill.settle(60)
            drill.drain()
            drill.put_one()
        drill.fill()
        assert drill.reopen() == [], seed
        assert "put: Full" in drill.ledger.fulls
        if may:
            assert os.stat(tmp_path / str(seed) / "data.mdb").st_size <= 1.5 * 4 * MIB, seed
        drill.store.close()


def test_on_a_full_disk_all_can_be_taken_and_acked_and_then_puts_work_again(tmp_path, mounted):
    runs = run("fill_small_disks", *mounted, disk=str(tmp_path), seeds=seeds(4, 100))
    assert wrong(runs) == []
    assert {verb for run in runs for verb in run["fulls"]} == {"put: Full"}


def test_without_a_reserve_the_drill_on_small_disks_fails(tmp_path, mounted):
    with pytest.raises(AssertionError, match="Full"):
        run("fill_small_disks", *mounted, disk=str(tmp_path), seeds=list(range(10)), fault=True)


@pytest.mark.parametrize("way", ["reject", "expire", "park", "fall due"])
def test_on_a_full_disk_messages_that_must_move_hold_nobody_up(tmp_path, mounted, way):
    [told] = run("copy_on_a_full_disk", *mounted, disk=str(tmp_path), way=way)
    assert told["wrong"] == []
    assert set(told["outcomes"]) == {"success"}


def test_where_others_filled_the_disk_each_verb_works_or_changes_nothing(tmp_path, mounted):
    runs = run("run_to_the_brim", *mounted, disk=str(tmp_path), seeds=seeds(8, 200))
    assert wrong(runs) == []
    assert any("nack: Full" in run["fulls"] or "get: Full" in run["fulls"] for run in runs)


def test_a_file_size_limit_ends_no_process_and_loses_nothing(tmp_path):
    runs = run("limit_file_size", disk=str(tmp_path), seeds=seeds(6, 200))
    assert wrong(runs) == []
    assert any(run["fulls"] for run in runs)


# Failing


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_when_a_write_or_flush_fails_no_success_is_reported_and_nothing_is_lost(
    tmp_path, failing, number
):
    runs = run(
        "fail_writes", environment=failing, disk=str(tmp_path), seeds=seeds(10, 400), number=number
    )
    assert wrong(runs) == []
    assert all(run["failed"] for run in runs)


def test_a_store_that_forgot_that_its_disk_failed_would_be_found(tmp_path, failing):
    runs = run(
        "fail_writes", environment=failing, disk=str(tmp_path), seeds=list(range(8)),
        number=errno.EIO, fault=True,
    )  # fmt: skip
    assert any("something succeeded after the disk had failed" in run["wrong"] for run in runs)


def test_the_ledger_finds_a_message_that_was_lost(tmp_path):
    drill = Drill(str(tmp_path / "s"), 0, durability="process")
    drill.put_one()
    drill.put_one()
    for consumer in drill.consumers.values():
        consumer.get(timeout=0).ack()
    drill.ledger.acked["plain"].add(0)
    drill.ledger.acked["slow"].update((0, 1))
    problems = drill.reopen()
    assert problems == ["keyed lost 0", "slow got [1] again, which were acked"]
    drill.store.close()


def test_others_go_on_while_the_disk_fails_for_one_process(tmp_path, failing):
    [told] = run("fail_beside_others", environment=failing, disk=str(tmp_path))
    assert told["outcomes"] == ["DiskFailed"] * 3
    assert told["bodies"] == ["before", *map(str, range(20))]
    assert told["wrong"] == []


def test_after_the_disk_failed_the_same_process_can_reopen_the_store(tmp_path, failing):
    [told] = run("fail_and_reopen", environment=failing, disk=str(tmp_path))
    assert told["outcomes"] == ["DiskFailed", "DiskFailed", "success", "success"]
    assert told["bodies"] == ["one", "three", "two"]
    assert told["wrong"] == []


# The command line


def put(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "diskq", "-s", path, "put", "mail", "hello"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def test_a_put_on_a_full_store_exits_75_with_one_line(tmp_path):
    with diskq.open(tmp_path / "s", max_bytes=4 * MIB) as store, suppress(diskq.Full):
        while True:
            store.topic("mail").put(bytes(1000))
    done = put(tmp_path / "s")
    assert done.returncode == 75
    assert done.stderr.count("\n") == 1
    assert "full" in done.stderr


@pytest.mark.parametrize(("number", "code", "word"), [
    (errno.EIO, 74, "check the disk"), (errno.ENOSPC, 75, "full"),
])  # fmt: skip
def test_a_put_on_a_failing_disk_exits_with_one_line(tmp_path, failing, number, code, word):
    with diskq.open(tmp_path / "s") as store:
        store.topic("mail")
    done = put(tmp_path / "s", FAILING=f"0 1000 {number} 0", **failing)
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert word in done.stderr
    with diskq.open(tmp_path / "s") as store:
        assert list(store.verify()) == []
        assert list(store.topic("mail").read()) == []


# Creating

CREATE = """
import json, os, subprocess, sys, diskq
disk, page = sys.argv[1], 4096
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], check=True)
filler = os.path.join(disk, "filler")
for left in 0, 1, 4, 8, 12, 16, 18, 19, 20, 21, 24, 32, 48, 64, 100:
    room = os.statvfs(disk)
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - left * page)
    try:
        diskq.open(os.path.join(disk, "store")).close()
        outcome = "success"
    except diskq.DiskqError as error:
        outcome = type(error).__name__
    print(json.dumps([left, outcome, sorted(os.listdir(disk))]), flush=True)
    os.unlink(filler)
    if os.path.exists(os.path.join(disk, "store")):
        subprocess.run(["rm", "-r", os.path.join(disk, "store")], check=True)
"""


def test_a_store_for_which_the_disk_has_no_room_is_not_created_and_nothing_is_left(
    tmp_path, mounted
):
    """However many pages are free: whatever is mapped has its blocks before, or SIGBUS ends it."""
    done = subprocess.run(
        [*mounted, sys.executable, "-c", CREATE, tmp_path],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr[-3000:])
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told[0] == [0, "Full", ["filler"]]
    assert {outcome for _, outcome, _ in told} <= {"Full", "success"}
    assert {tuple(names) for _, _, names in told} <= {("filler",), ("filler", "store")}
