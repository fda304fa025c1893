"""Retention: messages leave a topic's log once all groups settled them, or over a bound.

- `trim` deletes the segments that no group needs any more, wherever they stand, and those over the
  topic's bounds;
- `make_room` does that before a put, or refuses the put.

A message that leaves the log leaves every group in the same commit, and counts there as dropped if
it was not settled. Each call does a bounded part, and deletes whole segments. Purges, which
operators ask for, are in operate/purge.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import limits
from ..base.errors import Full, MessageTooLarge
from ..base.model import TopicSettings
from ..base.ondemand import lazy
from ..format.rows import TopicRow, decode_topic
from ..storage.reserve import need_room
from ..tables import log as logs
from ..tables.log import Log
from .bounds import drop, drop_old, is_over, oldest
from .settled import trim_settled

if TYPE_CHECKING:
    from ..tables import dedup
else:
    dedup = lazy("tables.dedup")


def trim(log: Log, name: str, start: int | None = None) -> tuple[int, int]:
    """Delete some segments that no group needs or that are over a bound: from an offset on, or with
    None from where the last trim of this process ended, and around. Returns how many messages were
    deleted, and the offset from which to go on, 0 at the end. Group rows must be stored before."""
    row = logs.load(log.tx, log.topic_id, name)
    gone = drop_old(log, row, 0, 0)
    settled, go_on = trim_settled(log, row, start)
    if gone + settled:
        logs.store(log.tx, log.topic_id, row)
        log.tx.announced.add(log.topic_id)
    dedup.Ids(log.tx, log.topic_id, row).forget(limits.MAX_FORGOTTEN_IDS)
    return gone + settled, go_on


def make_room(log: Log, name: str, row: TopicRow, count: int, size: int, *more: int) -> None:
    """Let `count` messages of `size` bytes fit, and `more` rows. The caller stores the topic's row.

    Raises: Full, with its `topic` if the topic is full; MessageTooLarge if they can never fit.
    """
    bounds = decode_topic(row.config).settings
    if bounds.max_messages or bounds.max_bytes or bounds.max_age_seconds:
        _check_fits(name, bounds, count, size)
        drop_old(log, row, count, size)
        if is_over(row, bounds, count, size):
            trim_settled(log, row)
        if is_over(row, bounds, count, size):
            raise Full(
                f"topic {name!r} is full: {row.stored} messages of {row.bytes} bytes are"
                " stored; consume messages, or raise its bounds",
                topic=name,
            )
    while True:
        try:
            need_room(log.tx, size, *more)
            return
        except Full:
            if dedup.has_stale(log.tx):  # they go first, see put.commit
                raise
            if bounds.discard != "old" or not drop(log, row, oldest(log, row), 16):
                raise


def _check_fits(name: str, bounds: TopicSettings, count: int, size: int) -> None:
    asked = ("messages", count, bounds.max_messages), ("bytes", size, bounds.max_bytes)
    for what, found, most in asked:
        if most and found > most:
            raise MessageTooLarge(
                f"a put of {found} {what} is over max_{what}={most} of topic {name!r}; split it, or"
                " raise the bound",
                size=found,
                limit=most,
            )
