"""Crash states of a recorded workload: where the power goes, what survives, and what had been
acknowledged. Part of the power cuts.
"""

from __future__ import annotations

import bisect
import copy
import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .disk import KINDS, MAPPED, Disk, Found, choice
from .trace import TOLD, Event
from .view import last_txn

UNDONE = {"commit": 0, "relaxed": 1, "process": 2**32}  # commits that a cut may undo
WHOLE_IMAGES = 20  # of a process store: enough to see that they are not refused
AFTER_THE_CUT = 9  # which boot it is


class Recording(NamedTuple):
    """One run of the workload."""

    root: str
    events: list[Event]
    views: list[str]  # what users saw, after each commit
    files: dict[str, bytes]  # by path below the root, as they were at the end


class Facts:
    """What was acknowledged before a cut."""

    def __init__(self) -> None:
        self.state = -1  # the last commit that returned
        self.txn = 0
        self.token = 0
        self.dedup: dict[str, tuple[int, int]] = {}  # offset, and the state that has it
        self.backups: dict[str, int] = {}  # those that returned: the state they hold
        self.begun: list[str] = []  # backups
        self.doing = "creation"
        self.boot = 1

    def receipts(self, undone: int) -> dict[str, int]:
        """The offsets of deduplicated puts, if the last commits may be undone."""
        known = self.dedup.items()
        return {name: offset for name, (offset, at) in known if at <= self.state - undone}

    def copy(self) -> Facts:
        return copy.deepcopy(self)

    def hear(self, line: bytes) -> None:
        """Take note of a line of the ledger."""
        told = json.loads(line)
        self.state, self.txn = told.get("state", self.state), told.get("txn", self.txn)
        self.token = max(self.token, told.get("token", 0))
        self.doing, self.boot = told.get("doing", self.doing), told.get("boot", self.boot)
        if "dedup" in told:
            self.dedup.setdefault(told["dedup"], (told["offset"], self.state))
        if "backing_up" in told:
            self.begun.append(told["backing_up"])
        if "backed_up" in told:
            self.backups[told["backed_up"]] = self.state


class Cut(NamedTuple):
    """Before which event the power goes, and what survives. KIND "whole": all, at a commit."""

    at: int
    kind: str
    seed: int


class Job(NamedTuple):
    """One state to be checked."""

    cut: Cut
    facts: Facts
    txn: int  # the last one in its data.mdb
    folder: Path
    request: dict[str, Any]


def plan(recording: Recording, states: int, seed: int, control: str) -> list[Cut]:
    """Where to cut, and what survives. An eighth falls into creation and backups; most are where
    something is not flushed."""
    rng = random.Random(seed)
    told = [(at, json.loads(e.data)) for at, e in enumerate(recording.events) if e.kind == TOLD]
    created = next(at for at, what in told if "state" in what) + 4
    delicate = list(range(1, created))
    begun = 0
    for at, what in told:
        begun = at if "backing_up" in what else begun
        if "backed_up" in what:
            delicate += range(begun, at + 4)
    disk, open_to_loss = Disk(recording.root), []
    for at, event in enumerate(recording.events, 1):
        disk.replay(event)
        if disk.open_to_loss():
            open_to_loss.append(at)
    cuts = []
    for number in range(states):
        if control == "creation" or number % 8 == 0:
            at = rng.choice(delicate)
        elif number % 8 == 1:
            at = rng.randint(1, len(recording.events))
        else:
            at = rng.choice(open_to_loss)
        cuts.append(Cut(at, KINDS[number // 8 % len(KINDS)], rng.randrange(2**32)))
    return sorted(cuts)


class Replay:
    """Goes through a recording once, and makes the states of a plan on its way."""

    def __init__(
        self,
        recording: Recording,
        cuts: Sequence[Cut],
        durability: str,
        reboots: bool,
        scratch: Path,
    ) -> None:
        self.recording = recording
        self.cuts = cuts
        self.durability = durability
        self.reboots = reboots
        self.scratch = scratch
        self.checksums: set[int] = set()
        self.disk = Disk(recording.root)
        self.facts = Facts()

    def jobs(self) -> Iterator[Job]:
        """The states, and the whole images that they are compared with."""
        cuts = iter(self.cuts)
        cut = next(cuts, None)
        wanted = self._wanted()
        for at, event in enumerate([*self.recording.events, None]):
            while cut is not None and cut.at == at:
                yield self.job(cut)
                cut = next(cuts, None)
            if event is None:
                break
            self.disk.replay(event)
            if event.kind == TOLD:
                before = self.facts.state
                self.facts.hear(event.data)
                if self.facts.state != before and self.facts.state in wanted:
                    yield self.job(Cut(at + 1, "whole", 0))
        for path, data in self.recording.files.items():
            replayed = self.disk.file(os.path.join(self.recording.root, path)).cache
            if os.path.basename(path) not in MAPPED and replayed != data:
                raise RuntimeError(f"replayed, {path} is not the real one: strace missed a call")

    def _wanted(self) -> set[int]:
        """The states whose whole images are looked at: those that cuts are compared with."""
        if self.durability == "process":
            states = len(self.recording.views)
            return set(range(0, states, max(states // min(len(self.cuts), WHOLE_IMAGES), 1)))
        told = [
            at
            for at, event in enumerate(self.recording.events)
            if event.kind == TOLD and b'"state"' in event.data
        ]
        found: set[int] = set()
        for cut in self.cuts:
            state = bisect.bisect_left(told, cut.at) - 1
            found.update(range(state - UNDONE[self.durability], state + 2))
        return found

    def found(self, cut: Cut) -> Found:
        """What is on the disk in this state."""
        rng = random.Random(cut.seed)
        stale = cut.kind != "whole" and rng.random() < 0.5

        def mapped(path: str, size: int) -> bytes:
            data = self.recording.files.get(path, b"") if stale else b""
            return data[:size].ljust(size, b"\0")

        kind = "all" if cut.kind == "whole" else cut.kind
        return self.disk.found(choice(kind, cut.seed, self.disk.pending()), mapped)

    def job(self, cut: Cut) -> Job:
        found = self.found(cut)
        if cut.kind != "whole":
            self.checksums.add(found.checksum())
        folder = self.scratch / f"{cut.at}-{cut.kind.replace(' ', '-')}-{cut.seed}"
        found.write(folder)
        facts = self.facts.copy()
        request = {
            "root": str(folder),
            "boot": AFTER_THE_CUT if self.reboots else facts.boot,
            "rebooted": self.reboots,
            "durability": self.durability,
            "fork": cut.seed % 20 != 0,
            "token": facts.token,
            "dedup": facts.receipts(UNDONE[self.durability]),
            "backups": facts.begun if cut.kind != "whole" else [],
        }
        txn = last_txn(found.files.get(os.path.join("store", "data.mdb"), b""))
        return Job(cut, facts, txn, folder, request)
