"""Copy a store's directory again and again from inside the program that uses it, and compare.

    python3 tools/dev.py torture copies --seconds 300
    python3 tools/dev.py torture copies --seconds 60 --python .venv/bin/python3.13

A program has its queue in its data directory, and makes a copytree, a tar, checksums and a zip of
that each second, and opens and closes every file of it in between. Meanwhile two of its threads and
two other processes put, cron jobs open, put and end, its consumers and another process's hold
leases, and others open the store and look. The rules: whatever was acknowledged is stored
once; no message of a live consumer is handled by another one; every read, backup and verify made
meanwhile is right; nobody gets an error.

Exit code 0: all is well; 1: something is wrong, and the ledgers are kept; 2: usage.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import os
import random
import re
import shutil
import signal
import tarfile
import tempfile
import threading
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import diskq

from . import verdict
from .storm.ledger import Ledger, read

LOG, JOBS, GROUP = "log", "jobs", "workers"
JOB_COUNT = 20_000  # more than anybody handles in the time
PUT_PAUSE_SECONDS = 0.01
TOUCH_PAUSE_SECONDS = 0.02
PATIENCE_SECONDS = 60.0
SHOWN = 5  # problems of each kind

PLANTS = "", "lost", "twice"  # faults, to see that they are found


class Part:
    """One thread or process of the run, with a ledger."""

    def __init__(self, folder: Path, name: str, plant: str = "") -> None:
        self.folder, self.name, self.plant = folder, name, plant
        self.path = folder / "store"
        self.ledger = Ledger(folder / f"{name}.ledger")
        self.count = 0  # of messages put

    def run(self, act: Callable[[Part, diskq.Store], Any], store: diskq.Store) -> None:
        """Act again and again until the run is over; errors are problems."""
        try:
            while not (self.folder / "over").exists():
                act(self, store)
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)[-6:]
            where = "".join(f" > {Path(each.filename).name}:{each.lineno}" for each in frames)
            self.ledger.write(error=repr(error)[:300], where=where)


# Steps, done again and again --------------------------------------------------------------------


def put(part: Part, store: diskq.Store) -> None:
    """Put one message, or a batch."""
    topic = store.topic(LOG)
    count = random.choice((1, 1, 1, 5))
    began = part.count
    part.count += count
    bodies = [f"{part.name}-{n}".encode() for n in range(began, began + count)]
    if part.plant == "lost" and began > 20:
        bodies = bodies[:-1]
    if bodies:
        topic.put_many(bodies)
    if part.plant == "twice" and began > 20:
        topic.put(bodies[0])
    part.ledger.write(acked=[began, began + count])
    time.sleep(PUT_PAUSE_SECONDS)


def work(part: Part, store: diskq.Store) -> None:
    """Handle messages, each for a while in which nobody else may get it."""
    with store.topic(JOBS).group(GROUP).consumer(part.name) as consumer:
        while not (part.folder / "over").exists():
            messages = []
            with suppress(diskq.Busy):  # it waits for others, too, within its timeout
                messages = consumer.get_many(random.choice((1, 1, 4)), timeout=0.2)
            part.ledger.write(handled=[each.body.decode() for each in messages])
            for message in messages:
                time.sleep(random.uniform(0, 0.2))
                message.ack()


def copy(part: Part, store: diskq.Store) -> None:
    """Copy, archive and hash, as programs do with their data directories."""
    target = part.folder / "copy"
    for kind in (_copytree, _tar, _sums, _zip):
        kind(part.path, target)
        part.ledger.write(copied=kind.__name__)
        time.sleep(0.25)


def _copytree(path: Path, target: Path) -> None:
    shutil.copytree(path, target)
    shutil.rmtree(target)


def _tar(path: Path, target: Path) -> None:
    with tarfile.open(target, "w") as archive:
        archive.add(path)
    target.unlink()


def _sums(path: Path, target: Path) -> None:
    for each in path.rglob("*"):
        if each.is_file():
            hashlib.sha256(each.read_bytes()).hexdigest()


def _zip(path: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        for each in path.rglob("*"):
            archive.write(each)
    target.unlink()


def touch(part: Part, store: diskq.Store) -> None:
    """Open and close each file, as whatever looks for changes does."""
    for each in part.path.rglob("*"):
        with suppress(FileNotFoundError), each.open("rb") as file:
            file.read(4096)
    part.ledger.write(touched=1)
    time.sleep(TOUCH_PAUSE_SECONDS)


def look(part: Part, store: diskq.Store) -> None:
    """Read all of the log, slowly, in the program that copies, and see that it is whole."""
    known = _acked(part.folder)
    found = Counter(each.body.decode() for each in store.topic(LOG).read())
    part.ledger.write(looked=sum(found.values()), wrong=_compare(found, known)[:SHOWN])
    time.sleep(0.3)


def check(part: Part, store: diskq.Store) -> None:
    """Verify, and make a backup that has all that was acknowledged before."""
    findings = [f"{each.where}: {each.problem}" for each in store.verify()]
    part.ledger.write(verified=1, wrong=[f"verify: {each}" for each in findings[:SHOWN]])
    known, target = _acked(part.folder), part.folder / "backup"
    store.backup(target)
    with diskq.open(target, create=False) as copied:
        found = Counter(each.body.decode() for each in copied.topic(LOG).read())
        findings = [f"verify: {each.where}: {each.problem}" for each in copied.verify()]
    shutil.rmtree(target)
    wrong = [*_compare(found, known), *findings][:SHOWN]
    part.ledger.write(backed_up=1, wrong=[f"backup: {each}" for each in wrong])
    time.sleep(0.2)


def cron(part: Part, store: diskq.Store | None) -> None:
    """A job that opens, puts, and ends, in a separate process."""
    began = part.count
    part.count += 5
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with diskq.open(part.path, create=False) as its_own:
                its_own.topic(LOG).put_many(
                    [f"{part.name}-{n}".encode() for n in range(began, began + 5)]
                )
            part.ledger.write(acked=[began, began + 5])
            code = 0
        except BaseException as error:
            part.ledger.write(error=repr(error)[:300], where="cron")
        finally:
            os._exit(code)
    os.waitpid(pid, 0)
    time.sleep(PUT_PAUSE_SECONDS)


def open_and_close(part: Part, store: diskq.Store | None) -> None:
    """Another process opens the store and looks, and so tidies up among its readers."""
    with diskq.open(part.path, create=False) as its_own:
        its_own.stats()
        part.ledger.write(opened=1)
    time.sleep(TOUCH_PAUSE_SECONDS)


def _acked(folder: Path) -> set[str]:
    """Bodies of the puts that have returned."""
    found: set[str] = set()
    for path in folder.glob("*.ledger"):
        name = path.name.removesuffix(".ledger")
        for entry in read(path):
            if "acked" in entry:
                found.update(f"{name}-{n}" for n in range(*entry["acked"]))
    return found


def _compare(found: Counter[str], known: set[str]) -> list[str]:
    lost = sorted(known - found.keys())
    twice = sorted(body for body, count in found.items() if count > 1)
    return [f"lost: {each}" for each in lost] + [f"doubled: {each}" for each in twice]


# Processes and threads --------------------------------------------------------------------------

PROGRAM = {  # threads of the program that copies
    "put-1": put,
    "put-2": put,
    "work-1": work,
    "work-2": work,
    "copy": copy,
    "touch": touch,
    "look": look,
    "check": check,
}
OTHERS: dict[str, Callable[[Part, Any], Any]] = {  # processes beside it; cron jobs open nothing
    "other-put-1": put,
    "other-put-2": put,
    "other-work": work,
    "cron-1": cron,
    "cron-2": cron,
    "opens": open_and_close,
}


def program(folder: Path, plant: str) -> None:
    """The program that copies its own files."""
    store = diskq.open(folder / "store", create=False)
    threads = [
        threading.Thread(target=Part(folder, name, plant).run, args=[act, store])
        for name, act in PROGRAM.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()


def other(folder: Path, name: str) -> None:
    """One of the processes beside it."""
    act = OTHERS[name]
    part = Part(folder, name)
    if act in (cron, open_and_close):
        part.run(act, None)  # type: ignore[arg-type]
    else:
        with diskq.open(folder / "store", create=False) as store:
            part.run(act, store)


def spawn(job: Callable[..., None], folder: Path, *arguments: Any) -> int:
    """Fork a process for a job; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        faulthandler.enable((folder / f"{os.getpid()}.stacks").open("w"))
        job(folder, *arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def run(folder: Path, options: argparse.Namespace) -> list[str]:
    """Run all for a while; what went wrong with the processes themselves."""
    with diskq.open(folder / "store", durability=options.durability) as store:
        store.topic(LOG, retention="limits")
        jobs = store.topic(JOBS, retention="limits")
        jobs.group(GROUP, lease_seconds=600)
        jobs.put_many([b"job-%d" % n for n in range(JOB_COUNT)])
    pids = {spawn(other, folder, name): name for name in OTHERS}
    pids[spawn(program, folder, options.plant)] = "program"
    with suppress(KeyboardInterrupt):
        time.sleep(options.seconds)
    (folder / "over").touch()
    problems = []
    until = time.monotonic() + PATIENCE_SECONDS
    while pids and time.monotonic() < until:
        for pid in list(pids):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                name = pids.pop(pid)
                if status:
                    where = _innermost(folder / f"{pid}.stacks")
                    problems.append(f"died: {name}, with status {status}{where}")
        time.sleep(0.01)
    for pid, name in pids.items():
        problems.append(f"hang: {name} did not end")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return problems


def _innermost(stacks: Path) -> str:
    """Where a thread was that a signal ended."""
    text = stacks.read_text() if stacks.exists() else ""
    found = re.search(r"Current thread .*\n((?:  File .*\n){1,12})", text)
    inside = re.findall(r'/(\w+\.py)", line (\d+) in (\w+)', found[1]) if found else []
    return "".join(f" < {file}:{line} {function}" for file, line, function in inside)


def judge(folder: Path, dead: bool) -> tuple[list[str], Counter[str]]:
    """All that is wrong, and how much was done. Others rightly get what a dead one had."""
    problems: list[str] = []
    counts: Counter[str] = Counter()
    handled: Counter[str] = Counter()
    for path in sorted(folder.glob("*.ledger")):
        name = path.name.removesuffix(".ledger")
        for entry in read(path):
            counts.update(entry.keys() - {"at", "wrong", "where"})
            handled.update(entry.get("handled", ()))
            problems += [f"{name}: {each}" for each in entry.get("wrong", ())]
            if "error" in entry:
                problems.append(f"error: {name}: {entry['error']} ({entry['where'].strip()})")
    twice = [body for body, count in handled.items() if count > 1 and not dead]
    problems += [f"handled twice: {body}" for body in twice]
    counts["messages handled"] = len(handled)
    with diskq.open(folder / "store", create=False) as store:
        known = _acked(folder)
        found = Counter(each.body.decode() for each in store.topic(LOG).read())
        problems += _compare(found, known)
        problems += [f"verify: {each.where}: {each.problem}" for each in store.verify()]
    counts["messages acknowledged"] = len(known)
    return problems, counts


def main(arguments: Sequence[str]) -> int:
    """A run, judged."""
    options = parse(arguments)
    verdict.run_with(options.python)
    warnings.simplefilter("ignore", DeprecationWarning)
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="diskq-copies-", dir=options.folder))
    problems = run(folder, options)
    found, counts = judge(folder, any(each.startswith("died") for each in problems))
    problems += found
    done = ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))
    return verdict.say(problems, folder, f"{done}, {time.monotonic() - began:.0f} s", SHOWN)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="torture copies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seconds", type=float, default=60.0)
    add("--durability", default="relaxed", choices=("commit", "relaxed", "process"))
    add("--folder", help="where to make the store (the folder for temporary files)")
    add("--plant", choices=PLANTS, default="", help="a fault, to see that it is found")
    add("--python", help="another interpreter, with lmdb, to run this with")
    return parser.parse_args(arguments)
