"""Kill a process in the middle of a commit while a child that was forked in C lives on.

    python3 tools/dev.py torture c_fork --rounds 20

A library or a server may fork without Python's knowing: the child inherits every descriptor, and
with it what locks the parent holds through them. So does a killed writer still hold up others, and
do its consumers look alive, until that child has ended? Each round: a process leases messages,
forks in C, and commits without end; it is stopped, until that is inside of a commit (another
process's put does not return), and killed. Measured is how long it takes until the other's put
returns, and until it gets all that the dead one had leased. In every other round the dead one is
left a zombie meanwhile, as by a parent that is busy. In the end all is counted and verified.

Before that, a child forked in C uses the store itself, more often than LMDB has places for readers.

Exit code 0: all within the bound; 1: something is wrong; 2: usage.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import diskq

LEASED = 3
READS = 1100  # LMDB has places for 1,024 readers
MOST_READERS = 10
PIPE = 9  # the descriptor of a process that tells something
BLOCKED_SECONDS = 0.25  # a put that takes longer waits for the one that is stopped
TRIES = 400  # until a process was stopped inside of a commit


def doomed(path: Path, pipe: int) -> None:
    """Lease, fork in C, and commit until it is killed."""
    store = diskq.open(path)
    topic = store.topic("t", retention="limits")
    again = diskq.Backoff(0)
    consumer = topic.group("g", lease_seconds=3600, backoff=again).consumer("doomed")
    leased = consumer.get_many(LEASED, timeout=5)
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        signal.pause()
    os.write(pipe, b"%d %d\n" % (child, len(leased)))
    noise = store.topic("noise", retention="limits", max_messages=1000, discard="old")
    while True:
        noise.put(b"x" * 100_000)


def user(path: Path, pipe: int) -> None:
    """Fork in C; the child reads, puts, gets and acks, and so does the parent behind it."""
    store = diskq.open(path)
    topic = store.topic("t")
    topic.put(b"user")
    child = ctypes.PyDLL(None).fork()
    name = b"parent" if child else b"child"
    try:
        if child:
            os.waitpid(child, 0)
        for _ in range(READS):
            topic.stats()
        topic.put(b"user " + name)
        with topic.group("g").consumer() as consumer:
            consumer.get(timeout=5).ack()
    except Exception as error:
        os.write(pipe, name + b": " + repr(error).encode() + b"\n")
    if child:
        store.close()
    os._exit(0)


def start(job: str, path: str) -> tuple[int, int]:
    """Run a job of this file in a fresh process; its pid, and the end of a pipe to hear it."""
    reading, writing = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, writing, PIPE)]
    command = [sys.executable, "-m", "torture.c_fork", job, path]
    pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
    os.close(writing)
    return pid, reading


class Put:
    """A put in a separate thread, since it may block."""

    def __init__(self, topic: diskq.Topic, body: str) -> None:
        self.seconds = 0.0
        self.error = ""
        self.body = body
        self._topic = topic
        self._thread = threading.Thread(target=self._put, daemon=True)
        self._began = time.monotonic()
        self._thread.start()

    def _put(self) -> None:
        try:
            self._topic.put(self.body.encode())
        except Exception as error:
            self.error = repr(error)
        self.seconds = time.monotonic() - self._began

    def returned(self, seconds: float) -> bool:
        """Whether it has returned, or does within so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()


