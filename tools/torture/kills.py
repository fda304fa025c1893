"""Kill and stop the processes of a queue at random for a while, then prove that nothing was lost.

Producers and consumers use every verb of diskq and write what they try, and what comes of it, to
ledgers of their own. All the while some are killed with kill -9 and started anew at once, others
stopped, often for longer than a lease. In the end the store is drained and verified, and all
ledgers are judged together: nothing that was acknowledged is lost, nothing unexpected came, what
came twice has its reason, no old token settled anything, and so on; see rules.py.

The seed gives the same schedule of kills, stops and verbs; how they meet is up to the machine.
Exit code 0: all is well; 1: a rule was broken, and the store and the ledgers are kept; 2: usage.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import diskq

from . import roles, rules, sessions
from .ledger import Ledger, line, read, read_body
from .plants import PLANTS
from .puts import Violation
from .roles import GROUPS, Role

PATIENCE_SECONDS = 60.0  # until a process that does nothing counts as hung
COUNTERS = 4  # of a process, each a u64
PROGRESS_SECONDS = 5.0
SHOWN = 3  # violations of each rule, with their lines


class Slot:
    """The place of a process, filled anew whenever it dies."""

    def __init__(self, name: str, job: Callable[[Role], None], counters: memoryview) -> None:
        self.name, self.job, self.counters = name, job, counters
        self.life = 0
        self.pid = 0
        self.wakes_at = 0.0  # when it is to be continued; 0: it runs

    @property
    def who(self) -> str:
        return f"{self.name}.{self.life}"


class Torture:
    """The processes of a run, and what is done to them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self._killer = random.Random(f"{options.seed} kills")
        self._stopper = random.Random(f"{options.seed} stops")
        self.kills = self.stops = 0
        self.gone: dict[str, int] = {}
        self.troubles: list[str] = []
        self.began = time.monotonic()
        self._ledger = Ledger(folder / "tool.kills")
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self._free = iter(range(mmap.PAGESIZE // 8 // COUNTERS))
        self.slots = [self._slot(f"p{n}", roles.produce) for n in range(options.producers)]
        self.slots += [self._slot(f"c{n}", sessions.consume) for n in range(options.consumers)]
        self.slots += [self._slot("o0", roles.operate)]

    def _slot(self, name: str, job: Callable[[Role], None]) -> Slot:
        at = next(self._free) * COUNTERS
        return Slot(name, job, memoryview(self._shared).cast("Q")[at : at + COUNTERS])

    def start(self, slot: Slot, *, calm: bool = False) -> None:
        """A new process in a slot."""
        slot.life += 1
        plant = "" if slot.job is roles.operate else self.options.plant
        role = Role(
            self.folder,
            slot.name,
            slot.life,
            self.options.seed,
            slot.counters,
            plant=plant if not calm else "",
            calm=calm,
        )
        slot.pid, slot.wakes_at = roles.spawn(slot.job, role), 0.0

    # While it runs

    def run(self) -> None:
        """Start all, and torture them until the time is over."""
        for slot in self.slots:
            self.start(slot)
        end = self.began + self.options.seconds
        kills = self.options.kills_per_second
        stops = 0 if self.options.no_stops else kills / 2
        kill_at = self.began + _pause(self._killer, kills)
        stop_at = self.began + _pause(self._stopper, stops)
        progress_at = self.began + PROGRESS_SECONDS
        while (now := time.monotonic()) < end:
            if now >= kill_at:
                self._kill(self._killer.choice(self.slots))
                kill_at = max(kill_at + _pause(self._killer, kills), now)
            if now >= stop_at:
                self._stop(self._stopper.choice(self.slots))
                stop_at = max(stop_at + _pause(self._stopper, stops), now)
            if now >= progress_at:
                self._tell()
                progress_at = now + PROGRESS_SECONDS
            self._wake(now)
            self._bury()
            waking = [slot.wakes_at for slot in self.slots if slot.wakes_at]
            next_at = min(kill_at, stop_at, progress_at, end, *waking)
            time.sleep(min(max(next_at - time.monotonic(), 0), 0.1))

    def _kill(self, slot: Slot) -> None:
        self.gone[slot.who] = time.monotonic_ns()
        self._ledger.write(kill=slot.who)
        os.kill(slot.pid, signal.SIGKILL)
        os.waitpid(slot.pid, 0)
        self.kills += 1
        self.start(slot)

    def _stop(self, slot: Slot) -> None:
        """Half of the stops are longer than a lease."""
        lease = self.options.lease_seconds
        seconds = self._stopper.choice((0.2 * lease, self._stopper.uniform(1.1, 2.5) * lease))
        if not slot.wakes_at:
            os.kill(slot.pid, signal.SIGSTOP)
            self._ledger.write(stop=slot.who, seconds=seconds)
            self.stops += 1
            slot.wakes_at = time.monotonic() + seconds

    def _wake(self, now: float) -> None:
        for slot in self.slots:
            if slot.wakes_at and now >= slot.wakes_at:
                os.kill(slot.pid, signal.SIGCONT)
                slot.wakes_at = 0.0

    def _bury(self) -> None:
        """Whoever ended by itself is in trouble."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            slot = next(slot for slot in self.slots if slot.pid == pid)
            self.gone[slot.who] = time.monotonic_ns()
            self.troubles.append(f"{slot.who} ended by itself, with status {status}")
            self.start(slot)

    def _tell(self) -> None:
        sums = [sum(slot.counters[at] for slot in self.slots) for at in range(COUNTERS)]
        print(
            f"{time.monotonic() - self.began:6.0f} s  {self.kills} kills, {self.stops} stops,"
            f" {sums[roles.PUT]} puts, {sums[roles.GOT]} deliveries, {sums[roles.ACKED]} acks,"
            f" {sums[roles.RETRIED]} failed and redelivered",
            file=sys.stderr,
            flush=True,
        )

    # At the end

    def drain(self) -> rules.Facts:
        """Stop the torture, let everything be taken and acked, and see what is there."""
        self._wake(float("inf"))
        self._end(self.slots)
        calm = [self._slot(f"d{n}", sessions.consume) for n in range(2)]
        for slot in calm:
            self.start(slot, calm=True)
        self.slots += calm
        try:
            with diskq.open(self.folder / "store", create=False) as store:
                roles.tidy(store)
                ends = self._put_markers(store)
                self._end(calm)
                found = [f"verify: {each.where}: {each.problem}" for each in store.verify()]
                self.troubles += found
                return rules.Facts(_groups(store), ends, self.gone, self.troubles)
        finally:
            self.kill_all()

    def _end(self, slots: Sequence[Slot]) -> None:
        """Let processes end in order; who does not is hung."""
        for slot in slots:
            with suppress(ProcessLookupError):
                os.kill(slot.pid, signal.SIGTERM)
        until = time.monotonic() + PATIENCE_SECONDS
        for slot in slots:
            pid = status = 0
            while not pid and time.monotonic() < until:
                pid, status = os.waitpid(slot.pid, os.WNOHANG)
                time.sleep(0 if pid else 0.005)
            if not pid:
                self.troubles.append(f"{slot.who} hangs: it did not end for {PATIENCE_SECONDS} s")
                self.gone[slot.who] = time.monotonic_ns()
                os.kill(slot.pid, signal.SIGKILL)
                os.waitpid(slot.pid, 0)
            elif status:
                self.troubles.append(f"{slot.who} ended with status {status}")
            slot.pid = 0

    def _put_markers(self, store: diskq.Store) -> dict[str, list[tuple[int, int]]]:
        """The last message of each lane: what is before each of them is accounted for. A topic that
        transactions write to comes last."""
        role = Role(self.folder, "tool", 0, self.options.seed, self.slots[0].counters)
        ends: dict[str, list[tuple[int, int]]] = {}
        for name in sorted(roles.TOPICS, reverse=True):
            self._wait_until_drained(store)
            for lane in range(roles.TOPICS[name].get("priorities", 1)):
                found = None
                while found is None:
                    last = roles.Draft(name, role.new_id(), {"priority": lane})
                    found = roles.put(role, store, [last])
                offset = found[0].offset
                assert offset is not None
                ends.setdefault(name, []).append((lane << diskq.model.LANE_BITS, offset + 1))
        self._wait_until_drained(store)
        return ends

    def _wait_until_drained(self, store: diskq.Store) -> None:
        before, until = 0, time.monotonic() + PATIENCE_SECONDS
        while True:
            topics = [topic for topic in store.stats().topics if topic.groups]
            stats = [group for topic in topics for group in topic.groups]
            if not any(group.lag for group in stats) and not any(each.scheduled for each in topics):
                return
            acked = sum(group.acked for group in stats)
            if acked != before:
                before, until = acked, time.monotonic() + PATIENCE_SECONDS
            if time.monotonic() > until:
                self.troubles.append(f"draining stands still: {stats}")
                return
            time.sleep(0.05)

    def kill_all(self) -> None:
        """Leave nothing behind."""
        for slot in self.slots:
            if slot.pid:
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(slot.pid, signal.SIGKILL)
                    os.waitpid(slot.pid, 0)
                slot.pid = 0


def _pause(chance: random.Random, rate: float) -> float:
    """Seconds until the next of what happens so often a second; infinite if it never does."""
    return chance.expovariate(rate) if rate else float("inf")


def _groups(store: diskq.Store) -> dict[str, rules.GroupFacts]:
    found = {}
    for name, plan in GROUPS.items():
        group = store.topic(plan.topic).group(name)
        dead = []
        for letter in group.dead():
            lane = letter.offset >> diskq.model.LANE_BITS
            its_name, bad = read_body(letter.body, letter.key, lane)
            dead.append((letter.offset, its_name or bad, letter.reason))
        found[name] = rules.GroupFacts(
            topic=plan.topic,
            keyed=plan.settings.get("ordering") == "key",
            keeps_expired=plan.settings.get("keep_expired", False),
            moves=name == "replay",
            stats={key: value for key, value in group.stats()._asdict().items() if key != "topic"},
            dead=dead,
        )
    return found


# Reports ----------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What the rules say of a run."""

    counts: Counter[str]
    violations: list[Violation]


def judge(folder: Path) -> Verdict:
    """Judge the ledgers and facts in a folder."""
    facts = rules.from_json(json.loads((folder / "facts.json").read_text()))
    found = rules.Judge(lambda kind: read(folder, kind), facts)
    violations = list(found.violations())
    return Verdict(found.counts, violations)


def report(folder: Path, verdict: Verdict, kills: int, stops: int, seconds: float) -> None:
    """Print what was done and found."""
    counts, violations = verdict
    broken = Counter(each.rule for each in violations)
    print(
        f"puts {counts['puts']}, deliveries {counts['deliveries']}, acks {counts['acks']},"
        f" redelivered {counts['redelivered']}, kills {kills}, stops {stops}"
    )
    print(
        f"lost {broken['lost']}, unexplained duplicates"
        f" {broken['unexplained'] + broken['acked, again']}, violations {len(violations)},"
        f" {seconds:.1f} s"
    )
    for rule, number in broken.items():
        for each in [each for each in violations if each.rule == rule][:SHOWN]:
            print(f"\n{rule}: {each.text}")
            for ref in filter(None, each.refs[:6]):
                print(f"    {ref}: {line(folder, ref)[:300]}")
        if number > SHOWN:
            print(f"\n{rule}: {number - SHOWN} more")


def run(options: argparse.Namespace) -> int:
    """A run, judged."""
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    began = time.monotonic()
    folder = Path(options.keep or tempfile.mkdtemp(prefix="diskq-torture-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        print(f"torture: {folder} is not empty; choose another folder", file=sys.stderr)
        return 2
    print(f"torture: seed {options.seed}, in {folder}", file=sys.stderr, flush=True)
    roles.keep_only(options.groups.split(","))
    settings = options.durability, options.backlog, options.lease_seconds
    roles.make_store(folder / "store", *settings)
    torture = Torture(options, folder)
    try:
        with suppress(KeyboardInterrupt):
            torture.run()
        facts = torture.drain()
    finally:
        torture.kill_all()
    (folder / "facts.json").write_text(json.dumps(rules.to_json(facts)))
    seconds = time.monotonic() - began
    print(f"torture: drained after {seconds:.1f} s, judging", file=sys.stderr, flush=True)
    verdict = judge(folder)
    report(folder, verdict, torture.kills, torture.stops, time.monotonic() - began)
    if verdict.violations:
        print(f"\nFAILED with seed {options.seed}; store and ledgers are in {folder}")
        return 1
    if not options.keep:
        shutil.rmtree(folder)
    print("ok")
    return 0


def check(options: argparse.Namespace) -> int:
    """Judge a kept run again."""
    began = time.monotonic()
    folder = Path(options.folder)
    if not (folder / "facts.json").exists():
        print(f"torture: {folder} has no facts.json of a run", file=sys.stderr)
        return 2
    verdict = judge(folder)
    kinds = [key for entry in read(folder, "kills") for key in entry]
    report(folder, verdict, kinds.count("kill"), kinds.count("stop"), time.monotonic() - began)
    return 1 if verdict.violations else 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of a run."""
    add = parser.add_argument
    add("--seconds", type=float, default=60.0, help="of torture (60)")
    add("--producers", type=int, default=3)
    add("--consumers", type=int, default=3)
    add("--seed", type=int, default=None, help="of all chances (a new one)")
    add(
        "--durability",
        choices=("commit", "relaxed", "process"),
        default="process",
        help="of the store (process: kill -9 loses nothing in any of them, and this is fastest)",
    )
    add("--keep", metavar="DIR", help="work in this folder, and keep it")
    add("--backlog", type=int, default=4000, help="messages that producers may be ahead (4000)")
    add("--lease-seconds", type=float, default=0.5, help="of all groups (0.5)")
    add("--kills-per-second", type=float, default=2.5)
    add("--no-stops", action="store_true", help="kill, but do not stop")
    add("--groups", default=",".join(GROUPS), help=argparse.SUPPRESS)
    add("--plant", choices=("", *PLANTS), default="", help=argparse.SUPPRESS)
