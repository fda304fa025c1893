"""Keys that are busy: in a group with key order, at most one message of each key is in flight.

    state  'K' group, key hash          the offset that has the key: leased, ready or waiting
    held   group, PARK, hash, offset    the messages behind it, in order

Two keys with one hash count as one key, which is slower, not wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..base import ondemand
from ..format.decoding import unpacked
from ..format.held_row import HeldRow, decode_held
from ..format.layout import ID_KEY, KEY_KEY, PARK, PARK_KEY, PARKED, U64
from ..format.segment import key_of
from ..storage.tx import Tx
from .group_tx import GroupTx


def hash_of(record: bytes, flags: int) -> int | None:
    """The hash of a record's key, None if it has no key and so waits for no other message."""
    key = key_of(record, flags)
    return (
        None
        if key is None
        else int.from_bytes(ondemand.hashlib.blake2b(key, digest_size=8).digest(), "big")
    )


# Read


def holder(tx: Tx, group_id: int, key: int) -> int | None:
    """The offset of the message that has a key, None if the key is free."""
    data = tx.get(KEY_KEY.pack(b"K", group_id, key))
    return None if data is None else int(unpacked(U64, data)[0])


def holders(tx: Tx, group_id: int) -> Iterator[tuple[int, int]]:
    """The hashes of the keys that are not free, and the offsets that have them."""
    for name, value in tx.scan(ID_KEY.pack(b"K", group_id)):
        yield unpacked(KEY_KEY, name)[2], int(unpacked(U64, value)[0])


def parked(tx: Tx, group_id: int, key: int | None = None) -> Iterator[tuple[int, int, HeldRow]]:
    """Key hash, offset and row of the parked messages, of one key or of all."""
    prefix = PARK_KEY.pack(group_id, PARK, key or 0, 0)[: 5 if key is None else 13]
    for name, value in tx.scan(prefix, database=tx.engine.held):
        _, _, hashed, offset = unpacked(PARK_KEY, name)
        yield hashed, offset, decode_held(value)


# Change


def take(group: GroupTx, key: int, offset: int) -> None:
    """Give a key to a message."""
    group.tx.put(KEY_KEY.pack(b"K", group.id, key), U64.pack(offset))


def free(group: GroupTx, key: int) -> None:
    """Let no message have a key."""
    group.tx.delete(KEY_KEY.pack(b"K", group.id, key))


def park(group: GroupTx, key: int, offset: int, row: HeldRow) -> None:
    """Put a message behind the holder of its key."""
    row.state, row.due_ns = PARKED, 0
    group.row.parked += 1
    name = PARK_KEY.pack(group.id, PARK, key, offset)
    group.tx.lmdb.put(name, row.encode(), db=group.tx.engine.held)


def unpark(group: GroupTx, key: int, offset: int) -> None:
    """Take a message out of the parked ones."""
    name = PARK_KEY.pack(group.id, PARK, key, offset)
    group.tx.lmdb.delete(name, db=group.tx.engine.held)
    group.row.parked -= 1
