"""Scheduled messages: list and cancel them. Imported on demand."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ..base import check
from ..base.errors import NotFound
from ..base.model import Receipt, ScheduledMessage
from ..format.segment import decode_record
from ..storage.handle import Handle
from ..storage.tx import Tx
from ..tables import log, schedule
from ..tables.refs import TopicRef

_ID_LENGTH = 2 * 20 + 2  # more than two numbers of 64 bits have
_PAGE = 100  # fetched per read transaction


def scheduled(handle: Handle, topic: TopicRef) -> Iterator[ScheduledMessage]:
    """See Topic.scheduled."""

    def page(tx: Tx) -> list[schedule.Scheduled]:
        log.load(tx, topic.id, topic.name)
        return list(islice(schedule.rows(tx, topic.id, *start), _PAGE))

    start = (0, 0)
    while found := handle.read(page):
        for due_ns, number, lane, flags, record in found:
            name = schedule.schedule_id(due_ns, number)
            body, key, headers, _ = decode_record(record, flags, f"scheduled message {name}")
            yield ScheduledMessage(name, due_ns, body, key, headers, lane)
        start = found[-1].due_ns, found[-1].number + 1


def cancel(handle: Handle, topic: TopicRef, schedule_id: object) -> None:
    """See Topic.cancel."""
    if isinstance(schedule_id, Receipt):
        raise TypeError("schedule_id must be str, not Receipt; pass receipt.schedule_id")
    schedule_id = check.text("schedule_id", schedule_id)
    due, _, number = schedule_id.partition("-")
    known = due.isdecimal() and number.isdecimal() and len(schedule_id) < _ID_LENGTH
    known = known and max(int(due), int(number)) < 2**64

    def operation(tx: Tx) -> None:
        row = log.load(tx, topic.id, topic.name)
        if not known or not schedule.remove(tx, topic.id, row, int(due), int(number)):
            raise NotFound(
                f"no message is scheduled as {schedule_id!r}; it fell due or was cancelled, see"
                " topic.scheduled() or 'diskq schedule ls'",
                schedule_id=schedule_id,
            )
        log.store(tx, topic.id, row)
        tx.announced.add(topic.id)

    handle.commit(operation)
