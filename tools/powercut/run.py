#!/usr/bin/env python3
"""Cut the power of a store, thousands of times, and look whether diskq keeps its promises.

    python3 tools/dev.py powercut                         all durabilities, 2,000 crash states each
    python3 tools/dev.py powercut --durability relaxed    one of them
    python3 tools/dev.py powercut --control nosync        a planted fault, which must be found

A workload over a store's whole life runs under strace. Each crash state is a point of that trace,
with all that was flushed before it and some of what was written since, by sectors of 512 bytes.
Each is opened in another process, compared with what had been acknowledged, verified,
and used.

    commit    nothing that was acknowledged is lost, of what was not at most one commit is there
    relaxed   the same, but the last commit may be undone
    process   a damaged store is refused with a hint to `diskq salvage`; one that opens is sound

Needs Linux and strace. Exit code: 0 no bad state, 1 some, 2 usage; of a control, 0 if found.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .states import UNDONE, Cut, Facts, Job, Recording, Replay, plan
from .trace import CALLS, MAX_BYTES, read_trace

DURABILITIES = ("commit", "relaxed", "process")
CONTROLS = {  # a planted fault: durability, and what it is
    "boot-id": ("process", "a reboot that the store does not notice"),
    "creation": ("commit", "creations and backups that flush no names"),
    "nosync": ("commit", "a store that is never flushed"),
    "nometasync": ("commit", "a store whose meta pages are not flushed"),
    "nosync-relaxed": ("relaxed", "a relaxed store that is never flushed"),
}
WORKLOAD_SECONDS = 300.0  # the longest that one run of it may take
DEADLINE_SECONDS = 60.0  # for one state
SHOWN = 20  # bad states in the report


class Bad(NamedTuple):
    """A state that breaks a promise."""

    cut: Cut
    facts: Facts
    problems: list[str]

    def __str__(self) -> str:
        where = f"in {self.facts.doing}, after state {self.facts.state}"
        what = "; ".join(self.problems)
        return f"cut {self.cut.at} ({where}), {self.cut.kind!r}, seed {self.cut.seed}: {what}"


# Running the workload


def hindrance() -> str:
    """Why strace cannot be used here; empty if it can."""
    if sys.platform != "linux":
        return "powercut needs Linux"
    if shutil.which("strace") is None:
        return "powercut needs strace: install the package strace"
    probe = ["strace", "--seccomp-bpf", "-f", "-o", os.devnull, "true"]
    run = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"strace cannot trace here: {run.stderr.strip()[:200]}" if run.returncode else ""


def record(durability: str, fault: str, scratch: Path) -> Recording:
    """Run the workload under strace."""
    root, trace, views = scratch / "root", scratch / "trace", scratch / "views"
    ledger = scratch / "ledger"
    root.mkdir()
    program = [
        sys.executable,
        "-m",
        "powercut.life",
        str(root),
        str(ledger),
        str(views),
        durability,
        fault,
    ]
    options = ["-f", "-xx", "-y", "-s", str(MAX_BYTES), "-o", str(trace)]
    command = ["strace", "--seccomp-bpf", *options, "-e", f"trace={','.join(CALLS)}", *program]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=WORKLOAD_SECONDS,
    )
    if run.returncode:
        raise RuntimeError(f"the workload failed: {run.stderr[-2_000:]}")
    paths = [path for path in root.rglob("*") if path.is_file()]
    files = {str(path.relative_to(root)): path.read_bytes() for path in paths}
    events = read_trace(trace, str(root), str(ledger))
    return Recording(str(root), events, json.loads(views.read_text()), files)


# Checking them


class Checker:
    """A process that opens and uses stores, and may die of one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the checker

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Check one state."""
        process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], DEADLINE_SECONDS)[0]:
                self.end()
                return _dead(f"opening or using it took more than {DEADLINE_SECONDS:g} s")
            if line := process.stdout.readline():
                answer: dict[str, Any] = json.loads(line)
                return answer
        except (BrokenPipeError, json.JSONDecodeError):
            pass  # it died
        code = process.wait()
        self._process = None
        self._errors.seek(0)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        last = self._errors.read().strip().splitlines()[-1:]
        return _dead(f"opening or using it ended the process with {name} {' '.join(last)}".strip())

    def _start(self) -> subprocess.Popen[str]:
        self._errors.seek(0)
        self._errors.truncate()
        command = [sys.executable, "-m", "powercut.check"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        return self._process

    def end(self) -> None:
        """Leave nothing behind."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()
        self._process = None


