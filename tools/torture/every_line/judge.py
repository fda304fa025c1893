"""One interruption from the outside: what the process, and another one, were seen to do; and what
is wrong with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from .life import Task, live
from .noise import GROUP, TOPIC
from .points import KINDS, LINE, PACKAGE, Point
from .prober import Line, Prober, Silent, Telling, spawn
from .scenarios import SCENARIOS

TRIES = 3
START_SECONDS = 30.0  # to make the store, and threads
_REFUSED = "Reentered", "Closed"  # a put in a handler
_CLOSED = "Closed", "LeaseLost", "StopIteration"  # a verb behind a close in a handler
SHARED_MEMORY = Path("/dev/shm")


class Seen(NamedTuple):
    """The outcome of a process: what it told, and what another process found."""

    idle: Telling
    found: Telling
    acted: int  # of the scenario's acts
    faults: list[str]
    noisy: bool  # beside threads


class Trial:
    """A process that is interrupted once, and its prober."""

    def __init__(self, task: Task, prober: Prober, seconds: float) -> None:
        self.task, self.prober, self.seconds = task, prober, seconds
        self.scenario = SCENARIOS[task.scenario]
        where = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="every-line-", dir=where))
        self.path = str(self.folder / "store")
        self.dump = self.folder / "stacks"
        self.faults: list[str] = []
        self.found: Telling = {}
        self.pid = 0
        self.line: Line

    def run(self, point: Point | None, acts: int | None = None) -> Seen:
        """Everything, and nothing is left behind."""
        job = (self.task, self.path, point, acts, str(self.dump))
        self.pid, self.line = spawn(live, *job)
        idle: Telling = {}
        try:
            self._hear("ready", START_SECONDS)
            idle = self._hear("idle")
            self._watch()
        except _Stuck as stuck:
            self.faults.append(str(stuck))
        finally:
            self._kill()
            self.line.close()
            shutil.rmtree(self.folder)
        acted = idle.get("returned", 0)
        return Seen(idle, self.found, acted, self.faults, bool(self.task.threads))

    def _watch(self) -> None:
        """From when it stands idle until it is gone."""
        self.found["picture"] = picture = self._ask("look")["picture"]
        if self.scenario.ends and picture:  # given back, or found dead
            for topic in picture.values():
                for group in topic["groups"].values():
                    group["pending"] = [each[:2] for each in group["pending"]]
        acked = self._ask("use").get("acked", [])
        self.line.tell()
        self._hear("repeated")
        acked += self._hear("used")["acked"]
        noise = self._hear("quiet", self.seconds + 35)["noise"]
        self._hear("closed")
        alive = self._ask("look").get("alive", [])
        if alive:
            self.faults.append(f"closed consumers look alive: {', '.join(alive)}")
        self.line.tell()
        self._hear("ended")
        last = self._ask("drain")
        self.line.tell()
        if last.get("findings"):
            self.faults.append(f"verify: {'; '.join(last['findings'][:3])}")
        self.found["missing"] = self._account(last, acked)
        self.found["charged"] = last["charged"]
        self.found["handler"] = last["stored"].get("t", {}).get("handler", 0)
        if noise:
            self._judge_noise(noise, last)

    def _account(self, last: Telling, acked: list[str]) -> list[str]:
        """Bodies in the log that nobody acked and nobody gets."""
        stored, drained = last["stored"].get("t", {}), last["drained"].get("g", {})
        twice = [body for body, count in stored.items() if count > 1 and body != "set-up"]
        if twice:
            self.faults.append(f"stored more than once: {', '.join(twice)}")
        if any(last["left"].values()):
            self.faults.append("a lease is left that nobody holds")
        for body in ("prober", "after"):
            if body not in stored:
                self.faults.append(f"lost: the put of {body!r} returned")
        if self.task.scenario not in ("seek", "purge"):
            again = [body for body in acked if body in drained] + [
                body for body, count in drained.items() if count > 1
            ]
            if again:
                self.faults.append(f"acked, and came again: {', '.join(again)}")
        return sorted(set(stored) - set(drained) - set(acked))

    def _judge_noise(self, noise: Telling, last: Telling) -> None:
        """The calls of the other threads, each of which happened once."""
        stored, drained = last["stored"][TOPIC], last["drained"][GROUP]
        put, acked = set(noise["put"]), set(noise["acked"])
        if noise["hung"]:
            self.faults.append(f"{noise['hung']} other threads hang")
        shut = KINDS[self.task.kind].handler == "shut" or self.scenario.ends == "store"
        for error in sorted({each for each in noise["errors"] if not (shut and "Closed" in each)}):
            self.faults.append(f"another thread got {error}")
        for what, bodies in (
            ("lost", put - set(stored)),
            ("stored twice", {body for body, count in stored.items() if count > 1}),
            ("acked, and came again", acked & set(drained)),
            ("neither acked nor there", set(stored) - acked - set(drained)),
        ):
            if bodies and not (noise["errors"] and what == "neither acked nor there"):
                self.faults.append(f"other threads: {len(bodies)} {what}, as {min(bodies)}")

    # Hearing and asking

    def _hear(self, stage: str, seconds: float | None = None) -> Telling:
        try:
            told = self.line.hear(seconds or self.seconds)
        except Silent as silent:
            if str(silent) == "it ended":
                raise _Stuck(f"the process died before it was {stage}") from None
            raise _Stuck(f"hangs before it is {stage}{self._stack()}") from None
        if told["stage"] == "failed":
            raise _Stuck(f"fails before it is {stage}: {told['error']} ({told['surfaced']})")
        return told

    def _ask(self, verb: str) -> Telling:
        try:
            told = self.prober.ask(verb, self.path)
        except Silent:
            self._kill()
            after = "" if self.prober.answer() else ", and blocked when it is dead"
            raise _Stuck(f"others are blocked in {verb}{after}") from None
        if "error" in told:
            self.faults.append(f"another process fails in {verb}: {told['error'][:200]}")
            if verb != "use":
                raise _Stuck("")
        return told

    def _stack(self) -> str:
        """Where the main thread of a process that hangs is."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGUSR1)
        time.sleep(0.2)
        text = self.dump.read_text() if self.dump.exists() else ""
        stacks = re.split(r"\n\n", text)
        main = [each for each in stacks if "every_line" in each and "noise.py" not in each]
        for line in main[-1].splitlines() if main else ():
            found = re.search(re.escape(PACKAGE) + r'(\S+)", line (\d+) in (.*)', line)
            if found:
                return f", in {found[1]}:{found[2]} {found[3]}"
        return ""

    def _kill(self) -> None:
        if self.pid:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


