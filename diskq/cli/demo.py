"""`diskq demo`: real processes do real work, one of them is killed, and the last line is a verdict.

Two producers put the path of every .py file of Python's standard library; consumers hash the files.
`Demo.play` tells the story, `judge` says whether every promise in it was kept.
"""

from __future__ import annotations

import os
import signal
import sysconfig
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import click

import diskq

from . import demo_view
from .demo_work import GROUP, PATIENCE_SECONDS, TOPIC, Child, DemoFailed, digest_of

DELIVERIES = 3


class Pace(NamedTuple):
    """How long the parts take, in seconds, and which part of the files is used."""

    feed: float = 18.0
    alone: float = 4.0
    away: float = 2.0
    every_file: int = 1
    line: float = 2.0


class Outcome(NamedTuple):
    """All that the verdict depends on."""

    expected: Mapping[str, str]  # the digest of each file, computed here
    digests: Mapping[str, set[str]]  # what the consumers said
    put: int
    group: diskq.GroupStats
    findings: Sequence[diskq.Finding]
    redelivery_seconds: float | None
    redriven: int


def judge(outcome: Outcome) -> list[str]:
    """What is wrong; nothing if all went as promised."""
    wrong = [
        f"{path}: digest {digests or 'missing'}, should be {digest}"
        for path, digest in outcome.expected.items()
        if (digests := outcome.digests.get(path, set())) != {digest}
    ]
    wrong += [f"{path}: nobody put this" for path in outcome.digests.keys() - outcome.expected]
    wrong += [f"verify: {where}: {problem}" for where, problem in outcome.findings]
    if outcome.put != len(outcome.expected):
        wrong.append(f"{outcome.put} messages for {len(outcome.expected)} files")
    if outcome.group.acked != outcome.put or demo_view.lost(outcome.put, outcome.group):
        wrong.append(demo_view.balance(outcome.put, outcome.group))
    if outcome.redelivery_seconds is None:
        wrong.append("the message of the killed consumer was not delivered again")
    if outcome.redriven != 1:
        wrong.append(f"{outcome.redriven} dead letters were redriven, not 1")
    return wrong


def library_files(every: int) -> list[str]:
    """Every n-th .py file of the running Python's standard library."""
    found = []
    for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = sorted({*folders} - {"site-packages", "dist-packages", "__pycache__"})
        paths = (os.path.join(folder, name) for name in sorted(names) if name.endswith(".py"))
        found += [path for path in paths if os.access(path, os.R_OK) and "\n" not in path]
    return found[::every]


class Demo:
    """The story, and what is known while it is played."""

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
        self.started = self.heard = self.fed_at = self.looked_at = time.monotonic()
        self.fed = 0
        self.credit = 0.0
        self.feed_limit = len(self.files) * 3 // 4  # until the killed consumer is back
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
        """All of it. Raises DemoFailed if it comes to a halt."""
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
        self.feed_limit = len(self.files)

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
        """The missing file is dealt with, all three have done a fair number, and nothing waits: or
        they are too slow for that."""
        fair = min(self.done.values()) >= len(self.files) // 20
        slow = self.fed >= self.feed_limit
        return self.now.dead == 1 and fair and (self.now.unread < 3 or slow)

    def settled(self) -> int:
        """How many messages are acked or dead."""
        return self.now.acked + self.now.dead

    def kill_in_mid_message(self, name: str) -> None:
        """SIGKILL while it handles a message: freeze it, see in the store whether it does, or let
        it go on and try again."""
        process = self.consumers[name].process
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            live = {consumer.pid: consumer for consumer in self.store.stats().consumers}
            handling = live[process.pid].handling if process.pid in live else None
            if handling in {each.offset for each in self.group.pending()}:  # not acked just now
                assert handling is not None
                self.killed_offset, self.killed_at = handling, time.monotonic()
                self.consumers[name].kill()
                self.here.discard(name)
                self.log(f"kill -9 {name}, in the middle of message {handling}")
                return
            process.send_signal(signal.SIGCONT)
            self.turn()
        raise DemoFailed(f"{name} was never seen handling a message")

    def redrive(self) -> int:
        """Write the file that was missing, and give its message back."""
        letters = [letter for letter in self.group.dead() if letter.body == self.late_file.encode()]
        if not letters:
            raise DemoFailed(f"the message with the missing file {self.late_file} is not dead")
        Path(self.late_file).write_text("# now it is here\n")
        self.log(f"the file of dead letter {letters[0].offset} exists now: redrive")
        return self.group.redrive(offsets=[letters[0].offset])

    # Playing it

    @property
    def now(self) -> diskq.GroupStats:
        """The group, a moment ago."""
        return self.stats.groups[0]

    def start(self, name: str, *args: str) -> Child:
        """Start a process."""
        verb, *rest = args
        child = Child(name, self.folder, self.news, verb, self.store.path, *rest)
        self.stack.callback(child.kill)
        return child

    def start_consumer(self, name: str) -> None:
        """Three of them take twice as many messages as are put, one alone falls behind."""
        rate = len(self.files) / self.pace.feed
        self.consumers[name] = self.start(name, "hash", name, str(3 / (2 * rate)))

    def go_on(self, what: str, until: Callable[[], bool]) -> None:
        """Play until something is so. Raises DemoFailed after long without any news."""
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
        """Feed the producers, hear what the children tell, look at the store, show it."""
        self.feed()
        self.hear_all(0.05)
        for child in (*self.producers, *self.consumers.values()):
            child.check()
        if time.monotonic() - self.looked_at >= 0.1:
            self.look()

    def feed(self) -> None:
        """Hand the producers the paths that are due by now."""
        now = time.monotonic()
        self.credit += (now - self.fed_at) * len(self.files) / self.pace.feed
        self.fed_at = now
        if not self.producers or self.producers[0].leaving:
            return
        due = min(int(self.credit), self.feed_limit - self.fed)
        self.credit = min(self.credit - due, 10.0)
        for index, producer in enumerate(self.producers):
            lines = self.files[self.fed + index : self.fed + due : len(self.producers)]
            producer.write(b"".join(os.fsencode(line) + b"\n" for line in lines))
        self.fed += due
        if self.fed == len(self.files):
            for producer in self.producers:
                producer.leave()

    def hear_all(self, timeout: float = 0) -> None:
        """All events that are there, or the first one that comes."""
        with suppress(Empty):
            self.hear(*self.news.get(timeout=timeout))
            while True:
                self.hear(*self.news.get_nowait())

    def hear(self, name: str, what: str, at: float, *details: Any) -> None:
        """One event of a child."""
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
        """Look at the store, and show it."""
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
        """Tell what happens."""
        self.view.log(time.monotonic() - self.started, text)


