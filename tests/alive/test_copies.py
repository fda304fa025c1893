"""G15: nothing that a program does to its own store's files with ordinary reads undoes a promise.

A short run of `dev.py torture copies --seconds 300`; it explains how. Negative controls: a put
that is noted and never made, and one that is made twice.
"""

from __future__ import annotations

import re
from functools import partial

import pytest
from support import programs

run_tool = partial(programs.run_tool, "torture", "copies")
pytestmark = pytest.mark.timeout(200)
FOUND_AS = {"lost": "lost", "twice": "doubled"}


def test_copies_of_the_own_store_lose_nothing(tmp_path):
    tool = run_tool("--seconds", 10, "--folder", tmp_path)
    assert tool.returncode == 0, tool.stdout + tool.stderr
    for what in "acknowledged", "copied", "touched", "verified", "opened":
        assert int(re.search(rf"{what} (\d+)", tool.stdout)[1]) >= 3


@pytest.mark.parametrize("plant", FOUND_AS)
def test_a_planted_fault_is_found_beside_copies(plant, tmp_path):
    tool = run_tool("--seconds", 3, "--plant", plant, "--folder", tmp_path)
    assert tool.returncode == 1
    assert re.search(rf"wrong .*\d {FOUND_AS[plant]}", tool.stdout), tool.stdout + tool.stderr
