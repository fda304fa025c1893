"""Puts: messages are encoded outside of the lock, and stored in one transaction.

Plain messages, without priority, delay or dedup_id, are packed into segments before the transaction
begins. If one of the messages is not plain, all are drafts, see drafts.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..base import limits
from ..base.errors import Full
from ..base.model import Outgoing, Receipt, Receipts
from ..base.ondemand import lazy
from ..format.segment import Packed, pack_messages
from ..storage.handle import Handle
from ..storage.tx import Tx
from ..tables import log as logs
from ..tables.log import Log
from ..tables.refs import TopicRef
from . import retention, scheduling

if TYPE_CHECKING:
    from ..tables import dedup
    from . import drafts
    from .drafts import Draft
else:
    dedup = lazy("tables.dedup")
    drafts = lazy("delivery.drafts")

T = TypeVar("T")


class Prepared(NamedTuple):
    """The messages of one put: packed runs of `size` bytes, or drafts."""

    messages: int
    size: int
    runs: list[Packed]
    drafts: list[Draft]


def prepare(messages: Sequence[bytes | Outgoing]) -> Prepared:
    """Encode checked messages."""
    outgoing = [message for message in messages if not isinstance(message, bytes)]
    if outgoing and any(map(_needs_draft, outgoing)):
        return Prepared(len(messages), 0, [], list(map(drafts.draft, messages)))
    runs = pack_messages(messages, outgoing)
    size = runs[0].size if len(runs) == 1 else sum(run.size for run in runs)
    return Prepared(len(messages), size, runs, [])


def _needs_draft(message: Outgoing) -> bool:
    _, _, _, priority, delay_seconds, at, _, dedup_id = message
    return bool(priority or delay_seconds) or at is not None or dedup_id is not None


def append(tx: Tx, topic: TopicRef, prepared: Prepared) -> Sequence[Receipt]:
    """Append messages to a topic, all or none. Raises: Full, MessageTooLarge, ValueError,
    NotFound."""
    log, name = Log(tx, topic.id), topic.name
    row = logs.load(tx, *topic)
    if row.scheduled:
        scheduling.promote(log, row)
    if prepared.drafts:
        return drafts.append(log, name, row, prepared.drafts)
    retention.make_room(log, name, row, prepared.messages, prepared.size)
    first = log.append(row, 0, prepared.runs)
    logs.store(tx, topic.id, row)
    if prepared.messages == 1:
        return [Receipt(first, False, None, tx.commit_id)]
    return Receipts(range(first, first + prepared.messages), tx.commit_id)


def commit(handle: Handle, operation: Callable[[Tx], T], until: float | None = None) -> T:
    """Commit puts. If the store is full, dedup ids whose window is over make room for them, in as
    many small commits as it takes. Raises: as `operation`."""
    while True:
        try:
            return handle.commit(operation, until)
        except Full as error:
            if hasattr(error, "topic") or not handle.commit(dedup.forget, until):
                raise


def put(
    handle: Handle, topic: TopicRef, prepared: Prepared, timeout: float | None
) -> Sequence[Receipt]:
    """Append messages; while the topic is full, wait for room up to `timeout` seconds, None:
    without end. Raises: as `append`, and Busy."""
    until = None if timeout is None else time.monotonic() + timeout

    def operation(tx: Tx) -> Sequence[Receipt]:
        return append(tx, topic, prepared)

    try:
        return commit(handle, operation, until)
    except Full as error:
        if timeout == 0 or not hasattr(error, "topic"):
            raise
    while True:
        slots = handle.engine.slots
        seen = slots.watch(topic.id, room=True)
        try:
            return commit(handle, operation, until)
        except Full as error:
            left = limits.WAIT_SECONDS if until is None else until - time.monotonic()
            if left <= 0 or not hasattr(error, "topic"):
                raise
        slots.wait_for_topic(topic.id, seen, min(left, limits.WAIT_SECONDS))
