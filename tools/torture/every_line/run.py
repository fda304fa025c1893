"""Interrupt each verb of diskq at every point at which Python can interrupt it, and see what broke.

    python3 tools/dev.py torture every_line --all               everything: hours
    python3 tools/dev.py torture every_line --sample 20         twenty points of each verb and kind
    python3 tools/dev.py torture every_line --scenario put --kind opcode --threads 0,8

For each point a process forked from a prepared one runs the verb with a new store, is interrupted,
and stands idle, while another process uses the store. Then it goes on. The rules: the call
happened once or not at all; it raised what interrupted it; this process and others can put, get and
ack at once; the calls of other threads happened once each; nothing is lost, nothing came twice,
verify is clean, and no closed consumer looks alive.

Some kinds raise nothing: a signal handler puts, or closes what the verb uses. The put happens or is
refused, closing works, and the verb goes on or finds it closed.

A point is *bare* if only a tracer can raise there, and no signal can: behind the end of a `try` or
`with`, before its handler's code. Faults there are counted apart, and only --strict minds them.

Exit code 0: all is well; 1: something is wrong; 2: usage.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import select
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from .judge import Judge
from .life import Task
from .plants import PLANTS
from .points import KINDS, Point
from .prober import Line, Prober, Silent, spawn
from .scenarios import SCENARIOS

REPEATS = 2  # of a point with the same way there: in loops
PROGRESS_SECONDS = 10.0


def main(arguments: Sequence[str]) -> int:
    """Try all points that the options name."""
    options = parse(arguments)
    if options.python and not os.environ.get("EVERY_LINE_PYTHON"):
        os.environ["EVERY_LINE_PYTHON"] = options.python
        os.execv(options.python, [options.python, *sys.orig_argv[1:]])
    warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
    tasks = [
        Task(scenario, kind, threads, options.deep, options.plant)
        for scenario in options.scenario
        for threads in options.threads
        for kind in options.kind
        if not (SCENARIOS[scenario].in_child and (threads or KINDS[kind].thread))
        and not (threads and not _has_store(scenario))
    ]
    print(f"Python {sys.version.split()[0]}, {len(tasks)} tasks, {options.jobs} jobs", flush=True)
    began = time.monotonic()
    workers = [spawn(work, tasks, options, number) for number in range(options.jobs)]
    report = Report(options)
    try:
        report.hear([line for _, line in workers])
    finally:
        for pid, _ in workers:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
    report.conclude(time.monotonic() - began)
    return 1 if report.bad or report.errors or (options.strict and report.bare) else 0


def _has_store(scenario: str) -> bool:
    return scenario not in ("first put", "open", "topic and group")


def work(line: Line, tasks: list[Task], options: argparse.Namespace, number: int) -> None:
    """One of the jobs: its share of the points of each task."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    prober = Prober(options.deadline)
    try:
        for _, of_one in groupby(tasks, lambda task: (task.scenario, task.threads)):
            same = list(of_one)
            try:
                judge = Judge(same[0], prober, options.deadline)
            except (RuntimeError, Silent) as error:
                if number == 0:  # they all see the same
                    line.tell(task=same[0], error=str(error)[:600])
                continue
            turn = 0
            for task in same:
                for point in choose(judge.points(task.kind), options):
                    turn += 1
                    if turn % options.jobs == number:
                        fired, faults = judge.faults(task, point)
                        place = str(point), *point.lines[0]
                        bare = point.bare and KINDS[task.kind].raises
                        line.tell(task=task, place=place, bare=bare, fired=fired, faults=faults)
    finally:
        prober.end()
    line.tell(over=True)


def choose(found: list[Point], options: argparse.Namespace) -> list[Point]:
    """The points to try: all, or so many of them, at random."""
    found = [point for point in found if point.nth < options.repeats]
    if not options.sample or options.sample >= len(found):
        return found
    chance = random.Random(f"{options.seed} {found[0]} {len(found)}")
    return sorted(chance.sample(found, options.sample), key=found.index)


