"""Processes that tests start: they use this checkout, and find the helpers and the tools."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join(str(ROOT / name) for name in ("", "tests", "tools"))


def child_environment(**more):
    """The environment for a Python process that imports diskq, `support` and the tools."""
    return {**os.environ, "PYTHONPATH": PATH, **more}


def run_python(code, *arguments, **options):
    """Run code in another interpreter; returns the finished process."""
    return _run("-c", code, *arguments, **options)


def run_module(name, *arguments, **options):
    """Run a module in another interpreter; returns the finished process."""
    return _run("-m", name, *arguments, **options)


def run_tool(name, *arguments, timeout=500, **environment):
    """Run a tool of this checkout; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", name, *map(str, arguments)],
        env=child_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def _run(*arguments, check=True, timeout=60):
    return subprocess.run(
        [sys.executable, "-W", "error", *map(str, arguments)],
        cwd=ROOT,
        env=child_environment(),
        capture_output=True,
        text=True,
        check=check,
        timeout=timeout,
    )