class Round:
    """One process that is killed, and what it takes until others go on."""

    def __init__(self, options: argparse.Namespace, store: diskq.Store, number: int) -> None:
        self.options, self.topic, self.number = options, store.topic("t"), number
        self.group = self.topic.group("g")
        self.child = 0
        self.bodies: list[str] = []  # put, and put for certain
        self.errors: list[str] = []

    def run(self) -> tuple[bool, float, float]:
        """Whether it was killed inside of a commit, and the seconds until a put returned and until
        the last of its leases came back."""
        leased = [f"leased {self.number}-{n}" for n in range(LEASED)]
        self.topic.put_many([each.encode() for each in leased])
        self.bodies += leased
        pid = self._start()
        inside, put = self._stop(pid)
        if not self.options.plant:
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        if self.number % 2 == 0 and not self.options.plant:
            os.waitpid(pid, 0)
        if not put.returned(self.options.away):
            self.errors.append("blocked: a put did not return while the child lived")
        put_seconds = time.monotonic() - killed
        back = self._take(killed, leased)
        for victim in (self.child, pid):
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        if not put.returned(self.options.away):
            self.errors.append("blocked: a put did not return when the child was dead, too")
        elif put.error:
            self.errors.append(f"error: {put.error}")
        else:
            self.bodies.append(put.body)
        return inside, put_seconds, back

    def _start(self) -> int:
        pid, reading = start("doomed", self.topic.store.path)
        with os.fdopen(reading) as pipe:
            told = pipe.readline().split()
        if len(told) != 2:
            raise SystemExit("c_fork: the process to be killed did not start")
        self.child = int(told[0])
        if int(told[1]) != LEASED:
            self.errors.append(f"error: it got {told[1]} of {LEASED} messages")
        return pid

    def _stop(self, pid: int) -> tuple[bool, Put]:
        """Stop it until that is inside of a commit."""
        for turn in range(TRIES):
            time.sleep(0.003 + turn % 7 * 0.001)
            os.kill(pid, signal.SIGSTOP)
            os.waitid(os.P_PID, pid, os.WSTOPPED)
            put = Put(self.topic, f"put {self.number}-{turn}")
            if not put.returned(BLOCKED_SECONDS):
                return True, put
            if put.error:
                self.errors.append(f"error: {put.error}")
            else:
                self.bodies.append(put.body)
            os.kill(pid, signal.SIGCONT)
        return False, put

    def _take(self, killed: float, leased: list[str]) -> float:
        """Get and ack everything, until all that it had leased has come."""
        missing = set(leased)
        box: list[float] = []

        def take() -> None:
            with suppress(diskq.Closed), self.group.consumer("other") as consumer:
                while missing:
                    for message in consumer.get_many(100, timeout=1):
                        missing.discard(message.body.decode())
                        message.ack()
                box.append(time.monotonic() - killed)

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        thread.join(self.options.away)
        if not box:
            self.errors.append(f"away: {len(missing)} leased messages, while the child lived")
        return box[0] if box else float("inf")


def drill(folder: Path, options: argparse.Namespace) -> list[str]:
    """All rounds; what is wrong."""
    path = folder / "store"
    problems: list[str] = []
    known: list[str] = []
    puts: list[float] = []
    backs: list[float] = []
    insides = 0
    with diskq.open(path, durability=options.durability) as store:
        store.topic("t", retention="limits").group(
            "g", lease_seconds=3600, backoff=diskq.Backoff(0)
        )
        problems += use(store)
        known += ["user", "user child", "user parent"]
        for number in range(options.rounds):
            each = Round(options, store, number)
            inside, put, back = each.run()
            insides += inside
            puts.append(put)
            backs.append(back)
            problems += [f"round {number}: {error}" for error in each.errors]
            known += each.bodies
            if any(error.startswith("blocked") for error in each.errors):
                break
        found = Counter(message.body.decode() for message in store.topic("t").read())
        problems += [f"lost: {body}" for body in known if not found[body]]
        problems += [f"doubled: {body}" for body, count in found.items() if count > 1]
        problems += [f"verify: {each.where}: {each.problem}" for each in store.verify()]
    late = [seconds for seconds in puts + backs if seconds > options.bound]
    problems += [f"late: {seconds:.2f} s" for seconds in late]
    print(
        f"{len(puts)} rounds, killed inside of a commit {insides}; seconds until a put returned:"
        f" {_spread(puts)}; until the leases came back: {_spread(backs)}"
    )
    return problems


def use(store: diskq.Store) -> list[str]:
    """Let a child forked in C use the store; what is wrong."""
    pid, reading = start("user", store.path)
    with os.fdopen(reading) as pipe:
        problems = [f"used in a child: {line.strip()}" for line in pipe]
    os.waitpid(pid, 0)
    if store.stats().readers > MOST_READERS:
        problems.append(f"used in a child: {store.stats().readers} readers are left")
    return problems


def _spread(values: list[float]) -> str:
    ordered = sorted(values)
    return f"median {ordered[len(ordered) // 2]:.3f}, most {ordered[-1]:.3f}"


def main(arguments: Sequence[str]) -> int:
    """The drill."""
    parser = argparse.ArgumentParser(
        prog="torture c_fork",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, default=10)
    add("--bound", type=float, default=1.0, help="seconds (%(default)s)")
    add("--away", type=float, default=30.0, help="seconds until a wait is given up (%(default)s)")
    add("--plant", action="store_true", help="do not kill, to see that this is found")
    add("--durability", default="commit", choices=("commit", "relaxed", "process"))
    add("--folder", help="where to make the store (the folder for temporary files)")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="diskq-c-fork-", dir=options.folder))
    try:
        problems = drill(folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(*problems[:20], sep="\n")
    print(f"wrong {len(problems)}")
    sys.stdout.flush()
    os._exit(1 if problems else 0)  # a thread may be blocked for good


if __name__ == "__main__":  # the process that it kills
    (doomed if sys.argv[1] == "doomed" else user)(Path(sys.argv[2]), PIPE)
