"""Golden stores: one of each released format, with everything in it that a store can have.

At a release that changes the format, and only then:

1. raise FORMAT_VERSION (see codec.py), and let `make` below put in what is new;
2. run `PYTHONPATH=.:tests .venv/bin/python -m support.golden`, which makes
   tests/regressions/golden/format-N: the store's file, and what is to be found in it, as the
   release itself sees it;
3. look at contents.json, and commit both. Never make a golden store of an old format again.

As long as format N was not released, its rows may still change: delete golden/format-N, and go on
with 2.
"""

from __future__ import annotations

import gc
import json
import lzma
import sys
import tempfile
from pathlib import Path
from typing import Any

import diskq
from diskq import Backoff, Outgoing
from diskq.format.layout import FORMAT_VERSION
from diskq.operate import deletion

from .clock import ManualClock
from .programs import ROOT

GOLDEN = ROOT / "tests" / "regressions" / "golden"
AN_HOUR = 3600.0


def formats() -> list[Path]:
    """The directories of all golden stores."""
    return sorted(GOLDEN.glob("format-*"))


def unpack(golden: Path, path: Path) -> Path:
    """Put a golden store at a path; returns its data file."""
    path.mkdir()
    data = path / "data.mdb"
    data.write_bytes(lzma.decompress((golden / "data.mdb.xz").read_bytes()))
    return data


def make(path: Path, clock: ManualClock) -> bytes:
    """The file of a store with all kinds of rows, settings and states, while consumers live."""
    with diskq.open(path, clock=clock, max_bytes=64 << 20) as store:
        consumers = [*_make_work(store, clock), _make_orders(store, clock)]
        _make_bounded(store, clock)
        consumers.append(_make_gaps(store))
        _make_planned(store)
        _make_deleted(store)
        data = (path / "data.mdb").read_bytes()
        assert consumers
        return data


def _make_work(store: diskq.Store, clock: ManualClock) -> list[diskq.Consumer]:
    """Leases of all kinds, retries, dead letters, a fork, a paused group, large messages."""
    topic = store.topic("work", dedup_seconds=86400.0)
    settings: dict[str, Any] = {
        "lease_seconds": 60, "max_deliveries": 3, "backoff": Backoff(5, 3, 600),
    }  # fmt: skip
    group = topic.group("workers", max_in_flight=100, **settings)
    topic.put(b"first", key="k", headers={"type": "greeting", "\u00fc": "\u2713"}, dedup_id="one")
    topic.put_many([b"%d" % number * (1 + number % 7) for number in range(300)])
    topic.put(b"large" * 10_000)
    topic.put_many([Outgoing(b"h", headers={"n": str(number)}) for number in range(20)])
    consumer = group.consumer("ca")
    consumer.ack_many(consumer.get_many(40, timeout=0))
    messages = consumer.get_many(30, timeout=0)
    for message in messages[:4]:
        message.nack(error="ValueError: no")
        clock.advance(1)
    messages[4].reject("never")
    messages[5].release()
    messages[6].extend(1000)
    consumer.ack_many(messages[10:20:2])
    clock.advance(20)
    for message in consumer.get_many(2, timeout=0):
        message.nack(0, error="again")
    for message in consumer.get_many(2, timeout=0):
        message.nack(0, error="and again")
    prefetching = group.consumer("cb", prefetch=8)
    prefetching.get_nowait()
    forgotten = group.consumer("cc")
    forgotten.get_many(3, timeout=0)
    del forgotten
    gc.collect()
    consumer.get_nowait()
    messages[7].nack(500)
    late = topic.group("late", start=250, keep_expired=True)
    late.fork("copy")
    topic.group("workers").fork("workers-copy")
    late.pause()
    topic.put(b"short-lived", ttl_seconds=30)
    topic.put(b"longer-lived", ttl_seconds=30_000)
    return [consumer, prefetching]


def _make_orders(store: diskq.Store, clock: ManualClock) -> diskq.Consumer:
    """Key order, with messages parked, passed on, purged; and priorities."""
    topic = store.topic("orders", priorities=3)
    group = topic.group("shop", ordering="key", lease_seconds=60, backoff=Backoff(0))
    for number in range(60):
        topic.put(b"%d" % number, key="abc"[number % 3], priority=number % 2)
    topic.put(b"without a key", priority=2)
    consumer = group.consumer("ca")
    messages = consumer.get_many(5, timeout=0)
    for message in messages[:-1]:
        message.ack()
    messages[-1].nack(100, error="later")
    clock.advance(1)
    consumer.get_many(2, timeout=0)
    topic.purge(key="c")
    return consumer


def _make_bounded(store: diskq.Store, clock: ManualClock) -> None:
    """Every bound of a topic, and messages that went because of one."""
    topic = store.topic(
        "bounded", retention="limits", max_messages=50, max_bytes=100_000,
        max_age_seconds=10 * AN_HOUR,
    )  # fmt: skip
    group = topic.group("readers")
    for number in range(80):
        topic.put(b"%d" % number)
        clock.advance(0.5)
    with group.consumer() as consumer:
        consumer.ack_many(consumer.get_many(10, timeout=0))
    topic = store.topic("latest", max_messages=5, discard="old")
    topic.group("slow")
    topic.put_many([b"a"] * 5)
    topic.put(b"b")


