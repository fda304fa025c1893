#!/usr/bin/env python3
"""Measure diskq against the engine it stands on, as ratios of one run on one machine.

    python tools/bench.py                 all sections, a table
    python tools/bench.py put wake        some of them
    python tools/bench.py --json          one JSON object a line
    python tools/bench.py --check         exit code 1 if a target is missed

Absolute figures depend on the disk and on what else runs. So each comparison runs its sides in turn,
a drift hits all of them, and medians are compared. "Raw" is LMDB alone, without queue, leases or
checksums, opened with the same flags.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import lmdb

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import diskq  # noqa: E402 - of this checkout, whatever is installed

BODY = b"x" * 100
NS = 1e9
Step = Callable[[], object]


class Figure(NamedTuple):
    """One measured value; a target is an upper bound, of `value` unless `least` says otherwise."""

    section: str
    what: str
    value: float
    unit: str
    target: float | None = None
    least: bool = False

    @property
    def missed(self) -> bool:
        if self.target is None:
            return False
        return self.value < self.target if self.least else self.value > self.target


# Tools ------------------------------------------------------------------------------------------


@contextmanager
def new_store(durability: str = "process") -> Iterator[diskq.Store]:
    """A store that is gone afterwards, beside this project, so on a disk like a user's."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=ROOT) as folder:
        with diskq.open(Path(folder, "store"), durability=durability) as store:
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


def end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_blocked(store: diskq.Store, count: int) -> None:
    while sum(consumer.waiting for consumer in store.stats().consumers) < count:
        time.sleep(0.001)


def tell(word: object) -> None:
    print(word, flush=True)


# Sections ---------------------------------------------------------------------------------------


def many() -> Iterator[Figure]:
    """put_many of 1,000 messages against putmulti of the same in one commit."""
    for durability in ("commit", "process"):
        with new_store(durability) as store, raw_environment(durability) as environment:
            topic = store.topic("bench")
            bodies = [BODY] * 1000
            ours, raw = in_turn(
                60, lambda: topic.put_many(bodies), raw_appender(environment, bodies)
            )
        yield Figure("many", f"put_many(1000), {durability}", ours * 1e3, "us a message")
        yield Figure("many", f"put_many(1000) / raw, {durability}", ours / raw, "x", 2.5)


def raw_appender(environment: lmdb.Environment, bodies: list[bytes]) -> Step:
    count = 0

    def append() -> None:
        nonlocal count
        keys = range(count, count + len(bodies))
        items = [(key.to_bytes(8, "big"), body) for key, body in zip(keys, bodies, strict=True)]
        with environment.begin(write=True) as txn:
            txn.cursor().putmulti(items, append=True)
        count += len(bodies)

    return append


def put() -> Iterator[Figure]:
    """One put against one commit of one value."""
    for durability, target in (("commit", 1.3), ("process", None)):
        with new_store(durability) as store, raw_environment(durability) as environment:
            topic = store.topic("bench")
            ours, raw = in_turn(500, lambda: topic.put(BODY), raw_appender(environment, [BODY]))
        yield Figure("put", f"put, {durability}", ours * 1e6, "us")
        yield Figure("put", f"put / raw, {durability}", ours / raw, "x", target)


def batches() -> Iterator[Figure]:
    """get_many(100) and ack_many against a cursor that only looks."""
    with new_store() as store, raw_environment() as environment:
        queue = store.queue("bench")
        queue.put_many([BODY] * 50_000)
        append = raw_appender(environment, [BODY] * 50_000)
        append()

        def iterate() -> None:
            with environment.begin() as txn:
                for _ in txn.cursor():
                    pass

        consumer = queue.consumer()
        ours, raw = in_turn(300, lambda: consumer.ack_many(consumer.get_many(100)), iterate)
    ours, raw = ours / 100, raw / 50_000
    yield Figure("batches", "get_many(100) + ack_many", ours * 1e6, "us a message", 3.0)
    yield Figure("batches", "get_many(100) + ack_many / raw iteration", ours / raw, "x", 12.0)


def single() -> Iterator[Figure]:
    """One message at a time."""
    for durability in ("process", "commit"):
        with new_store(durability) as store:
            queue = store.queue("bench")
            queue.put_many([BODY] * 5000)
            iterator = iter(queue.consumer())
            consumer = queue.consumer()
            times = in_turn(
                700,
                lambda: queue.put(BODY),
                lambda: consumer.get().ack(),
                lambda: next(iterator),
            )
        for what, seconds in zip(("put", "get + ack", "iteration"), times, strict=True):
            yield Figure("single", f"{what}, {durability}", seconds * 1e6, "us")


