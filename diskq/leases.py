"""A group's row, its cursor and its lease rows: grant a run, settle in it, move it, free it.

    state  'L' group, deadline, first   owner, token, and which of the run are settled

Each offset behind the cursor that is neither acked nor held is in exactly one lease row. Rows with
deadline 0 were given back and wait for the next get; the others are sorted by deadline, so those
that passed come first. A message is addressed by its row's key and its token: whoever comes with
another one has lost the lease.
"""

from __future__ import annotations

from collections.abc import Iterator

from .codec import (
    GROUP_KEY,
    HELD,
    LANE,
    LEASE_KEY,
    SOLO,
    GroupRow,
    LeaseRow,
    decode_lease,
)
from .engine import Tx
from .errors import NotFound


def load(tx: Tx, group_id: int, name: str) -> GroupRow:
    """The group's row, to be changed and stored again.

    Raises: NotFound if the group was deleted.
    """
    data = tx.get(GROUP_KEY.pack(b"G", group_id))
    if data is None:
        raise NotFound(f"group {name!r} does not exist any more", group=name)
    return GroupRow(data)


def store(tx: Tx, group_id: int, group: GroupRow) -> None:
    """Write the group's row back, if it changed."""
    data = group.encode()
    if data != group.data:
        tx.put(GROUP_KEY.pack(b"G", group_id), data)


def grant(tx: Tx, group_id: int, row: LeaseRow) -> None:
    """Insert a lease row. Its deadline moves by a nanosecond if another run with the same first
    offset has the same one (part of a run can be given back and granted anew)."""
    value = row.encode()
    while not tx.put(_key(group_id, row), value, overwrite=False):
        row.deadline_ns += 1


def find(tx: Tx, group_id: int, deadline_ns: int, first: int, token: int) -> LeaseRow | None:
    """The lease row with this key, if it still is the delivery with this token."""
    key = LEASE_KEY.pack(b"L", group_id, deadline_ns, first)
    value = tx.get(key)
    if value is None:
        return None
    row = decode_lease(key, value)
    return row if row.token == token else None


def update(tx: Tx, group_id: int, row: LeaseRow) -> None:
    """Write a row whose settled messages changed; it goes when all are settled."""
    if row.settled.bit_count() == row.count:
        tx.delete(_key(group_id, row))
    else:
        tx.put(_key(group_id, row), row.encode())


def move(tx: Tx, group_id: int, row: LeaseRow, deadline_ns: int) -> None:
    """Give a row another deadline, and with it another key."""
    tx.delete(_key(group_id, row))
    row.deadline_ns = deadline_ns
    grant(tx, group_id, row)


def give_back(tx: Tx, group_id: int, group: GroupRow, row: LeaseRow, *, solo: bool) -> None:
    """Make the unsettled messages of a leased row ready for the next get, in their old place.

    Settled ones at both ends are cut off, so that the row's first message is its own.
    """
    tx.delete(_key(group_id, row))
    count = row.unsettled
    group.leased -= count
    if count == 0:
        return
    group.ready += count
    low = row.next_unsettled - row.first
    high = (~row.settled & ((1 << row.count) - 1)).bit_length()
    flags = SOLO if solo else 0
    freed = LeaseRow(row.first + low, high - low, 0, flags)
    freed.settled = row.settled >> low & ((1 << high - low) - 1)
    grant(tx, group_id, freed)
    tx.wake(group_id, count)


def take_back(tx: Tx, group_id: int, group: GroupRow, limit: int) -> LeaseRow | None:
    """Take up to `limit` messages out of the first row that was given back, as a new row."""
    row = next(rows(tx, group_id), None)
    if row is None or row.deadline_ns:
        return None
    tx.delete(_key(group_id, row))
    positions = row.positions()
    if row.flags & SOLO:
        limit = 1
    taken = min(limit, len(positions))
    end = positions[taken - 1] + 1
    if taken < len(positions):
        start = positions[taken]
        rest = LeaseRow(row.first + start, row.count - start, row.settled >> start, row.flags)
        grant(tx, group_id, rest)
    group.ready -= taken
    return LeaseRow(row.first, end, row.settled & ((1 << end) - 1))


def rows(tx: Tx, group_id: int, deadline_ns: int = 0) -> Iterator[LeaseRow]:
    """The lease rows of a group from a deadline on, those given back first, then by deadline."""
    start = LEASE_KEY.pack(b"L", group_id, deadline_ns, 0)
    for key, value in tx.scan(start[:5], start):
        yield decode_lease(key, value)


def floor(tx: Tx, group_id: int, group: GroupRow) -> int:
    """The first offset of the log that the group may still need."""
    kept = (row.next_unsettled for row in rows(tx, group_id) if not row.flags & HELD)
    return min(kept, default=group.cursor[LANE])


def _key(group_id: int, row: LeaseRow) -> bytes:
    return LEASE_KEY.pack(b"L", group_id, row.deadline_ns, row.first)
