"""The rules: what the ledgers say must be what the store has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import diskq

from .ledger import Entry, read
from .victim import GROUP, OUT, WORK

CLOSED = "Closed", "LeaseLost", "WrongProcess"  # of what a handler closed meanwhile


class Facts(NamedTuple):
    """The contents of the store at the end."""

    stored: Counter[str]
    drained: Counter[str]
    findings: list[str]


class Attempt(NamedTuple):
    """A call that puts, acks, or both."""

    where: str
    ack: list[str]
    put: list[str]
    outcome: str  # "ok", the name of an error of diskq, or "" if it was interrupted
    at: int  # when it returned


def drain(path: Path) -> Facts:
    """Take and ack what is left, and verify; in a fresh process."""
    with diskq.open(path, create=False) as store:
        stored: Counter[str] = Counter()
        for name in (WORK, OUT):
            stored.update(each.body.decode() for each in store.topic(name).read())
        drained: Counter[str] = Counter()
        with store.topic(WORK).group(GROUP).consumer() as consumer:
            while messages := consumer.get_many(1000, timeout=0):
                drained.update(each.body.decode() for each in messages)
                consumer.ack_many(messages)
        findings = [f"{each.where}: {each.problem}" for each in store.verify()]
        return Facts(stored, drained, findings)


class Judge:
    """Knows all ledgers of a run."""

    def __init__(self, folder: Path, facts: Facts) -> None:
        self.facts = facts
        self.attempts: list[Attempt] = []
        self.got: dict[str, list[int]] = {}  # by body, when the gets of it began
        self.problems: list[str] = []
        self.longest = 0.0
        self.counts: Counter[str] = Counter()
        for path in sorted(folder.glob("*.ledger")):
            self._read(path)

    def _read(self, path: Path) -> None:
        name = path.name.removesuffix(".ledger")
        open_: dict[int, Entry] = {}
        for entry in read(path):
            if "n" in entry:
                open_[entry["n"]] = entry
            elif "ok" in entry or "no" in entry:
                began = open_.pop(entry.get("ok") or entry["no"])
                outcome = "ok" if "ok" in entry else entry["error"]
                self._add(name, began, outcome, entry["at"])
                self._check_error(name, began, entry)
            elif "got" in entry:
                for body in entry["got"]:
                    self.got.setdefault(body, []).append(entry["begun"])
                self._check_error(name, {}, entry)
            elif "unraisable" in entry:
                self._check_unraisable(entry)
            elif "died" in entry:
                self.problems.append(f"{name}: {entry['died']}")
            self.counts.update(entry.get("counts", {}))
            self.longest = max(self.longest, entry.get("longest", 0.0))
        for began in open_.values():
            self._add(name, began, "", 0)

    def _add(self, name: str, began: Entry, outcome: str, at: int) -> None:
        self.attempts.append(Attempt(name, began["ack"], began["put"], outcome, at))

    def _check_error(self, name: str, began: Entry, entry: Entry) -> None:
        """Errors that a call may raise: that others write, as it may not wait; and where a handler
        closes what is in use."""
        error = entry.get("error")
        if error in (None, "Busy") or (began.get("where") and error in (*CLOSED, "Reentered")):
            return
        if not (error in CLOSED and name.endswith(".0")):
            self.problems.append(f"foreign: {name} got {error}: {entry['text'][:120]}")

    def _check_unraisable(self, entry: Entry) -> None:
        error = entry["unraisable"]
        thrown = error in ("KeyboardInterrupt", "TimeLimit") or error.startswith("Limit")
        if not thrown and error not in (*CLOSED, "Reentered"):
            self.problems.append(f"in a finalizer: {error}: {entry['text'][:120]}")

    def judge(self) -> list[str]:
        """All that is wrong."""
        self.problems += [f"verify: {finding}" for finding in self.facts.findings[:5]]
        for rule in (self._puts, self._acks, self._whole, self._lost):
            self.problems += rule()
        return self.problems

    def _puts(self) -> Iterator[str]:
        known = set()
        for attempt in self.attempts:
            known.update(attempt.put)
            for body in attempt.put:
                count = self.facts.stored[body]
                if attempt.outcome == "ok" and count == 0:
                    yield f"lost: the put of {body} returned"
                elif count > 1:
                    yield f"doubled: {body} is stored {count} times ({attempt.outcome or 'raised'})"
                elif attempt.outcome not in ("ok", "") and count:
                    yield f"refused and there: {body}, {attempt.outcome}"
        yield from (f"unexpected: {body}" for body in self.facts.stored.keys() - known)

    def _acks(self) -> Iterator[str]:
        acked: dict[str, Attempt] = {}
        for attempt in self.attempts:
            if attempt.outcome == "ok":
                for body in attempt.ack:
                    if body in acked:
                        yield f"acked twice: {body}, by {acked[body].where} and {attempt.where}"
                    acked[body] = attempt
        for body, attempt in acked.items():
            if body in self.facts.drained:
                yield f"lost ack: {body} was there at the end"
            if any(begun > attempt.at for begun in self.got.get(body, ())):
                yield f"lost ack: {body} came again"

    def _whole(self) -> Iterator[str]:
        """An interrupted call happened as a whole, or not at all."""
        tried = Counter(body for each in self.attempts for body in each.ack)
        for attempt in self.attempts:
            there = [body for body in attempt.put if self.facts.stored[body]]
            if there and len(there) < len(attempt.put):
                yield f"torn: {attempt.where} put {there} of {attempt.put}"
            if attempt.outcome == "" and attempt.put and attempt.ack:
                back = [body for body in attempt.ack if body in self.facts.drained]
                if there and back:
                    yield f"torn: {attempt.where} put {there[0]}, and {back[0]} came back"
                once = [body for body in attempt.ack if tried[body] == 1]
                if not there and len(back) < len(once):
                    yield f"torn: {attempt.where} acked {once[0]} without what comes of it"

    def _lost(self) -> Iterator[str]:
        tried = {body for each in self.attempts for body in each.ack}
        for body in self.facts.stored.keys() - tried - self.facts.drained.keys():
            if "-out" not in body:
                yield f"lost: {body} is stored, was never acked, and nobody gets it"

    def figures(self) -> str:
        """One line."""
        outcomes = Counter(each.outcome == "ok" for each in self.attempts)
        thrown = ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))
        return (
            f"calls {len(self.attempts)}, returned {outcomes[True]}, stored"
            f" {self.facts.stored.total()}; {thrown}; longest call of another process"
            f" {self.longest:.2f} s"
        )
