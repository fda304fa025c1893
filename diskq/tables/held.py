"""Messages that left the log's way for one group: waiting, leased again, parked or dead.

    held   group, LIVE, offset         waiting, or leased if it has no row 'D'
    held   group, DEAD, offset         dead; found without reading what waits
    held   group, PARK, key, offset    parked behind an earlier message of its key, see keys.py
    state  'D' group, due_ns, offset   one row for each that waits, in order of time; its value is a
                                       byte if it is a suspect, see reclaim.py

A held message has its body with it, so a slow or dead one never keeps its segment in the log. To
lease it, or to give it back, the row is not written again.
Counters of the states are in the group's row, which the caller stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, takewhile
from typing import NamedTuple

from ..base.errors import Corrupt
from ..format.decoding import unpacked
from ..format.held_row import HeldRow, decode_held
from ..format.layout import BURIED, DEAD, HELD_KEY, LIVE, SOLO, TIME_KEY, WAITING
from ..format.rows import GroupRow
from ..storage.tx import Tx

_SUSPECT = bytes([SOLO])


class Due(NamedTuple):
    """A waiting message; a suspect is delivered alone."""

    due_ns: int
    offset: int
    suspect: bool


def load(tx: Tx, group_id: int, offset: int) -> HeldRow:
    """The live row of a message that another row says is held.

    Raises: Corrupt.
    """
    row = get(tx, group_id, LIVE, offset)
    if row is None:
        raise Corrupt(f"held message {offset} of group {group_id} is missing; run 'diskq verify'")
    return row


def wait(tx: Tx, group_id: int, group: GroupRow, offset: int, row: HeldRow, due_ns: int) -> None:
    """Let a message wait until `due_ns` of the wall clock."""
    row.state, row.due_ns = WAITING, due_ns
    group.waiting += 1
    tx.put(TIME_KEY.pack(b"D", group_id, due_ns, offset), _SUSPECT if row.flags & SOLO else b"")
    put(tx, group_id, LIVE, offset, row)


def bury(tx: Tx, group_id: int, group: GroupRow, offset: int, row: HeldRow, now_ns: int) -> None:
    """Make a message a dead letter."""
    row.state, row.due_ns = BURIED, now_ns
    group.dead += 1
    drop(tx, group_id, offset)
    put(tx, group_id, DEAD, offset, row)


def next_due(tx: Tx, group_id: int) -> Due | None:
    """The waiting message that is due next."""
    return next(due_rows(tx, group_id), None)


def due_rows(tx: Tx, group_id: int, due_ns: int = 0, offset: int = 0) -> Iterator[Due]:
    """The waiting messages from these on, in the order of their time."""
    start = TIME_KEY.pack(b"D", group_id, due_ns, offset)
    for key, value in tx.scan(start[:5], start):
        _, _, due_ns, offset = unpacked(TIME_KEY, key)
        yield Due(due_ns, offset, bool(value))


def count_due(tx: Tx, group_id: int, now_ns: int, most: int) -> int:
    """How many waiting messages are due, at most `most`."""
    rows = islice(due_rows(tx, group_id), most)
    return sum(1 for _ in takewhile(lambda row: row.due_ns <= now_ns, rows))


def lease(tx: Tx, group_id: int, group: GroupRow, offset: int, row: HeldRow) -> None:
    """Take a waiting message out of the waiting ones."""
    group.waiting -= tx.delete(TIME_KEY.pack(b"D", group_id, row.due_ns, offset))


def give_back(
    tx: Tx, group_id: int, group: GroupRow, offset: int, row: HeldRow, *, suspect: bool
) -> None:
    """Let a leased message wait again, in its old place."""
    tx.put(TIME_KEY.pack(b"D", group_id, row.due_ns, offset), _SUSPECT if suspect else b"")
    group.waiting += 1


def is_waiting(tx: Tx, group_id: int, offset: int, row: HeldRow) -> bool:
    """Whether a live message waits; else it is leased."""
    return tx.get(TIME_KEY.pack(b"D", group_id, row.due_ns, offset)) is not None


def stop_waiting(tx: Tx, group_id: int, group: GroupRow, offset: int, row: HeldRow) -> None:
    """Forget a live message, whether it waits or is leased."""
    lease(tx, group_id, group, offset, row)
    drop(tx, group_id, offset)


def drop(tx: Tx, group_id: int, offset: int, kind: int = LIVE) -> None:
    """Forget a message that is not waiting."""
    tx.lmdb.delete(HELD_KEY.pack(group_id, kind, offset), db=tx.engine.held)


def rows(tx: Tx, group_id: int, kind: int, start: int = 0) -> Iterator[tuple[int, HeldRow]]:
    """The live or the dead messages of a group from offset `start`, by offset."""
    first = HELD_KEY.pack(group_id, kind, start)
    for key, value in tx.scan(first[:5], first, tx.engine.held):
        yield unpacked(HELD_KEY, key)[2], decode_held(value)


def offsets(tx: Tx, group_id: int, kind: int) -> Iterator[int]:
    """The offsets of the live or the dead messages of a group."""
    prefix = HELD_KEY.pack(group_id, kind, 0)[:5]
    for key, _ in tx.scan(prefix, database=tx.engine.held):
        yield unpacked(HELD_KEY, key)[2]


def get(tx: Tx, group_id: int, kind: int, offset: int) -> HeldRow | None:
    """A row, None if it is not there."""
    data = tx.lmdb.get(HELD_KEY.pack(group_id, kind, offset), db=tx.engine.held)
    return None if data is None else decode_held(data)


def put(tx: Tx, group_id: int, kind: int, offset: int, row: HeldRow) -> None:
    """Write a row."""
    tx.lmdb.put(HELD_KEY.pack(group_id, kind, offset), row.encode(), db=tx.engine.held)