def _dead(why: str) -> dict[str, Any]:
    return {"found": "dead", "problems": [why]}


def check_all(
    jobs: Iterator[Job], heard: Callable[[Job, dict[str, Any]], None], checkers: int
) -> None:
    """Let checkers answer jobs; `heard` gets the answers, one at a time."""
    waiting: queue.Queue[Job | None] = queue.Queue(maxsize=4 * checkers)
    hearing = threading.Lock()
    errors: list[Exception] = []

    def work() -> None:
        checker = Checker()
        while (job := waiting.get()) is not None:
            try:
                answer = checker.ask(job.request)
                with hearing:
                    heard(job, answer)
            except Exception as error:  # a fault of this program; jobs must be taken all the same
                errors.append(error)
            shutil.rmtree(job.folder, ignore_errors=True)
        checker.end()

    threads = [threading.Thread(target=work) for _ in range(checkers)]
    for thread in threads:
        thread.start()
    try:
        for job in jobs:
            waiting.put(job)
    finally:
        for _ in threads:
            waiting.put(None)
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


# Judging the answers


class Judge:
    """Compares what was found with what had been acknowledged."""

    def __init__(self, durability: str, views: Sequence[str]) -> None:
        self.durability = durability
        self.views = views
        self.whole: dict[int, str] = {}  # by state, a digest of all rows after a reboot
        self.counts: Counter[str] = Counter()

    def learn(self, facts: Facts, answer: dict[str, Any]) -> list[str]:
        """A state where all was written: it must be as users saw it. Returns what is wrong."""
        if answer["found"] != "opened" or answer["problems"]:
            return ["nothing is missing, but: " + _say(answer)]
        self.whole[facts.state] = answer["rows"]
        if answer["view"] != self.views[facts.state]:
            difference = _difference(self.views[facts.state], answer["view"])
            return [f"the reboot changed it: {difference}"]
        return []

    def wrong(self, job: Job, answer: dict[str, Any]) -> list[str]:
        """What is wrong with a crash state."""
        problems = list(answer["problems"])
        facts, found = job.facts, answer["found"]
        if found == "absent" and facts.state >= 0:
            problems.append("the store is gone, though it was there before")
        hinted = self.durability == "process" and "salvage" in answer.get("error", "")
        if found == "refused" and not hinted:
            problems.append(f"it was refused: {answer['error']}")
        if "rows" in answer and found == "opened":
            problems = self._compare(job, answer) + problems
        self.counts[found if not problems else "bad"] += 1
        for name, backup in answer.get("backups", {}).items():
            problems += self._backup(name, facts, backup)
        return problems

    def _compare(self, job: Job, answer: dict[str, Any]) -> list[str]:
        state, undone = job.facts.state, UNDONE[self.durability]
        self.counts["at no commit"] += answer["view"] not in self.views
        if self.durability == "process":
            return []
        allowed = [self.whole.get(each) for each in range(state - undone, state + 2)]
        if answer["rows"] not in allowed:
            found = [at for at, digest in self.whole.items() if digest == answer["rows"]]
            which = f"state {found[0]}" if found else "no state"
            difference = _difference(self.views[max(state, 0)], answer["view"])
            return [f"state {state} was acknowledged, this is {which}; {difference}"]
        if job.txn < job.facts.txn - undone:
            return [f"transaction {job.facts.txn} was acknowledged, {job.txn} is the last one"]
        return []

    def _backup(self, name: str, facts: Facts, backup: dict[str, Any]) -> list[str]:
        problems = [f"{name}: {each}" for each in backup["problems"]]
        if name in facts.backups:
            if backup["found"] != "opened":
                problems.append(f"{name} was complete, and now it is {_say(backup)}")
            elif backup["view"] != self.views[facts.backups[name]]:
                difference = _difference(self.views[facts.backups[name]], backup["view"])
                problems.append(f"{name} is another store: {difference}")
        elif backup["found"] == "opened" and backup["view"] not in self.views:
            problems.append(f"{name} was not complete, but opens")
        return problems


def _say(answer: dict[str, Any]) -> str:
    return "; ".join([answer["found"], *answer["problems"], answer.get("error", "")]).rstrip("; ")


