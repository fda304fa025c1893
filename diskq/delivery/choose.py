"""Choosing the next messages of a group in order: retries that are due, then lane by lane."""

from __future__ import annotations

from ..format.layout import HELD, RETURNED, SOLO
from ..format.lease_row import LeaseRow
from ..format.segment import PURGED, TTL
from ..tables import held, leases
from ..tables.log import Stored
from . import suspects
from .grants import Choice, Member, choose_run
from .passing import Search, is_gone
from .unread import choose_unread


def choose(search: Search, member: Member, limit: int, *, alone: bool) -> Choice | None:
    """The next messages in order, out of one place, or none of them if all were passed over; None
    if there is no place left. `alone`: nothing else is granted so far."""
    group, row, topic = search.group, search.group.row, search.topic
    if row.waiting and (alone or not member.prefetch):
        due = held.next_due(group.tx, group.id)
        if due is not None and due.due_ns <= group.clock.wall_ns():
            if due.suspect and not suspects.may_take_suspect(group, member, alone=alone):
                return None
            return _choose_retry(search, due.offset, SOLO if due.suspect else 0)
    for lane in range(len(topic.next) - 1, -1, -1):
        if lane in search.stuck:
            continue
        if row.ready and (run := leases.first_ready(group.tx, group.id, lane)):
            if run.flags & SOLO and not suspects.may_take_suspect(group, member, alone=alone):
                return None
            return choose_run(search, leases.take_back(group, run, limit))
        if topic.next[lane] > row.next[lane]:
            return choose_unread(search, lane, limit)
    return None


def _choose_retry(search: Search, offset: int, solo: int) -> Choice:
    group = search.group
    message = held.load(group.tx, group.id, offset)
    row = LeaseRow(offset, 1, flags=HELD | solo)
    stored = Stored(offset, message.record, message.flags & ~SOLO, message.put)
    if message.flags & (TTL | PURGED) and is_gone(search, stored, message):
        return Choice(row, [])
    held.lease(group, offset, message)
    group.row.redelivered += bool(message.history or message.flags & RETURNED)
    return Choice(row, [stored], message.failures)
