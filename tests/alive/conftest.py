"""Processes that run given code; a place for other users."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.programs import ROOT

PYTHON = [sys.executable, "-W", "error::ResourceWarning"]


@pytest.fixture
def child():
    """Starts Python code in a process that tells lines, and is told lines; none is left behind."""
    started = []

    def start(code, *arguments, prefix=()):
        started.append(
            subprocess.Popen(
                [*prefix, *PYTHON, "-c", code, *map(str, arguments)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def public():
    """A directory that every user may enter; pytest's own are private."""
    path = Path(tempfile.mkdtemp(prefix="diskq-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
