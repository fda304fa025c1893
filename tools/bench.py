#!/usr/bin/env python3
"""Measure diskq against the engine it stands on, as ratios of one run on one machine.

    python3 tools/dev.py bench                 all sections, a table
    python3 tools/dev.py bench put wake        some of them
    python3 tools/dev.py bench --json          one JSON object a line
    python3 tools/dev.py bench --check         exit code 1 if a target is missed

Absolute figures depend on the disk and on what else runs. So each comparison runs its sides in
turn, a drift hits all of them, and medians are compared. "Raw" is LMDB alone, without queue, leases
or checksums, opened with the same flags.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import lmdb

import diskq

ROOT = Path(__file__).resolve().parents[1]

BODY = b"x" * 100
NS = 1e9
CACHE = os.path.join(tempfile.gettempdir(), "diskq-bench-pycache")
Step = Callable[[], object]


class Figure(NamedTuple):
    """One measured value; a target is an upper bound, or with `least` a lower one."""

    what: str
    value: float
    unit: str
    target: float | None = None
    least: bool = False

    def missed(self) -> bool:
        off = self.target is not None and self.value - self.target
        return off < 0 if self.least else off > 0


# Tools ------------------------------------------------------------------------------------------


@contextmanager
def new_store(durability: str = "process") -> Iterator[diskq.Store]:
    """A store that is gone afterwards, beside this project, so on a disk like a user's."""
    with (
        tempfile.TemporaryDirectory(prefix=".bench-", dir=ROOT) as folder,
        diskq.open(Path(folder, "store"), durability=durability) as store,
    ):
        yield store


@contextmanager
def raw_environment(durability: str = "process") -> Iterator[lmdb.Environment]:
    """LMDB alone with the flags that diskq uses."""
    with (
        tempfile.TemporaryDirectory(prefix=".bench-", dir=ROOT) as folder,
        lmdb.open(
            folder,
            map_size=2**36,
            sync=durability == "commit",
            max_dbs=8,
            max_spare_txns=0,
            lib_version=0,
        ) as environment,
    ):
        yield environment


def in_turn(rounds: int, *steps: Step) -> list[float]:
    """Median seconds of each step, run one after the other in every round."""
    times: list[list[float]] = [[] for _ in steps]
    for step in steps:
        step()
    for _ in range(rounds):
        for step, seconds in zip(steps, times, strict=True):
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
    return [median(seconds) for seconds in times]