def threads() -> Iterator[Figure]:
    """Durable puts of several threads against one raw commit after the other."""
    with new_store("commit") as store, raw_environment("commit") as environment:
        topic = store.topic("bench")
        append = raw_appender(environment, [BODY])

        def puts(count: int) -> None:
            for _ in range(count):
                topic.put(BODY)

        for number in (1, 4, 16, 64):
            each = max(640 // number, 20)

            def run(number: int = number, each: int = each) -> None:
                workers = [threading.Thread(target=puts, args=(each,)) for _ in range(number)]
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join()

            ours, raw = in_turn(3, run, lambda: [append() for _ in range(100)])
            rate = number * each / ours
            yield Figure("threads", f"{number} threads", rate, "puts a second")
            yield Figure("threads", f"{number} threads / raw commits", rate * raw / 100, "x")


def wake() -> Iterator[Figure]:
    """From before a put until a blocked get elsewhere returned; what waiting costs."""
    for count in (1, 10):
        with new_store() as store:
            queue = store.queue("bench")
            waiters = [role("wait", store) for _ in range(count)]
            switches, late = sleeps(waiters), []
            begun = time.monotonic()
            for _ in range(300):
                wait_for_blocked(store, count)
                time.sleep(0.002)
                queue.put(b"%d" % time.monotonic_ns())
                while queue.qsize():
                    time.sleep(0.0005)
            regular = (time.monotonic() - begun) * count  # each looks around once a second
            woken = (sleeps(waiters) - switches - regular) / 300
            end(waiters)
            for path in Path(store.path).glob("late-*"):
                late += [float(line) * 1e3 for line in path.read_text().split()]
        name = f"{count} waiting"
        target = 0.5 if count == 1 else None
        yield Figure("wake", f"wake-up p50, {name}", median(late), "ms", target)
        yield Figure("wake", f"wake-up p99, {name}", p99(late), "ms")
        yield Figure("wake", f"sleeps a message, {name}", woken, "")


def sleeps(processes: list[subprocess.Popen[str]]) -> int:
    """How often these processes went to sleep so far."""
    count = 0
    for process in processes:
        status = Path(f"/proc/{process.pid}/status").read_text()
        count += int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
    return count


def idle() -> Iterator[Figure]:
    """CPU of a blocked get."""
    for what in ("alone", "another process holds a lease"):
        with new_store() as store:
            processes = []
            if what != "alone":
                store.queue("bench").put(BODY)
                processes.append(role("hold", store))
            processes.append(role("wait", store))
            wait_for_blocked(store, 1)
            before = cpu_seconds(processes[-1])
            time.sleep(5)
            used = cpu_seconds(processes[-1]) - before
            end(processes)
        yield Figure("idle", f"CPU of a blocked get, {what}", used / 5 * 100, "%", 0.5)


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]) / NS


def kill() -> Iterator[Figure]:
    """From kill -9 of a holder until its message is with another consumer."""
    for what in ("blocked consumer", "forked child of the dead alive", "consumer started later"):
        with new_store() as store:
            store.topic("bench").group("default", lease_seconds=600, max_deliveries=10_000)
            queue = store.queue("bench")
            seconds = []
            for _ in range(50):
                queue.put(BODY)
                seconds.append(kill_one(store, what))
        late = [second * 1e3 for second in seconds]
        yield Figure("kill", f"redelivered p50, {what}", median(late), "ms")
        yield Figure("kill", f"redelivered p99, {what}", p99(late), "ms", 250)


def kill_one(store: diskq.Store, what: str) -> float:
    """Seconds from the kill to the redelivery."""
    queue = store.queue("bench")
    forked = what.startswith("forked")
    holder = role("hold-forked" if forked else "hold", store)
    child = int(hear(holder)) if forked else 0
    arrived = []

    def take() -> None:
        with queue.consumer() as consumer:
            message = consumer.get()
            arrived.append(time.perf_counter())
            message.ack()

    taker = threading.Thread(target=take)
    if not what.endswith("later"):
        taker.start()
        wait_for_blocked(store, 1)
        time.sleep(os.getpid() * time.perf_counter_ns() % 50 / 1000)  # at any phase of its wait
    killed = time.perf_counter()
    holder.kill()
    if what.endswith("later"):
        holder.wait()
        taker.start()
    taker.join()
    if child:
        os.kill(child, signal.SIGKILL)
    end([holder])
    return arrived[0] - killed


