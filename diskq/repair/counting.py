"""Findings of counters that differ, and of rows that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator

from ..base.errors import Corrupt
from ..base.model import Finding
from ..format.decoding import WRONG


def guarded(where: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """A row that cannot be read is a finding too."""
    try:
        yield from findings
    except (Corrupt, *WRONG) as error:
        yield Finding(where, str(error))


def compare(where: str, **counts: tuple[int, int]) -> Iterator[Finding]:
    for what, (counted, found) in counts.items():
        if counted != found:
            yield Finding(where, f"{what} counted {counted}, found {found}")
