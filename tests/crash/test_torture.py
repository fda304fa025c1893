"""T2 and T11: whatever is killed or stopped, nothing is lost and what comes twice has its reason.

A short run of what `dev.py torture` does for hours; it explains how. Negative controls: runs with
a planted fault, and in test_torture_rules.py a ledger by hand for each rule.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from support import programs
from torture import ledger
from torture.long import MIB, LongRun, Sample
from torture.plants import PLANTS

run_tool = partial(programs.run_tool, "torture")
pytestmark = pytest.mark.timeout(600)
SECONDS = 30
TRIES = 5  # runs until a planted fault must have shown itself
FOUND_AS = {  # the rule that each planted fault breaks
    "ack-without-token": "old token",
    "lost-ack": "acked, again",
    "lost-row": "lost",
    "lost-put": "lost",
    "double-delivery": "unexplained",
}


def figure(what, output):
    """A number of a report."""
    return int(re.search(rf"\b{what} (\d+)", output)[1])


def run_all(runs):
    """Run several at once: arguments by name; returns the finished tools by name."""
    with ThreadPoolExecutor(len(runs)) as pool:
        finished = pool.map(lambda arguments: run_tool(*arguments), runs.values())
        return dict(zip(runs, finished, strict=True))


# Runs -------------------------------------------------------------------------------------------


def test_nothing_is_lost_whatever_is_killed_or_stopped(tmp_path):
    tool = run_tool("--seconds", SECONDS, "--seed", 7, "--keep", tmp_path)
    assert tool.returncode == 0, tool.stdout + tool.stderr
    assert figure("kills", tool.stdout) >= 1
    assert figure("deliveries", tool.stdout) >= 1
    assert figure("lost", tool.stdout) == 0


def test_a_false_line_is_found_in_the_ledgers_of_a_run(tmp_path):
    """Negative control: a message comes once more after its ack."""
    tool = run_tool("--seconds", 2, "--seed", 7, "--backlog", 300, "--keep", tmp_path)
    again = run_tool("check", tmp_path)
    assert (tool.returncode, again.returncode) == (0, 0), tool.stdout
    offset, token = _acked(tmp_path)
    row = [offset, token + 1, 2**62, None, None, "", token + 1]
    line = {"at": 2**61, "got": [row], "begun": 2**61, "s": 1}
    (tmp_path / "false.plain").write_text(json.dumps(line) + "\n")
    tool = run_tool("check", tmp_path)
    assert tool.returncode == 1
    assert f"message {offset}, token {token}: given out again after its ack" in tool.stdout
    assert "false.plain:1" in tool.stdout


def _acked(folder):
    """Offset and token of a message whose ack succeeded."""
    tried = {}
    for entry in ledger.read(folder, "plain"):
        if entry.get("do") == "ack":
            tried[entry["who"], entry["n"]] = entry["set"][0]
        elif (entry["who"], entry.get("ok")) in tried:
            return tried[entry["who"], entry["ok"]][1:]
    raise AssertionError("nothing was acked")


def test_a_seed_gives_the_same_kills(tmp_path):
    options = ("--seconds", 2, "--seed", 3, "--kills-per-second", 5, "--backlog", 100, "--no-stops")
    folders = [tmp_path / name for name in "ab"]
    run_all({folder: (*options, "--keep", folder) for folder in folders})
    first, second = (
        [entry["kill"] for entry in ledger.read(folder, "kills")] for folder in folders
    )
    both = min(len(first), len(second))
    assert both
    assert first[:both] == second[:both]


def test_every_planted_fault_is_found():
    """Negative control: of each, some run is rejected, and by the rule that it breaks."""
    missing = dict(FOUND_AS)
    output = ""
    for seed in range(TRIES):
        runs = {
            plant: (
                *("--plant", plant, "--seed", seed, "--groups", "plain", "--seconds", 4),
                *("--consumers", 5, "--lease-seconds", 0.1, "--backlog", 300),
            )
            for plant in missing
        }
        for plant, tool in run_all(runs).items():
            output += tool.stdout + tool.stderr
            if tool.returncode == 1 and f"\n{missing[plant]}: " in tool.stdout:
                del missing[plant]
            for folder in re.findall(r"ledgers are in (\S+)", tool.stdout):
                shutil.rmtree(folder)
        if not missing:
            return
    raise AssertionError(f"{missing} was not found:\n{output}")


def test_every_plant_is_tried():
    assert FOUND_AS.keys() == PLANTS.keys()


# Usage -----------------------------------------------------------------------------------------


def test_a_folder_that_is_in_use_is_refused(tmp_path):
    (tmp_path / "file").touch()
    tool = run_tool("--seconds", 1, "--keep", tmp_path)
    assert tool.returncode == 2
    assert "is not empty" in tool.stderr


def test_the_help_says_what_it_is_for():
    tool = run_tool("--help")
    assert tool.returncode == 0
    assert "prove that nothing was lost" in tool.stdout


# The long run -----------------------------------------------------------------------------------


def test_a_bounded_queue_stays_small_in_the_long_run():
    tool = run_tool("long", "--messages", 30_000, "--max-messages", 1_000)
    assert tool.returncode == 0, tool.stdout + tool.stderr
    assert "ok" in tool.stdout


def long_run(tmp_path, sizes, memory, stale=0):
    """A run of 100 messages that was seen like this."""
    options = argparse.Namespace(messages=100, seed=1)
    run = LongRun(options, tmp_path)
    run.pids = {"producer": 1}
    seen = zip(range(10, 101, 10), sizes, memory, strict=True)
    run.samples = [Sample(acked, size, {"producer": own}) for acked, size, own in seen]
    run.stale = stale
    return run


@pytest.mark.parametrize(
    ("sizes", "memory", "stale", "problem"),
    [
        ([8 * MIB] * 10, [20 * MIB] * 10, 0, ""),
        ([8 * MIB] * 9 + [13 * MIB], [20 * MIB] * 10, 0, "the file grew"),
        ([8 * MIB] * 10, [20 * MIB] * 4 + [30 * MIB] * 6, 0, "memory of producer grew"),
        ([8 * MIB] * 10, [20 * MIB] * 10, 2, "2 dead readers"),
    ],
)
def test_what_grows_in_the_long_run_is_told(tmp_path, sizes, memory, stale, problem):
    found = long_run(tmp_path, sizes, memory, stale).judge()
    assert bool(found) == bool(problem)
    assert all(problem in each for each in found)