class _Stuck(Exception):
    """The trial cannot go on; says why."""


class Judge:
    """Knows what a scenario does when it is not interrupted, and after how many of its acts."""

    def __init__(self, task: Task, prober: Prober, seconds: float) -> None:
        self._prober, self._seconds = prober, seconds
        count = len(SCENARIOS[task.scenario].acts)
        plain = task._replace(plant="")
        self.controls = [Trial(plain, prober, seconds).run(None, acts) for acts in range(count + 1)]
        for control in self.controls:
            if control.faults or control.idle["error"]:
                raise RuntimeError(f"{task}: uninterrupted, {control.faults} {control.idle}")
        self._points = [_point(*each) for each in self.controls[-1].idle["points"]]

    def points(self, kind: str) -> list[Point]:
        """Where to interrupt in this way."""
        opcodes = KINDS[kind].opcodes
        return [each for each in self._points if (each.instruction != LINE) == opcodes]

    def faults(self, task: Task, point: Point) -> tuple[bool, list[str]]:
        """Interrupt there; whether it got there, and what is wrong. Beside threads the run may go
        another way, and then it is run again."""
        for _ in range(TRIES if task.threads else 1):
            seen = Trial(task, self._prober, self._seconds).run(point)
            if seen.faults or seen.idle["fired"]:
                break
        found = [*filter(None, seen.faults)]
        if not seen.idle:
            return True, found
        fired = bool(seen.idle["fired"])
        if KINDS[task.kind].handler:
            return fired, found + self._handled(task, seen)
        name = KINDS[task.kind].error.__name__
        error = seen.idle["error"]
        if error and error != name:
            text = f"{error}: {seen.idle['text']} ({seen.idle['surfaced']})"
            found.append(f"raises {text[:160]} in the place of {name}")
        elif fired and not error and name not in seen.idle["unraisable"]:
            found.append(f"{name} is swallowed")
        if "picture" in seen.found:
            found += self._half_done(seen)
        return fired, found

    def _handled(self, task: Task, seen: Seen) -> list[str]:
        """A signal handler called diskq in the middle of the verb. A put either happened or raised
        Reentered, and the verb goes on. Closing works, and the verb may find it closed."""
        found = []
        way, handled, error = KINDS[task.kind].handler, seen.idle["handled"], seen.idle["error"]
        puts = seen.found.get("handler", 0)
        if handled not in ("", "nothing", "returned", *(_REFUSED if way == "put" else ())):
            found.append(f"{way} in a handler raises {handled}")
        if error and (way == "put" or error not in _CLOSED):
            found.append(f"raises {error} for a handler's {way}: {seen.idle['text'][:120]}")
        if "missing" in seen.found:
            purged = task.scenario == "purge" and not puts
            if puts != (way == "put" and handled == "returned") and not purged:
                found.append(f"the handler's put {handled}, and is stored {puts} times")
            if seen.found["missing"] not in [each.found["missing"] for each in self.controls]:
                found.append(f"missing: {seen.found['missing']} come no more")
        return found

    def _half_done(self, seen: Seen) -> list[str]:
        """The store is as it was before the interrupted act, or as it is after it."""
        last = len(self.controls) - 1
        allowed = self.controls[seen.acted : min(seen.acted + 1, last) + 1]
        picture = seen.found["picture"]
        same = [each for each in allowed if each.found["picture"] == picture]
        if not same:  # a get that was interrupted behind its commit gives back what it leased
            same = [each for each in allowed if _given_back(each.found["picture"], picture)]
        if not same:
            return [f"neither done nor undone: {_difference(picture, allowed)}"]
        texts = {"missing": "come no more", "charged": "are charged for it"}
        found = []
        for key, text in texts.items():  # what another thread has begun may be done a moment later
            wanted = [each.found[key] for each in (allowed if seen.noisy else same)]
            if key in seen.found and seen.found[key] not in wanted:
                found.append(f"{key}: {seen.found[key]} {text}, not {wanted[0]}")
        return found


