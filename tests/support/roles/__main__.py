"""Play one role, with options in JSON."""

from __future__ import annotations

import json
import sys
from importlib import import_module

if __name__ == "__main__":
    module, _, role = sys.argv[1].rpartition(".")
    play = getattr(import_module(f"support.roles.{module or 'deliveries'}"), role)
    play(**json.loads(sys.argv[2]))
