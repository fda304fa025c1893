"""How messages come in: encoded outside of the lock, stored in one transaction.

Plain ones, without priority, delay or dedup_id, are packed into segments before the transaction
begins. The others are drafts, see drafts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..base.errors import Full
from ..base.model import Outgoing, Receipt, Receipts
from ..base.ondemand import lazy
from ..format.segment import Packed, pack_messages
from ..storage.handle import Handle
from ..storage.tx import Tx
from ..tables import log, schedule
from ..tables.log import Log
from ..tables.refs import TopicRef
from . import retention

if TYPE_CHECKING:
    from ..tables import dedup
    from . import drafts
else:
    dedup = lazy("tables.dedup")
    drafts = lazy("delivery.drafts")


if TYPE_CHECKING:
    from .drafts import Draft

T = TypeVar("T")


class Prepared(NamedTuple):
    """So many messages of one put: packed runs, of so many bytes, or drafts."""

    messages: int
    size: int
    runs: list[Packed]
    drafts: list[Draft]


def prepare(messages: Sequence[bytes | Outgoing]) -> Prepared:
    """Encode checked messages."""
    outgoing = [each for each in messages if not isinstance(each, bytes)]
    if outgoing and any(map(_is_special, outgoing)):
        wanted = list(map(drafts.draft, messages))
        return Prepared(len(wanted), 0, [], wanted)
    runs = pack_messages(messages, outgoing)
    size = runs[0].size if len(runs) == 1 else sum(run.size for run in runs)
    return Prepared(len(messages), size, runs, [])


def _is_special(message: Outgoing) -> bool:
    _, _, _, priority, delay_seconds, at, _, dedup_id = message
    return bool(priority or delay_seconds) or at is not None or dedup_id is not None


def store(tx: Tx, topic: TopicRef, put: Prepared) -> Sequence[Receipt]:
    """Store messages, all or none. Raises: Full, MessageTooLarge, ValueError, NotFound."""
    source, name = Log(tx, topic.id), topic.name
    row = log.load(tx, *topic)
    if row.scheduled:
        schedule.promote(source, row)
    if put.drafts:
        return drafts.store_drafts(source, name, row, put.drafts)
    retention.make_room(source, name, row, put.messages, put.size)
    first = source.append(row, 0, put.runs)
    log.store(source.tx, source.topic_id, row)
    if put.messages == 1:
        return [Receipt(first, False, None, source.tx.commit_id)]
    return Receipts(range(first, first + put.messages), source.tx.commit_id)


def commit(handle: Handle, operation: Callable[[Tx], T], until: float | None = None) -> T:
    """Commit puts. If the store is full, dedup ids whose window is over make room, in small
    commits, as many as it takes. Raises: as `operation`."""
    while True:
        try:
            return handle.commit(operation, until)
        except Full as error:
            if hasattr(error, "topic") or not handle.commit(dedup.forget, until):
                raise
