"""Purge: take messages from the log and from all groups, settled or not.

The messages below some offsets go with their segments, of which one may be cut. Of the messages
with a key, only the key is left, see purge_key.py.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from ..base import limits
from ..delivery import bounds, cursor, positions
from ..format.lanes import Cursor
from ..format.rows import TopicRow
from ..storage.handle import Handle
from ..storage.tx import Tx
from ..tables import log as logs
from ..tables.log import Log
from ..tables.refs import TopicRef
from .purge_held import withdraw_held
from .purge_key import purge_key
from .purge_scheduled import erase_scheduled

if TYPE_CHECKING:
    from ..base.options import Start


def purge(handle: Handle, topic: TopicRef, before: Start | None, key: bytes | None) -> int:
    """See Topic.purge."""

    def find(tx: Tx) -> Cursor:
        row = logs.load(tx, topic.id, topic.name)
        return positions.resolve(
            Log(tx, topic.id), row, "latest" if before is None else before, "before"
        )

    def step(tx: Tx) -> tuple[int, int | None]:
        if key is None:
            return _purge_below(Log(tx, topic.id), topic.name, floors)
        return purge_key(Log(tx, topic.id), topic.name, floors, key, at or 0)

    total = 0
    more = before is None and key is None
    while more:  # the schedule first: what falls due meanwhile is below the floors read after it
        count = handle.commit(lambda tx: _purge_scheduled(Log(tx, topic.id), topic.name))
        total += count
        more = count == limits.MAX_TRIM_SEGMENTS
    floors = handle.read(find)
    if before is None and key is not None:
        floors = Cursor([2**64] * len(floors))  # what is scheduled may get its offset meanwhile
    at: int | None = 0
    while at is not None:
        count, at = handle.commit(step)
        total += count
    return total


def _purge_scheduled(log: Log, name: str) -> int:
    """Purge some of what is scheduled; returns how many messages."""
    row = logs.load(log.tx, log.topic_id, name)
    gone = erase_scheduled(log, row, limits.MAX_TRIM_SEGMENTS)
    logs.store(log.tx, log.topic_id, row)
    return gone


def _purge_below(log: Log, name: str, floors: Cursor) -> tuple[int, int | None]:
    """Purge some of what is below these offsets, one of each lane. Returns how many messages went,
    and 0 if there is more."""
    row = logs.load(log.tx, log.topic_id, name)
    reached = Cursor(_reach(log, row, lane, floor) for lane, floor in enumerate(floors))
    done = reached == floors
    for group in bounds.groups_of(log, row):
        cursor.withdraw(group, reached, "purged")
        if done:
            withdraw_held(group, reached)
        group.store()
    gone = sum(log.cut_below(row, lane, floor) for lane, floor in enumerate(reached))
    logs.store(log.tx, log.topic_id, row)
    log.tx.announced.add(log.topic_id)
    return gone, None if done else 0


def _reach(log: Log, row: TopicRow, lane: int, floor: int) -> int:
    """How far one commit goes towards an offset."""
    most = limits.MAX_TRIM_SEGMENTS
    some = list(islice(log.heads(row, lane), most))
    return some[-1].stop if len(some) == most and some[-1].stop < floor else floor
