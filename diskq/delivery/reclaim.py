"""Taking leases back after their deadline or the death of their holder, and the blame for a death.

A process that dies may have been killed by what it had in hand: the message that a consumer named
as being handled, or all messages that it leased and was handed out. A single one is charged.
Several become *suspects*, uncharged: from then on each is delivered alone, and to a process whose
other threads have nothing of the group in hand (see suspects.py), so that the next death tells
which one kills. A suspect that was in hand again is charged, and stays a suspect until a handler
that lives on acks, nacks or rejects it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice, takewhile
from typing import NamedTuple

from ..base import limits
from ..base.clock import nanoseconds
from ..format.layout import HELD, PREFETCHED, SOLO
from ..format.lease_row import LeaseRow
from ..host.slots import NOTHING, SEVERAL, Slot
from ..storage.reserve import room_of
from ..tables import leases
from ..tables.group_tx import GroupTx
from . import leaving, settle


class Candidate(NamedTuple):
    """A message that may have killed the process that had it in hand."""

    lease: LeaseRow
    offset: int


def expire(group: GroupTx) -> None:
    """Take back messages whose deadline passed. Those that were only prefetched, behind the message
    being handled, are not charged; nor are those for which there is no room to copy them."""
    now = group.clock.monotonic_ns()
    passed = takewhile(lambda lease: lease.deadline_ns <= now, leases.leased(group))
    for lease in list(islice(passed, limits.MAX_EXPIRED_LEASES)):
        name = _holder_name(group, lease)
        for offset in handed_out(group, lease):
            if room_of(group.tx).spent:
                leases.update(group, lease)  # the rest with the next get
                return
            leaving.take_out(group, lease, offset, "expired", name, "")
        settle.release_all(group, lease)


def handed_out(group: GroupTx, lease: LeaseRow) -> list[int]:
    """The part of a lease that its holder was given: of a prefetched lease, only as far as the
    holder told. Where that is not known any more, only a message that was leased alone counts,
    since it is handed out at once."""
    slot = group.tx.engine.slots.read(lease.slot)
    known = slot.owner == lease.owner
    if not lease.flags & PREFETCHED or (not known and lease.flags & (HELD | SOLO)):
        return lease.offsets()
    last = slot.handed - lease.token + lease.first if known else -1
    return [offset for offset in lease.offsets() if offset <= last]


def not_started(group: GroupTx, lease: LeaseRow) -> list[int]:
    """The part of a prefetched lease that its holder has not begun to handle, so that others may
    take it."""
    if not lease.flags & PREFETCHED or lease.flags & (HELD | SOLO):
        return []
    handed = set(handed_out(group, lease))
    return [offset for offset in lease.offsets() if offset not in handed]


def may_steal(group: GroupTx, owner: int) -> bool:
    """Whether a consumer other than `owner` prefetched messages that others may take."""
    others = (lease for lease in leases.leased(group) if lease.owner != owner)
    return any(not_started(group, lease) for lease in others)


def dead(group: GroupTx) -> Iterator[LeaseRow]:
    """The leases of consumers that died."""
    alive: dict[tuple[int, int], bool] = {}
    for lease in leases.leased(group):
        holder = lease.slot, lease.owner
        if holder not in alive:
            alive[holder] = group.tx.engine.slots.alive(*holder)
        if not alive[holder]:
            yield lease


def is_due(group: GroupTx) -> bool:
    """Whether this process has not looked for dead consumers for a while."""
    looked_ns = group.tx.engine.looked_ns.get(group.id, 0)
    return group.clock.monotonic_ns() - looked_ns > nanoseconds(limits.LOOK_SECONDS)


def reap(group: GroupTx) -> bool:
    """Take back what dead consumers held, and charge the messages to blame; returns whether a
    consumer died."""
    began_ns = group.clock.monotonic_ns()
    lost = list(islice(dead(group), limits.MAX_DEAD_OWNERS_LEASES))
    processes: dict[int, list[LeaseRow]] = {}
    for lease in lost:
        slot = group.tx.engine.slots.read(lease.slot)
        known = slot.owner == lease.owner
        processes.setdefault(slot.pid if known else -lease.owner, []).append(lease)
    more = len(lost) == limits.MAX_DEAD_OWNERS_LEASES
    for of_process in processes.values():
        _take_from_dead(group, of_process, more)
    _note_look(group, began_ns)
    return bool(lost)


def somebody_died(group: GroupTx) -> bool:
    """Whether a consumer died that holds a lease. Changes no row."""
    began_ns = group.clock.monotonic_ns()
    if any(dead(group)):
        return True
    _note_look(group, began_ns)
    return False


def _note_look(group: GroupTx, began_ns: int) -> None:
    """Note when this process looked for dead consumers: seldom, if many leases make a look long."""
    now_ns = group.clock.monotonic_ns()
    group.tx.engine.looked_ns[group.id] = now_ns + 20 * (now_ns - began_ns)


def _take_from_dead(group: GroupTx, lost: list[LeaseRow], more: bool) -> None:
    """Take back leases of one dead process; `more`: it may have had others."""
    slots = group.tx.engine.slots
    candidates, unknown = [], False
    for owner in dict.fromkeys((lease.slot, lease.owner) for lease in lost):
        slot = slots.read(owner[0])
        mine = [lease for lease in lost if (lease.slot, lease.owner) == owner]
        candidates += _in_hand(group, slot if slot.owner == owner[1] else None, mine)
        unknown |= slot.owner == owner[1] and slot.handling == SEVERAL
        if not more:  # otherwise the slot still says which of the others was handled
            group.tx.after.append(partial(slots.forget, *owner))
    suspects = _judge(group, candidates, unknown)
    for lease in lost:
        settle.release_all(group, lease, suspects)


def _in_hand(group: GroupTx, slot: Slot | None, lost: list[LeaseRow]) -> list[Candidate]:
    """The messages that a dead consumer had in hand, as far as its slot still says so."""
    named = slot.handling if slot else None
    if named == NOTHING:
        return []
    if named is not None and named != SEVERAL:
        return [Candidate(lease, named) for lease in lost if lease.holds(named)]
    return [Candidate(lease, offset) for lease in lost for offset in handed_out(group, lease)]


def _judge(group: GroupTx, candidates: list[Candidate], unknown: bool) -> set[int]:
    """Charge the one to blame, or all that were suspects before; returns the new suspects."""
    blamed = [each for each in candidates if each.lease.flags & SOLO]
    if not blamed and len(candidates) == 1 and not unknown:
        blamed = candidates
    if not blamed:
        return {offset for _, offset in candidates}
    suspects = set()
    for lease, offset in blamed:
        name = _holder_name(group, lease)
        if not leaving.take_out(group, lease, offset, "crashed", name, "", delay_ns=0):
            suspects.add(offset)  # to blame, though there is no room to note it
    return suspects


def _holder_name(group: GroupTx, lease: LeaseRow) -> str:
    slot = group.tx.engine.slots.read(lease.slot)
    return slot.name if slot.owner == lease.owner else ""
