"""Trim: delete all that a topic needs no more."""

from __future__ import annotations

from ..base import limits
from ..delivery import retention
from ..storage.handle import Handle
from ..storage.tx import Tx
from ..tables import dedup
from ..tables import log as logs
from ..tables.log import Log
from ..tables.refs import TopicRef


def trim(handle: Handle, topic: TopicRef) -> int:
    """See Topic.trim."""
    total = start = 0
    while True:
        count, start = handle.commit(
            lambda tx: retention.trim(Log(tx, topic.id), topic.name, start)  # noqa: B023
        )
        total += count
        if not count and not start:
            break
    while handle.commit(lambda tx: _forget_ids(tx, topic)):
        pass
    return total


def _forget_ids(tx: Tx, topic: TopicRef) -> int:
    return dedup.Ids(tx, topic.id, logs.load(tx, *topic)).forget(limits.MAX_FORGOTTEN_IDS)
