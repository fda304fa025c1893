"""The attempts of a thread and their outcomes, written so that no interrupt can tear a line."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Ledger:
    """One file of one thread: a line is a single write, so it is there as a whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._numbers = itertools.count(1)

    def write(self, **entry: Any) -> None:
        """One line, with the time."""
        line = json.dumps({"at": time.monotonic_ns(), **entry}) + "\n"
        os.write(self._file, line.encode())

    def attempt(self, *, ack: Sequence[str] = (), put: Sequence[str] = (), **more: Any) -> int:
        """Something is about to be tried; returns its number."""
        number = next(self._numbers)
        self.write(n=number, ack=list(ack), put=list(put), **more)
        return number

    def ok(self, number: int) -> None:
        """The attempt returned."""
        self.write(ok=number)

    def no(self, number: int, error: BaseException) -> None:
        """It raised."""
        self.write(no=number, error=type(error).__name__, text=str(error)[:200])


def read(path: Path) -> Iterator[Entry]:
    """The entries of a ledger; a kill may have cut off the last one."""
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield json.loads(line)
