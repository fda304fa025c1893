"""G15: a call that is interrupted, wherever it is, happened once or not at all, and nobody hangs.

A sample of what `dev.py torture every_line --all` tries; it explains how. Negative controls: faults
planted around `Topic.put`.
"""

from __future__ import annotations

import re
from functools import partial

import pytest
from support import programs

run_tool = partial(programs.run_tool, "torture", "every_line")
pytestmark = pytest.mark.timeout(600)
FOUND_AS = {  # what is said of each planted fault
    "twice": "stored more than once",
    "swallow": "is swallowed",
    "foreign": "raises RuntimeError",
    "hang": "hangs before it is used",
    "block": "others are blocked",
    "leave": "closed consumers look alive",
}


def interruptions(tool):
    """How many it tried."""
    return int(re.search(r"(\d+) interruptions", tool.stdout)[1])


@pytest.mark.parametrize("kind", ["ctrl-c", "limit", "async", "opcode", "opcode-limit"])
def test_an_interrupted_verb_happened_once_or_not_at_all(kind):
    tool = run_tool("--kind", kind, "--sample", 2, "--jobs", 1)
    assert tool.returncode == 0, tool.stdout + tool.stderr
    assert interruptions(tool) >= 70


def test_an_interrupted_thread_harms_no_other():
    verbs = "put,put_many,get,ack,iteration,transaction,close of a consumer"
    kinds = "limit,async,opcode"
    tool = run_tool("--threads", 8, "--scenario", verbs, "--kind", kinds, "--sample", 2)
    assert tool.returncode == 0, tool.stdout + tool.stderr
    assert interruptions(tool) >= 40


@pytest.mark.parametrize("plant", FOUND_AS)
def test_a_planted_fault_is_found(plant):
    options = "--scenario", "put", "--kind", "ctrl-c", "--sample", 4, "--deadline", 3
    tool = run_tool(*options, "--plant", plant)
    assert tool.returncode == 1
    assert FOUND_AS[plant] in tool.stdout, tool.stdout


def test_help_says_what_must_hold():
    tool = run_tool("--help")
    assert tool.returncode == 0
    assert "happened once or not at all" in tool.stdout