def shares(done: Counter[str]) -> str:
    """Who did how much of it."""
    total = max(done.total(), 1)
    return ", ".join(f"{name} {done[name] / total:.1%}" for name in sorted(done))


@contextmanager
def work_folder(*, keep: bool) -> Iterator[Path]:
    """A temporary folder, which stays if it is to be kept."""
    if keep:
        yield Path(tempfile.mkdtemp(prefix="diskq-demo-"))
        return
    with tempfile.TemporaryDirectory(prefix="diskq-demo-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def run(pace: Pace, view: demo_view.View, folder: Path, store_path: Path) -> bool:
    """Play the demo, print the result and the verdict; True if it is PASS."""
    with ExitStack() as stack:
        stack.callback(view.close)
        store = stack.enter_context(diskq.open(store_path))
        if any(topic.name == TOPIC for topic in store.topics()):
            raise click.UsageError(f"{store_path} has been used before; choose a new directory")
        demo = Demo(store, folder, pace, view, stack)
        try:
            outcome = demo.play()
            wrong = judge(outcome)
        except DemoFailed as error:
            outcome, wrong = None, [str(error)]
        seconds = time.monotonic() - demo.started
    if outcome is not None:
        click.echo()
        click.echo(f"shares: {shares(demo.done)}; side by side {shares(demo.side_by_side)}")
        click.echo(f"kill -9 to redelivery: {1000 * (outcome.redelivery_seconds or 0):.0f} ms")
        click.echo(f"verify: {len(outcome.findings)} findings")
        click.echo(demo_view.balance(outcome.put, outcome.group))
    for problem in wrong[:10]:
        click.echo(f"wrong: {problem}")
    if wrong:
        click.echo(f"FAIL: {len(wrong)} things are wrong, in {seconds:.1f} s")
    else:
        click.echo(f"PASS: all {len(demo.files):,} digests are right, in {seconds:.1f} s")
    return not wrong


@click.command()
@click.option("--fast", is_flag=True, help="Every fourth file, in about 6 s instead of 20.")
@click.option("--keep", is_flag=True, help="Keep the store, and say where it is.")
@click.option(
    "--store",
    "directory",
    type=click.Path(path_type=Path),
    help="Make the store in this new directory, and keep it.",
)
def demo(fast: bool, keep: bool, directory: Path | None) -> None:
    """Watch real processes share, crash and recover; the last line is PASS or FAIL.

    Two producers put the path of every .py file of Python's standard library. CA hashes them
    alone, then CB and CC join. CB is killed in the middle of a message and comes back. One file
    is missing: its message becomes a dead letter, and is redriven once the file exists. In the
    end every digest must equal the one computed without a queue.

    \b
    diskq demo
    diskq demo --fast
    diskq demo --store /tmp/look && diskq -s /tmp/look info
    """
    pace = Pace(feed=5.0, alone=1.0, away=0.5, every_file=4, line=1.0) if fast else Pace()
    with work_folder(keep=keep and directory is None) as folder:
        store_path = directory or folder / "store"
        try:
            passed = run(pace, demo_view.choose(pace.line), folder, store_path)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        finally:
            if keep or directory:
                click.echo(f"the store is kept in {store_path}", err=True)
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    demo()
