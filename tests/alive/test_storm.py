"""G15: whatever is raised in a process, what returned happened once and nobody hangs.

A short run of `dev.py torture storm --seconds 600`; it explains how. Negative controls: faults
planted around `Topic.put`.
"""

from __future__ import annotations

import re
from functools import partial

import pytest
from support import programs

run_tool = partial(programs.run_tool, "torture", "storm")
pytestmark = pytest.mark.timeout(300)
FOUND_AS = {"twice": "doubled: ", "swallow": "lost: ", "foreign": "foreign: "}


def test_a_process_in_a_storm_does_everything_once(tmp_path):
    tool = run_tool("--seconds", 6, "--life", 1, "--folder", tmp_path)
    assert tool.returncode == 0, tool.stdout + tool.stderr
    assert int(re.search(r"returned (\d+)", tool.stdout)[1]) > 100
    assert int(re.search(r"(\d+) signals", tool.stdout)[1]) > 10
    assert int(re.search(r"(\d+) async", tool.stdout)[1]) > 10
    assert int(re.search(r"victims (\d+)", tool.stdout)[1]) > 1


@pytest.mark.parametrize("plant", FOUND_AS)
def test_a_planted_fault_is_found_in_a_storm(plant, tmp_path):
    tool = run_tool("--seconds", 3, "--patience", 5, "--plant", plant, "--folder", tmp_path)
    assert tool.returncode == 1
    assert FOUND_AS[plant] in tool.stdout, tool.stdout + tool.stderr
