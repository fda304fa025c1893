"""Choosing unread messages of a lane, and parking those whose keys are busy."""

from __future__ import annotations

from ..format.held_row import HeldRow
from ..format.lease_row import LeaseRow
from ..storage.reserve import is_spent, room_of
from ..tables import gaps, key_owners, leases
from ..tables.log import Stored
from . import cursor
from .grants import Choice
from .passing import Search, drop_undeliverable, is_gone, sticks

_KEYED_READ = 64  # unread messages that a get looks at together in search of a free key


def choose_unread(search: Search, lane: int, limit: int) -> Choice:
    """The next unread messages of a lane, up to `limit`, without those that are passed over."""
    group, topic = search.group, search.topic
    first = group.row.offset(lane)
    read, wanted = (group.log.read_run, _KEYED_READ) if group.keyed else (group.log.read, limit)
    stop = min(first + wanted, topic.offset(lane))
    if group.row.ahead:
        gap, _ = next(gaps.rows(group.tx, group.place.topic_id, first), (stop, stop))
        stop = min(stop, gap)
    unread = read(first, stop, topic)
    if group.keyed:
        messages, passed = _admit(search, unread, limit)
    else:
        messages, passed = drop_undeliverable(search, unread)
    cursor.advance(group, lane, first + passed)
    if len(messages) == passed and messages:
        return Choice(LeaseRow(first, passed), messages)
    return Choice(leases.run_of([message.offset for message in messages] or [first]), messages)


def _admit(search: Search, unread: list[Stored], limit: int) -> tuple[list[Stored], int]:
    """The first messages, up to `limit`, whose keys are free, and are theirs from now on; and how
    many messages were passed. Messages of busy keys are parked."""
    group = search.group
    admitted: list[Stored] = []
    for passed, message in enumerate(unread):
        if len(admitted) == limit or is_spent(group.tx) or sticks(search, message):
            return admitted, passed
        if is_gone(search, message, None):
            continue
        key = key_owners.hash_of(message.record, message.flags)
        if key is None or key_owners.holder(group.tx, group.id, key) is None:
            admitted.append(message)
            if key is not None:
                key_owners.take(group, key, message.offset)
            continue
        parked = HeldRow(message.record, message.flags, *message.put)
        if not room_of(group.tx).take(parked.size):  # so nothing passes it
            search.stick(message.offset)
            return admitted, passed
        key_owners.park(group, key, message.offset, parked)
    return admitted, len(unread)
