"""Settings of topics and groups: read and change them, pause and resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base import limits
from ..base import settings as known_settings
from ..base.errors import ConfigConflict
from ..base.model import GroupSettings, TopicSettings
from ..format.rows import TopicRow, decode_group, decode_topic
from ..storage.handle import Handle
from ..storage.tx import Tx
from ..tables import dedup, group_tx, log
from ..tables.group_tx import Place
from ..tables.refs import TopicRef

if TYPE_CHECKING:
    from ..delivery.making import Given


def of_topic(handle: Handle, topic: TopicRef) -> TopicSettings:
    """The stored settings of a topic. Raises: NotFound."""
    return handle.read(lambda tx: decode_topic(log.load(tx, *topic).config).settings)


def of_group(handle: Handle, place: Place) -> GroupSettings:
    """The stored settings of a group. Raises: NotFound."""
    row = handle.read(lambda tx: group_tx.load(tx, place.group_id, place.group))
    return decode_group(row.config).settings


def update_topic(handle: Handle, topic: TopicRef, given: Given) -> TopicSettings:
    """Change settings of a topic; returns all of them.

    Raises: ConfigConflict for what cannot change, NotFound, TypeError, ValueError.
    """
    while True:
        settings = handle.commit(lambda tx: _update_topic(tx, *topic, given))
        if settings is not None:
            return settings


def _update_topic(tx: Tx, topic_id: int, name: str, given: Given) -> TopicSettings | None:
    """None if it has not got to that: there were ids to be forgotten first."""
    row = log.load(tx, topic_id, name)
    config = decode_topic(row.config)
    settings = known_settings.changed(config.settings, given)
    longer = settings.dedup_seconds > config.settings.dedup_seconds
    if longer and _forget_ids(tx, topic_id, row):
        return None  # in a longer window they would be known again
    more = settings.priorities - len(row.next)
    if more < 0:
        raise ConfigConflict(f"priorities of topic {name!r} can only grow; it has {len(row.next)}")
    row.next += [0] * more
    row.config = config._replace(settings=settings).encode()
    log.store(tx, topic_id, row)
    for group_id in config.groups if more else ():
        group = group_tx.load(tx, group_id, "")
        group.next += [0] * more
        group_tx.store(tx, group_id, group)
    tx.announced.add(topic_id)
    return settings


def _forget_ids(tx: Tx, topic_id: int, row: TopicRow) -> int:
    return dedup.Ids(tx, topic_id, row).forget(limits.MAX_FORGOTTEN_IDS, everywhere=True)


def update_group(tx: Tx, place: Place, given: Given) -> GroupSettings:
    """Change settings of a group; returns all of them. Raises: as update_topic."""
    row = group_tx.load(tx, place.group_id, place.group)
    config = decode_group(row.config)
    settings = known_settings.changed(config.settings, given)
    if settings.ordering != config.settings.ordering:
        raise _fixed("ordering", "group", place.group)
    row.config = config._replace(settings=settings).encode()
    group_tx.store(tx, place.group_id, row)
    tx.wake(place.group_id, limits.MAX_CONSUMERS)
    return settings


def set_paused(tx: Tx, place: Place, paused: bool) -> None:
    """Stop deliveries of a group, or go on."""
    row = group_tx.load(tx, place.group_id, place.group)
    row.config = decode_group(row.config)._replace(paused=paused).encode()
    group_tx.store(tx, place.group_id, row)
    tx.wake(place.group_id, limits.MAX_CONSUMERS)


def _fixed(what: str, kind: str, name: str) -> ConfigConflict:
    return ConfigConflict(f"{what} of {kind} {name!r} cannot change; make a new {kind} for that")
