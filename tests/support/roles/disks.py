"""Roles of processes on a disk that is full, or on one that fails. They tell lines of JSON."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pickle
import random
import resource
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diskq
from diskq import DiskFailed, DiskqError, Full
from diskq.base import limits
from diskq.storage import reserve

from ..clock import ManualClock
from ..drills import LEASE_SECONDS, MIB, Drill, Ledger

COPYING = ("get", "nack", "reject", "redrive", "release")  # need room for a body
ANY_VERB = (*COPYING, "put", "ack", "extend", "trim", "stats")


def tell(**more: Any) -> None:
    """Tell the test something."""
    print(json.dumps(more), flush=True)


def free_bytes(path: str) -> int:
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


@contextmanager
def small_disk(disk: str, size: int) -> Iterator[None]:
    """A file system of this size at an empty directory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def run_to_the_brim(disk: str, seeds: list[int]) -> None:
    """Others fill the disk to some pages, so that any write of any verb may be one too many. Each
    verb succeeds or raises Full and changes nothing; with room again, all goes on."""
    for seed in seeds:
        with small_disk(disk, 96 * MIB):
            chance = random.Random(seed)
            drill = Drill(f"{disk}/store", seed, dict.fromkeys(ANY_VERB, Full), max_bytes=64 * MIB)
            for _ in range(chance.randrange(1, 200)):
                drill.put()
            drill.settle(20)
            for _ in range(3):
                with open(f"{disk}/filler", "wb") as filler:
                    left = free_bytes(disk) - chance.randrange(40) * limits.PAGE_BYTES
                    os.posix_fallocate(filler.fileno(), 0, max(left, 1))
                for _ in range(5):
                    drill.put()
                    drill.settle(8)
                os.unlink(f"{disk}/filler")
                drill.put_one()
            _report(seed, drill)


def fill_small_disks(disk: str, seeds: list[int], fault: bool = False) -> None:
    """A disk smaller than the store may be: puts are refused before the reserve is touched, and
    then whatever copies no message must work, down to the last one, and puts again after that.
    With the planted `fault` nothing is reserved."""
    if fault:
        reserve.Room.need = lambda *_: None
    for seed in seeds:
        chance = random.Random(seed)
        with small_disk(disk, chance.randrange(1500, 3000) * limits.PAGE_BYTES):
            drill = Drill(f"{disk}/store", seed, max_bytes=16 * MIB)
            drill.leave("keyed")
            drill.copying = False
            for _ in range(3):
                drill.fill()
                drill.settle(60)
                if chance.random() < 0.5:
                    drill.drain()
                    drill.put_one()
            _report(seed, drill)


def limit_file_size(disk: str, seeds: list[int]) -> None:
    """RLIMIT_FSIZE: a write over it fails, which may not end the process."""
    for seed in seeds:
        path = f"{disk}/{seed}"
        ledger = _in_a_child(lambda: _limit_file_size(path, seed))  # noqa: B023
        _check_in_another_process(path, seed, ledger, [])


def _limit_file_size(path: str, seed: int) -> Ledger:
    chance = random.Random(seed)
    drill = Drill(path, seed, dict.fromkeys(ANY_VERB, (Full, DiskFailed)))
    for _ in range(chance.randrange(1, 60)):
        drill.put()
    for _ in range(3):
        size = os.stat(f"{path}/data.mdb").st_size + chance.randrange(40) * 1000
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        for _ in range(5):
            drill.put()
            drill.settle(8)
        without = resource.RLIM_INFINITY, resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, without)
        if any("DiskFailed" in outcome for outcome in drill.ledger.fulls):
            break  # a write was cut short, which LMDB does not tell from a failing disk
        drill.put_one()
    return drill.ledger


def fail_writes(disk: str, seeds: list[int], number: int, fault: bool = False) -> None:
    """Some write or flush fails in the middle of the drill. What raised changed nothing; after EIO
    nothing succeeds any more, though the disk does again. Another process finds the rest. With the
    planted `fault` the store forgets that its disk failed."""
    for seed in seeds:
        path = f"{disk}/{seed}"
        ledger, wrong, failed = _in_a_child(lambda: _fail_writes(path, seed, number, fault))  # noqa: B023
        _check_in_another_process(path, seed, ledger, wrong, failed)


def _fail_writes(path: str, seed: int, number: int, fault: bool) -> tuple[Ledger, list[str], int]:
    chance = random.Random(seed)
    drill = Drill(path, seed, dict.fromkeys(ANY_VERB, (Full, DiskFailed)))
    ledger = drill.ledger
    for _ in range(20):
        drill.put()
    failing = ctypes.CDLL(None).failing_arm
    failing(chance.randrange(60), chance.choice((1, 1, 2, 10**6)), number, chance.randrange(2))
    for _ in range(200):  # a get may get over the fault, with what needs less room
        drill.put()
        drill.settle(4)
        if ledger.fulls:
            break
    failed = failing(0, 0, 0, 0)
    done = ledger.done()
    if fault:
        drill.store.handle.engine.writes._failed = ""
    for _ in range(5):
        drill.put()
        drill.settle(8)
    wrong = []
    if number == errno.EIO:
        if any("Full" in outcome for outcome in ledger.fulls):
            wrong.append(f"a failing disk was called full: {ledger.fulls}")
        if ledger.done() != done:
            wrong.append("something succeeded after the disk had failed")
    elif not any("DiskFailed" in outcome for outcome in ledger.fulls):
        drill.put_one()  # unless LMDB could not write its meta page, which it does not forgive
    return ledger, wrong, failed


