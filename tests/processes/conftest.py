"""Workers, none left behind."""

from __future__ import annotations

import pytest
from support.workers import worker_starter

start = pytest.fixture(worker_starter, name="start")
