"""Purging: an operator takes messages away, from the log and from all groups. Imported on demand.

What is below some offsets goes with its segments, of which one may be cut. Of a key, only the key
is left in rewritten segments: that keeps offsets dense, and tells a group which message may go on.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from ..base import limits
from ..base.errors import Corrupt
from ..delivery import cursor, key_order, leaving, positions
from ..delivery.bounds import groups_of
from ..format.held_row import HeldRow
from ..format.lanes import Cursor, lane_of, lane_start
from ..format.layout import HELD, LIVE
from ..format.rows import TopicRow
from ..format.segment import (
    LOG_KEY,
    PURGED,
    RICH,
    Packed,
    Segment,
    encode_segment,
    is_purged,
    key_of,
    pack_run,
    purged_record,
)
from ..storage.handle import Handle
from ..storage.tx import Tx
from ..tables import held, key_owners, leases, log, schedule
from ..tables.group_tx import GroupTx
from ..tables.log import Log
from ..tables.refs import TopicRef

if TYPE_CHECKING:
    from ..delivery.positions import Start


def purge(handle: Handle, topic: TopicRef, before: Start | None, key: bytes | None) -> int:
    """See Topic.purge."""

    def find(tx: Tx) -> Cursor:
        row = log.load(tx, topic.id, topic.name)
        return positions.resolve(
            Log(tx, topic.id), row, "latest" if before is None else before, "before"
        )

    def step(tx: Tx) -> tuple[int, int | None]:
        if key is None:
            return _purge_below(Log(tx, topic.id), topic.name, floors)
        return _purge_key(Log(tx, topic.id), topic.name, floors, key, at or 0)

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


def _purge_scheduled(source: Log, name: str) -> int:
    """Purge some of what is scheduled; returns how many messages."""
    row = log.load(source.tx, source.topic_id, name)
    gone = _erase_scheduled(source, row, limits.MAX_TRIM_SEGMENTS)
    log.store(source.tx, source.topic_id, row)
    return gone


def _purge_below(source: Log, name: str, floors: Cursor) -> tuple[int, int | None]:
    """Purge some of what is below these offsets, one of each lane. Returns how many messages went,
    and 0 if there is more."""
    row = log.load(source.tx, source.topic_id, name)
    reached = Cursor(_reach(source, row, lane, floor) for lane, floor in enumerate(floors))
    done = reached == floors
    for group in groups_of(source, row):
        cursor.withdraw(group, reached, "purged")
        if done:
            _withdraw_held(group, reached)
        group.store()
    gone = sum(_cut(source, row, lane, floor) for lane, floor in enumerate(reached))
    log.store(source.tx, source.topic_id, row)
    source.tx.announced.add(source.topic_id)
    return gone, None if done else 0


def _reach(source: Log, row: TopicRow, lane: int, floor: int) -> int:
    """How far one commit goes towards an offset."""
    most = limits.MAX_TRIM_SEGMENTS
    some = list(islice(source.heads(row, lane), most))
    return some[-1].stop if len(some) == most and some[-1].stop < floor else floor


def _cut(source: Log, row: TopicRow, lane: int, floor: int) -> int:
    """Delete what a lane has below an offset; of one segment that may be a part."""
    gone = source.trim(row, lane_start(lane), floor, limits.MAX_TRIM_SEGMENTS)
    segment = next(source.segments(floor), None)
    if segment is None or segment.first >= floor or lane_of(segment.first) != lane:
        return gone
    passed: int = floor - segment.first
    run = pack_run(list(segment.records(passed, segment.count)), segment.flags)
    _replace(source, row, segment, floor, run)
    return gone + passed


def _purge_key(
    source: Log, name: str, floors: Cursor, key: bytes, start: int
) -> tuple[int, int | None]:
    """Purge what of one key is below these offsets, in some segments from `start` on. Returns how
    many messages went, and where to go on, if anywhere. A message that a consumer is handling right
    now is purged only in the log: it may still ack it, but it does not come again."""
    row = log.load(source.tx, source.topic_id, name)
    gone = _erase_scheduled(source, row, limits.MAX_TRIM_SEGMENTS, key)
    at: int | None = None
    if gone == limits.MAX_TRIM_SEGMENTS:
        at = start  # first all of the schedule: what falls due may go to a lane passed already
    else:
        for segment in list(islice(source.segments(start), limits.MAX_PURGE_SEGMENTS)):
            gone += _purge_from(source, row, segment, floors[lane_of(segment.first)], key)
            at = segment.first + segment.count
    if at is None:  # the log has none any more, so nobody copies another one
        for group in groups_of(source, row):
            _withdraw_held(group, floors, key)
            group.store()
    log.store(source.tx, source.topic_id, row)
    source.tx.announced.add(source.topic_id)
    return gone, at


def _purge_from(source: Log, row: TopicRow, segment: Segment, floor: int, key: bytes) -> int:
    if not segment.flags & RICH:
        return 0
    records = list(segment.records(0, segment.count))
    hits = [
        at
        for at, record in enumerate(records)
        if segment.first + at < floor
        and _has_key(record, segment.flags, key)
        and not is_purged(record, segment.flags)
    ]
    for at in hits:
        records[at] = purged_record(key)
    if hits:
        _replace(source, row, segment, segment.first, pack_run(records, segment.flags | PURGED))
    return len(hits)


def _withdraw_held(group: GroupTx, floors: Cursor, key: bytes | None = None) -> None:
    """Purge what has left the log below these offsets, all of it or that of one key."""

    def wanted(offset: int, message: HeldRow) -> bool:
        mine = key is None or _has_key(message.record, message.flags, key)
        return mine and floors.has_passed(offset)

    for hashed, offset, message in list(key_owners.parked(group.tx, group.id)):
        if wanted(offset, message):
            key_owners.unpark(group, hashed, offset)
            group.row.purged += 1
    for offset, message in list(held.rows(group.tx, group.id, LIVE)):
        if not wanted(offset, message):
            continue
        if held.is_waiting(group.tx, group.id, offset, message):
            held.remove_live(group, offset, message)
            group.row.purged += 1
            key_order.free_key(group, offset, message)
        elif key is not None:  # who has it leased may still ack it
            message.record, message.flags = purged_record(key), message.flags | PURGED
            held.put(group, LIVE, offset, message)
    leased = (lease for lease in leases.leased(group) if lease.flags & HELD)
    for lease in [lease for lease in leased if key is None]:
        message = held.load(group.tx, group.id, lease.first)
        if wanted(lease.first, message):
            leases.remove(group, lease)
            held.remove(group, lease.first)
            leaving.unlease(group, 1)
            group.row.purged += 1
            key_order.free_key(group, lease.first, message)


def _erase_scheduled(source: Log, row: TopicRow, limit: int, key: bytes | None = None) -> int:
    """Forget up to `limit` scheduled messages, all or those with a key; returns how many."""
    if not row.scheduled:
        return 0
    mine = (
        each
        for each in schedule.rows(source.tx, source.topic_id)
        if key is None or _has_key(each.record, each.flags, key)
    )
    found = list(islice(mine, limit))
    for each in found:
        schedule.remove(source.tx, source.topic_id, row, each.due_ns, each.number)
    return len(found)


def _has_key(record: bytes, flags: int, key: bytes) -> bool:
    """Whether a record has this key. One that cannot be decoded has none."""
    with suppress(Corrupt):
        return key_of(record, flags) == key
    return False


def _replace(source: Log, row: TopicRow, old: Segment, first: int, run: Packed) -> None:
    """Write a run in the place of a segment, maybe beginning at a later offset."""
    source.tx.lmdb.delete(LOG_KEY.pack(source.topic_id, old.first), db=source.database)
    key = LOG_KEY.pack(source.topic_id, first)
    value = encode_segment(key, run, *old.put)
    source.tx.lmdb.put(key, value, db=source.database)
    row.stored += run.length - old.count
    row.bytes += len(value) - len(old.data)
    row.rewritten += 1
