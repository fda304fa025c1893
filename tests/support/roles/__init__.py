"""What processes do that tests start, one function a role: `python -m support.roles ROLE OPTIONS`.

A role is named by its module and its function, "lives.feed"; one of deliveries.py by its function
alone. Nothing here imports what pytest needs, so that a process starts in a moment.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def tell(what: str, **more: Any) -> None:
    """Tell the test something."""
    print(json.dumps({"what": what, **more}), flush=True)


def told() -> str:
    """Wait for a word of the test."""
    return sys.stdin.readline().strip()
