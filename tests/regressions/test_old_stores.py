"""A store that was closed and opened again, while something of the old one was still there.

The map of the slots file has a descriptor of its own. When the last object of a closed store went,
the map ended, that descriptor was closed, and with it POSIX drops all locks that the process has on
the file: those of the store opened later, too. Others then took its consumers for dead and their
messages away.
"""

from __future__ import annotations

import gc

from support.programs import run_python

import diskq

TAKE = """
import sys, diskq
store = diskq.open(sys.argv[1])
print(len(store.topic("mail").group("workers").consumer().get_many(1, timeout=0)))
"""
FORGET_AN_INHERITED_READER = f"""
import os, subprocess, sys, diskq
path = sys.argv[1]
store = diskq.open(path)
topic = store.topic("mail")
group = topic.group("workers")
topic.put(b"x")
reader = topic.follow(0, timeout=60)
next(reader)
if os.fork() == 0:
    message = group.consumer().get_nowait()
    del reader
    others = subprocess.run(
        [sys.executable, "-c", {TAKE!r}, path], capture_output=True, text=True, timeout=50
    )
    print(others.stdout, flush=True)
    message.ack()
    print("acked", flush=True)
    os._exit(0)
os.wait()
"""


def test_what_is_left_of_a_closed_store_ends_no_lease_of_the_one_opened_after_it(tmp_path):
    """Deleting a consumer of the closed store made the message of the new one free for others."""
    path = tmp_path / "store"
    old = diskq.open(path, durability="process")
    old.topic("mail").put(b"x")
    left = old.topic("mail").group("workers").consumer()
    old.close()
    with diskq.open(path) as store:
        message = store.topic("mail").group("workers").consumer().get_nowait()
        del old, left
        gc.collect()
        assert run_python(TAKE, path).stdout.split() == ["0"]
        message.ack()
        assert list(store.verify()) == []


def test_a_reader_inherited_by_a_fork_ends_no_lease_of_the_child(tmp_path):
    """The child had the store of its parent, which it opens anew, in a generator; when that went,
    the child lost its locks."""
    told = run_python(FORGET_AN_INHERITED_READER, tmp_path / "store").stdout.split()
    assert told == ["0", "acked"]
