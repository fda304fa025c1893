"""Taking leases back: their deadline passed, or their holder died. And who is to blame for a death.

A process that dies may have been killed by what it had in hand: the message that a consumer named
as being handled, or all that it leased and was handed out. A single one is charged. Several become
*suspects*, uncharged: from then on each is delivered alone, and to a process whose other threads
have nothing of the group in hand (see hands.py), so that the next death tells. A suspect that was
in hand again is charged, and stays one until a handler that lives on acks, nacks or rejects it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice, takewhile
from typing import NamedTuple

from ..base import limits
from ..format.layout import HELD, PREFETCHED, SOLO
from ..format.lease_row import LeaseRow
from ..host.slots import NOTHING, SEVERAL, Slot
from ..storage.reserve import room_of
from ..tables import leases
from .settle import Settling


class Candidate(NamedTuple):
    """A message that may have killed the process that had it in hand."""

    lease: LeaseRow
    offset: int


def expire(group: Settling) -> None:
    """Take messages back whose deadline passed, now that somebody wants them. Those that were only
    prefetched, behind the one being handled, are not charged; nor are those that there is no room
    to copy."""
    now = group.clock.monotonic_ns()
    passed = takewhile(lambda lease: lease.deadline_ns <= now, group.leased())
    for lease in list(islice(passed, limits.MAX_EXPIRED_LEASES)):
        name = _holder_name(group, lease)
        for offset in handed_out(group, lease):
            if room_of(group.tx).spent:
                leases.update(group.tx, group.id, lease)  # the rest with the next get
                return
            group.take_out(lease, offset, "expired", name, "")
        group.release_all(lease)


def handed_out(group: Settling, lease: LeaseRow) -> list[int]:
    """The part of a lease that its holder was given: of a prefetched one, only so far as it told.
    Where that is not known any more, what was leased alone counts: it is handed out at once."""
    slot = group.tx.engine.slots.read(lease.slot)
    known = slot.owner == lease.owner
    if not lease.flags & PREFETCHED or (not known and lease.flags & (HELD | SOLO)):
        return lease.offsets()
    last = slot.handed - lease.token + lease.first if known else -1
    return [offset for offset in lease.offsets() if offset <= last]


def untouched(group: Settling, lease: LeaseRow) -> list[int]:
    """The part of a prefetched lease that others may take: its holder has not begun to handle
    it."""
    if not lease.flags & PREFETCHED or lease.flags & (HELD | SOLO):
        return []
    handed = set(handed_out(group, lease))
    return [offset for offset in lease.offsets() if offset not in handed]


def dead(group: Settling) -> Iterator[LeaseRow]:
    """The leases of consumers that died."""
    alive: dict[tuple[int, int], bool] = {}
    for lease in group.leased():
        who = lease.slot, lease.owner
        if who not in alive:
            alive[who] = group.tx.engine.slots.alive(*who)
        if not alive[who]:
            yield lease


def reap(group: Settling) -> bool:
    """Take back what dead consumers held, and charge who is to blame; False if nobody died."""
    began_ns = group.clock.monotonic_ns()
    found = list(islice(dead(group), limits.MAX_DEAD_OWNERS_LEASES))
    processes: dict[int, list[LeaseRow]] = {}
    for lease in found:
        slot = group.tx.engine.slots.read(lease.slot)
        known = slot.owner == lease.owner
        processes.setdefault(slot.pid if known else -lease.owner, []).append(lease)
    more = len(found) == limits.MAX_DEAD_OWNERS_LEASES
    for its in processes.values():
        _take_from_dead(group, its, more)
    now_ns = group.clock.monotonic_ns()  # with many leases the look is long: then seldom
    group.tx.engine.looked_ns[group.id] = now_ns + 20 * (now_ns - began_ns)
    return bool(found)


def _take_from_dead(group: Settling, its: list[LeaseRow], more: bool) -> None:
    slots = group.tx.engine.slots
    candidates, unknown = [], False
    for owner in dict.fromkeys((lease.slot, lease.owner) for lease in its):
        slot = slots.read(owner[0])
        mine = [lease for lease in its if (lease.slot, lease.owner) == owner]
        candidates += _in_hand(group, slot if slot.owner == owner[1] else None, mine)
        unknown |= slot.owner == owner[1] and slot.handling == SEVERAL
        if not more:  # else it still says which of the others was handled
            group.tx.after.append(partial(slots.forget, *owner))
    suspects = _judge(group, candidates, unknown)
    for lease in its:
        group.release_all(lease, suspects)


def _in_hand(group: Settling, slot: Slot | None, its: list[LeaseRow]) -> list[Candidate]:
    """The messages that a dead consumer had in hand, as far as its slot still says so."""
    named = slot.handling if slot else None
    if named == NOTHING:
        return []
    if named is not None and named != SEVERAL:
        return [Candidate(lease, named) for lease in its if lease.holds(named)]
    return [Candidate(lease, offset) for lease in its for offset in handed_out(group, lease)]


def _judge(group: Settling, candidates: list[Candidate], unknown: bool) -> set[int]:
    """Charge the one to blame, or all that were suspects before; returns who are suspects now."""
    blamed = [each for each in candidates if each.lease.flags & SOLO]
    if not blamed and len(candidates) == 1 and not unknown:
        blamed = candidates
    if not blamed:
        return {offset for _, offset in candidates}
    suspects = set()
    for lease, offset in blamed:
        name = _holder_name(group, lease)
        if not group.take_out(lease, offset, "crashed", name, "", delay_ns=0):
            suspects.add(offset)  # no room to note it, but to blame all the same
    return suspects


def _holder_name(group: Settling, lease: LeaseRow) -> str:
    slot = group.tx.engine.slots.read(lease.slot)
    return slot.name if slot.owner == lease.owner else ""
