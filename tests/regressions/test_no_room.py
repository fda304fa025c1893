"""Full topics that go away, and disks that others fill."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import lmdb
import pytest
from support.programs import child_environment

import diskq
from diskq.base import limits

DEADLINE_SECONDS = 30
MOUNTED = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
MOUNT = 'mount -t tmpfs -o size=16m none "$1"'
FILL_THE_DISK = """
import os, sys, diskq
disk = sys.argv[1]
filler = os.path.join(disk, "filler")
store = diskq.open(os.path.join(disk, "store"), max_bytes=4 << 20)
topic = store.topic("mail")
topic.put(b"first")
room = os.statvfs(disk)
with open(filler, "wb") as file:  # two pages stay free: a larger write is cut short
    os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - 8192)
put = 0
try:
    for _ in range(100):
        topic.put(bytes(25_000))
        put += 1
except diskq.DiskqError as error:
    print(type(error).__name__)
os.remove(filler)
topic.put(b"second")
bodies = [message.body for message in topic.read()]
print(bodies == [b"first", *[bytes(25_000)] * put, b"second"], list(store.verify()))
store.close()
"""


def may_mount(path):
    """Whether this machine lets a test mount a small disk of its own."""
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*MOUNTED, MOUNT, "sh", path], check=False, capture_output=True)
    return tried.returncode == 0


def test_a_put_that_waits_for_room_learns_at_once_that_its_topic_was_deleted(store, monkeypatch):
    monkeypatch.setattr(limits, "WAIT_SECONDS", 10 * DEADLINE_SECONDS)
    topic = store.topic("bounded", max_messages=1)
    topic.put(b"x")
    slots = store.handle.engine.slots
    wait, waiting, raised = slots.wait_for_topic, threading.Event(), []

    def tell_and_wait(*arguments):
        waiting.set()
        wait(*arguments)

    def put():
        try:
            topic.put(b"y")
        except diskq.DiskqError as error:
            raised.append(type(error))

    monkeypatch.setattr(slots, "wait_for_topic", tell_and_wait)
    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    assert waiting.wait(DEADLINE_SECONDS)
    store.delete_topic("bounded")
    thread.join(DEADLINE_SECONDS)
    assert raised == [diskq.NotFound]


def test_a_write_cut_short_for_want_of_room_is_full_and_goes_on_when_there_is_room(
    topic, consumer, monkeypatch
):
    class CutShort(lmdb.Error):
        code = errno.EIO

    def run(*_):
        raise CutShort("write: Input/output error")

    topic.put(b"x")
    message = consumer.get_nowait()
    monkeypatch.setattr(topic.store.handle.engine.writes, "_run", run)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=2, f_frsize=4096))
    with pytest.raises(diskq.Full):
        message.ack()
    monkeypatch.undo()
    message.ack()
    topic.put(b"y")


def test_a_store_on_a_disk_that_others_filled_works_again_when_there_is_room(tmp_path):
    if not may_mount(tmp_path):
        pytest.skip("needs a file system of its own: unshare and mount")
    command = [*MOUNTED, f'{MOUNT} && exec "$2" -c "$3" "$1"', "sh", tmp_path, sys.executable]
    run = subprocess.run(
        [*command, FILL_THE_DISK],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines() == ["Full", "True []"]
