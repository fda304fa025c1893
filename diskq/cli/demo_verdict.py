"""The verdict of the demo: whether every promise that it makes was kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import diskq

from . import demo_view


class Outcome(NamedTuple):
    """Everything that the verdict depends on."""

    expected: Mapping[str, str]  # the digest of each file, computed here
    digests: Mapping[str, set[str]]  # those that the consumers computed
    put: int
    group: diskq.GroupStats
    findings: Sequence[diskq.Finding]
    redelivery_seconds: float | None
    redriven: int


def judge(outcome: Outcome) -> list[str]:
    """The broken promises in words; empty if all were kept."""
    wrong = [
        f"{path}: digest {digests or 'missing'}, should be {digest}"
        for path, digest in outcome.expected.items()
        if (digests := outcome.digests.get(path, set())) != {digest}
    ]
    wrong += [f"{path}: no producer put this" for path in outcome.digests.keys() - outcome.expected]
    wrong += [f"verify: {where}: {problem}" for where, problem in outcome.findings]
    if outcome.put != len(outcome.expected):
        wrong.append(f"{outcome.put} messages for {len(outcome.expected)} files")
    if outcome.group.acked != outcome.put or demo_view.lost(outcome.put, outcome.group):
        wrong.append(demo_view.balance(outcome.put, outcome.group))
    if outcome.redelivery_seconds is None:
        wrong.append("the message of the killed consumer was not delivered again")
    if outcome.redriven != 1:
        wrong.append(f"{outcome.redriven} dead letters were redriven, not 1")
    return wrong


def comes_back(
    lease: diskq.PendingMessage, pending: Iterable[diskq.PendingMessage], failures: int
) -> bool:
    """Whether the message of a killed consumer is delivered again, rather than acked.

    A process that is killed inside a commit may have completed it on the disk, though readers see
    it only after the next commit. So `pending`, the leases, and `failures`, which count since
    before the kill, are read in this order after such a commit. Either the lease is still there, or
    another consumer took it back and charged the failure, or the message is acked.
    """
    return any(found.token == lease.token for found in pending) or failures > 0
