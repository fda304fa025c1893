"""Key order: of the messages with one key, a group has at most one in flight, the earliest.

A get that finds a message behind the holder of its key parks it, once, so that no later get meets
it. When the holder is acked or dead, the first parked message of the key gets the key and is due at
once.
"""

from __future__ import annotations

from contextlib import suppress

from ..base.errors import Corrupt
from ..format.held_row import HeldRow
from ..tables import held, key_owners
from ..tables.group_tx import GroupTx


def wait_or_park(group: GroupTx, offset: int, message: HeldRow, due_ns: int) -> bool:
    """Let a message wait for a delivery; in a group with key order, behind the holder of its key.
    Returns whether it waits."""
    key = key_owners.hash_of(message.record, message.flags) if group.keyed else None
    if key is not None:
        if key_owners.holder(group.tx, group.id, key) is not None:
            key_owners.park(group, key, offset, message)
            return False
        key_owners.take(group, key, offset)
    held.wait(group, offset, message, due_ns)
    return True


def free_key(group: GroupTx, offset: int, message: HeldRow) -> None:
    """Pass the key of a message on, if the message has it: it left the group, or is dead. A message
    that cannot be decoded never got a key, and must not be in the way of a purge."""
    key = None
    if group.keyed:
        with suppress(Corrupt):
            key = key_owners.hash_of(message.record, message.flags)
    if key is not None and key_owners.holder(group.tx, group.id, key) == offset:
        pass_on(group, key)


def pass_on(group: GroupTx, key: int | None) -> None:
    """Give a key to the first message parked behind it, which is due at once; free the key if there
    is none. None is no key."""
    if key is None:
        return
    parked = next(key_owners.parked(group.tx, group.id, key), None)
    if parked is None:
        key_owners.free(group, key)
    else:
        _, offset, row = parked
        key_owners.unpark(group, key, offset)
        held.wait(group, offset, row, group.clock.wall_ns())
        key_owners.take(group, key, offset)
    group.tx.wake(group.id, 1)