def _make_gaps(store: diskq.Store) -> diskq.Consumer:
    """Gaps in two priorities, at the end of one too; a group ahead of them, and one behind."""
    topic = store.topic("gappy", priorities=2)
    group = topic.group("slow", lease_seconds=60, backoff=Backoff(0))
    for number in range(30):
        topic.put(b"%d" % number, priority=number % 2)
    consumer = group.consumer("ca")
    messages = consumer.get_many(30, timeout=0)
    messages.pop(12).reject("its segment goes")
    consumer.ack_many(message for message in messages if message.offset & 15 not in (0, 7, 8))
    topic.trim()
    topic.group("late").fork("late-copy")
    topic.put(b"behind a gap")
    return consumer


def _make_planned(store: diskq.Store) -> None:
    """Scheduled messages, some due within the hour, and dedup ids of both kinds."""
    topic = store.topic("planned", priorities=2)
    topic.group("default")
    for minutes in (1, 30, 600, 6000):
        topic.put(b"in %d minutes" % minutes, delay_seconds=60.0 * minutes, priority=minutes % 2)
    topic.put(b"once", dedup_id="now")
    topic.put(b"once, later", dedup_id="later", delay_seconds=7 * AN_HOUR, key="k")
    topic.put(b"cancelled", delay_seconds=60, headers={"a": "b"})
    cancelled = next(each for each in topic.scheduled() if each.body == b"cancelled")
    topic.cancel(cancelled.schedule_id)


def _make_deleted(store: diskq.Store) -> None:
    """A topic and a group whose deletion was cut off; opening the store goes on with it."""
    topic = store.topic("doomed")
    group = topic.group("g", backoff=Backoff(0))
    topic.put_many([b"x"] * 10)
    with group.consumer() as consumer:
        consumer.get_nowait().nack()
    sweep, deletion.sweep = deletion.sweep, lambda *_: None
    try:
        store.delete_topic("doomed")
    finally:
        deletion.sweep = sweep


def describe(store: diskq.Store) -> dict[str, Any]:
    """All that can be seen of a store without changing it, but for what differs each time."""
    stats = store.stats()
    return {
        "format_version": stats.format_version,
        "durability": stats.durability,
        "limit_bytes": stats.limit_bytes,
        "store_id": stats.store_id,
        "topics": {topic.name: _describe_topic(topic) for topic in store.topics()},
    }


def _describe_topic(topic: diskq.Topic) -> dict[str, Any]:
    stats = topic.stats()._asdict()
    del stats["groups"]
    return {
        "settings": topic.settings._asdict(),
        "stats": stats,
        "messages": [_plain(message) for message in topic.read()],
        "scheduled": [_plain(message) for message in topic.scheduled()],
        "groups": {group.name: _describe_group(group) for group in topic.groups()},
    }


def _describe_group(group: diskq.Group) -> dict[str, Any]:
    return {
        "settings": _plain(group.settings),
        "stats": group.stats()._asdict(),
        "pending": [_plain(message) for message in group.pending()],
        "dead": [_plain(letter) for letter in group.dead()],
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, bytes):
        return value.decode() if len(value) < 100 else f"{len(value)} bytes, {value[:9].decode()}"
    if hasattr(value, "_asdict"):
        return {name: _plain(each) for name, each in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def consume(store: diskq.Store, clock: ManualClock) -> dict[str, Any]:
    """An hour later, take and ack all there is; offsets and attempts by group, and what is dead."""
    clock.advance(AN_HOUR)
    taken: dict[str, Any] = {}
    for topic in store.topics():
        for group in topic.groups():
            found = []
            with group.consumer() as consumer:
                while messages := consumer.get_many(100, timeout=0):
                    found += [[message.offset, message.attempt] for message in messages]
                    consumer.ack_many(messages)
            dead = [letter.offset for letter in group.dead()]
            taken[f"{topic.name}/{group.name}"] = {"taken": sorted(found), "dead": dead}
    return taken


def clock_of(contents: dict[str, Any]) -> ManualClock:
    """A clock that stands where it stood when a golden store was made."""
    clock = ManualClock()
    clock.wall, clock.monotonic = contents["clock"]
    return clock


def main() -> None:
    """Make the golden store of the present format, unless there is one."""
    golden = GOLDEN / f"format-{FORMAT_VERSION}"
    if golden.exists():
        sys.exit(f"{golden} exists; what was released stays as it is")
    clock = ManualClock()
    with tempfile.TemporaryDirectory() as place:
        data = make(Path(place, "made"), clock)
        golden.mkdir(parents=True)
        (golden / "data.mdb.xz").write_bytes(lzma.compress(data, preset=9))
        contents: dict[str, Any] = {"clock": [clock.wall, clock.monotonic]}
        unpack(golden, path := Path(place, "store"))
        with diskq.open(path, clock=(clock := clock_of(contents))) as store:
            contents |= describe(store)
            contents["consumed"] = consume(store, clock)
            assert list(store.verify()) == []
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in contents.items())
    (golden / "contents.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="ascii")


if __name__ == "__main__":
    main()
