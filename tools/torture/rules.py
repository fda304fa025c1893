"""The rules of the torture: what must be true of all ledgers together, whatever was killed.

After Jepsen's total-queue checker: nothing acknowledged is lost, nothing unexpected comes, every
duplicate has its reason. Then those of leases: tokens rise, an old one settles nothing; of keys;
of dedup ids; and of transactions. What came of the store is in `Facts`, taken when it was drained.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from .ledger import PUTS, Entry
from .puts import Put, Puts, Violation

NEVER = 2**63
SLACK_NS = 200_000_000  # between the wall clock, which times delays, and the monotonic one
FINAL = ("ack", "nack", "release", "reject")

Ledgers = Callable[[str], Iterable[Entry]]


class GroupFacts(NamedTuple):
    """A group when all was drained; `dead`: offset, id and reason of each dead letter."""

    topic: str
    keyed: bool = False
    keeps_expired: bool = False
    moves: bool = False  # an operator seeks it, or bounds take its messages
    stats: dict[str, int] = {}  # noqa: RUF012 - a default of a NamedTuple
    dead: list[tuple[int, str, str]] = []  # noqa: RUF012


class Facts(NamedTuple):
    """A run, seen from outside: the end of each lane of each topic, and who was killed when."""

    groups: dict[str, GroupFacts]
    ends: dict[str, list[tuple[int, int]]]  # first offset of a lane, and the one behind its last
    gone: dict[str, int]
    troubles: list[str] = []  # noqa: RUF012


class Got(NamedTuple):
    """One delivery."""

    token: int
    offset: int
    begun: int
    at: int
    deadline: int
    holder: tuple[str, int]
    lease: int
    ref: str


class Op:
    """One commit that was tried; `outcome` is ok, no, or unknown if it was cut off."""

    __slots__ = ("begun", "deadline", "ended", "fenced", "outcome", "puts", "ref", "settles")

    def __init__(self, entry: Entry) -> None:
        self.begun: int = entry["at"]
        self.ended = NEVER
        self.outcome = "unknown"
        self.fenced = False  # refused because the lease was lost
        self.deadline = 0  # that an extend gave
        self.settles: list[tuple[str, int, int]] = entry.get("set", [])
        self.puts: list[str] = [each[1] for each in entry.get("msgs", ())]
        self.ref: str = entry["ref"]

    def end(self, outcome: str, entry: Entry) -> None:
        self.outcome, self.ended = outcome, entry["at"]
        self.fenced = entry.get("error") == "LeaseLost"
        self.deadline = entry.get("deadline", 0)


class Judge:
    """Reads all ledgers, group by group, and yields what is wrong."""

    def __init__(self, ledgers: Ledgers, facts: Facts) -> None:
        self.ledgers, self.facts = ledgers, facts
        self.counts: Counter[str] = Counter()
        self.puts = Puts(entry for kind in (PUTS, *facts.groups) for entry in ledgers(kind))
        self.counts["puts"] = self.puts.count

    def violations(self) -> Iterator[Violation]:
        """All of them; the counts are complete at the end."""
        yield from (Violation("trouble", text) for text in self.facts.troubles)
        yield from self.puts.died
        tokens: set[int] = set()
        for name, group in self.facts.groups.items():
            history = GroupHistory(name, group, self)
            yield from history.violations()
            shared = tokens & history.got.keys()
            yield from (Violation("token twice", f"{name}: token {each}") for each in shared)
            tokens |= history.got.keys()
        seen = {group.topic for group in self.facts.groups.values() if not group.moves}
        yield from self.puts.violations(seen)


class GroupHistory:
    """The deliveries of one group, and what was tried to settle them."""

    def __init__(self, name: str, facts: GroupFacts, judge: Judge) -> None:
        self.name, self.facts, self.judge = name, facts, judge
        self.puts, self.counts = judge.puts, judge.counts
        self.gone = judge.facts.gone
        self.got: dict[int, Got] = {}
        self.tries: dict[int, list[tuple[str, Op]]] = defaultdict(list)
        self.extends: dict[int, list[Op]] = defaultdict(list)  # by lease
        self.closed: dict[tuple[str, int], int] = {}
        self.redriven: set[int] = set()
        self.keys: dict[str, set[int]] = defaultdict(set)  # offsets of a key
        self.ops: list[Op] = []  # with puts
        self.found: list[Violation] = []
        self._copies: list[tuple[int, Entry]] = []
        self._late: list[tuple[int, str, str]] = []
        self._read(judge.ledgers(name))
        self.of_offset: dict[int, list[Got]] = defaultdict(list)
        for token in sorted(self.got):
            self.of_offset[self.got[token].offset].append(self.got[token])

    def _wrong(self, rule: str, text: str, *refs: str) -> None:
        self.found.append(Violation(rule, f"{self.name}: {text}", refs))

    def _read(self, entries: Iterable[Entry]) -> None:
        running: dict[tuple[str, int], Op] = {}
        forks: dict[tuple[str, int], int] = {}
        for entry in entries:
            who = entry["who"]
            if "got" in entry:
                self._read_got(entry)
            elif "do" in entry:
                at = who, entry["n"]
                if entry["do"] == "close":
                    self.closed.setdefault((who, entry["s"]), entry["at"])
                elif entry["do"] == "redrive":
                    self.redriven.update(entry["offsets"])
                elif entry["do"] == "fork":
                    forks[at] = entry["at"]
                else:
                    running[at] = self._begin(entry)
            elif "copy" in entry:
                self._copies.append((forks[who, entry["fork"]], entry))
            elif op := running.pop((who, entry.get("ok") or entry.get("no") or 0), None):
                op.end("ok" if "ok" in entry else "no", entry)

    def _begin(self, entry: Entry) -> Op:
        op = Op(entry)
        for verb, _, token in op.settles:
            self.tries[token].append((verb, op))
        if "lease" in entry:
            self.extends[entry["lease"]].append(op)
        if op.puts:
            self.ops.append(op)
        return op

    def _read_got(self, entry: Entry) -> None:
        holder = entry["who"], entry["s"]
        times = entry["begun"], entry["at"]
        for offset, token, deadline, name, key, bad, lease in entry["got"]:
            self.counts["deliveries"] += 1
            got = Got(token, offset, *times, deadline, holder, lease, entry["ref"])
            if token in self.got:
                refs = self.got[token].ref, got.ref
                self._wrong("token twice", f"token {token} was given out twice", *refs)
            self.got[token] = got
            if bad:
                self._wrong("body", f"message {offset}: {bad}", got.ref)
            if name is not None:
                self._place(offset, name, got.ref)
                self._check_time(name, entry, offset)
            if key is not None and self.facts.keyed:
                self.keys[key].add(offset)

    def _place(self, offset: int, name: str, ref: str) -> None:
        problem = self.puts.place(self.facts.topic, offset, name)
        if problem:
            self._wrong("unexpected", problem, ref)

    def _check_time(self, name: str, entry: Entry, offset: int) -> None:
        put = self.puts.by_id.get(name)
        if put is None:
            return
        if put.delay and entry["at"] + SLACK_NS < put.begun + put.delay * 1e9:
            self._wrong("early", f"message {offset} came before it was due", put.ref, entry["ref"])
        timed = put.ttl and put.outcome == "ok" and not (put.delay or put.dedup)
        too_late = timed and put.ended + put.ttl * 1e9 + SLACK_NS < entry["begun"]
        if too_late and not entry.get("fetched"):
            self._late.append((offset, put.ref, entry["ref"]))

    # Rules

    def violations(self) -> list[Violation]:
        """What is wrong in this group."""
        for offset, name, _ in self.facts.dead:
            self._place(offset, name, "")
        for offset, put_ref, got_ref in self._late:
            if offset not in self.redriven:  # what is redriven expires no more
                self._wrong("late", f"message {offset} outlived its TTL", put_ref, got_ref)
        acked: dict[int, Op] = {}  # those of which it is certain, or else possible
        possible: dict[int, Op] = {}
        for offset, deliveries in self.of_offset.items():
            self._check_deliveries(deliveries)
            self.counts["redelivered"] += len(deliveries) - 1
            for got in deliveries:
                for verb, op in self.tries.get(got.token, ()):
                    if verb == "ack" and op.outcome == "ok":
                        if offset in acked and not self.facts.moves:
                            refs = acked[offset].ref, op.ref
                            self._wrong("acked twice", f"message {offset} was acked twice", *refs)
                        acked[offset] = op
                    elif verb == "ack" and op.outcome == "unknown" and got is deliveries[-1]:
                        possible[offset] = op
        self.counts["acks"] += len(acked)
        self._check_transactions()
        self._check_copies(acked)
        if not self.facts.moves:
            self._account(acked, possible)
        if self.facts.keyed:
            self._check_keys(acked, possible)
        for token in self.tries.keys() - self.got.keys():
            self._wrong("unexpected", f"token {token} was settled, and never given out")
        return self.found

    def _check_deliveries(self, deliveries: list[Got]) -> None:
        """Those of one message, by token."""
        first_later = NEVER  # when somebody had a later token, at the latest
        later: Got | None = None
        for got in reversed(deliveries):
            if later is not None:
                self._check_pair(got, later, first_later)
            else:
                self._check_settles(got, None, NEVER)
            first_later = min(first_later, got.at)
            later = got

    def _check_pair(self, got: Got, later: Got, first_later: int) -> None:
        what = f"message {got.offset}, token {got.token}"
        if later.at < got.begun:
            self._wrong("token", f"{what}: a larger one was given out before", got.ref, later.ref)
        self._check_settles(got, later, first_later)
        if not self.facts.moves and not self._is_over(got, first_later):
            self._wrong(
                "unexplained", f"{what}: given out again while it was valid", got.ref, later.ref
            )

    def _check_settles(self, got: Got, later: Got | None, first_later: int) -> None:
        what = f"message {got.offset}, token {got.token}"
        tries = self.tries.get(got.token, ())
        if sum(verb in FINAL and op.outcome == "ok" for verb, op in tries) > 1:
            self._wrong("settled twice", f"{what}: settled twice", *(op.ref for _, op in tries))
        for verb, op in tries:
            if op.outcome == "ok" and later is not None:
                if op.begun > first_later:
                    self._wrong("old token", f"{what}: {verb} by an old one", op.ref, later.ref)
                elif verb == "ack" and not self.facts.moves:
                    refs = got.ref, op.ref, later.ref
                    self._wrong("acked, again", f"{what}: given out again after its ack", *refs)
            if op.fenced and not self.facts.moves and self._was_valid(op):
                self._wrong("refused", f"{what}: {verb} was refused though valid", got.ref, op.ref)

    def _was_valid(self, op: Op) -> bool:
        """Whether nothing allowed others to take any of what an op was to settle."""
        held = [self.got.get(token) for _, _, token in op.settles]
        return all(each is not None and not self._is_over(each, op.ended, op) for each in held)

    def _is_over(self, got: Got, at: int, but: Op | None = None) -> bool:
        """Whether others may have got the message at this time: its holder was killed, closed,
        gave it back, or let its deadline pass."""
        ended = min(self.gone.get(got.holder[0], NEVER), self.closed.get(got.holder, NEVER))
        deadline = got.deadline
        for op in self.extends.get(got.lease, ()):
            if op.outcome == "ok" and got.at < op.ended < at:
                deadline = op.deadline
        for verb, op in self.tries.get(got.token, ()):
            if op is not but and verb in FINAL and op.outcome != "no" and (verb != "ack" or but):
                ended = min(ended, op.begun)
        return min(ended, deadline) <= at

    def _check_transactions(self) -> None:
        """Settles and puts of one commit: both or none."""
        for op in self.ops:
            there = [name for name in op.puts if name in self.puts.where]
            if op.outcome != "ok" and there:
                if op.outcome == "no":
                    self._wrong("torn", f"refused, yet {there[0]} was put", op.ref)
                    continue
                for verb, offset, token in op.settles:
                    last = self.of_offset[offset][-1]
                    if verb == "ack" and last.token != token:
                        text = f"{there[0]} was put, yet message {offset} was not acked"
                        self._wrong("torn", text, op.ref, last.ref)
            if op.outcome == "unknown" and op.puts and not there:
                op.outcome = "no"  # nothing of it happened: it acked nothing

    def _check_copies(self, acked: dict[int, Op]) -> None:
        for forked, entry in self._copies:
            for offset, _ in entry["copy"]:
                op = acked.get(offset)
                if op is not None and op.ended < forked:
                    text = f"message {offset} is in a fork made after its ack"
                    self._wrong("acked, again", text, op.ref, entry["ref"])

    def _account(self, acked: dict[int, Op], possible: dict[int, Op]) -> None:
        """Each message was acked, is dead, or expired: exactly one of them, and all counted."""
        dead = {offset for offset, _, _ in self.facts.dead}
        uncertain = expired = 0
        for start, stop in self.judge.facts.ends.get(self.facts.topic, ()):
            for offset in range(start, stop):
                if offset in acked:
                    if offset in dead:
                        ref = acked[offset].ref
                        self._wrong("acked, again", f"message {offset} is acked and dead", ref)
                elif offset in dead:
                    continue
                elif offset in possible and possible[offset].outcome == "unknown":
                    uncertain += 1
                elif self._may_expire(offset):
                    expired += 1
                else:
                    self.counts["lost"] += 1
                    deliveries = self.of_offset.get(offset, [])
                    name = self.puts.places[self.facts.topic].get(offset)
                    text = f"message {offset} ({name}) is neither acked nor dead nor expired"
                    self._wrong("lost", text, *(got.ref for got in deliveries))
        self._check_stats(len(acked), uncertain, expired, len(dead))

    def _may_expire(self, offset: int) -> bool:
        name = self.puts.places[self.facts.topic].get(offset)
        put: Put | None = self.puts.by_id.get(name) if name is not None else None
        return put is not None and bool(put.ttl) and not self.facts.keeps_expired

    def _check_stats(self, acked: int, uncertain: int, expired: int, dead: int) -> None:
        """What the group counts itself must be what the ledgers say."""
        stats = self.facts.stats
        if not stats:
            return
        ends = self.judge.facts.ends.get(self.facts.topic, ())
        total = sum(stop - start for start, stop in ends)
        ended = stats["acked"] + stats["dead"] + stats["expired"]
        if stats["lag"] or ended != total or stats["dead"] != dead:
            self._wrong("counts", f"of {total} messages it has {stats}, and {dead} are dead")
        if not acked <= stats["acked"] <= acked + uncertain + expired:
            text = f"acked {stats['acked']}, by the ledgers {acked} and maybe {uncertain}"
            self._wrong("counts", f"{text}; expired {stats['expired']}, maybe {expired}")

    def _check_keys(self, acked: dict[int, Op], possible: dict[int, Op]) -> None:
        """Of one key, the next message comes only after the ones before are done or dead."""
        exempt = self.redriven | {offset for offset, _, _ in self.facts.dead}
        for key, offsets in self.keys.items():
            done, by = 0, ""
            for offset in sorted(offsets):
                first = min(self.of_offset[offset], key=lambda got: got.at)
                if first.at < done:
                    text = f"message {offset} of key {key} came before the one before it was done"
                    self._wrong("key order", text, first.ref, by)
                op = acked.get(offset) or possible.get(offset)
                if op is not None and offset not in exempt and op.begun > done:
                    done, by = op.begun, op.ref


def from_json(data: dict[str, Any]) -> Facts:
    """Facts, as a run stored them."""
    groups = {name: GroupFacts(**group) for name, group in data["groups"].items()}
    return Facts(groups, data["ends"], data["gone"], data["troubles"])


def to_json(facts: Facts) -> dict[str, Any]:
    """Facts, to be stored."""
    groups = {name: group._asdict() for name, group in facts.groups.items()}
    return {**facts._asdict(), "groups": groups}