def p99(values: list[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98]


def role(name: str, store: diskq.Store, *more: object) -> subprocess.Popen[str]:
    """Another process, in one of the ROLES below; returns when it is ready."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--role", name, store.path, *map(str, more)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    hear(process)
    return process


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_blocked(store: diskq.Store, count: int) -> None:
    while sum(consumer.waiting for consumer in store.stats().consumers) < count:
        time.sleep(0.001)


def tell(word: object) -> None:
    print(word, flush=True)


# Sections ---------------------------------------------------------------------------------------


def raw_appender(environment: lmdb.Environment, bodies: list[bytes]) -> Step:
    """A step that appends these bodies in one commit."""
    keys = count()

    def append() -> None:
        items = [(next(keys).to_bytes(8, "big"), body) for body in bodies]
        with environment.begin(write=True) as txn:
            txn.cursor().putmulti(items, append=True)

    return append


def against_raw(durability: str, size: int, rounds: int) -> list[float]:
    """Seconds that diskq and that LMDB take for a commit of `size` messages."""
    bodies = [BODY] * size
    with new_store(durability) as store, raw_environment(durability) as environment:
        topic = store.topic("bench")
        ours = (lambda: topic.put(BODY)) if size == 1 else (lambda: topic.put_many(bodies))
        return in_turn(rounds, ours, raw_appender(environment, bodies))


def many() -> Iterator[Figure]:
    """put_many of 1,000 messages against putmulti of the same in one commit."""
    for durability in ("commit", "process"):
        ours, raw = against_raw(durability, 1000, 60)
        yield Figure(f"put_many(1000), {durability}", ours * 1e3, "us a message")
        yield Figure(f"put_many(1000) / raw, {durability}", ours / raw, "x", 2.5)


def put() -> Iterator[Figure]:
    """One put against one commit of one value."""
    for durability, target in (("commit", 1.3), ("process", None)):
        ours, raw = against_raw(durability, 1, 700)
        yield Figure(f"put, {durability}", ours * 1e6, "us")
        yield Figure(f"put / raw, {durability}", ours / raw, "x", target)


def batches() -> Iterator[Figure]:
    """get_many(100) and ack_many against a cursor that only looks."""
    with new_store() as store, raw_environment() as environment:
        queue, consumer = store.queue("bench"), store.queue("bench").consumer()
        raw_appender(environment, [BODY] * 50_000)()
        for _ in range(2):
            queue.put_many([BODY] * 40_000)

        def take() -> None:
            for _ in range(20):
                consumer.ack_many(consumer.get_many(100))

        def iterate() -> None:
            with environment.begin() as txn:
                for _ in txn.cursor():
                    pass

        ours, raw = in_turn(35, take, iterate)
    ours, raw = ours / 2000, raw / 50_000
    quick = ours <= 3e-6 or ours <= 12 * raw  # one of the two will do
    time_target, ratio_target = (None, None) if quick else (3.0, 12.0)
    what = "get_many(100) + ack_many"
    yield Figure(what, ours * 1e6, "us a message", time_target)
    yield Figure(f"{what} / raw iteration", ours / raw, "x", ratio_target)


def single() -> Iterator[Figure]:
    """One message at a time."""
    names = ("put", "get + ack", "iteration")
    for durability in ("process", "commit"):
        for what, seconds in zip(names, one_by_one(durability), strict=True):
            yield Figure(f"{what}, {durability}", seconds * 1e6, "us")


def one_by_one(durability: str) -> list[float]:
    with new_store(durability) as store:
        queue = store.queue("bench")
        for _ in range(1500):
            queue.put(BODY)
        taker, iterator = queue.consumer(), iter(queue.consumer())
        return in_turn(
            700, lambda: queue.put(BODY), lambda: taker.get().ack(), lambda: next(iterator)
        )


def threads() -> Iterator[Figure]:
    """Durable puts of several threads, which share commits, against one raw commit each."""
    with new_store("commit") as store, raw_environment("commit") as environment:
        topic, append = store.topic("bench"), raw_appender(environment, [BODY])
        for number in (1, 4, 16, 64):
            each = max(400 // number, 20)
            ours, raw = in_turn(
                5,
                partial(in_threads, number, partial(topic.put, BODY), each),
                partial(in_threads, 1, append, 100),
            )
            rate = number * each / ours
            yield Figure(f"put, {number} threads", rate, "a second")
            yield Figure(f"{number} threads / raw commits", rate * raw / 100, "x")


def in_threads(number: int, step: Step, each: int) -> None:
    """Run a step `each` times in each of several threads."""

    def run() -> None:
        for _ in range(each):
            step()

    workers = [threading.Thread(target=run) for _ in range(number)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def wake() -> Iterator[Figure]:
    """From before a put until a blocked get elsewhere returned, and how many wake up for it."""
    for number in (1, 10):
        with new_store() as store:
            waiters = [role("wait", store) for _ in range(number)]
            before, begun = sum(map(sleeps, waiters)), time.monotonic()
            for _ in range(300):
                wait_for_blocked(store, number)
                time.sleep(0.002)
                store.queue("bench").put(b"%d" % time.monotonic_ns())
                while store.queue("bench").qsize():
                    time.sleep(0.0005)
            regular = (time.monotonic() - begun) * number  # each looks around once a second
            woken = (sum(map(sleeps, waiters)) - before - regular) / 300
            end(*waiters)
            notes = [path.read_text().split() for path in Path(store.path).glob("late-*")]
        late = [float(line) * 1e3 for lines in notes for line in lines]
        yield Figure(f"wake-up p50, {number} waiting", median(late), "ms", 0.5)
        yield Figure(f"wake-up p99, {number} waiting", p99(late), "ms")
        yield Figure(f"wake-ups a message, {number} waiting", woken, "")


def sleeps(process: subprocess.Popen[str]) -> int:
    """How often a process went to sleep so far."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


def idle() -> Iterator[Figure]:
    """CPU of a blocked get."""
    for holders in (0, 1):
        with new_store() as store:
            store.queue("bench").put_many([BODY] * holders)
            processes = [role("hold", store) for _ in range(holders)] + [role("wait", store)]
            wait_for_blocked(store, 1)
            before = cpu_seconds(processes[-1])
            time.sleep(5)
            percent = (cpu_seconds(processes[-1]) - before) / 5 * 100
            end(*processes)
        yield Figure(f"CPU of a blocked get, {holders} other holders", percent, "%", 0.5)


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]) / NS


