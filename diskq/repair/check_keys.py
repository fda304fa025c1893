"""Whether messages of one key are in order: one in flight, the others parked behind it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from ..base.model import Finding
from ..format.layout import HELD, LIVE, PARKED
from ..storage.tx import Tx
from ..tables import held, key_owners, leases
from ..tables.log import Log


def check_keys(source: Log, where: str, group_id: int, keyed: bool) -> Iterator[Finding]:
    """Of each key one message is in flight, it has the key, and nothing is parked without one."""
    tx = source.tx
    found: dict[int, int] = {}
    in_flight = chain(_leased(source, group_id), _waiting(tx, group_id)) if keyed else ()
    for offset, record, flags in in_flight:
        key = key_owners.hash_of(record, flags)
        if key is not None and found.setdefault(key, offset) != offset:
            yield Finding(where, f"{offset} and {found[key]}, of one key, are both in flight")
    holders = dict(key_owners.holders(tx, group_id))
    if found != holders:
        yield Finding(where, f"the holders of keys are {holders}, those in flight are {found}")
    for key, offset, row in key_owners.parked(tx, group_id):
        own_key = key_owners.hash_of(row.record, row.flags)
        if key not in holders or own_key != key or row.state != PARKED:
            yield Finding(where, f"message {offset} is parked behind nobody")


def _leased(source: Log, group_id: int) -> Iterator[tuple[int, bytes, int]]:
    """Offset, record and flags of what is leased or ready, out of the log."""
    for lease in leases.rows(source.tx, group_id):
        if not lease.flags & HELD:
            for offset in lease.offsets():
                yield source.read(offset, offset + 1)[0][:3]


def _waiting(tx: Tx, group_id: int) -> Iterator[tuple[int, bytes, int]]:
    """The same of what waits, or is leased again."""
    for offset, row in held.rows(tx, group_id, LIVE):
        yield offset, row.record, row.flags
