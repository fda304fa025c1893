"""The demo as it is played: `Demo.play` tells the story, all else keeps its processes at work."""

from __future__ import annotations

import os
import signal
import sysconfig
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import diskq

from . import demo_view
from .demo_verdict import Outcome, comes_back
from .demo_work import GROUP, PATIENCE_SECONDS, TOPIC, Child, DemoFailed, digest_of

DELIVERIES = 3


class Pace(NamedTuple):
    """How long the parts of the demo take, in seconds, and which part of the files it uses."""

    feed: float = 18.0
    alone: float = 4.0
    away: float = 2.0
    every_file: int = 1
    line: float = 2.0


def library_files(every: int) -> list[str]:
    """Every n-th .py file of the running Python's standard library."""
    found = []
    for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = sorted({*folders} - {"site-packages", "dist-packages", "__pycache__"})
        paths = (os.path.join(folder, name) for name in sorted(names) if name.endswith(".py"))
        found += [path for path in paths if os.access(path, os.R_OK) and "\n" not in path]
    return found[::every]


class Feeder:
    """Hands the producers the paths of the files at a steady pace, up to a limit."""

    def __init__(self, files: Sequence[str], seconds: float) -> None:
        self.fed = 0
        self.limit = len(files) * 3 // 4  # until the killed consumer is back
        self._files = files
        self._per_second = len(files) / seconds
        self._credit = 0.0
        self._fed_at = time.monotonic()

    def feed(self, producers: Sequence[Child]) -> None:
        """Hand over the paths that are due by now; with the last one, ask the producers to end."""
        now = time.monotonic()
        self._credit += (now - self._fed_at) * self._per_second
        self._fed_at = now
        if not producers or producers[0].leaving:
            return
        due = min(int(self._credit), self.limit - self.fed)
        self._credit = min(self._credit - due, 10.0)
        for index, producer in enumerate(producers):
            lines = self._files[self.fed + index : self.fed + due : len(producers)]
            producer.write(b"".join(os.fsencode(line) + b"\n" for line in lines))
        self.fed += due
        if self.fed == len(self._files):
            for producer in producers:
                producer.leave()


