"""The messages a group would deliver next, and those that wait there for later.
Imported on demand.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import chain, islice, takewhile

from ..base import check, limits
from ..base.model import NextMessage, WaitingMessage
from ..delivery.passing import Search, would_end
from ..format.held_row import HeldRow
from ..format.segment import decode_record
from ..storage.handle import Handle
from ..storage.tx import Tx
from ..tables import group_tx, held, key_owners, leases
from ..tables.group_tx import GroupTx, Place
from ..tables.log import Stored, cut

_PAGE = 100  # fetched per read transaction


def peek(handle: Handle, place: Place, limit: int) -> list[NextMessage]:
    """See Group.peek."""
    most = check.count("limit", limit, 1, limits.MAX_GET_MESSAGES)

    def look(tx: Tx) -> list[NextMessage]:
        group = GroupTx(tx, place)
        search = Search(group, group.load_topic())
        return list(islice(chain(_retries(search), _from_log(search)), most))

    return handle.read(look)


def _retries(search: Search) -> Iterator[NextMessage]:
    at = search.group
    now = at.clock.wall_ns()
    for due in takewhile(lambda due: due.due_ns <= now, held.due_rows(at.tx, at.id)):
        row = held.load(at.tx, at.id, due.offset)
        if not would_end(search, Stored(due.offset, row.record, row.flags, row.put), row):
            yield _next(due.offset, row)


def _from_log(search: Search) -> Iterator[NextMessage]:
    """Messages that were given back, then unread ones; of each key that is free the first."""
    at, taken = search.group, set[int]()
    for lane in range(len(search.topic.next) - 1, -1, -1):
        given_back = merge(*(run.offsets() for run in leases.ready_rows(at.tx, at.id, lane)))
        ready = (at.log.read(offset, offset + 1)[0] for offset in given_back)
        for message in chain(ready, _unread(search, lane)):
            if would_end(search, message, None):
                continue
            key = key_owners.hash_of(message.record, message.flags) if at.keyed else None
            if key is None or (
                key not in taken and key_owners.holder(at.tx, at.id, key) in (None, message.offset)
            ):
                taken |= set() if key is None else {key}
                yield _next(message.offset, HeldRow(message.record, message.flags, *message.put))


def _unread(search: Search, lane: int) -> Iterator[Stored]:
    first, stop = search.group.row.offset(lane), search.topic.offset(lane)
    for segment in search.group.log.segments(first) if first < stop else ():
        if segment.first >= stop:
            return
        yield from cut(segment, first, stop)


def _next(offset: int, row: HeldRow) -> NextMessage:
    body, key, headers, _ = decode_record(row.record, row.flags)
    return NextMessage(offset, body, key, headers, row.put_at_ns, row.failures + 1)


def waiting(handle: Handle, place: Place) -> Iterator[WaitingMessage]:
    """See Group.waiting."""
    start = (0, 0)

    def page(tx: Tx) -> list[WaitingMessage]:
        group_tx.load(tx, place.group_id, place.group)
        found = islice(held.due_rows(tx, place.group_id, *start), _PAGE)
        return [_waiting(due, held.load(tx, place.group_id, due.offset)) for due in found]

    while found := handle.read(page):
        yield from found
        start = found[-1].due_ns, found[-1].offset + 1


def _waiting(due: held.Due, row: HeldRow) -> WaitingMessage:
    body, key, headers, _ = decode_record(row.record, row.flags)
    return WaitingMessage(
        offset=due.offset,
        due_ns=due.due_ns,
        body=body,
        key=key,
        headers=headers,
        put_at_ns=row.put_at_ns,
        failures=row.failures,
        history=row.history,
    )
