"""Purge scheduled messages, all of them or those with a key."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice

from ..base.errors import Corrupt
from ..format.rows import TopicRow
from ..format.segment import key_of
from ..tables import schedule
from ..tables.log import Log


def erase_scheduled(log: Log, row: TopicRow, limit: int, key: bytes | None = None) -> int:
    """Forget up to `limit` scheduled messages, all or those with a key; returns how many."""
    if not row.scheduled:
        return 0
    mine = (
        each
        for each in schedule.rows(log.tx, log.topic_id)
        if key is None or has_key(each.record, each.flags, key)
    )
    found = list(islice(mine, limit))
    for each in found:
        schedule.remove(log.tx, log.topic_id, row, each.due_ns, each.number)
    return len(found)


def has_key(record: bytes, flags: int, key: bytes) -> bool:
    """Whether a record has this key. One that cannot be decoded has none."""
    with suppress(Corrupt):
        return key_of(record, flags) == key
    return False