class Demo:
    """The story, and its state while it is played."""

    def __init__(
        self, store: diskq.Store, folder: Path, pace: Pace, view: demo_view.View, stack: ExitStack
    ) -> None:
        self.store = store
        self.folder = folder
        self.pace = pace
        self.view = view
        self.stack = stack
        self.topic = store.topic(TOPIC)
        self.group = self.topic.group(
            GROUP, max_deliveries=DELIVERIES, backoff=diskq.Backoff(0.2, 2, 1)
        )
        self.files = library_files(pace.every_file)
        self.late_file = str(folder / "written_later.py")
        self.files.insert(len(self.files) // 6, self.late_file)
        self.producers: list[Child] = []
        self.consumers: dict[str, Child] = {}
        self.news: SimpleQueue[list[Any]] = SimpleQueue()
        self.feeder = Feeder(self.files, pace.feed)
        self.started = self.heard = self.looked_at = time.monotonic()
        self.stats = self.topic.stats()
        self.here: set[str] = set()  # consumers that are ready for messages
        self.done: Counter[str] = Counter()
        self.recent: deque[tuple[float, str]] = deque()
        self.digests: dict[str, set[str]] = {}
        self.killed_offset = -1
        self.killed_at = 0.0
        self.redelivery_seconds: float | None = None
        self.side_by_side: Counter[str] = Counter()
        self.told_dead = False

    # The story

    def play(self) -> Outcome:
        """Play the whole story. Raises DemoFailed if it comes to a halt."""
        self.log(f"2 producers put {len(self.files):,} paths, CA works alone")
        for name in ("P1", "P2"):
            self.producers.append(self.start(name, "put"))
        self.start_consumer("CA")
        self.go_on("CA to work", lambda: self.done["CA"] > 0)
        self.pause(self.pace.alone)

        self.log(f"{self.now.unread:,} messages are waiting; CB and CC join")
        for name in ("CB", "CC"):
            self.start_consumer(name)
        self.go_on("CB and CC to work", lambda: self.done["CB"] > 0 and self.done["CC"] > 0)
        joined = self.done.copy()
        self.go_on("the consumers to catch up", self.caught_up)
        self.side_by_side = self.done - joined
        self.log(f"they have caught up; done since: {shares(self.side_by_side)}")

        self.kill_in_mid_message("CB")
        self.go_on("the message to come back", lambda: self.redelivery_seconds is not None)
        self.pause(self.pace.away)
        del self.consumers["CB"]
        self.start_consumer("CB")
        self.go_on("CB to come back", lambda: "CB" in self.here)
        self.log("CB is back")
        self.feeder.limit = len(self.files)

        self.go_on("all files to be hashed", lambda: self.settled() == len(self.files))
        redriven = self.redrive()
        self.go_on("the dead letter to be done", lambda: self.now.acked == len(self.files))
        for child in self.consumers.values():
            child.leave()
        for child in (*self.producers, *self.consumers.values()):
            child.finish()
        self.hear_all()
        findings = list(self.store.verify())
        self.look()
        return Outcome(
            expected={path: digest_of(path) for path in self.files},
            digests=self.digests,
            put=self.stats.put,
            group=self.now,
            findings=findings,
            redelivery_seconds=self.redelivery_seconds,
            redriven=redriven,
        )

    def caught_up(self) -> bool:
        """Whether the missing file is dealt with, all three consumers have done a fair number, and
        no message waits; or they are too slow for that."""
        fair = min(self.done.values()) >= len(self.files) // 20
        slow = self.feeder.fed >= self.feeder.limit
        return self.now.dead == 1 and fair and (self.now.unread < 3 or slow)

    def settled(self) -> int:
        """How many messages are acked or dead."""
        return self.now.acked + self.now.dead

    def kill_in_mid_message(self, name: str) -> None:
        """SIGKILL a consumer while it handles a message that comes back. If its last commit turns
        out to have acked the message, start the consumer again and kill it with another one."""
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            lease = self.freeze(name, until)
            failed = self.group.stats().failed
            self.killed_at = time.monotonic()
            self.consumers[name].kill()
            self.here.discard(name)
            self.topic.trim()  # any commit: LMDB shows what a killed writer wrote only after one
            pending = self.group.pending()
            if comes_back(lease, pending, self.group.stats().failed - failed):
                self.killed_offset = lease.offset
                self.log(f"kill -9 {name}, in the middle of message {lease.offset}")
                return
            self.log(f"kill -9 {name}, which had just acked message {lease.offset}: once more")
            self.start_consumer(name)
            self.go_on(f"{name} to work", lambda: name in self.here)
        raise DemoFailed(f"{name} was never killed in the middle of a message")

    def freeze(self, name: str, until: float) -> diskq.PendingMessage:
        """Stop a consumer where it handles a message; returns its lease."""
        process = self.consumers[name].process
        while time.monotonic() < until:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            live = {consumer.pid: consumer for consumer in self.store.stats().consumers}
            handling = live[process.pid].handling if process.pid in live else None
            for lease in self.group.pending():
                if lease.offset == handling:  # not acked just now
                    return lease
            process.send_signal(signal.SIGCONT)
            self.turn()
        raise DemoFailed(f"{name} was never seen handling a message")

    def redrive(self) -> int:
        """Write the missing file, and give its message back."""
        letters = [letter for letter in self.group.dead() if letter.body == self.late_file.encode()]
        if not letters:
            raise DemoFailed(f"the message with the missing file {self.late_file} is not dead")
        Path(self.late_file).write_text("# now it is here\n")
        self.log(f"the file of dead letter {letters[0].offset} exists now: redrive")
        return self.group.redrive(offsets=[letters[0].offset])

    # Playing it

    @property
    def now(self) -> diskq.GroupStats:
        """The group as it was a moment ago."""
        return self.stats.groups[0]

    def start(self, name: str, *args: str) -> Child:
        """Start a process."""
        verb, *rest = args
        child = Child(name, self.folder, self.news, verb, self.store.path, *rest)
        self.stack.callback(child.kill)
        return child

    def start_consumer(self, name: str) -> None:
        """Start a consumer. Three of them take twice as many messages as are put; one alone falls
        behind."""
        rate = len(self.files) / self.pace.feed
        self.consumers[name] = self.start(name, "hash", name, str(3 / (2 * rate)))

    def go_on(self, what: str, until: Callable[[], bool]) -> None:
        """Play until a condition holds. Raises DemoFailed after a long time without news."""
        self.heard = time.monotonic()
        while not until():
            self.turn()
            if time.monotonic() - self.heard > PATIENCE_SECONDS:
                state = demo_view.balance(self.stats.put, self.now)
                raise DemoFailed(f"waited {PATIENCE_SECONDS:.0f} s for {what}; {state}")

    def pause(self, seconds: float) -> None:
        """Play for some time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.turn()

    def turn(self) -> None:
        """Feed the producers, take the children's news, read the store and show it."""
        self.feeder.feed(self.producers)
        self.hear_all(0.05)
        for child in (*self.producers, *self.consumers.values()):
            child.check()
        if time.monotonic() - self.looked_at >= 0.1:
            self.look()

    def hear_all(self, timeout: float = 0) -> None:
        """Take all events that are there, or the first one that comes."""
        with suppress(Empty):
            self.hear(*self.news.get(timeout=timeout))
            while True:
                self.hear(*self.news.get_nowait())

    def hear(self, name: str, what: str, at: float, *details: Any) -> None:
        """Take one event of a child."""
        self.heard = time.monotonic()
        if what == "here":
            self.here.add(name)
        elif what == "got" and details[0] == self.killed_offset and name != "CB":
            if self.redelivery_seconds is None:
                self.redelivery_seconds = at - self.killed_at
                milliseconds = 1000 * self.redelivery_seconds
                self.log(f"{name} has message {details[0]} after {milliseconds:.0f} ms")
        elif what == "done":
            _, path, digest = details
            self.digests.setdefault(path, set()).add(digest)
            self.done[name] += 1
            self.recent.append((at, name))

    def look(self) -> None:
        """Read the store, and show it."""
        self.looked_at = now = time.monotonic()
        self.stats = self.topic.stats()
        if self.now.dead and not self.told_dead:
            self.told_dead = True
            letter = next(self.group.dead())
            self.log(
                f"message {letter.offset} is dead after {letter.failures} deliveries: a file"
                " is missing"
            )
        while self.recent and self.recent[0][0] < now - 2:
            self.recent.popleft()
        latest = Counter(name for _, name in self.recent)
        rows = [
            demo_view.Row(
                name,
                "killed" if child.process.returncode == -signal.SIGKILL else "working",
                self.done[name],
                latest[name] / max(latest.total(), 1),
            )
            for name, child in sorted(self.consumers.items())
        ]
        seconds = now - self.started
        self.view.show(demo_view.Picture(seconds, len(self.files), self.stats.put, self.now, rows))

    def log(self, text: str) -> None:
        """Show an event of the story."""
        self.view.log(time.monotonic() - self.started, text)


def shares(done: Counter[str]) -> str:
    """The share of each consumer."""
    total = max(done.total(), 1)
    return ", ".join(f"{name} {done[name] / total:.1%}" for name in sorted(done))
