"""The checker of power cuts: opens the stores of crash states, one after the other, and uses them.

    python -m powercut.check    a request in JSON per line on stdin, an answer per line on stdout

It may die of what it opens: then that is the answer. A store whose commits are not flushed is read
by diskq in another process before it is opened; that one is forked here, for most states, because
starting Python takes most of the time.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import suppress
from typing import Any

import diskq
from diskq.repair import fitness, verify

from .view import REBOOT_NS, MachineClock, rows, view

OPENED, ABSENT, REFUSED = "opened", "absent", "refused"
check_in_child = fitness.check_in_child


def check(request: dict[str, Any]) -> dict[str, Any]:
    """What is found in one state: `found` is OPENED, ABSENT or REFUSED (with an error of diskq that
    says what to do), `problems` is what is wrong whatever was acknowledged."""
    answer: dict[str, Any] = {"found": OPENED, "problems": []}
    clock = MachineClock(boot=request["boot"], wall=REBOOT_NS)
    fitness.check_in_child = _check_in_fork if request["fork"] else check_in_child
    path = os.path.join(request["root"], "store")
    try:
        _check_store(path, clock, request, answer)
        for name in request["backups"]:
            answer.setdefault("backups", {})[name] = _check_backup(
                os.path.join(request["root"], name), clock
            )
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(where.filename)}:{where.lineno}"
        answer["problems"].append(f"{type(error).__name__} at {place}: {error}")
    return answer


def _check_store(
    path: str, clock: MachineClock, request: dict[str, Any], answer: dict[str, Any]
) -> None:
    try:
        store = diskq.open(path, create=False, clock=clock)
    except diskq.NotFound:
        answer["found"] = ABSENT
        store = diskq.open(path, durability=request["durability"], clock=clock)
    except diskq.Corrupt as error:
        answer.update(found=REFUSED, error=str(error))
        return
    problems = answer["problems"]
    with store:
        answer["rows"], answer["view"] = rows(store), view(store)
        problems += [f"verify: {each.where}: {each.problem}" for each in store.verify()]
        if not problems:
            problems += _use(store, request)
    if not problems:
        with diskq.open(path, create=False, clock=clock) as store:
            problems += [f"verify after use: {each.problem}" for each in store.verify()]
            left = store.topic("after-the-cut").group("g").stats().lag
            if left:
                problems.append(f"{left} messages that were acked after the cut came back")


def _use(store: diskq.Store, request: dict[str, Any]) -> list[str]:
    """Put, get and ack in all topics; what was promised to callers before the cut still holds."""
    problems = []
    least = request["token"]
    topics = store.topics()
    leased = [each for topic in topics for group in topic.groups() for each in group.pending()]
    if leased and request["rebooted"]:
        problems.append(f"{len(leased)} leases outlived the boot")
    for name, offset in request["dedup"].items():
        receipt = store.topic("orders").put(b"again", dedup_id=name)
        if (receipt.offset, receipt.duplicate) != (offset, True):
            problems.append(f"dedup_id {name!r} had offset {offset}, now {receipt}")
    new = store.topic("after-the-cut")
    new.group("g")
    for topic in [*topics, new]:
        stats = topic.stats()
        with suppress(diskq.Full):
            receipt = topic.put(b"new", block=False)
            if topic.settings.priorities == 1 and not stats.scheduled:
                expected = stats.put
                if receipt.offset != expected:
                    problems.append(f"{topic.name}: offset {receipt.offset}, not {expected}")
        for group in topic.groups():
            problems += _drain(group, least)
    return problems


def _drain(group: diskq.Group, least: int) -> list[str]:
    """Get and ack what is there, dead letters last."""
    bad: list[str] = []
    with group.consumer("checker") as consumer:
        for redrive in (False, True):
            if redrive:
                group.redrive()
            while messages := consumer.get_many(1_000, timeout=0):
                token = min(message.token for message in messages)
                if token <= least:
                    bad.append(f"token {token} was given out, after {least} before the cut")
                consumer.ack_many(messages)
    return bad


def _check_backup(path: str, clock: MachineClock) -> dict[str, Any]:
    """What is found of a backup."""
    if not os.path.lexists(path):
        return {"found": ABSENT, "problems": []}
    try:
        store = diskq.open(path, create=False, clock=clock)
    except diskq.NotFound:
        diskq.open(path, clock=clock).close()  # what was left there is in nobody's way
        return {"found": ABSENT, "problems": []}
    except (diskq.Corrupt, diskq.NotAStore) as error:
        return {"found": REFUSED, "error": str(error), "problems": []}
    with store:
        problems = [f"verify: {each.where}: {each.problem}" for each in store.verify()]
        return {"found": OPENED, "view": view(store), "problems": problems}


def _check_in_fork(path: str, identity: tuple[int, ...] = ()) -> list[str]:
    """As `check_in_child`, in a fork of this process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        with suppress(Exception), os.fdopen(writing, "w") as file:
            file.writelines(f"{line}\n" for line in verify.main(path, *map(str, identity)))
            code = 0
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as file:
        found = file.read().splitlines()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return found if code == 0 else [f"checking it ended the process: {code}"]


def main() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        print(json.dumps(check(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
