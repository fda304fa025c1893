"""A place that other users can reach."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def public():
    """A directory that every user may enter; pytest's own are private."""
    path = Path(tempfile.mkdtemp(prefix="diskq-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