class Report:
    """Adds up and prints what the jobs tell."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.began = time.monotonic()
        self._tell_at = self.began + PROGRESS_SECONDS
        self.tried: Counter[tuple[str, str, int]] = Counter()
        self.failed: Counter[tuple[str, str, int]] = Counter()
        self.unreached = self.bare = self.bad = 0
        self.lines: set[tuple[str, int]] = set()
        self.faults: Counter[str] = Counter()
        self.errors: list[str] = []

    def hear(self, lines: list[Line]) -> None:
        """Until all jobs are over."""
        while lines:
            for each in select.select(lines, [], [])[0]:
                try:
                    told = each.hear()
                except Silent:
                    self.errors.append("a job died")
                    told = {"over": True}
                if told.get("over"):
                    lines.remove(each)
                else:
                    self._note(told)

    def _note(self, told: dict[str, Any]) -> None:
        scenario, kind, threads, *_ = told["task"]
        task = scenario, kind, threads
        if "error" in told:
            self.errors.append(f"{task}: {told['error']}")
            print("ERROR", self.errors[-1], flush=True)
            return
        self.tried[task] += 1
        self._tell(scenario)
        self.unreached += not told["fired"]
        place, file, line = told["place"]
        self.lines.add((file, line))
        if not told["faults"]:
            return
        if told["bare"]:
            self.bare += 1
        else:
            self.bad += 1
            self.failed[task] += 1
        beside = f" beside {threads} threads" if threads else ""
        mark = "(bare) " if told["bare"] else ""
        for fault in told["faults"]:
            self.faults[f"{mark}{_kind_of(fault)}"] += 1
            print(f"{mark}{place} {kind}{beside}, {scenario}: {fault}", flush=True)

    def _tell(self, scenario: str) -> None:
        now = time.monotonic()
        if now >= self._tell_at:
            self._tell_at = now + PROGRESS_SECONDS
            text = f"{now - self.began:6.0f} s  {self.tried.total()} interruptions, {scenario}"
            print(text, file=sys.stderr, flush=True)

    def conclude(self, seconds: float) -> None:
        """The figures."""
        print(f"\n{'verb':26} threads " + "".join(f"{kind:>14}" for kind in KINDS))
        for scenario in SCENARIOS:
            for threads in self.options.threads:
                cells = []
                for kind in KINDS:
                    task = scenario, kind, threads
                    text = f"{self.failed[task]}/{self.tried[task]}" if self.tried[task] else "-"
                    cells.append(f"{text:>14}")
                if any(cell.strip() != "-" for cell in cells):
                    print(f"{scenario:26} {threads:7} " + "".join(cells))
        print()
        for text, count in self.faults.most_common(20):
            print(f"{count:6} {text}")
        print(
            f"\n{len(self.lines)} lines, {self.tried.total()} interruptions"
            f" ({self.unreached} not reached), bad {self.bad}, bad where only a tracer can raise"
            f" {self.bare}, errors {len(self.errors)}, {seconds:.0f} s"
        )


def _kind_of(fault: str) -> str:
    """A fault without what is particular to it."""
    return re.sub(r" /\S+|['\"(\[].*|\d+", "", fault)[:70].strip()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="torture every_line",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def names(known: Any) -> Any:
        def split(text: str) -> list[str]:
            found = [each.strip() for each in text.split(",")]
            for each in found:
                if each not in known:
                    raise argparse.ArgumentTypeError(f"{each!r} is none of {', '.join(known)}")
            return found

        return split

    add = parser.add_argument
    add("--all", action="store_true", help="all points, without and beside threads")
    add("--scenario", type=names(SCENARIOS), default=list(SCENARIOS), help="verbs, by comma")
    add("--kind", type=names(KINDS), default=list(KINDS), help=", ".join(KINDS))
    add("--threads", help="threads that put and ack meanwhile, e.g. 0,8 (0; with --all: 0,8)")
    add("--sample", type=int, help="so many points of each verb and kind (10; with --all: all)")
    add("--seed", type=int, default=1, help="chooses the sample (%(default)s)")
    add("--repeats", type=int, default=REPEATS, help="of a point in a loop (%(default)s)")
    add("--deep", action="store_true", help="also in what diskq calls of Python's library")
    add("--strict", action="store_true", help="fail for bare points, too")
    add("--deadline", type=float, default=5.0, help="seconds until something hangs (%(default)s)")
    add("--jobs", type=int, default=os.cpu_count() or 1)
    add("--python", help="another interpreter, with lmdb, to run this with")
    add("--plant", choices=PLANTS, default="", help="a fault, to see that it is found")
    add("--list", action="store_true", help="print verbs and kinds, and do nothing")
    options = parser.parse_args(arguments)
    if options.list:
        print(
            "\n".join(SCENARIOS), *(f"{key}: {kind.text}" for key, kind in KINDS.items()), sep="\n"
        )
        sys.exit(0)
    options.threads = options.threads or ("0,8" if options.all else "0")
    if options.sample is None:
        options.sample = 0 if options.all else 10
    options.threads = [int(each) for each in options.threads.split(",")]
    return options
