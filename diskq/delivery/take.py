"""Taking begins a delivery: which messages a consumer gets next.

    unread, ready, due --take--> leased

A get prefers retries that are due, then the highest priority, then the lowest offset, among the
messages that may be delivered now. On its way it passes over messages that expired, were purged, or
wait for an earlier message of their key. A lane in which there is no room to move such a message
stands still. A suspect is delivered alone, and holds back the messages behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import limits
from ..base.clock import NS, nanoseconds
from ..base.model import LANE_BITS
from ..base.ondemand import lazy
from ..format.held_row import HeldRow
from ..format.layout import HELD, RETURNED, SOLO
from ..format.lease_row import LeaseRow
from ..format.rows import TopicRow
from ..format.segment import PURGED, TTL
from ..storage.reserve import is_spent, room_of
from ..tables import gaps, held, key_owners, leases, schedule
from ..tables.group_tx import GroupTx
from ..tables.log import Stored
from . import cursor, reclaim, scheduling, suspects
from .grants import Choice, Grant, Member, choose_run, store_lease
from .passing import Search, drop_undeliverable, is_gone, sticks

if TYPE_CHECKING:
    from . import stealing
else:
    stealing = lazy("delivery.stealing")


_KEYED_READ = 64  # unread messages that a get looks at together in search of a free key


def take(group: GroupTx, member: Member, limit: int) -> tuple[list[Grant], bool]:
    """Lease up to `limit` messages. Now and then, and whenever it finds nothing, this takes back
    what dead consumers held. Returns also whether a lane stands still for the lack of room."""
    if group.paused:
        return [], False
    if group.row.leased:
        reclaim.expire(group)
        if reclaim.is_due(group):
            reclaim.reap(group)
    search = Search(group, group.load_topic())
    topic = search.topic
    later = bool(topic.scheduled) and room_of(group.tx).low
    if topic.scheduled and not later:
        scheduling.promote(group.log, topic)
    grants = _grant_all(search, member, limit)
    if not grants and group.row.leased and reclaim.reap(group):
        grants = _grant_all(search, member, limit)
    if not grants and later:  # it may fail, which must not hold up what is there
        scheduling.promote(group.log, topic)
        grants = _grant_all(search, member, limit)
    steals = not grants and group.row.leased and not suspects.is_held_up(group, topic, member)
    if steals and _may_steal(group, member):
        grants = stealing.steal(search, member, limit)
    if grants and group.row.waiting:
        _pass_on_the_watch(group)
    return grants, bool(search.stuck)


def _grant_all(search: Search, member: Member, limit: int) -> list[Grant]:
    group = search.group
    if group.hands.suspects and suspects.waits_for_suspect(group, member):
        return []
    if group.settings.max_in_flight is not None:
        limit = min(limit, group.settings.max_in_flight - group.row.leased)
    if limit > 1:
        limit = fair_share(group, search.topic, member, limit)
    grants: list[Grant] = []
    while limit > 0 and group.tx.tokens_left >= limits.MAX_GET_MESSAGES:
        choice = _choose(search, member, limit, alone=not grants)
        if choice is None:
            break
        if choice.messages:
            grants.append(store_lease(group, choice, member))
            last = choice.row.flags & SOLO or (choice.row.flags & HELD and member.prefetch)
            limit -= limit if last else len(choice.messages)
        if group.tx.room is not None and is_spent(group.tx):
            break
    return grants


def _choose(search: Search, member: Member, limit: int, *, alone: bool) -> Choice | None:
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
            return _choose_unread(search, lane, limit)
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


def _choose_unread(search: Search, lane: int, limit: int) -> Choice:
    group, topic = search.group, search.topic
    base = lane << LANE_BITS
    first = base + group.row.next[lane]
    read, wanted = (group.log.read_run, _KEYED_READ) if group.keyed else (group.log.read, limit)
    stop = min(first + wanted, base + topic.next[lane])
    if group.row.ahead:
        gap, _ = next(gaps.rows(group.tx, group.place.topic_id, first), (stop, stop))
        stop = min(stop, gap)
    unread = read(first, stop, topic)
    if group.keyed:
        messages, passed = _admit(search, unread, limit)
    else:
        messages, passed = drop_undeliverable(search, unread)
    cursor.advance(group, lane, first + passed)
    if len(messages) == passed and messages:
        return Choice(LeaseRow(first, passed), messages)
    return Choice(leases.run_of([message.offset for message in messages] or [first]), messages)


def _admit(search: Search, unread: list[Stored], limit: int) -> tuple[list[Stored], int]:
    """The first messages, up to `limit`, whose keys are free, and are theirs from now on; and how
    many messages were passed. Messages of busy keys are parked."""
    group = search.group
    admitted: list[Stored] = []
    for passed, message in enumerate(unread):
        if len(admitted) == limit or is_spent(group.tx) or sticks(search, message):
            return admitted, passed
        if is_gone(search, message, None):
            continue
        key = key_owners.hash_of(message.record, message.flags)
        if key is None or key_owners.holder(group.tx, group.id, key) is None:
            admitted.append(message)
            if key is not None:
                key_owners.take(group, key, message.offset)
            continue
        parked = HeldRow(message.record, message.flags, *message.put)
        if not room_of(group.tx).take(parked.size):  # so nothing passes it
            search.stick(message.offset)
            return admitted, passed
        key_owners.park(group, key, message.offset, parked)
    return admitted, len(unread)


def fair_share(group: GroupTx, topic: TopicRow, member: Member, limit: int) -> int:
    """How much of `limit` a batch may take, so that it leaves their share to the consumers that are
    waiting now."""
    waiting = group.tx.engine.slots.count_waiting(group.id) - member.waiting
    if waiting <= 0:
        return limit
    most = limit * (waiting + 1)  # more makes no difference
    now, row = group.clock.wall_ns(), group.row
    due = held.count_due(group.tx, group.id, now, most) if row.waiting else 0
    available = min(_unread(group, topic) + row.ready + due, most)
    if group.settings.max_in_flight is not None:
        available = min(available, group.settings.max_in_flight - row.leased)
    return min(limit, max(1, -(-available // (waiting + 1))))


def _pass_on_the_watch(group: GroupTx) -> None:
    """Wake a consumer to wait for the next retry: the one that takes a message stops waiting."""
    due = held.next_due(group.tx, group.id)
    if due and due.due_ns - group.clock.wall_ns() < nanoseconds(limits.WAIT_SECONDS):
        group.tx.wake(group.id, 1)


def seconds_to_wait(group: GroupTx, member: Member, *, stuck: bool) -> float:
    """Seconds until there may be a message to take, 0 if there seems to be one now. `stuck`: a get
    has just found no room to move what is in the way of all other messages."""
    row, topic = group.row, group.load_topic()
    if group.paused:
        return limits.WAIT_SECONDS
    most = group.settings.max_in_flight
    room = most is None or row.leased < most
    held_up = suspects.is_held_up(group, topic, member)
    if room and not (held_up or stuck) and (row.ready or _unread(group, topic)):
        return 0
    waits = [limits.WAIT_SECONDS]
    if room and not held_up and row.waiting and (due := held.next_due(group.tx, group.id)):
        waits.append((due.due_ns - group.clock.wall_ns()) / NS)
    if room and topic.scheduled:
        due_ns = schedule.next_due(group.tx, group.place.topic_id)
        waits.append((due_ns - group.clock.wall_ns()) / NS)
    if row.leased and (first := next(leases.leased(group), None)):
        waits.append((first.deadline_ns - group.clock.monotonic_ns()) / NS)
        if any(reclaim.dead(group)) or (not held_up and _may_steal(group, member)):
            return 0
    return max(min(waits), 0)


def _unread(group: GroupTx, topic: TopicRow) -> int:
    return sum(topic.next) - sum(group.row.next) - group.row.ahead


def _may_steal(group: GroupTx, member: Member) -> bool:
    others = (row for row in leases.leased(group) if row.owner != member.owner)
    return any(reclaim.not_started(group, row) for row in others)
