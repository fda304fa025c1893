"""Create a store again and again, killed one step later each time, and look what the next creation
makes of what is left: `python -m support.killed_creation FOLDER SHAPE DURABILITY [FAULT]` prints
how many steps there were.

A step is whatever Python reports to audit hooks: each call that changes files is among them.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys

import diskq
from diskq.base import options  # noqa: F401 - or imports were steps
from diskq.operate import stats  # noqa: F401
from diskq.repair import backup, verify  # noqa: F401
from diskq.storage import creation

STEPS = {"open", "fcntl.fcntl", "shutil.rmtree"}


def in_child(work):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(number, work):
    """Do the work, killed before step `number`; whether it was killed."""

    def armed():
        left = number

        def count(event, arguments):
            nonlocal left
            if event in STEPS or event.startswith("os."):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        work()

    return in_child(armed) == -signal.SIGKILL


def use(path):
    """Create the store, or open the one that was made, and use it."""
    with diskq.open(path) as store:
        queue = store.queue("q")
        queue.put(b"a")
        assert queue.qsize() == 1
        assert list(store.verify()) == []


def main(folder, shape, durability, fault=""):
    path = os.path.join(folder, "store")
    if fault:  # which the drill must find
        creation.sweep = creation.tidy = lambda place: None
    number = 0
    while True:
        number += 1
        os.mkdir(folder)
        if shape == "existing":
            os.mkdir(path, 0o750)
            before = os.stat(path)
        if not killed_at(number, lambda: diskq.open(path, durability=durability).close()):
            break
        assert in_child(lambda: use(path)) == 0, number
        left = [*os.listdir(folder), *os.listdir(path)]
        sides = {"boot"} if os.path.exists(os.path.join(path, "boot")) else set()
        assert {*left} == {"store", "data.mdb", "lock.mdb", "slots"} | sides, (number, left)
        if shape == "existing":
            assert os.path.samestat(before, os.stat(path)), number
            assert os.stat(path).st_mode == before.st_mode, number
        shutil.rmtree(folder)
    print(number)


if __name__ == "__main__":
    main(*sys.argv[1:])