def _check_in_another_process(
    path: str, seed: int, ledger: Ledger, wrong: list[str], failed: int = 0
) -> None:
    clock = ManualClock()
    with diskq.open(path, clock=clock, create=False) as store:
        wrong += ledger.check(store, clock)
    tell(seed=seed, wrong=wrong, failed=failed, fulls=dict(ledger.fulls), put=len(ledger.bodies))


def _in_a_child(call: Callable[[], Any]) -> Any:
    """What a function returns in a child, which then ends as if it was killed."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        code = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(call(), pipe)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    return pickle.loads(data)


def fail_beside_others(disk: str) -> None:
    """The disk fails for one process, as a path to it may; others go on, and it does not."""
    path = f"{disk}/store"
    with diskq.open(path) as store:
        store.queue("q")
    other_reads, other_writes = os.pipe()
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        queue = diskq.open(path).queue("q")
        queue.put(b"before")
        ctypes.CDLL(None).failing_arm(1, 1, errno.EIO, 0)
        outcomes = [_outcome(lambda: queue.put(b"failing"))]
        os.write(writes, b"failed")
        os.read(other_reads, 1)  # now another process has put and taken
        outcomes += [_outcome(lambda: queue.put(b"after")), _outcome(queue.get_many, 1, 0)]
        os.write(writes, json.dumps(outcomes).encode())
        os._exit(0)
    assert os.read(reads, 100) == b"failed"
    with diskq.open(path) as store:
        queue = store.queue("q")
        for number in range(20):
            queue.put(b"%d" % number)
        bodies = [message.body.decode() for message in queue.get_many(100, timeout=0)]
        os.write(other_writes, b"x")
        outcomes = json.loads(os.read(reads, 1000))
        os.waitpid(child, 0)
        findings = [finding.problem for finding in store.verify()]
    tell(outcomes=outcomes, bodies=bodies, wrong=findings)


def _outcome(call: Callable[..., Any], *arguments: Any) -> str:
    try:
        call(*arguments)
    except DiskqError as error:
        return type(error).__name__
    return "success"


def fail_and_reopen(disk: str) -> None:
    """The disk fails; then the store is closed and opened anew in the same process."""
    path = f"{disk}/store"
    store = diskq.open(path)
    queue = store.queue("q")
    queue.put(b"one")
    queue.put(b"two")
    message = queue.get()
    ctypes.CDLL(None).failing_arm(0, 1, errno.EIO, 0)
    outcomes = [_outcome(message.ack), _outcome(message.ack), _outcome(store.close)]
    with diskq.open(path) as store:
        queue = store.queue("q")
        outcomes.append(_outcome(lambda: queue.put(b"three")))
        bodies = sorted(message.body.decode() for message in queue.get_many(10, timeout=0))
        wrong = [finding.problem for finding in store.verify()]
    tell(outcomes=outcomes, bodies=bodies, wrong=wrong)


def copy_on_a_full_disk(disk: str, way: str) -> None:
    """Many messages have to move, where the disk has only the reserve left: they are rejected, or
    their deadlines pass, or their key is busy, or they fall due. Tells how each attempt ended."""
    clock = ManualClock()
    outcomes: list[str] = []
    with small_disk(disk, 12 * MIB):
        store = diskq.open(f"{disk}/store", max_bytes=16 * MIB, clock=clock)
        topic = store.topic("t")
        ordering = "key" if way == "park" else "none"
        group = topic.group("g", lease_seconds=LEASE_SECONDS, max_deliveries=9, ordering=ordering)
        holder, other = group.consumer(), group.consumer()
        options: dict[str, Any] = {"delay_seconds": 1} if way == "fall due" else {"key": "hot"}
        while _outcome(lambda: topic.put(bytes(10_000), **options)) == "success":
            pass
        held = holder.get_many(500, timeout=0)
        if way == "reject":
            outcomes += [_outcome(message.reject) for message in held]
        else:
            clock.advance({"expire": LEASE_SECONDS + 1, "park": 0, "fall due": 1}[way])
            for _ in range(30):
                outcomes.append(_outcome(lambda: other.get_many(1, timeout=0)))
        tell(outcomes=outcomes, wrong=[finding.problem for finding in store.verify()])
        os._exit(0)  # leaving the store open, as a killed process does


def _report(seed: int, drill: Drill) -> None:
    wrong = drill.reopen()
    drill.store.close()
    tell(seed=seed, wrong=wrong, fulls=dict(drill.ledger.fulls), put=len(drill.ledger.bodies))
