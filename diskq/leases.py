"""A group's row, its cursor and its lease rows: grant a run, settle in it, move it, free it.

    state  'L' group, deadline, first   owner, token, and which of the run are settled

Each offset behind the cursor that is neither acked nor held is in exactly one lease row. Rows with
deadline 0 were given back and wait for the next get; the others are sorted by deadline, so those
that passed come first. A message is addressed by its row's key and its token: whoever comes with
another one has lost the lease.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .codec import ID_KEY, SOLO, TIME_KEY, GroupRow, LeaseRow, decode_lease, span_of
from .errors import NotFound
from .model import LANE_BITS
from .tx import Tx


def load(tx: Tx, group_id: int, name: str) -> GroupRow:
    """The group's row, to be changed and stored again.

    Raises: NotFound if the group was deleted.
    """
    data = tx.get(ID_KEY.pack(b"G", group_id))
    if data is None:
        raise NotFound(
            f"group {name!r} does not exist any more; see topic.groups() or 'diskq group ls'",
            group=name,
        )
    return GroupRow(data)


def store(tx: Tx, group_id: int, group: GroupRow) -> None:
    """Write the group's row back, if it changed."""
    data = group.encode()
    if data != group.data:
        tx.put(ID_KEY.pack(b"G", group_id), data)


def grant(tx: Tx, group_id: int, row: LeaseRow) -> None:
    """Insert a lease row. Its deadline moves by a nanosecond if another run with the same first
    offset has the same one (part of a run can be given back and granted anew)."""
    while not tx.put(_key(group_id, row), row.encode(), overwrite=False):
        row.deadline_ns += 1


def find(tx: Tx, group_id: int, lease: LeaseRow) -> LeaseRow | None:
    """What the store has of a granted lease now; None if it was lost."""
    for deadline_ns in (lease.deadline_ns, lease.moved_ns):
        key = TIME_KEY.pack(b"L", group_id, deadline_ns, lease.first)
        value = tx.get(key)
        row = decode_lease(key, value) if value is not None else None
        if row and row.token == lease.token:
            return row
    return None


def update(tx: Tx, group_id: int, row: LeaseRow) -> None:
    """Write a row whose settled messages changed; it goes when all are settled."""
    if row.unsettled:
        tx.put(_key(group_id, row), row.encode())
    else:
        tx.delete(_key(group_id, row))


def forget(tx: Tx, group_id: int, row: LeaseRow) -> None:
    """Remove a row."""
    tx.delete(_key(group_id, row))


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
    if count := row.unsettled:
        grant(tx, group_id, run_of(row.offsets(), SOLO if solo else 0))
        group.leased -= count
        group.ready += count
        tx.wake(group_id, count)


def take_back(
    tx: Tx, group_id: int, group: GroupRow, lane: int, limit: int, alone: bool
) -> LeaseRow | None:
    """Take up to `limit` messages out of the first row of a lane that was given back, as a run to
    grant; of a SOLO row one, and only if it goes `alone`."""
    row = next(rows(tx, group_id, 0, lane << LANE_BITS), None)
    if row is None or row.deadline_ns or row.lane != lane or (row.flags & SOLO and not alone):
        return None
    tx.delete(_key(group_id, row))
    offsets = row.offsets()
    taken = 1 if row.flags & SOLO else min(limit, len(offsets))
    group.ready -= taken
    if taken < len(offsets):
        grant(tx, group_id, run_of(offsets[taken:], row.flags))
    return run_of(offsets[:taken], row.flags)


def run_of(offsets: Sequence[int], flags: int = 0) -> LeaseRow:
    """A row over these offsets, which rise; what is between them counts as settled."""
    first, count = offsets[0], offsets[-1] + 1 - offsets[0]
    row = LeaseRow(first, count, flags=flags)
    if len(offsets) < count:
        row.settled = (1 << count) - 1
        for offset in offsets:
            row.settled ^= 1 << offset - first
    return row


def rows(tx: Tx, group_id: int, deadline_ns: int = 0, first: int = 0) -> Iterator[LeaseRow]:
    """The lease rows of a group from a deadline on, those given back first, then by deadline."""
    start = TIME_KEY.pack(b"L", group_id, deadline_ns, first)
    return (decode_lease(*item) for item in tx.scan(start[:5], start))


def spans(tx: Tx, group_id: int) -> Iterator[tuple[int, int, bytes, bytes]]:
    """First and stop offset of each run of which the group needs messages of the log, and its row,
    not decoded: a trim looks at all of them, and decodes a few."""
    for key, value in tx.scan(ID_KEY.pack(b"L", group_id)):
        if span := span_of(key, value):
            yield *span, key, value


def _key(group_id: int, row: LeaseRow) -> bytes:
    return TIME_KEY.pack(b"L", group_id, row.deadline_ns, row.first)
