"""Two processes whose threads write to two stores: to the kernel, which takes the threads of a
process for one, their waiting for each other's locks looks like a deadlock (EDEADLK)."""

from __future__ import annotations

import subprocess
import sys

from support.programs import ROOT
from support.stores import verified

import diskq

PUTS = 400
CODE = """
import sys, threading, diskq
stores = [diskq.open(path, durability="process") for path in sys.argv[1:3]]
def put(store):
    topic = store.topic("t")
    for _ in range(int(sys.argv[3])):
        topic.put(bytes(2000))
threads = [threading.Thread(target=put, args=[store]) for store in stores * 2]
failed = []
threading.excepthook = lambda args: failed.append(args.exc_value)
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit(str(failed[0]) if failed else 0)
"""


def test_threads_of_two_processes_that_write_to_two_stores_do_not_see_a_deadlock(tmp_path):
    paths = [tmp_path / "one", tmp_path / "other"]
    for path in paths:
        diskq.open(path, durability="process").close()
    command = [sys.executable, "-c", CODE, *paths, str(PUTS)]
    runs = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(3)]
    assert [run.communicate(timeout=60)[1] for run in runs] == [b"", b"", b""]
    for path in paths:
        assert verified(path) == []
        with diskq.open(path) as store:
            assert store.topic("t").stats().put == 3 * 2 * PUTS
