"""Workers, none left behind."""

from __future__ import annotations

import pytest

from .support import worker_starter

start = pytest.fixture(worker_starter, name="start")
