"""The end of a harness that writes ledgers: run it with another Python, and say what was wrong."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_ANOTHER = "DISKQ_HARNESS_PYTHON"  # set in the process that runs with the Python that was asked for


def run_with(python: str | None) -> None:
    """Begin again with this interpreter, once."""
    if python and not os.environ.get(_ANOTHER):
        os.environ[_ANOTHER] = python
        os.execv(python, [python, *sys.orig_argv[1:]])


def say(problems: Sequence[str], folder: Path, figures: str, shown: int) -> int:
    """Print up to `shown` problems of each kind (the text before the first colon), the figures and
    the count. Returns the exit code; the ledgers in `folder` stay if something is wrong."""
    kinds = Counter(each.split(":")[0] for each in problems)
    for kind, count in kinds.items():
        print(*[each for each in problems if each.split(":")[0] == kind][:shown], sep="\n")
        if count > shown:
            print(f"{kind}: {count - shown} more")
    wrong = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "nothing"
    print(f"Python {sys.version.split()[0]}, {figures}; wrong {len(problems)} ({wrong})")
    if problems:
        print(f"the ledgers are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0