def kill() -> Iterator[Figure]:
    """From kill -9 of a holder until its message is with another consumer."""
    for what in ("blocked consumer", "forked child of the dead alive", "consumer started later"):
        with new_store() as store:
            store.topic("bench").group("default", lease_seconds=600, max_deliveries=10_000)
            late = [kill_one(store, what) * 1e3 for _ in range(50)]
        yield Figure(f"redelivered p50, {what}", median(late), "ms")
        yield Figure(f"redelivered p99, {what}", p99(late), "ms", 250)


def kill_one(store: diskq.Store, what: str) -> float:
    """Seconds from the kill to the redelivery."""
    store.queue("bench").put(BODY)
    holder = role("hold-forked" if what.startswith("forked") else "hold", store)
    child = int(hear(holder)) if what.startswith("forked") else 0
    arrived = []

    def take() -> None:
        with store.queue("bench").consumer() as consumer, consumer.get():
            arrived.append(time.perf_counter())

    taker = threading.Thread(target=take)
    if not what.endswith("later"):
        taker.start()
        wait_for_blocked(store, 1)
        time.sleep(random.random() / 20)  # at any phase of its wait
    killed = time.perf_counter()
    end(holder) if child == 0 else holder.kill()
    if what.endswith("later"):
        taker.start()
    taker.join()
    if child:
        os.kill(child, signal.SIGKILL)
        end(holder)
    return arrived[0] - killed


