"""Taking what another consumer prefetched and did not begin. Imported on demand.

The thief says so in `slots` before it looks how far the other one is, and the other one looks there
after it said what it hands out: so not both have a message.
"""

from __future__ import annotations

from ..tables import leases
from .reclaim import untouched
from .take import Delivery, Grant, Member


def steal(at: Delivery, member: Member, limit: int) -> list[Grant]:
    """The later half of what another consumer prefetched and did not begin: better it is
    handled here and now."""
    at.tx.engine.slots.turns.begin_stealing()
    for lease in [lease for lease in at.leased() if lease.owner != member.owner]:
        while left := untouched(at, lease):
            taken = left[len(left) // 2 :][-limit:]
            for offset in taken:
                lease.settled |= 1 << offset - lease.first
            leases.update(at.tx, at.id, lease)
            at.row.leased -= len(taken)
            run = leases.run_of(taken)
            found = at.read(run)
            messages, passed = at.sift(found)
            if passed < len(found):
                rest = leases.run_of([message.offset for message in found[passed:]])
                leases.grant(at.tx, at.id, rest)
                at.row.ready += rest.unsettled
            if messages:
                run = leases.run_of([message.offset for message in messages])
                at.note_keys(run, messages)
                at.row.redelivered += len(messages)
                return [at.grant(Grant(run, messages, 0), member)]
    return []
