"""A get passes over messages that were purged, or outlived their TTL or the topic's max_age.

They leave the group when a get meets them. An expired message may become a dead letter, which needs
room for a copy; without it the message sticks, and its lane stands still.
"""

from __future__ import annotations

from operator import itemgetter

from ..base.clock import nanoseconds
from ..base.model import Failure
from ..format.held_row import HeldRow
from ..format.lanes import lane_of
from ..format.rows import TopicRow, decode_topic
from ..format.segment import PURGED, TTL, is_purged, ttl_of
from ..storage.reserve import is_spent, room_of
from ..tables import ages, held
from ..tables.group_tx import GroupTx
from ..tables.log import Stored
from . import key_order

FLAGS = itemgetter(2)  # of a Stored


class Search:
    """One search of a group for messages to deliver."""

    __slots__ = ("_now", "group", "max_age_ns", "stuck", "topic")

    def __init__(self, group: GroupTx, topic: TopicRow) -> None:
        self.group, self.topic = group, topic
        seconds = decode_topic(topic.config).settings.max_age_seconds
        self.max_age_ns = None if seconds is None else nanoseconds(seconds)
        self.stuck: set[int] = set()  # lanes whose next message has no room to be moved
        self._now: ages.Now | None = None

    def age_ns(self, message: Stored) -> int:
        """Nanoseconds since a message was put, by one reading of the clocks."""
        if self._now is None:
            self._now = ages.Now(self.group.tx)
        return self._now.age_ns(message.put)

    def stick(self, offset: int) -> None:
        """Let the lane of a message stand still: there is no room to move the message."""
        self.stuck.add(lane_of(offset))


def drop_undeliverable(search: Search, messages: list[Stored]) -> tuple[list[Stored], int]:
    """Keep the messages that are delivered, and let the others leave the group. Returns the
    messages kept, and how many were looked at before room or time ran out."""
    kinds = set(map(FLAGS, messages)) if any(map(FLAGS, messages)) else ()
    if search.max_age_ns is None and not any(kind & (TTL | PURGED) for kind in kinds):
        return messages, len(messages)
    kept: list[Stored] = []
    for passed, message in enumerate(messages):
        if (passed and is_spent(search.group.tx)) or sticks(search, message):
            return kept, passed
        if not is_gone(search, message, None):
            kept.append(message)
    return kept, len(messages)


def would_end(search: Search, message: Stored, row: HeldRow | None) -> bool:
    """Whether a get would pass over a message, because of its age or a purge; see is_gone."""
    most = search.max_age_ns if row is None else None
    over = most is not None and search.age_ns(message) >= most
    return over or is_purged(message.record, message.flags) or _outlived(search, message)


def sticks(search: Search, message: Stored) -> bool:
    """Whether a message has expired, and there is no room for it among the dead letters."""
    if not search.group.settings.keep_expired or not message.flags & TTL:
        return False
    dies = _outlived(search, message) and not is_purged(message.record, message.flags)
    if dies and not room_of(search.group.tx).take(len(message.record)):
        search.stick(message.offset)
        return True
    return False


def is_gone(search: Search, message: Stored, row: HeldRow | None) -> bool:
    """Let a message leave the group, if it was purged, outlived its TTL, or outlived the topic's
    max_age; returns whether it did. `row` is its row in `held` if it waits, to which a topic's
    bounds do not apply."""
    group = search.group
    offset, record, flags, put = message
    ttl_ns, most = ttl_of(record, flags), search.max_age_ns
    age_ns = search.age_ns(message) if ttl_ns or most is not None else 0
    if is_purged(record, flags):
        group.row.purged += 1
        if row is not None:
            held.remove_live(group, offset, row)
    elif row is None and most is not None and age_ns >= most:
        group.row.dropped += 1
    elif ttl_ns and age_ns >= ttl_ns:
        _expire(group, offset, row, HeldRow(record, flags, *put))
    else:
        return False
    room_of(group.tx).pass_over()
    key_order.free_key(group, offset, HeldRow(record, flags, *put))
    return True


def _outlived(search: Search, message: Stored) -> bool:
    ttl_ns = ttl_of(message.record, message.flags)
    return bool(ttl_ns) and search.age_ns(message) >= ttl_ns


def _expire(group: GroupTx, offset: int, row: HeldRow | None, message: HeldRow) -> None:
    """Count a message as expired, or make it a dead letter if the group keeps those."""
    if row is not None:
        held.remove_live(group, offset, row)
        message = row
    if not group.settings.keep_expired:
        group.row.expired += 1
        return
    now = group.clock.wall_ns()
    message.note(Failure(now, "ttl", "", ""))
    held.bury(group, offset, message, now)
