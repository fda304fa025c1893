"""Throw everything at a process that a program throws at itself, for a while, and compare.

    python3 tools/dev.py torture storm --seconds 600
    python3 tools/dev.py torture storm --seconds 60 --threads 8 --durability commit

A process of N threads puts, gets, acks, opens and closes. Its main thread gets time limits and
Ctrl-C at random moments, and a signal handler that puts or closes what it is using; the others get
asynchronous errors; finalizers put in the middle of anything. An ordinary process does the same
beside it. All keep ledgers. The rules: each call that returned happened once, each that raised
at most once; nothing that was acked comes again; no thread hangs; no call gets another's error; the
ordinary process never waits long; verify is clean.

Every few seconds the process ends and another one follows, so that errors meet first uses, too. A
process that hangs is reported, killed and replaced. Exit code 0: all is well; 1: something is
wrong, and the ledgers are kept; 2: usage.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import diskq

from .. import verdict
from ..every_line.plants import PLANTS
from . import judge
from .victim import Plan, names, ordinary, spawn, suffer

PACKAGE = os.path.dirname(os.path.abspath(diskq.__file__)) + os.sep
SHOWN = 5  # problems of each kind


class Storm:
    """A run: who is in it, and what is thrown from outside."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.chance = random.Random(options.seed)
        self.problems: list[str] = []
        self.lives = self.others = 0
        self.retired = 0.0  # when the victim is followed by another
        self.memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.beats = memoryview(self.memory).cast("Q")
        self.pids: dict[str, int] = {}

    def run(self) -> None:
        """Until the time is over, then end all and look."""
        with diskq.open(self.folder / "store", durability=self.options.durability) as store:
            names(store)
        end = time.monotonic() + self.options.seconds
        last = self.options.threads + 1
        self.start_other()
        self.start()
        while time.monotonic() < end:
            time.sleep(self.chance.expovariate(self.options.signals))
            os.kill(self.pids["victim"], self.chance.choice((signal.SIGINT, signal.SIGUSR1)))
            self.watch("victim", range(last))
            self.watch("other", [last])
            if time.monotonic() > self.retired:
                self.finish("victim")
                self.start()
        for who in ("victim", "other"):
            self.finish(who)

    def start_other(self) -> None:
        """The ordinary process, or another one."""
        self.others += 1
        at, name = self.options.threads + 1, f"other{self.others}"
        self.beats[at] = time.monotonic_ns()
        plan = Plan(self.folder, name, self.options.seed, 0, "", self.beats[at : at + 1])
        self.pids["other"] = spawn(ordinary, plan)

    def start(self) -> None:
        """Another victim."""
        self.lives += 1
        self.retired = time.monotonic() + self.options.life
        count = self.options.threads + 1
        for at in range(count):
            self.beats[at] = time.monotonic_ns()
        options, name = self.options, f"v{self.lives}"
        seed = options.seed + self.lives
        beats = self.beats[:count]
        plan = Plan(self.folder, name, seed, options.threads, options.plant, beats)
        self.pids["victim"] = spawn(suffer, plan)

    def watch(self, who: str, beats: range | list[int]) -> None:
        """Tell who hangs, or has died."""
        pid, status = os.waitpid(self.pids[who], os.WNOHANG)
        if pid:
            self.problems.append(f"died: the {who} ended by itself, with status {status}")
            self.pids[who] = 0
        else:
            bound = time.monotonic_ns() - self.options.patience * 1e9
            hung = [at for at in beats if self.beats[at] < bound]
            if not hung:
                return
            self.problems.append(f"hang: {who}, {len(hung)} of its threads{self.stacks(who)}")
            self.kill(who)
        self.kill("victim")
        if who == "other":
            self.start_other()
        self.beats[self.options.threads + 1] = time.monotonic_ns()  # it may have waited
        self.start()

    def stacks(self, who: str) -> str:
        """Where the threads are that hang."""
        os.kill(self.pids[who], signal.SIGUSR2)
        time.sleep(0.5)
        name = f"other{self.others}" if who == "other" else f"v{self.lives}"
        text = (self.folder / f"{name}.stacks").read_text()
        where: Counter[str] = Counter()
        for stack in text.split("\n\n"):
            found = re.search(re.escape(PACKAGE) + r'(\S+)", line (\d+) in (\S+)', stack)
            if found:
                where[f"{found[1]}:{found[2]} {found[3]}"] += 1
        return "".join(f"; {count} in {place}" for place, count in where.items())

    def finish(self, who: str) -> None:
        """Let one end by itself."""
        until = time.monotonic() + 2 * self.options.patience
        while time.monotonic() < until:
            os.kill(self.pids[who], signal.SIGTERM)  # again: its handler may have been cut short
            pid, status = os.waitpid(self.pids[who], os.WNOHANG)
            if pid:
                self.pids[who] = 0
                if status:
                    self.problems.append(f"died: the {who} ended with status {status}")
                return
            time.sleep(0.05)
        self.problems.append(f"hang: {who} did not end{self.stacks(who)}")
        self.kill(who)

    def kill(self, who: str) -> None:
        """kill -9."""
        if self.pids.get(who):
            os.kill(self.pids[who], signal.SIGKILL)
            os.waitpid(self.pids[who], 0)
            self.pids[who] = 0

    def look(self) -> judge.Judge:
        """Drain the store, and judge the ledgers."""
        facts = judge.drain(self.folder / "store")
        (self.folder / "facts").write_text(json.dumps(facts))
        return judge.Judge(self.folder, facts)


def main(arguments: Sequence[str]) -> int:
    """A run, judged."""
    options = parse(arguments)
    verdict.run_with(options.python)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="diskq-storm-", dir=options.folder))
    storm = Storm(options, folder)
    try:
        storm.run()
    finally:
        for who in list(storm.pids):
            storm.kill(who)
    found = storm.look()
    problems = storm.problems + found.judge()
    if found.longest > options.patience / 2:
        problems.append(f"waited: the other process for {found.longest:.1f} s in one call")
    seconds = f"{time.monotonic() - began:.0f} s"
    figures = f"seed {options.seed}, {found.figures()}; victims {storm.lives}, {seconds}"
    return verdict.say(problems, folder, figures, SHOWN)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="torture storm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seconds", type=float, default=60.0)
    add("--threads", type=int, default=4, help="beside the main thread (%(default)s)")
    add(
        "--life",
        type=float,
        default=5.0,
        help="seconds until it is replaced (%(default)s)",
    )
    add("--signals", type=float, default=50.0, help="a second, from outside (%(default)s)")
    add("--durability", default="relaxed", choices=("commit", "relaxed", "process"))
    add(
        "--patience",
        type=float,
        default=10.0,
        help="seconds until something hangs, half of them until another process waited too long"
        " (%(default)s)",
    )
    add("--seed", type=int, default=1)
    add("--folder", help="where to make the store (the folder for temporary files)")
    add("--plant", choices=PLANTS, default="", help="a fault, to see that it is found")
    add("--python", help="another interpreter, with lmdb, to run this with")
    return parser.parse_args(arguments)
