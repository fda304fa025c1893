"""Scheduled messages that fall due get their offsets."""

from __future__ import annotations

from itertools import groupby, islice, takewhile

from ..base import limits
from ..format.decoding import damaged
from ..format.rows import TopicRow
from ..format.segment import pack_records
from ..storage.reserve import room_of
from ..tables import ages, schedule
from ..tables import log as logs
from ..tables.log import Log
from ..tables.schedule import Scheduled


def promote(log: Log, row: TopicRow) -> None:
    """Put the messages that are due, as many as one transaction should, and store the topic's row.
    Something must be scheduled."""
    due = _due(log)
    due.sort(key=_due_and_lane)  # stable: in a lane they stay in order
    for (due_ns, lane), messages in groupby(due, key=_due_and_lane):
        if lane >= len(row.next):
            raise damaged(f"the lane of what is scheduled for {due_ns}")
        flags, records = 0, []
        for message in messages:
            flags |= message.flags
            records.append(message.record)
        put = ages.due_stamp(due_ns, row.last_put_ns)
        log.append(row, lane, pack_records(records, flags), put)
    for message in due:
        schedule.remove(log.tx, log.topic_id, row, message.due_ns, message.number)
    if due:
        logs.store(log.tx, log.topic_id, row)


def _due(log: Log) -> list[Scheduled]:
    """The messages that are due, as many as there is room for, at least one."""
    now = log.tx.engine.clock.wall_ns()
    if schedule.next_due(log.tx, log.topic_id) > now:
        return []
    room = room_of(log.tx)
    due: list[Scheduled] = []
    passed = takewhile(lambda each: each.due_ns <= now, schedule.rows(log.tx, log.topic_id))
    for message in islice(passed, limits.MAX_DUE_MESSAGES):
        # The first one has to move, or nobody would ever get it. It makes room where it was.
        if due and (room.low or room.spent or not room.take(len(message.record))):
            break
        if not due:
            room.take(len(message.record))
        due.append(message)
    return due


def _due_and_lane(message: Scheduled) -> tuple[int, int]:
    return message.due_ns, message.lane
