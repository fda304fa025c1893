"""Consumers that wait: how long, for what, and which share of a batch is theirs."""

from __future__ import annotations

from ..base import limits
from ..base.clock import NS, nanoseconds
from ..format.rows import TopicRow
from ..tables import held, leases, schedule
from ..tables.group_tx import GroupTx
from . import reclaim, suspects
from .grants import Member


def fair_share(group: GroupTx, topic: TopicRow, member: Member, limit: int) -> int:
    """How much of `limit` a batch may take, so that it leaves their share to the consumers that are
    waiting now."""
    waiting = group.tx.engine.slots.count_waiting(group.id) - member.waiting
    if waiting <= 0:
        return limit
    most = limit * (waiting + 1)  # more makes no difference
    now, row = group.clock.wall_ns(), group.row
    due = held.count_due(group.tx, group.id, now, most) if row.waiting else 0
    available = min(unread(group, topic) + row.ready + due, most)
    if group.settings.max_in_flight is not None:
        available = min(available, group.settings.max_in_flight - row.leased)
    return min(limit, max(1, -(-available // (waiting + 1))))


def pass_on_the_watch(group: GroupTx) -> None:
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
    if room and not (held_up or stuck) and (row.ready or unread(group, topic)):
        return 0
    waits = [limits.WAIT_SECONDS]
    if room and not held_up and row.waiting and (due := held.next_due(group.tx, group.id)):
        waits.append((due.due_ns - group.clock.wall_ns()) / NS)
    if room and topic.scheduled:
        due_ns = schedule.next_due(group.tx, group.place.topic_id)
        waits.append((due_ns - group.clock.wall_ns()) / NS)
    if row.leased and (first := next(leases.leased(group), None)):
        waits.append((first.deadline_ns - group.clock.monotonic_ns()) / NS)
        if reclaim.somebody_died(group) or (not held_up and reclaim.may_steal(group, member.owner)):
            return 0
    return max(min(waits), 0)


def unread(group: GroupTx, topic: TopicRow) -> int:
    """Messages that the group never leased."""
    return sum(topic.next) - sum(group.row.next) - group.row.ahead
