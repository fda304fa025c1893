"""Held messages of a group: waiting, leased again, dead and parked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..base.model import Finding
from ..format.decoding import unpacked
from ..format.layout import BURIED, DEAD, ID_KEY, LIVE, TIME_KEY
from ..format.rows import GroupRow
from ..storage.tx import Tx
from ..tables import held, key_owners
from .counting import compare


def check_held(
    tx: Tx,
    where: str,
    group_id: int,
    group: GroupRow,
    is_known: Callable[[int], bool],
    taken: set[int],
    leased_held: set[int],
) -> Iterator[Finding]:
    """Each held message is in one place. Adds their offsets to `taken`; `leased_held` are those
    that have a lease."""
    due = list(_due(tx, group_id))
    waiting = dict(due)
    live = dead = 0
    for kind in (LIVE, DEAD):
        for offset, message in held.rows(tx, group_id, kind):
            live += kind == LIVE
            dead += kind == DEAD
            if offset in taken or not is_known(offset):
                yield Finding(where, f"held message {offset} is leased too, or not read yet")
            taken.add(offset)
            if (message.state == BURIED) != (kind == DEAD):
                yield Finding(where, f"held message {offset} is among the wrong kind")
            places = (waiting.get(offset) == message.due_ns) + (offset in leased_held)
            if places != (kind == LIVE):
                yield Finding(where, f"held message {offset} has {places} due rows and leases")
    parked = [offset for _, offset, _ in key_owners.parked(tx, group_id)]
    if taken & set(parked) or not all(map(is_known, parked)):
        yield Finding(where, "a parked message is somewhere else too, or not read yet")
    yield from compare(
        where,
        waiting=(group.waiting, live - len(leased_held)),
        due=(len(due), live - len(leased_held)),
        parked=(group.parked, len(parked)),
        dead=(group.dead, dead),
    )


def _due(tx: Tx, group_id: int) -> Iterator[tuple[int, int]]:
    for key, _ in tx.scan(ID_KEY.pack(b"D", group_id)):
        _, _, due_ns, offset = unpacked(TIME_KEY, key)
        yield offset, due_ns
