"""A process that may have no more files, memory or threads gets diskq's errors, and goes on."""

from __future__ import annotations

import threading

import pytest
from support.programs import run_python

import diskq

NO_FILE_LEFT = """
import os, resource, sys, datetime
import diskq
from diskq.base import ondemand
path, loaded = sys.argv[1:]
store = diskq.open(path, durability="process")
topic = store.topic("t")
group = topic.group("g", backoff=diskq.Backoff(0))
topic.put_many([b"m"] * 9)
consumer = group.consumer()
messages = consumer.get_many(6)
verbs = {
    "put": lambda: topic.put(bytes(3_000_000)),
    "put with id": lambda: topic.put(b"x", dedup_id="a"),
    "put later": lambda: topic.put(b"x", delay_seconds=60),
    "get": lambda: consumer.get(timeout=0.01),
    "ack": messages[0].ack,
    "nack": lambda: messages[1].nack(error="x" * 5000),
    "reject": messages[2].reject,
    "release": messages[3].release,
    "extend": messages[4].extend,
    "transaction": lambda: store.transaction().commit(),
    "consumer": lambda: group.consumer(heartbeat=True).close(),
    "prefetch": lambda: group.consumer(prefetch=5).get(timeout=0.01),
    "topic": lambda: store.topic("new"),
    "group": lambda: topic.group("new"),
    "fork": lambda: group.fork("copy"),
    "seek": lambda: group.seek("earliest"),
    "purge": lambda: topic.purge(key="k"),
    "trim": topic.trim,
    "update": lambda: topic.update(dedup_seconds=500.0),
    "peek": lambda: group.peek(3),
    "waiting": lambda: list(group.waiting()),
    "dead": lambda: list(group.dead()),
    "redrive": group.redrive,
    "pending": group.pending,
    "stats": store.stats,
    "verify": store.verify,
    "backup": lambda: store.backup(path + ".copy"),
    "scheduled": lambda: list(topic.scheduled()),
    "cancel": lambda: topic.cancel("1-1"),
    "read": lambda: list(topic.read()),
    "offset_at": lambda: topic.offset_at(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)),
    "follow": lambda: list(topic.follow("earliest", timeout=0.01)),
    "open": lambda: diskq.open(path + ".new").close(),
    "salvage": lambda: diskq.salvage(path, path + ".saved"),
}
if loaded == "loaded":
    ondemand.load_all()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
last = max(map(int, os.listdir("/proc/self/fd")))
while os.dup(0) < last:
    pass
for free in range(3):
    for name, verb in verbs.items():
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + free, hard))
        try:
            verb()
        except diskq.DiskqError:
            pass
        except BaseException as error:
            print(free, name, repr(error))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
topic.put(b"goes on")
assert list(store.verify()) == []
"""

NO_MEMORY_LEFT = """
import resource, sys
import diskq
store = diskq.open(sys.argv[1], durability="process")
queue = store.queue("q")
queue.put(b"first")
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
try:
    for _ in range(100_000):
        queue.put(bytes(1_000_000))
except diskq.Full as error:
    print(type(error).__name__)
print(queue.get().body.decode())
queue.group.stats()
store.stats()
while messages := queue.get_many(20, timeout=0):
    for message in messages:
        message.ack()
store.topic("q").trim()
queue.put(b"last")
print(queue.qsize())
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
assert list(store.verify()) == []
"""


@pytest.mark.parametrize("loaded", ["loaded", "not loaded"])
def test_without_a_file_left_every_verb_works_or_says_so(tmp_path, loaded):
    assert run_python(NO_FILE_LEFT, tmp_path / "store", loaded).stdout == ""


def test_a_store_that_the_process_may_not_map_any_larger_is_full_and_goes_on(tmp_path):
    """LMDB loses its map when it cannot have a larger one: nothing could be used any more."""
    small = "from diskq.base import limits\nlimits.MAP_BYTES = (16 << 20,)\n"
    lines = run_python(small + NO_MEMORY_LEFT, tmp_path / "store").stdout.splitlines()
    assert lines == ["Full", "first", "2"]


def test_a_heartbeat_without_a_thread_is_refused(group, monkeypatch):
    def start(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(diskq.Unsupported, match="ulimit -u"):
        group.consumer(heartbeat=True)
    assert group.topic.store.stats().consumers == ()