def backlog() -> Iterator[Figure]:
    """The same work before a long backlog and a short one."""
    with new_store() as short, new_store() as long:
        for store, count in ((short, 10**4), (long, 10**6)):
            for _ in range(count // 10**4):
                store.queue("bench").put_many([BODY] * 10**4)
        for what in ("put", "get + ack", "get_many(10) + ack_many", "stats"):
            low, high = in_turn(500, backlog_step(short, what), backlog_step(long, what))
            yield Figure(f"{what}, 10^6 / 10^4 waiting", high / low, "x", 1.2)
        code = "import sys, diskq; diskq.open(sys.argv[1]).close()"
        low, high = in_turn(10, *(partial(python, code, store.path) for store in (short, long)))
        yield Figure("process that opens, 10^6 / 10^4 waiting", high / low, "x", 1.2)


def backlog_step(store: diskq.Store, what: str) -> Step:
    queue, consumer = store.queue("bench"), store.queue("bench").consumer()
    steps: dict[str, Step] = {
        "put": lambda: queue.put(BODY),
        "get + ack": lambda: consumer.get().ack(),
        "get_many(10) + ack_many": lambda: consumer.ack_many(consumer.get_many(10)),
        "stats": queue.group.stats,
    }
    return steps[what]


def python(code: str, *arguments: str) -> str:
    """Run a fresh interpreter."""
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": CACHE}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return run.stdout


def start() -> Iterator[Figure]:
    """A cron job's process that puts one message."""
    code = "import sys, diskq; diskq.open(sys.argv[1]).topic('bench').put(b'x')"
    imports = "import time; t = time.perf_counter(); import diskq; print(time.perf_counter() - t)"
    python(imports)
    with new_store("commit") as store:
        ours, bare = in_turn(20, lambda: python(code, store.path), lambda: python("pass"))
    yield Figure("process that opens, puts one, ends", ours * 1e3, "ms")
    yield Figure("that / bare python", ours / bare, "x", 2.0)
    took = median(float(python(imports)) for _ in range(20))
    yield Figure("import diskq", took * 1e3, "ms", 15)


def share() -> Iterator[Figure]:
    """How evenly equal consumers that do nothing else drain a backlog."""
    for durability, size in (("process", 10_000), ("commit", 2_000)):
        for way in ("get and ack", "iteration"):
            with new_store(durability) as store:
                consumers = [role("drain", store, way) for _ in range(3)]
                for bodies in ([BODY] * size, [BODY] * size, [b"end"] * 3):
                    store.topic("bench").put_many(bodies)
                for consumer in consumers:
                    print("go", file=consumer.stdin, flush=True)
                parts = [int(hear(consumer)) for consumer in consumers]
                end(*consumers)
            jain = sum(parts) ** 2 / (3 * sum(part * part for part in parts))
            yield Figure(f"Jain index, {way}, {durability}", jain, "", 0.97, least=True)


SECTIONS = (many, put, batches, single, threads, wake, idle, kill, backlog, start, share)


# Other processes --------------------------------------------------------------------------------


def wait(store: diskq.Store) -> None:
    """Take messages that tell when they were put, and note how late they are."""
    with open(Path(store.path, f"late-{os.getpid()}"), "w", buffering=1) as file:
        consumer = store.queue("bench").consumer()
        tell("ready")
        while True:
            message = consumer.get()
            if message.body.isdigit():
                file.write(f"{(time.monotonic_ns() - int(message.body)) / NS}\n")
            message.ack()


def hold(store: diskq.Store, *, forked: bool = False) -> None:
    """Lease a message and keep it; perhaps with a child that outlives the kill."""
    message = store.queue("bench").consumer().get()
    tell("ready")
    if forked:
        child = os.fork()
        if child:
            tell(child)
    while message:
        signal.pause()


def drain(store: diskq.Store, way: str) -> None:
    """Take messages until one says "end"; tell how many."""
    consumer = store.queue("bench").consumer()
    tell("ready")
    sys.stdin.readline()
    messages = consumer if way == "iteration" else iter(consumer.get, None)
    count = 0
    for message in messages:
        if way != "iteration" or message.body == b"end":
            message.ack()
        if message.body == b"end":
            break
        count += 1
    tell(count)


ROLES: dict[str, Callable[..., None]] = {
    "wait": wait,
    "hold": hold,
    "hold-forked": lambda store: hold(store, forked=True),
    "drain": drain,
}


# Report -----------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.release()}",
        "python": platform.python_version(),
        "lmdb": f"{lmdb.__version__} ({'.'.join(map(str, lmdb.version()))})",
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
    }


def line(section: str, figure: Figure) -> str:
    text = f"{section:9}{figure.what:58}{figure.value:10.4g} {figure.unit}"
    if figure.target is None:
        return text
    sign = ">=" if figure.least else "<="
    return f"{text:94}{sign} {figure.target:g}{'   MISSED' if figure.missed() else ''}"


def main() -> int:
    sections = {section.__name__: section for section in SECTIONS}
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(sections))
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()
    chosen = options.sections or list(sections)
    if unknown := set(chosen) - set(sections):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(sections)}")
    about, missed = machine(), 0
    tell(json.dumps(about) if options.json else "  ".join(f"{k} {v}" for k, v in about.items()))
    for name in chosen:
        for figure in sections[name]():
            missed += figure.missed()
            values = {"section": name, **figure._asdict(), "missed": figure.missed()}
            tell(json.dumps(values) if options.json else line(name, figure))
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--role"]:
        ROLES[sys.argv[2]](diskq.open(sys.argv[3]), *sys.argv[4:])
    else:
        sys.exit(main())
