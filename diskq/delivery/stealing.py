"""Taking what another consumer prefetched and did not begin to handle. Imported on demand.

The thief announces itself in `slots` before it reads how far the other consumer is, and the other
consumer looks for a thief after it wrote what it hands out. So at most one of them has a message.
"""

from __future__ import annotations

from ..format.lease_row import LeaseRow
from ..tables import leases
from ..tables.group_tx import GroupTx
from .grants import Grant, Member, choose_run, store_lease
from .passing import Search
from .reclaim import not_started


def steal(search: Search, member: Member, limit: int) -> list[Grant]:
    """Lease the later half of what another consumer prefetched and did not begin, up to `limit`
    messages: here they are handled at once."""
    group = search.group
    group.tx.engine.slots.turns.begin_stealing()
    for row in [row for row in leases.leased(group) if row.owner != member.owner]:
        while left := not_started(group, row):
            run = _take_from(group, row, left[len(left) // 2 :][-limit:])
            choice = choose_run(search, run)
            if choice.messages:
                return [store_lease(group, choice, member)]
    return []


def _take_from(group: GroupTx, row: LeaseRow, offsets: list[int]) -> LeaseRow:
    for offset in offsets:
        row.settled |= 1 << offset - row.first
    leases.update(group, row)
    group.row.leased -= len(offsets)
    return leases.run_of(offsets)
