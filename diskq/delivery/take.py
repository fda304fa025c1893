"""Taking begins a delivery: which messages a consumer gets next.

    unread, ready, due --take--> leased

A get prefers retries that are due, then the highest priority, then the lowest offset, among the
messages that may be delivered now. On its way it passes over messages that expired, were purged, or
wait for an earlier message of their key. A lane in which there is no room to move such a message
stands still. A suspect is delivered alone, and holds back the messages behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..base import limits
from ..base.ondemand import lazy
from ..storage.reserve import is_spent, room_of
from ..tables.group_tx import GroupTx
from . import reclaim, scheduling, suspects, waiting
from .choose import choose
from .grants import Grant, Member, store_lease
from .passing import Search

if TYPE_CHECKING:
    from . import stealing
else:
    stealing = lazy("delivery.stealing")


class Taken(NamedTuple):
    """The messages that a get leased. `stuck`: a lane stands still for the lack of room. `more`:
    messages are left that another get may lease now."""

    grants: list[Grant]
    stuck: bool
    more: bool


def take(group: GroupTx, member: Member, limit: int) -> Taken:
    """Lease up to `limit` messages. Now and then, and whenever it finds nothing, this takes back
    what dead consumers held."""
    if group.paused:
        return Taken([], stuck=False, more=False)
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
    if steals and reclaim.may_steal(group, member.owner):
        grants = stealing.steal(search, member, limit)
    if grants and group.row.waiting:
        waiting.pass_on_the_watch(group)
    more = bool(group.row.ready or waiting.unread(group, topic))
    return Taken(grants, stuck=bool(search.stuck), more=more)


def _grant_all(search: Search, member: Member, limit: int) -> list[Grant]:
    group = search.group
    if group.hands.suspects and suspects.waits_for_suspect(group, member):
        return []
    if group.settings.max_in_flight is not None:
        limit = min(limit, group.settings.max_in_flight - group.row.leased)
    if limit > 1:
        limit = waiting.fair_share(group, search.topic, member, limit)
    grants: list[Grant] = []
    while limit > 0 and group.tx.tokens_left >= limits.MAX_GET_MESSAGES:
        choice = choose(search, member, limit, alone=not grants)
        if choice is None:
            break
        if choice.messages:
            grants.append(store_lease(group, choice, member))
            limit -= limit if choice.is_last(member) else len(choice.messages)
        if group.tx.room is not None and is_spent(group.tx):
            break
    return grants
