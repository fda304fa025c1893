"""Messages that left the log's way for one group: waiting, leased again, parked or dead.

    held   group, LIVE, offset         waiting, or leased if it has no row 'D'
    held   group, DEAD, offset         dead; a walk over these reads nothing that waits
    held   group, PARK, key, offset    parked behind an earlier message of its key: key_owners.py
    state  'D' group, due_ns, offset   one row per waiting message, by time; its value is a byte if
                                       the message is a suspect

A held message has its own copy of the body, so a slow or dead message never keeps a segment in the
log. Leasing it and giving it back leave its row as it is. The counters of the states are in the
group's row, which the caller stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, takewhile
from typing import NamedTuple

from ..base.errors import Corrupt
from ..format.decoding import unpacked
from ..format.held_row import HeldRow, decode_held
from ..format.layout import BURIED, DEAD, HELD_KEY, LIVE, SOLO, TIME_KEY, WAITING
from ..storage.tx import Tx
from .group_tx import GroupTx

_SUSPECT = bytes([SOLO])


class Due(NamedTuple):
    """A waiting message; a suspect is delivered alone."""

    due_ns: int
    offset: int
    suspect: bool


# Read


def load(tx: Tx, group_id: int, offset: int) -> HeldRow:
    """The live row of a message that another row says is held.

    Raises: Corrupt.
    """
    row = get(tx, group_id, LIVE, offset)
    if row is None:
        raise Corrupt(f"held message {offset} of group {group_id} is missing; run 'diskq verify'")
    return row


def get(tx: Tx, group_id: int, kind: int, offset: int) -> HeldRow | None:
    """A live or dead message, None if it is not there."""
    data = tx.lmdb.get(HELD_KEY.pack(group_id, kind, offset), db=tx.engine.held)
    return None if data is None else decode_held(data)


def rows(tx: Tx, group_id: int, kind: int, start: int = 0) -> Iterator[tuple[int, HeldRow]]:
    """The live or the dead messages of a group from the offset `start` on, by offset."""
    first = HELD_KEY.pack(group_id, kind, start)
    for key, value in tx.scan(first[:5], first, tx.engine.held):
        yield unpacked(HELD_KEY, key)[2], decode_held(value)


def offsets(tx: Tx, group_id: int, kind: int) -> Iterator[int]:
    """The offsets of the live or the dead messages of a group."""
    prefix = HELD_KEY.pack(group_id, kind, 0)[:5]
    for key, _ in tx.scan(prefix, database=tx.engine.held):
        yield unpacked(HELD_KEY, key)[2]


def due_rows(tx: Tx, group_id: int, due_ns: int = 0, offset: int = 0) -> Iterator[Due]:
    """The waiting messages from a time and an offset on, by time."""
    start = TIME_KEY.pack(b"D", group_id, due_ns, offset)
    for key, value in tx.scan(start[:5], start):
        _, _, due_ns, offset = unpacked(TIME_KEY, key)
        yield Due(due_ns, offset, bool(value))


def next_due(tx: Tx, group_id: int) -> Due | None:
    """The waiting message that is due first."""
    return next(due_rows(tx, group_id), None)


def count_due(tx: Tx, group_id: int, now_ns: int, most: int) -> int:
    """How many waiting messages are due, at most `most`."""
    some = islice(due_rows(tx, group_id), most)
    return sum(1 for _ in takewhile(lambda due: due.due_ns <= now_ns, some))


def is_waiting(tx: Tx, group_id: int, offset: int, row: HeldRow) -> bool:
    """Whether a live message waits; otherwise it is leased."""
    return tx.get(TIME_KEY.pack(b"D", group_id, row.due_ns, offset)) is not None


# Change


def wait(group: GroupTx, offset: int, row: HeldRow, due_ns: int) -> None:
    """Let a message wait until `due_ns` of the wall clock."""
    row.state, row.due_ns = WAITING, due_ns
    _insert_due(group, offset, row, suspect=bool(row.flags & SOLO))
    put(group, LIVE, offset, row)


def lease(group: GroupTx, offset: int, row: HeldRow) -> None:
    """Let a waiting message wait no more; a lease has it now."""
    key = TIME_KEY.pack(b"D", group.id, row.due_ns, offset)
    group.row.waiting -= group.tx.delete(key)


def give_back(group: GroupTx, offset: int, row: HeldRow, *, suspect: bool) -> None:
    """Let a leased message wait again, in its old place."""
    _insert_due(group, offset, row, suspect=suspect)


def bury(group: GroupTx, offset: int, row: HeldRow, now_ns: int) -> None:
    """Make a message a dead letter."""
    row.state, row.due_ns = BURIED, now_ns
    group.row.dead += 1
    remove(group, offset)
    put(group, DEAD, offset, row)


def put(group: GroupTx, kind: int, offset: int, row: HeldRow) -> None:
    """Write a row."""
    tx = group.tx
    tx.lmdb.put(HELD_KEY.pack(group.id, kind, offset), row.encode(), db=tx.engine.held)


def remove(group: GroupTx, offset: int) -> None:
    """Remove the live row of a message that does not wait, if it has one."""
    _delete(group, LIVE, offset)


def remove_live(group: GroupTx, offset: int, row: HeldRow) -> None:
    """Remove a live message, whether it waits or is leased."""
    lease(group, offset, row)
    remove(group, offset)


def remove_dead(group: GroupTx, offset: int) -> None:
    """Remove a dead letter."""
    _delete(group, DEAD, offset)
    group.row.dead -= 1


def _insert_due(group: GroupTx, offset: int, row: HeldRow, *, suspect: bool) -> None:
    key = TIME_KEY.pack(b"D", group.id, row.due_ns, offset)
    group.tx.put(key, _SUSPECT if suspect else b"")
    group.row.waiting += 1


def _delete(group: GroupTx, kind: int, offset: int) -> None:
    group.tx.lmdb.delete(HELD_KEY.pack(group.id, kind, offset), db=group.tx.engine.held)
