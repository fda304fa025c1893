"""Key order: of the messages with one key, a group has at most one in flight, the earliest.

    state  'K' group, key hash          the offset that has the key: leased, ready or waiting
    held   group, PARK, hash, offset    what came after it, in order

A message that a get finds behind its key's holder is parked, once, so that no get meets it again.
When the holder is done or dead, the first parked one of its key gets the key and is due at once.
Two keys with one hash count as one, which is slower, not wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..base import ondemand
from ..format.decoding import unpacked
from ..format.held_row import HeldRow, decode_held
from ..format.layout import ID_KEY, KEY_KEY, PARK, PARK_KEY, PARKED, U64
from ..format.rows import GroupRow
from ..format.segment import key_of
from ..storage.tx import Tx
from . import held


def hash_of(record: bytes, flags: int) -> int | None:
    """The hash of a record's key, None if it has no key and so waits for nobody."""
    key = key_of(record, flags)
    return (
        None
        if key is None
        else int.from_bytes(ondemand.hashlib.blake2b(key, digest_size=8).digest(), "big")
    )


def holder(tx: Tx, group_id: int, key: int) -> int | None:
    """The offset of the message that has a key, None if it is free."""
    data = tx.get(KEY_KEY.pack(b"K", group_id, key))
    return None if data is None else int(unpacked(U64, data)[0])


def take(tx: Tx, group_id: int, key: int, offset: int) -> None:
    """Give a free key to a message."""
    tx.put(KEY_KEY.pack(b"K", group_id, key), U64.pack(offset))


def park(tx: Tx, group_id: int, group: GroupRow, key: int, offset: int, row: HeldRow) -> None:
    """Put a message behind the holder of its key."""
    row.state, row.due_ns = PARKED, 0
    group.parked += 1
    tx.lmdb.put(PARK_KEY.pack(group_id, PARK, key, offset), row.encode(), db=tx.engine.held)


def pass_on(tx: Tx, group_id: int, group: GroupRow, key: int, now_ns: int) -> None:
    """The holder is done with its key: the next message gets it and waits for a delivery at once.
    Without one the key is free."""
    found = next(parked(tx, group_id, key), None)
    if found is None:
        tx.delete(KEY_KEY.pack(b"K", group_id, key))
        tx.wake(group_id, 1)
        return
    _, offset, row = found
    unpark(tx, group_id, group, key, offset)
    held.wait(tx, group_id, group, offset, row, now_ns)
    take(tx, group_id, key, offset)
    tx.wake(group_id, 1)


def unpark(tx: Tx, group_id: int, group: GroupRow, key: int, offset: int) -> None:
    """Take a message out of the parked ones."""
    tx.lmdb.delete(PARK_KEY.pack(group_id, PARK, key, offset), db=tx.engine.held)
    group.parked -= 1


def holders(tx: Tx, group_id: int) -> Iterator[tuple[int, int]]:
    """The hashes of the keys that are not free, and who has them."""
    for name, value in tx.scan(ID_KEY.pack(b"K", group_id)):
        yield unpacked(KEY_KEY, name)[2], int(unpacked(U64, value)[0])


def parked(tx: Tx, group_id: int, key: int | None = None) -> Iterator[tuple[int, int, HeldRow]]:
    """Key hash, offset and row of the parked messages of one key, or of all."""
    prefix = PARK_KEY.pack(group_id, PARK, key or 0, 0)[: 5 if key is None else 13]
    for name, value in tx.scan(prefix, database=tx.engine.held):
        _, _, hashed, offset = unpacked(PARK_KEY, name)
        yield hashed, offset, decode_held(value)
