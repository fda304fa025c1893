"""A group's row, its cursor and its lease rows: grant a run, settle in it, move it, free it.

    state  'L' group, deadline, first   owner, token, and which of the run are settled

Each offset behind the cursor that is neither acked nor held is in exactly one lease row. Rows with
deadline 0 were given back and wait for the next get; the others are sorted by deadline, so those
that passed come first. A message is addressed by its row's key and its token: whoever comes with
another one has lost the lease.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from itertools import islice, takewhile

from ..base.errors import NotFound
from ..base.model import LANE_BITS
from ..format.layout import ID_KEY, SOLO, TIME_KEY
from ..format.lease_row import LeaseRow, decode_lease, span_of
from ..format.rows import GroupRow
from ..storage.tx import Tx


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
    """The row of a granted lease as it is now; None if it was lost."""
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


def give_back(
    tx: Tx, group_id: int, group: GroupRow, row: LeaseRow, suspects: Collection[int] = ()
) -> None:
    """Make the unsettled messages of a leased row ready for the next get, in their old place;
    `suspects` are to be delivered alone, as all of a SOLO row are.

    Settled ones at both ends are cut off, so that the row's first message is its own.
    """
    tx.delete(_key(group_id, row))
    offsets = row.offsets()
    solo = offsets if row.flags & SOLO else [each for each in offsets if each in suspects]
    others = [each for each in offsets if each not in suspects] if solo != offsets else []
    for some, flags in ((solo, SOLO), (others, 0)):
        if some:
            grant(tx, group_id, run_of(some, flags))
    if offsets:
        group.leased -= len(offsets)
        group.ready += len(offsets)
        tx.wake(group_id, len(offsets))


def first_ready(tx: Tx, group_id: int, lane: int) -> LeaseRow | None:
    """The row that has the lowest offset of a lane that was given back, None if none was."""
    return next(ready_rows(tx, group_id, lane), None)


def take_back(tx: Tx, group_id: int, group: GroupRow, row: LeaseRow, limit: int) -> LeaseRow:
    """Take the lowest offsets of a lane that were given back, up to `limit`, as a run to grant:
    those of `row`, the first of them, and of the rows that interleave with it. Of a SOLO row it is
    one, and others end before the first of a SOLO row."""
    offsets = row.offsets()
    wanted, mixed = (1, [row]) if row.flags & SOLO else (limit, [row])
    for other in islice(ready_rows(tx, group_id, row.lane), 1, None) if wanted > 1 else ():
        wanted = min(wanted, bisect_left(offsets, other.first) if other.flags & SOLO else wanted)
        if other.flags & SOLO or other.first > offsets[min(wanted, len(offsets)) - 1]:
            break
        offsets = sorted(offsets + other.offsets())
        mixed.append(other)
    for each in mixed:
        tx.delete(_key(group_id, each))
    taken, rest = offsets[:wanted], offsets[wanted:]
    group.ready -= len(taken)
    if rest:
        grant(tx, group_id, run_of(rest, row.flags))
    return run_of(taken, row.flags)


def ready_rows(tx: Tx, group_id: int, lane: int) -> Iterator[LeaseRow]:
    """The rows of a lane that were given back, by their first offset."""
    found = rows(tx, group_id, 0, lane << LANE_BITS)
    return takewhile(lambda row: not row.deadline_ns and row.lane == lane, found)


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
