"""What was put, by all ledgers of the torture, and the rules for that.

Each id names one message that was tried to be put. One that was not refused is there at most once,
one whose put returned exactly once, unless it was told to be a duplicate, or cancelled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from .ledger import Entry


class Violation(NamedTuple):
    """A rule that was broken: how, and the lines of ledgers that show it."""

    rule: str
    text: str
    refs: tuple[str, ...] = ()


class Put:
    """One message, and what came of putting it."""

    __slots__ = ("begun", "cancelled", "dedup", "delay", "duplicate", "ended", "name", "offset",
                 "outcome", "ref", "schedule", "topic", "ttl")  # fmt: skip

    def __init__(self, entry: Entry, message: list[Any]) -> None:
        self.topic: str
        self.name: str
        self.topic, self.name, _, _, self.ttl, self.delay, self.dedup = message
        self.begun: int = entry["at"]
        self.ref: str = entry["ref"]
        self.outcome, self.ended = "unknown", 0
        self.offset: int | None = None
        self.schedule: str | None = None
        self.duplicate = False
        self.cancelled = ""


class Puts:
    """All puts, and where their messages were seen."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.count = 0
        self.by_id: dict[str, Put] = {}
        self.died: list[Violation] = []
        self.where: dict[str, int] = {}  # offset by id
        self.places: dict[str, dict[int, str]] = defaultdict(dict)  # id by topic and offset
        self._dedups: dict[str, list[Put]] = defaultdict(list)
        self._commits: list[list[Put]] = []  # of several messages
        running: dict[str, tuple[int, list[Put]]] = {}  # by ledger
        for entry in entries:
            who = entry["ref"].partition(":")[0]
            if "died" in entry:
                self.died.append(Violation("died", entry["died"], (entry["ref"],)))
            elif entry.get("do") == "cancel":
                self.by_id[entry["id"]].cancelled = "unknown"
                running[who] = entry["n"], [self.by_id[entry["id"]]]
            elif "msgs" in entry and "do" in entry:
                running[who] = entry["n"], self._begin(entry)
            elif who in running and running[who][0] in (entry.get("ok"), entry.get("no")):
                self._end(entry, running.pop(who)[1])

    def _begin(self, entry: Entry) -> list[Put]:
        puts = [Put(entry, message) for message in entry["msgs"]]
        for put in puts:
            known = self.by_id.get(put.name)
            if known is None or known.outcome == "no":
                self.by_id[put.name] = put
            if put.dedup:
                self._dedups[put.dedup].append(put)
        if len(puts) > 1:
            self._commits.append(puts)
        return puts

    def _end(self, entry: Entry, puts: list[Put]) -> None:
        outcome = "ok" if "ok" in entry else "no"
        if "msgs" not in entry and puts and puts[0].cancelled:
            puts[0].cancelled = outcome
            return
        found = entry.get("msgs") or [(None, False, None)] * len(puts)
        for put, (offset, duplicate, schedule) in zip(puts, found, strict=True):
            put.outcome, put.ended = outcome, entry["at"]
            put.offset, put.duplicate, put.schedule = offset, duplicate, schedule
            self.count += outcome == "ok"
            if outcome == "ok":
                self.by_id[put.name] = put

    def place(self, topic: str, offset: int, name: str) -> str:
        """Note that a message was seen at an offset; returns what is wrong with that, if
        anything."""
        put = self.by_id.get(name)
        if put is None:
            return f"message {offset} is {name}, which nobody put"
        if put.topic != topic:
            return f"message {offset} is {name}, which was put in {put.topic}"
        before, there = self.where.setdefault(name, offset), self.places[topic]
        if before != offset:
            return f"{name} is there twice, at {before} and {offset}"
        if there.setdefault(offset, name) != name:
            return f"message {offset} is {name}, and was {there[offset]}"
        if put.outcome == "ok" and not put.duplicate and put.offset not in (None, offset):
            return f"{name} is at {offset}, its receipt says {put.offset}"
        return ""

    def violations(self, seen: set[str]) -> Iterator[Violation]:
        """What is wrong, once all deliveries were noted; `seen`: topics of which all messages
        were."""
        for put in self.by_id.values():
            there = put.name in self.where
            if put.outcome == "no" and there:
                yield Violation("refused put", f"{put.name} was refused, and is there", (put.ref,))
            if put.cancelled == "ok" and there:
                yield Violation("cancelled", f"{put.name} was cancelled, and came", (put.ref,))
            if put.outcome != "ok" or put.duplicate or put.topic not in seen or there:
                continue
            if not put.cancelled or put.cancelled == "no":
                yield Violation("lost", f"{put.name} was put, and never seen", (put.ref,))
        for puts in self._commits:
            yield from self._check_commit(puts, seen)
        for dedup, puts in self._dedups.items():
            yield from self._check_dedup(dedup, puts)

    def _check_commit(self, puts: list[Put], seen: set[str]) -> Iterator[Violation]:
        """Puts of one commit: all or none."""
        if puts[0].outcome == "unknown":
            mine = [put for put in puts if not put.dedup and put.topic in seen]
            there = [put.name for put in mine if put.name in self.where]
            if 0 < len(there) < len(mine):
                text = f"{len(there)} of {len(mine)} puts of one commit are there"
                yield Violation("torn", text, (puts[0].ref,))

    def _check_dedup(self, dedup: str, puts: list[Put]) -> Iterator[Violation]:
        """One message is stored for each id, and all receipts tell of it."""
        refs = tuple(put.ref for put in puts)
        stored = {put.name for put in puts if put.name in self.where}
        if len(stored) > 1:
            yield Violation("dedup", f"id {dedup} stored {sorted(stored)}", refs)
        ok = [put for put in puts if put.outcome == "ok"]
        if sum(not put.duplicate for put in ok) > 1:
            yield Violation("dedup", f"id {dedup} was new more than once", refs)
        if len({(put.offset, put.schedule) for put in ok}) > 1:
            yield Violation("dedup", f"id {dedup} has several receipts", refs)
        unknown = any(put.outcome == "unknown" for put in puts)
        if ok and all(put.duplicate for put in ok) and not unknown:
            yield Violation("dedup", f"id {dedup} was always a duplicate", refs)
        if ok and not stored and not any(put.cancelled for put in puts):
            yield Violation("lost", f"id {dedup} was put, and is not there", refs)
