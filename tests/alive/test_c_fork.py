"""A fork that Python does not see (uWSGI, a library in C) costs nobody a lock, a lease or a reader.

A short run of `dev.py torture c_fork`; it explains how. Negative control: nobody is killed.
"""

from __future__ import annotations

from functools import partial

import pytest
from support import programs

run_tool = partial(programs.run_tool, "torture", "c_fork")
pytestmark = pytest.mark.timeout(200)


def test_a_child_forked_in_c_uses_the_store_and_holds_up_nobody(tmp_path):
    tool = run_tool("--rounds", 4, "--bound", 5, "--folder", tmp_path)
    assert tool.returncode == 0, tool.stdout + tool.stderr
    assert "killed inside of a commit 4" in tool.stdout


def test_a_process_that_was_not_killed_is_found(tmp_path):
    tool = run_tool("--rounds", 1, "--plant", "--away", 2, "--folder", tmp_path)
    assert tool.returncode == 1
    assert "blocked: a put did not return" in tool.stdout
    assert "away: 3 leased messages" in tool.stdout