def _point(lines: Any, function: str, instruction: int, nth: int, bare: bool) -> Point:
    return Point(tuple((file, line) for file, line in lines), function, instruction, nth, bare)


def _given_back(wanted: Any, seen: Any) -> bool:
    """Whether two pictures are alike but for messages that were leased and are ready again."""
    return bool(_without_leases(wanted) == _without_leases(seen)) and not any(
        group["leased"] > wanted[topic]["groups"][name]["leased"] and group["ready"]
        for topic, found in seen.items()
        for name, group in found["groups"].items()
    )


def _without_leases(picture: Any) -> Any:
    copy = json.loads(json.dumps(picture))
    for topic in copy.values():
        for group in topic["groups"].values():
            group["here"] = group.pop("unread") + group.pop("ready") + group.pop("leased")
            for name in "delivered", "redelivered", "pending":
                group.pop(name, None)
    return copy


def _difference(seen: Any, allowed: list[Seen]) -> str:
    """The first thing in which a picture differs from the nearest one."""
    found = [_differences(each.found["picture"], seen, "") for each in allowed]
    return "; ".join(min(found, key=len)[:3])


def _differences(wanted: Any, seen: Any, where: str) -> list[str]:
    if isinstance(wanted, dict) and isinstance(seen, dict):
        keys = sorted(wanted.keys() | seen.keys())
        return [
            each
            for key in keys
            for each in _differences(wanted.get(key), seen.get(key), f"{where}/{key}")
        ]
    if wanted == seen:
        return []
    return [f"{where} is {json.dumps(seen)[:80]}, not {json.dumps(wanted)[:80]}"]
