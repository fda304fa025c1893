"""Lease rows: insert a run, find it, move it to another deadline, give it back.

    state  'L' group, deadline, first   owner, token, and which of the run are settled

Each offset behind the group's cursor that is neither acked nor held is in exactly one lease row.
Rows with deadline 0 were given back and wait for the next get; the others are sorted by deadline,
so rows whose deadline passed come first. A holder shows the row's key and its token: with another
token, the lease was lost.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from itertools import islice, takewhile

from ..format.lanes import lane_start
from ..format.layout import ID_KEY, SOLO, TIME_KEY
from ..format.lease_row import LeaseRow, decode_lease, span_of
from ..storage.hands import Lease
from ..storage.tx import Tx
from .group_tx import GroupTx

# Read


def find(tx: Tx, group_id: int, lease: Lease) -> LeaseRow | None:
    """The row of a lease as it is now, None if the lease was lost."""
    for deadline_ns in (lease.deadline_ns, lease.moved_ns):
        key = TIME_KEY.pack(b"L", group_id, deadline_ns, lease.first)
        value = tx.get(key)
        row = decode_lease(key, value) if value is not None else None
        if row and row.token == lease.token:
            return row
    return None


def rows(tx: Tx, group_id: int, deadline_ns: int = 0, first: int = 0) -> Iterator[LeaseRow]:
    """The lease rows of a group from a deadline on: those given back first, then by deadline."""
    start = TIME_KEY.pack(b"L", group_id, deadline_ns, first)
    return (decode_lease(*item) for item in tx.scan(start[:5], start))


def leased(group: GroupTx) -> Iterator[LeaseRow]:
    """The rows of a group that a consumer has, by deadline."""
    return rows(group.tx, group.id, 1)


def ready_rows(tx: Tx, group_id: int, lane: int) -> Iterator[LeaseRow]:
    """The rows of a lane that were given back, by their first offset."""
    given_back = rows(tx, group_id, 0, lane_start(lane))
    return takewhile(lambda row: not row.deadline_ns and row.lane == lane, given_back)


def first_ready(tx: Tx, group_id: int, lane: int) -> LeaseRow | None:
    """The row with the lowest offset of a lane that was given back, None without one."""
    return next(ready_rows(tx, group_id, lane), None)


def spans(tx: Tx, group_id: int) -> Iterator[tuple[int, int, bytes, bytes]]:
    """The runs of which the group needs messages of the log: first and stop offset, then key and
    value of the row, not decoded, because a trim looks at all rows and decodes a few."""
    for key, value in tx.scan(ID_KEY.pack(b"L", group_id)):
        if span := span_of(key, value):
            yield *span, key, value


# Change


def run_of(offsets: Sequence[int], flags: int = 0) -> LeaseRow:
    """A row over rising offsets; those between them count as settled."""
    first, count = offsets[0], offsets[-1] + 1 - offsets[0]
    row = LeaseRow(first, count, flags=flags)
    if len(offsets) < count:
        row.settled = (1 << count) - 1
        for offset in offsets:
            row.settled ^= 1 << offset - first
    return row


def insert(group: GroupTx, row: LeaseRow) -> None:
    """Insert a row. Its deadline moves by a nanosecond if another run with the same first offset
    has the same deadline: a part of a run can be given back and leased again."""
    while not group.tx.put(_key(group, row), row.encode(), overwrite=False):
        row.deadline_ns += 1


def update(group: GroupTx, row: LeaseRow) -> None:
    """Write a row whose settled messages changed, or remove it once all of them are settled."""
    if row.unsettled:
        group.tx.put(_key(group, row), row.encode())
    else:
        remove(group, row)


def remove(group: GroupTx, row: LeaseRow) -> None:
    """Remove a row."""
    group.tx.delete(_key(group, row))


def move(group: GroupTx, row: LeaseRow, deadline_ns: int) -> None:
    """Give a row another deadline, and with it another key."""
    remove(group, row)
    row.deadline_ns = deadline_ns
    insert(group, row)


def give_back(group: GroupTx, row: LeaseRow, suspects: Collection[int] = ()) -> None:
    """Make the unsettled messages of a leased row ready for the next get, in their old place. The
    `suspects` are delivered alone from then on, and so are all messages of a SOLO row.

    Settled messages at both ends are cut off, so that the first offset of a row is unsettled.
    """
    remove(group, row)
    offsets = row.offsets()
    alone = offsets if row.flags & SOLO else [each for each in offsets if each in suspects]
    others = [each for each in offsets if each not in suspects] if alone != offsets else []
    for some, flags in ((alone, SOLO), (others, 0)):
        if some:
            insert(group, run_of(some, flags))
    if offsets:
        group.row.leased -= len(offsets)
        group.row.ready += len(offsets)
        group.tx.wake(group.id, len(offsets))


def take_back(group: GroupTx, row: LeaseRow, limit: int) -> LeaseRow:
    """Take the lowest offsets of a lane that were given back, up to `limit`, as a run to lease:
    those of `row`, the first one, and of the rows that interleave with it. A SOLO row gives one
    offset; other rows give those before the first offset of a SOLO row."""
    offsets = row.offsets()
    wanted, mixed = (1, [row]) if row.flags & SOLO else (limit, [row])
    behind = islice(ready_rows(group.tx, group.id, row.lane), 1, None) if wanted > 1 else ()
    for other in behind:
        wanted = min(wanted, bisect_left(offsets, other.first) if other.flags & SOLO else wanted)
        if other.flags & SOLO or other.first > offsets[min(wanted, len(offsets)) - 1]:
            break
        offsets = sorted(offsets + other.offsets())
        mixed.append(other)
    for each in mixed:
        remove(group, each)
    taken, rest = offsets[:wanted], offsets[wanted:]
    group.row.ready -= len(taken)
    if rest:
        insert(group, run_of(rest, row.flags))
    return run_of(taken, row.flags)


def _key(group: GroupTx, row: LeaseRow) -> bytes:
    return TIME_KEY.pack(b"L", group.id, row.deadline_ns, row.first)
