"""Suspects are delivered alone: each of them may have killed the process that had it in hand.

A suspect goes to a process whose other threads have nothing of the group in hand, and holds back
the messages behind it. Which messages become suspects is decided in reclaim.py.
"""

from __future__ import annotations

from ..base import limits
from ..base.clock import nanoseconds
from ..format.layout import SOLO
from ..format.rows import TopicRow
from ..storage.hands import Hand
from ..tables import held, leases
from ..tables.group_tx import GroupTx
from .grants import Member


def may_take_suspect(group: GroupTx, member: Member, *, alone: bool) -> bool:
    """Whether a suspect may be delivered: alone, and to a process that has nothing else of this
    group in hand, except for what the same thread got before."""
    company = (_is_in_hand(group, hand) for hand in group.hands.of_others(member.thread))
    return alone and not _note_held_up(group, _has_new_suspect(group, member) or any(company))


def waits_for_suspect(group: GroupTx, member: Member) -> bool:
    """Whether another thread of this process has a suspect in hand, so that this thread gets
    nothing."""
    if not group.hands.suspects:
        return False
    suspects = (_is_in_hand(group, hand) for hand in group.hands.suspects_of_others(member.thread))
    return _note_held_up(group, _has_new_suspect(group, member) or any(suspects))


def is_held_up(group: GroupTx, topic: TopicRow, member: Member) -> bool:
    """Whether this thread gets nothing now, because of a suspect."""
    if waits_for_suspect(group, member):
        return True
    row = group.row
    due = held.next_due(group.tx, group.id) if row.waiting else None
    if due and due.due_ns <= group.clock.wall_ns():
        return due.suspect and not may_take_suspect(group, member, alone=True)
    for lane in range(len(topic.next) - 1, -1, -1) if row.ready else ():
        if run := leases.first_ready(group.tx, group.id, lane):
            return bool(run.flags & SOLO) and not may_take_suspect(group, member, alone=True)
        if topic.next[lane] > row.next[lane]:
            return False
    return False


def _has_new_suspect(group: GroupTx, member: Member) -> bool:
    """Whether this thread got a suspect a moment ago, which another thread may be about to handle.
    It gets nothing more until that message is named or settled, or until a while has passed."""
    since_ns = group.clock.monotonic_ns() - nanoseconds(limits.HAND_OVER_SECONDS)
    return any(
        lease.deadline_ns - lease.lasts_ns > since_ns and _is_in_hand(group, Hand(lease, None))
        for lease in group.hands.own_suspects(member.thread)
    )


def _note_held_up(group: GroupTx, held_up: bool) -> bool:
    if held_up:
        group.hands.held_up = True
    return held_up


def _is_in_hand(group: GroupTx, hand: Hand) -> bool:
    """Whether a message, or one of a whole lease, is still leased and its time not over."""
    row = leases.find(group.tx, group.id, hand.lease)
    if row is None or row.deadline_ns <= group.clock.monotonic_ns():
        return False
    return hand.offset is None or row.holds(hand.offset)
