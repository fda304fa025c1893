"""All rows of one group, of every kind: a seek, a restart and a deletion remove them.

A new kind of row needs its prefix here, and is then removed by all three.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ..format.layout import DEAD, HELD_KEY, ID_KEY, U32
from ..storage.environment import Database
from ..storage.tx import Tx
from .group_tx import GroupTx

_KINDS = (b"L", b"D", b"K")  # prefixes of rows of `state`: leases, waiting messages, busy keys


def remove_some(tx: Tx, group_id: int, limit: int) -> int:
    """Remove up to `limit` rows of a deleted group; returns how many."""
    some = list(islice(_keys(tx, group_id), limit))
    for database, key in some:
        tx.lmdb.delete(key, db=database)
    return len(some)


def clear(group: GroupTx) -> None:
    """Remove all rows of a group except for its dead letters; nothing is ready, leased, waiting or
    parked any more. The caller stores the group's row."""
    tx, row = group.tx, group.row
    dead = HELD_KEY.pack(group.id, DEAD, 0)[:5]
    for database, key in list(_keys(tx, group.id)):
        if database is not tx.engine.held or not key.startswith(dead):
            tx.lmdb.delete(key, db=database)
    row.ready = row.leased = row.waiting = row.parked = 0


def _keys(tx: Tx, group_id: int) -> Iterator[tuple[Database, bytes]]:
    """The database and the key of each row."""
    for kind in _KINDS:
        for key, _ in tx.scan(ID_KEY.pack(kind, group_id)):
            yield tx.engine.state, key
    for key, _ in tx.scan(U32.pack(group_id), database=tx.engine.held):
        yield tx.engine.held, key