def _difference(expected: str, found: str) -> str:
    """The first thing that differs between two views."""
    if expected == found:
        return "users see no difference"
    old, new = json.loads(expected), json.loads(found)
    path = []
    while isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in sorted({*old, *new}) if old.get(key) != new.get(key))
        path.append(str(key))
        old, new = old.get(key), new.get(key)
    return f"{' / '.join(path)}: expected {str(old)[:200]}, found {str(new)[:200]}"


# The whole


def run(
    durability: str, states: int, seed: int, control: str, keep: Path | None
) -> tuple[int, list[Bad]]:
    """Record, cut, check and report; returns how many states were checked, and the bad ones."""
    began = time.monotonic()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="powercut-", dir=memory) as name:
        scratch = Path(name)
        fault = control.removesuffix("-relaxed")
        recording = record(durability, fault, scratch)
        cuts = plan(recording, states, seed, control)
        reboots = control != "boot-id"
        replay = Replay(recording, cuts, durability, reboots, scratch / "states")
        judge = Judge(durability, recording.views)
        bad: list[Bad] = []
        answers: list[tuple[Job, dict[str, Any]]] = []

        def heard(job: Job, answer: dict[str, Any]) -> None:
            if job.cut.kind == "whole":
                if problems := judge.learn(job.facts, answer):
                    bad.append(Bad(job.cut, job.facts, problems))
            else:
                answers.append((job, answer))
                _progress(durability, len(answers), states)

        check_all(replay.jobs(), heard, os.cpu_count() or 1)
        for job, answer in sorted(answers, key=lambda each: each[0].cut):
            if problems := judge.wrong(job, answer):
                bad.append(Bad(job.cut, job.facts, problems))
        if keep is not None:
            _keep(recording, bad, durability, reboots, keep)
    _report(durability, control, len(answers), replay, judge, bad, time.monotonic() - began)
    return len(answers), bad


def _keep(recording: Recording, bad: list[Bad], durability: str, reboots: bool, keep: Path) -> None:
    """Make the bad states once more, to be looked at."""
    folder = keep / durability
    folder.mkdir(parents=True, exist_ok=True)
    replay = Replay(recording, sorted(each.cut for each in bad), durability, reboots, folder)
    for job in replay.jobs():
        if job.cut.kind == "whole":
            shutil.rmtree(job.folder)


def _progress(durability: str, done: int, states: int) -> None:
    if done % max(states // 20, 1) == 0 or done == states:
        end = "\r" if sys.stderr.isatty() and done < states else "\n"
        if sys.stderr.isatty() or done % max(states // 4, 1) == 0:
            print(f"{durability}: {done} of {states} states", end=end, file=sys.stderr, flush=True)


def _report(
    durability: str,
    control: str,
    states: int,
    replay: Replay,
    judge: Judge,
    bad: list[Bad],
    seconds: float,
) -> None:
    for each in bad[:SHOWN]:
        print(f"bad: {each}")
    if len(bad) > SHOWN:
        print(f"and {len(bad) - SHOWN} more bad states")
    counts = ", ".join(f"{count} {what}" for what, count in sorted(judge.counts.items()) if count)
    print(
        f"{durability}{' with ' + control if control else ''}: {states} crash states"
        f" ({len(replay.checksums)} different) of {len(judge.views)} commits,"
        f" {len(bad)} bad, {seconds:.1f} s ({counts}; {len(judge.whole)} whole images)"
    )


def main() -> int:
    """The command line."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("powercut", description=__doc__, formatter_class=kind)
    parser.add_argument("--durability", choices=[*DURABILITIES, "all"], default="all")
    parser.add_argument("--states", type=int, default=2_000, help="of each durability")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--control", choices=list(CONTROLS), help="a planted fault")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="put the bad states there")
    options = parser.parse_args()
    if options.states < 1:
        parser.error("--states must be at least 1")
    if reason := hindrance():
        print(reason, file=sys.stderr)
        return 2
    if options.control:
        durability, what = CONTROLS[options.control]
        _, bad = run(durability, options.states, options.seed, options.control, options.keep)
        print(f"{what}: {'found' if bad else 'NOT FOUND'}")
        return 0 if bad else 1
    chosen = DURABILITIES if options.durability == "all" else (options.durability,)
    bad_states = 0
    for durability in chosen:
        _, bad = run(durability, options.states, options.seed, "", options.keep)
        bad_states += len(bad)
    return 1 if bad_states else 0
