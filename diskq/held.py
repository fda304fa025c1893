"""Messages that left the log's way for one group: waiting for a retry, leased again, or dead.

    held   group, LIVE, offset   waiting (with a row in `state` 'D' group, due, offset), or leased
    held   group, DEAD, offset   dead; found without reading what waits

A held message has its body with it, so a slow or dead one never keeps its segment in the log.
Counters of the states are in the group's row, which the caller stores.
"""

from __future__ import annotations

from collections.abc import Iterator

from .codec import (
    BURIED,
    DEAD,
    GROUP_KEY,
    HELD_KEY,
    LEASE_KEY,
    LEASED,
    LIVE,
    WAITING,
    GroupRow,
    HeldRow,
    decode_held,
)
from .engine import Tx
from .errors import Corrupt, NotFound
from .model import Failure

_DUE_KEY = LEASE_KEY  # the same shape: prefix, group, time, offset


def load(tx: Tx, group_id: int, offset: int) -> HeldRow:
    """The live row of a message that a lease says is held.

    Raises: Corrupt.
    """
    data = tx.lmdb.get(HELD_KEY.pack(group_id, LIVE, offset), db=tx.engine.held)
    if data is None:
        raise Corrupt(f"held message {offset} of group {group_id} is missing; run 'diskq verify'")
    return decode_held(data)


def find_dead(tx: Tx, group_id: int, offset: int) -> HeldRow:
    """The row of a dead message.

    Raises: NotFound.
    """
    data = tx.lmdb.get(HELD_KEY.pack(group_id, DEAD, offset), db=tx.engine.held)
    if data is None:
        raise NotFound(f"no dead letter has offset {offset}; see 'diskq dead ls'", offset=offset)
    return decode_held(data)


def wait(tx: Tx, group_id: int, group: GroupRow, offset: int, row: HeldRow, due_ns: int) -> None:
    """Let a message wait until `due_ns` of the wall clock."""
    row.state, row.due_ns = WAITING, due_ns
    group.waiting += 1
    tx.put(_DUE_KEY.pack(b"D", group_id, due_ns, offset), b"")
    tx.lmdb.put(HELD_KEY.pack(group_id, LIVE, offset), row.encode(), db=tx.engine.held)


def bury(tx: Tx, group_id: int, group: GroupRow, offset: int, row: HeldRow, now_ns: int) -> None:
    """Make a message a dead letter."""
    row.state, row.due_ns = BURIED, now_ns
    group.dead += 1
    tx.lmdb.delete(HELD_KEY.pack(group_id, LIVE, offset), db=tx.engine.held)
    tx.lmdb.put(HELD_KEY.pack(group_id, DEAD, offset), row.encode(), db=tx.engine.held)


def revive(tx: Tx, group_id: int, group: GroupRow, offset: int, row: HeldRow, now_ns: int) -> None:
    """Let a dead message wait for a delivery at once, with a clean slate but its history."""
    row.failures = 0
    row.history += (Failure(now_ns, "redriven", "", ""),)
    group.dead -= 1
    tx.lmdb.delete(HELD_KEY.pack(group_id, DEAD, offset), db=tx.engine.held)
    wait(tx, group_id, group, offset, row, now_ns)


def next_due(tx: Tx, group_id: int) -> tuple[int, int] | None:
    """When the next waiting message is due, and its offset."""
    for key, _ in tx.scan(GROUP_KEY.pack(b"D", group_id)):
        _, _, due_ns, offset = _DUE_KEY.unpack(key)
        return due_ns, offset
    return None


def lease(tx: Tx, group_id: int, group: GroupRow, offset: int, due_ns: int) -> HeldRow:
    """Take a waiting message out of the waiting ones."""
    row = load(tx, group_id, offset)
    tx.delete(_DUE_KEY.pack(b"D", group_id, due_ns, offset))
    row.state, row.due_ns = LEASED, 0
    group.waiting -= 1
    tx.lmdb.put(HELD_KEY.pack(group_id, LIVE, offset), row.encode(), db=tx.engine.held)
    return row


def drop(tx: Tx, group_id: int, offset: int) -> None:
    """Forget a live message: it was acked."""
    tx.lmdb.delete(HELD_KEY.pack(group_id, LIVE, offset), db=tx.engine.held)


def rows(tx: Tx, group_id: int, kind: int, start: int = 0) -> Iterator[tuple[int, HeldRow]]:
    """The live or the dead messages of a group from offset `start`, by offset."""
    first = HELD_KEY.pack(group_id, kind, start)
    for key, value in tx.scan(first[:5], first, tx.engine.held):
        yield HELD_KEY.unpack(key)[2], decode_held(value)
