"""One process with one interruption: it gets there, is interrupted, stands idle, goes on, ends."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from . import points
from .noise import Noise
from .plants import PLANTS
from .points import KINDS, PACKAGE, Point, Tracer
from .prober import Line, Silent
from .scenarios import SCENARIOS, World


class Task(NamedTuple):
    """A verb, and the way in which it is interrupted."""

    scenario: str
    kind: str
    threads: int = 0
    deep: bool = False
    plant: str = ""


def live(
    line: Line, task: Task, path: str, point: Point | None, acts: int | None, dump: str
) -> None:
    """The life of a process that runs the first `acts` of a scenario, and is interrupted at the
    point; None: it lists the points there are."""
    life = Life(line, task, path)
    try:
        life.run(point, acts, dump)
    except Silent:
        raise
    except BaseException as error:
        text = f"{type(error).__name__}: {str(error)[:200]}"
        line.tell(stage="failed", error=text, surfaced=_where(error))


class Life:
    """The stages of the process."""

    def __init__(self, line: Line, task: Task, path: str) -> None:
        self.line, self.task = line, task
        self.scenario = SCENARIOS[task.scenario]
        self.world = World(path)
        self.unraisable: list[str] = []
        self.handled = ""  # what came of the handler's call

    def run(self, point: Point | None, acts: int | None, dump: str) -> None:
        """From the beginning to the end, with a word at each stage."""
        faulthandler.register(signal.SIGUSR1, open(dump, "w"))  # noqa: SIM115 - until it ends
        sys.unraisablehook = lambda told: self.unraisable.append(told.exc_type.__name__)
        points.set_handlers(self._handle)
        self.scenario.prepare(self.world)
        noise = Noise(self.world.store, self.task.threads) if self.task.threads else None
        PLANTS[self.task.plant]()
        if self.scenario.in_child and not self.scenario.forks:
            _go_on_in_a_child()
        self.line.tell(stage="ready")
        telling = self._interrupt(point, acts)
        self.line.tell(stage="idle", **telling)
        self.line.hear()
        self._repeat()
        self.line.tell(stage="repeated")
        acked = self._use()
        self.line.tell(stage="used", acked=acked)
        told = noise.end(30) if noise else None
        self.line.tell(stage="quiet", noise=told)
        self._end_consumers()
        self.line.tell(stage="closed")
        self.line.hear()
        self.world.store.close()
        self.line.tell(stage="ended")
        self.line.hear()

    def _interrupt(self, point: Point | None, acts: int | None) -> dict[str, Any]:
        """Run the acts, traced; what came of it."""
        found: dict[str, Any] = {"returned": 0, "error": "", "surfaced": ""}
        kind = KINDS[self.task.kind]
        steps = self.scenario.acts[:acts]

        def act() -> None:
            if self.scenario.in_child and self.scenario.forks and steps:
                _go_on_in_a_child()
            for step in steps:
                step(self.world)
                found["returned"] += 1

        def attempt() -> None:
            try:
                tracer = Tracer(kind, point, deep=self.task.deep)
                tracer.only_in_child = self.scenario.in_child and self.scenario.forks
                made.append(tracer)
                tracer.trace(act)
            except BaseException as error:
                found["error"] = type(error).__name__
                found["text"] = str(error)[:200]
                found["surfaced"] = _where(error)

        made: list[Tracer] = []
        _run(attempt, in_thread=kind.thread)
        found["fired"] = made[0].fired
        found["unraisable"] = self.unraisable
        found["handled"] = self.handled
        if point is None:
            found["points"] = made[0].distinct()
        return found

    def _handle(self, *_: object) -> None:
        """The signal handler of the kinds that have one: it uses what the verb is using."""
        world = self.world
        consumer, topic = world.consumer, getattr(world, "topic", None)
        store = getattr(world, "store", None)
        self.handled = "nothing"  # there is nothing yet
        try:
            way = KINDS[self.task.kind].handler
            if way == "put" and topic is not None:
                topic.put(b"handler")
                self.handled = "returned"
            elif way == "close" and consumer is not None:
                consumer.close()
                self.handled = "returned"
            elif way == "shut" and store is not None:
                store.close()
                self.handled = "returned"
        except Exception as error:
            self.handled = type(error).__name__

    def _repeat(self) -> None:
        """A program that was interrupted while it closed something closes it again."""
        if self.scenario.repeat is not None:
            self.scenario.repeat(self.world)

    def _use(self) -> list[str]:
        """Put, get, ack, with what there is."""
        world = self.world
        if self.scenario.ends == "store" or KINDS[self.task.kind].handler == "shut":
            self._forget_store()
        if not hasattr(world, "group"):
            world.furnish()
        if world.consumer is None or not world.consumer.usable:
            world.consumer = world.group.consumer("after")
        world.topic.put(b"after")
        message = world.consumer.get(timeout=2)
        message.ack()
        world.steps = iter(())
        return [message.body.decode()]

    def _forget_store(self) -> None:
        """It is closed, or may be; close it for certain, and go on with another."""
        world = self.world
        if hasattr(world, "store"):
            world.store.close()
        world.consumer = None
        world.messages.clear()
        for name in ("store", "topic", "group"):
            vars(world).pop(name, None)

    def _end_consumers(self) -> None:
        self.world.close()
        gc.collect()


def _run(call: Callable[[], None], *, in_thread: bool) -> None:
    if not in_thread:
        call()
        return
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def _go_on_in_a_child() -> None:
    """Fork; the parent, with the store open, does nothing but wait."""
    pid = os.fork()
    if pid:
        sys.settrace(None)
        os.waitpid(pid, 0)
        os._exit(0)


def _where(error: BaseException) -> str:
    """The last line of the package in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [each for each in frames if each.filename.startswith(PACKAGE)]
    if not inside:
        return "behind the call"
    return f"{inside[-1].filename[len(PACKAGE) :]}:{inside[-1].lineno} {inside[-1].name}"