def backlog() -> Iterator[Figure]:
    """The same work before a long backlog and a short one."""
    with new_store() as short, new_store() as long:
        queues = [short.queue("bench"), long.queue("bench")]
        for queue, count in zip(queues, (10**4, 10**6), strict=True):
            for _ in range(count // 10**4):
                queue.put_many([BODY] * 10**4)
        consumers = [queue.consumer() for queue in queues]
        work: dict[str, Callable[[Any, Any], Step]] = {
            "put": lambda queue, _: lambda: queue.put(BODY),
            "get + ack": lambda _, consumer: lambda: consumer.get().ack(),
            "get_many(100) + ack_many": lambda _, consumer: (
                lambda: consumer.ack_many(consumer.get_many(10))
            ),
            "stats": lambda queue, _: lambda: queue.group.stats(),
        }
        for what, make in work.items():
            steps = [make(queue, one) for queue, one in zip(queues, consumers, strict=True)]
            low, high = in_turn(500, *steps)
            yield Figure("backlog", f"{what}, 10^6 / 10^4 waiting", high / low, "x", 1.2)
        code = "import sys, diskq; diskq.open(sys.argv[1]).close()"
        paths = [short.path, long.path]
        low, high = in_turn(10, *(lambda path=path: python(code, path) for path in paths))
        yield Figure("backlog", "process that opens, 10^6 / 10^4 waiting", high / low, "x", 1.2)


def python(code: str, *arguments: str) -> str:
    """Run a fresh interpreter."""
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return run.stdout


def start() -> Iterator[Figure]:
    """A cron job's process that puts one message."""
    code = "import sys, diskq; diskq.open(sys.argv[1]).topic('bench').put(b'x')"
    imports = "import time; t = time.perf_counter(); import diskq; print(time.perf_counter() - t)"
    with new_store("commit") as store:
        ours, bare = in_turn(20, lambda: python(code, store.path), lambda: python("pass"))
    yield Figure("start", "process that opens, puts one, ends", ours * 1e3, "ms")
    yield Figure("start", "that / bare python", ours / bare, "x", 2.0)
    took = median(float(python(imports)) for _ in range(20))
    yield Figure("start", "import diskq", took * 1e3, "ms", 15)


def share() -> Iterator[Figure]:
    """How evenly equal consumers that do nothing else drain a backlog."""
    for durability, count in (("process", 30_000), ("commit", 5_000)):
        for way in ("get and ack", "iteration"):
            with new_store(durability) as store:
                consumers = [role("drain", store, way) for _ in range(3)]
                for _ in range(5):
                    store.topic("bench").put_many([BODY] * (count // 5))
                store.topic("bench").put_many([b"end"] * 3)
                for consumer in consumers:
                    assert consumer.stdin
                    consumer.stdin.write("go\n")
                    consumer.stdin.flush()
                parts = [int(hear(consumer)) for consumer in consumers]
                end(consumers)
            index = sum(parts) ** 2 / (3 * sum(part * part for part in parts))
            yield Figure("share", f"Jain index, {way}, {durability}", index, "", 0.97, least=True)


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
    count = 0
    if way == "iteration":
        for message in consumer:
            if message.body == b"end":
                message.ack()
                break
            count += 1
    else:
        while (message := consumer.get()).body != b"end":
            message.ack()
            count += 1
        message.ack()
    tell(count)


ROLES: dict[str, Callable[..., None]] = {
    "wait": wait,
    "hold": hold,
    "hold-forked": lambda store: hold(store, forked=True),
    "drain": drain,
}


# Report -----------------------------------------------------------------------------------------


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.release()}",
        "python": platform.python_version(),
        "lmdb": f"{lmdb.__version__} ({'.'.join(map(str, lmdb.version()))})",
        "commit": commit,
        "max_rss_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def main() -> int:
    names = [section.__name__ for section in SECTIONS]
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(names))
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(names):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    about = machine()
    tell(json.dumps(about) if options.json else "  ".join(f"{k} {v}" for k, v in about.items()))
    missed = 0
    for section in SECTIONS:
        if options.sections and section.__name__ not in options.sections:
            continue
        for figure in section():
            missed += figure.missed
            tell(json.dumps(figure._asdict()) if options.json else line(figure))
    return 1 if options.check and missed else 0


def line(figure: Figure) -> str:
    text = f"{figure.section:9}{figure.what:58}{figure.value:10.4g} {figure.unit}"
    if figure.target is None:
        return text
    sign = ">=" if figure.least else "<="
    return f"{text:94}{sign} {figure.target:g}{'   MISSED' if figure.missed else ''}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--role"]:
        ROLES[sys.argv[2]](diskq.open(sys.argv[3]), *sys.argv[4:])
    else:
        sys.exit(main())
