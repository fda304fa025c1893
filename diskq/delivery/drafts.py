"""How messages come in that are not plain: with a priority, a delay or a dedup_id. Imported on
demand, outside of any transaction; only the transaction knows what becomes of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..base import check, limits
from ..base.clock import nanoseconds
from ..base.model import Outgoing, Receipt
from ..format.rows import TopicRow
from ..format.segment import RICH, TTL, encode_record, pack_records, stored_size
from ..storage.reserve import need_room
from ..tables import dedup, log, schedule
from ..tables.log import Log
from . import retention


class Draft(NamedTuple):
    """A message, and when and where it wants to be put; `digest` is empty without a dedup_id."""

    record: bytes
    flags: int
    lane: int
    delay_ns: int
    at_ns: int
    digest: bytes


def draft(message: bytes | Outgoing) -> Draft:
    """Encode a checked message."""
    if isinstance(message, bytes):
        message = Outgoing(message)
    return Draft(
        encode_record(message),
        RICH if message.ttl_seconds is None else RICH | TTL,
        message.priority,
        nanoseconds(message.delay_seconds or 0),
        0 if message.at is None else check.wall_ns("at", message.at),
        b"" if message.dedup_id is None else dedup.digest_of(message.dedup_id),
    )


def store_drafts(
    source: Log, name: str, row: TopicRow, drafts: Sequence[Draft]
) -> Sequence[Receipt]:
    """Store messages, all or none. Raises: Full, MessageTooLarge, ValueError."""
    ids = dedup.Ids(source.tx, source.topic_id, row)
    found = {each.digest: ids.find(each.digest) for each in drafts if each.digest}
    known = {digest: receipt for digest, receipt in found.items() if receipt is not None}
    now_ns = source.tx.engine.clock.wall_ns()
    _check_lanes(name, row, drafts)
    named = {each.digest: each for each in reversed(drafts) if each.digest not in known}
    new = [each for each in drafts if not each.digest or named.get(each.digest) is each]
    rows = dedup.room_for(source.tx, len(named)) if named else []
    if named:
        ids.forget(min(4 * len(named), limits.MAX_FORGOTTEN_IDS + len(named)))
    later = [each for each in new if _due_ns(each, now_ns)]
    if later:
        sizes = [len(each.record) for each in later]
        sizes.append(max(sizes))  # once more, to move each when it is due
        need_room(source.tx, *sizes, *rows)
    if now := [each for each in new if not _due_ns(each, now_ns)]:
        size = stored_size([len(each.record) for each in now], len({each.lane for each in now}))
        retention.make_room(source, name, row, len(now), size, *([] if later else rows))
    lanes: list[list[Draft]] = [[] for _ in row.next]
    receipts = []
    for each in drafts:
        receipt = known.get(each.digest) if each.digest else None
        if receipt is None:
            receipt = _place(source, row, ids, each, _due_ns(each, now_ns), lanes)
            if each.digest:
                known[each.digest] = receipt._replace(duplicate=True)
        receipts.append(receipt)
    for lane, its in enumerate(lanes):
        if its:
            flags = RICH | (TTL if any(draft.flags & TTL for draft in its) else 0)
            source.append(row, lane, pack_records([draft.record for draft in its], flags))
    if new:
        log.store(source.tx, source.topic_id, row)
    return receipts


def _check_lanes(name: str, row: TopicRow, drafts: Sequence[Draft]) -> None:
    highest = max(draft.lane for draft in drafts)
    if highest >= len(row.next):
        raise ValueError(
            f"priority {highest} is over {len(row.next) - 1}, the highest of topic {name!r};"
            f" topic.update(priorities={highest + 1}) gives it more"
        )


def _due_ns(draft: Draft, now_ns: int) -> int:
    """When a draft is to be put, 0 for now."""
    due_ns = draft.at_ns or now_ns + draft.delay_ns
    return due_ns if due_ns > now_ns else 0


def _place(
    source: Log,
    row: TopicRow,
    ids: dedup.Ids,
    draft: Draft,
    due_ns: int,
    lanes: list[list[Draft]],
) -> Receipt:
    """Schedule a draft, or give it the next offset of its lane."""
    commit_id = source.tx.commit_id
    if due_ns:
        number = schedule.add(source, row, due_ns, draft.lane, draft.flags, draft.record)
        if draft.digest:
            ids.note(draft.digest, due_ns, number)
        return Receipt(None, False, schedule.schedule_id(due_ns, number), commit_id)
    offset = row.offset(draft.lane) + len(lanes[draft.lane])
    lanes[draft.lane].append(draft)
    if draft.digest:
        ids.note(draft.digest, offset, None)
    return Receipt(offset, False, None, commit_id)
