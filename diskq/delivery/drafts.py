"""Drafts: messages with a priority, a delay or a dedup_id on their way in. Imported on demand,
outside of any transaction; only the transaction knows the offset or the due time of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..base import check, limits
from ..base.clock import nanoseconds
from ..base.model import Outgoing, Receipt
from ..format.rows import TopicRow
from ..format.segment import RICH, TTL, encode_record, pack_records, stored_size
from ..storage.reserve import need_room
from ..tables import dedup, schedule
from ..tables import log as logs
from ..tables.log import Log
from . import retention


class Draft(NamedTuple):
    """An encoded message, its lane, and when to put it: at `at_ns`, or `delay_ns` from the put on.
    `digest` is empty without a dedup_id."""

    record: bytes
    flags: int
    lane: int
    delay_ns: int
    at_ns: int
    digest: bytes

    def due_ns(self, now_ns: int) -> int:
        """When to put the message, 0 for now."""
        due_ns = self.at_ns or now_ns + self.delay_ns
        return due_ns if due_ns > now_ns else 0


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


def append(log: Log, name: str, row: TopicRow, drafts: Sequence[Draft]) -> Sequence[Receipt]:
    """Store messages, all or none. Raises: Full, MessageTooLarge, ValueError."""
    _check_lanes(name, row, drafts)
    ids = dedup.Ids(log.tx, log.topic_id, row)
    stored = {draft.digest: ids.find(draft.digest) for draft in drafts if draft.digest}
    known = {digest: _duplicate(found) for digest, found in stored.items() if found is not None}
    named = {draft.digest: draft for draft in reversed(drafts) if draft.digest not in known}
    new = [each for each in drafts if not each.digest or named.get(each.digest) is each]
    named.pop(b"", None)
    now_ns = log.tx.engine.clock.wall_ns()
    _make_room(log, name, row, ids, new, len(named), now_ns)
    lanes: list[list[Draft]] = [[] for _ in row.next]
    receipts = []
    for draft in drafts:
        receipt = known.get(draft.digest) if draft.digest else None
        if receipt is None:
            receipt = _place(log, row, ids, draft, draft.due_ns(now_ns), lanes)
            if draft.digest:
                known[draft.digest] = receipt._replace(duplicate=True)
        receipts.append(receipt)
    for lane, placed in enumerate(lanes):
        if placed:
            flags = RICH | (TTL if any(draft.flags & TTL for draft in placed) else 0)
            log.append(row, lane, pack_records([draft.record for draft in placed], flags))
    if new:
        logs.store(log.tx, log.topic_id, row)
    return receipts


def _check_lanes(name: str, row: TopicRow, drafts: Sequence[Draft]) -> None:
    highest = max(draft.lane for draft in drafts)
    if highest >= len(row.next):
        raise ValueError(
            f"priority {highest} is over {len(row.next) - 1}, the highest of topic {name!r};"
            f" topic.update(priorities={highest + 1}) gives it more"
        )


def _duplicate(row: dedup.Row) -> Receipt:
    """The receipt of the first put with a dedup_id, for a put that stores nothing."""
    if row.number:
        schedule_id = schedule.schedule_id(row.place, row.number - 1)
        return Receipt(None, True, schedule_id, row.commit_id)
    return Receipt(row.place, True, None, row.commit_id)


def _make_room(
    log: Log, name: str, row: TopicRow, ids: dedup.Ids, new: list[Draft], named: int, now_ns: int
) -> None:
    """Let new messages fit, `named` of which have a dedup_id. Raises: Full, MessageTooLarge."""
    rows = dedup.room_for(log.tx, named) if named else []
    if named:
        ids.forget(min(4 * named, limits.MAX_FORGOTTEN_IDS + named))
    later = [draft for draft in new if draft.due_ns(now_ns)]
    if later:
        sizes = [len(draft.record) for draft in later]
        sizes.append(max(sizes))  # once more, to move each when it is due
        need_room(log.tx, *sizes, *rows)
    if now := [draft for draft in new if not draft.due_ns(now_ns)]:
        lanes = len({draft.lane for draft in now})
        size = stored_size([len(draft.record) for draft in now], lanes)
        retention.make_room(log, name, row, len(now), size, *([] if later else rows))


def _place(
    log: Log,
    row: TopicRow,
    ids: dedup.Ids,
    draft: Draft,
    due_ns: int,
    lanes: list[list[Draft]],
) -> Receipt:
    """Schedule a draft, or give it the next offset of its lane."""
    commit_id = log.tx.commit_id
    if due_ns:
        scheduled = due_ns, draft.lane, draft.flags, draft.record
        number = schedule.add(log.tx, log.topic_id, row, *scheduled)
        if draft.digest:
            ids.note(draft.digest, due_ns, number)
        return Receipt(None, False, schedule.schedule_id(due_ns, number), commit_id)
    offset = row.offset(draft.lane) + len(lanes[draft.lane])
    lanes[draft.lane].append(draft)
    if draft.digest:
        ids.note(draft.digest, offset, None)
    return Receipt(offset, False, None, commit_id)
