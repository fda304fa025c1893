"""What a store holds, and the clock of machines whose power is cut.

`view` shows it as users see it, and so that a reboot changes nothing: leased counts as ready.
`rows` tells every row apart.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any

import diskq
from diskq.storage.tx import Tx

NS = 1_000_000_000
START_NS = 1_700_000_000 * NS
REBOOT_NS = START_NS + 86_400 * NS  # when the machine is on again


class MachineClock(diskq.Clock):
    """Stands still until told otherwise, so that a workload does the same each time."""

    def __init__(self, boot: int = 1, wall: int = START_NS) -> None:
        self.boot = boot
        self.wall = wall
        self.monotonic = 5_000 * NS

    def wall_ns(self) -> int:
        return self.wall

    def monotonic_ns(self) -> int:
        return self.monotonic

    def boot_id(self) -> bytes:  # type: ignore[override]
        return self.boot.to_bytes(16, "big")

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.wall += int(seconds * NS)
        self.monotonic += int(seconds * NS)

    def reboot(self) -> None:
        """The machine starts anew."""
        self.boot += 1
        self.monotonic = 10 * NS


def view(store: diskq.Store) -> str:
    """A store as users see it, as JSON."""
    return json.dumps({topic.name: _topic(topic) for topic in store.topics()}, sort_keys=True)


def _topic(topic: diskq.Topic) -> dict[str, Any]:
    stats = topic.stats()
    return {
        "settings": topic.settings,
        "counts": stats[1:-1],
        "messages": [
            (each.offset, zlib.crc32(each.body), each.key, each.headers, each.put_at_ns)
            for each in (topic.read() if stats.stored else ())
        ],
        "scheduled": [
            (each.schedule_id, zlib.crc32(each.body), each.key) for each in topic.scheduled()
        ],
        "groups": {group.name: _group(group) for group in topic.groups()},
    }


def _group(group: diskq.Group) -> dict[str, Any]:
    found = group.stats()
    return {
        "settings": group.settings,
        "to redeliver": found.ready + found.leased + found.waiting,
        "counts": (found.lag, found.unread, found.parked, found.dead, found.acked, found.failed),
        "gone": (found.expired, found.dropped, found.purged, found.paused),
        "dead": [
            (each.offset, zlib.crc32(each.body), each.reason, each.error, len(each.history))
            for each in group.dead()
        ],
    }


def rows(store: diskq.Store) -> str:
    """A digest of every row of a store."""
    engine = store.handle.engine
    logs = [(topic.name, engine.log(topic.id)) for topic in store.topics()]
    named = ("held", engine.held), ("schedule", engine.schedule), ("dedup", engine.dedup), *logs

    def digest(tx: Tx) -> str:
        found = hashlib.blake2b(digest_size=16)
        for name, database in (("state", None), *named):
            found.update(f"database {name}\n".encode())
            for key, value in tx.scan(b"", database=database):
                found.update(b"%d %d %b%b" % (len(key), len(value), key, value))
        return found.hexdigest()

    return engine.read(digest)


def last_txn(data: bytes) -> int:
    """The last transaction in an LMDB file, by its two meta pages (mdb.c, MDB_meta)."""
    return max((int.from_bytes(data[at : at + 8], "little") for at in (144, 4096 + 144)), default=0)
