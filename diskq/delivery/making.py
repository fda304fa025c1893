"""Topics and groups are found by their names, and made if need be.

Changes and deletions are in operate/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from ..base.errors import ConfigConflict
from ..base.model import GroupSettings, TopicSettings
from ..base.ondemand import lazy
from ..format.rows import GroupConfig, TopicRow, decode_group, decode_topic, new_group, new_topic
from ..storage.environment import full
from ..storage.reserve import room_of
from ..storage.tx import Tx
from ..tables import catalog, group_tx
from ..tables import log as logs
from ..tables.log import Log
from ..tables.refs import TopicRef
from . import positions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..base import settings as known_settings
    from ..base.options import Start
    from ..base.settings import Settings
else:
    known_settings = lazy("base.settings")

Given: TypeAlias = "Mapping[str, object]"  # settings by name; None: not given


def find_topic(tx: Tx, name: str, given: Given) -> int | None:
    """The id of a topic, None if there is none of this name. Its settings must be those given.

    Raises: ConfigConflict.
    """
    topic_id = catalog.find_topic(tx, name)
    if topic_id is not None and given:
        stored = decode_topic(logs.load(tx, topic_id, name).config).settings
        _check_equal("topic", name, stored, given)
    return topic_id


def make_topic(tx: Tx, name: str, given: Given) -> int:
    """The id of a topic, which is made if there is none of this name. Raises: Full, and as
    find_topic."""
    topic_id = find_topic(tx, name, given)
    if topic_id is not None:
        return topic_id
    row = new_topic(name, _checked(TopicSettings(), given))
    _take_room(tx, len(row))
    return catalog.add_topic(tx, name, row)


def find_group(tx: Tx, topic_id: int, name: str, given: Given) -> int | None:
    """The id of a topic's group, None if there is none of this name. Its settings must be those
    given.

    Raises: ConfigConflict.
    """
    group_id = catalog.find_group(tx, topic_id, name)
    if group_id is not None and given:
        stored = decode_group(group_tx.load(tx, group_id, name).config).settings
        _check_equal("group", name, stored, given)
    return group_id


def list_groups(tx: Tx, topic_id: int) -> list[tuple[str, int]]:
    """Names and ids of a topic's groups, by name."""
    return list(catalog.group_ids(tx, topic_id))


def make_group(tx: Tx, ref: TopicRef, name: str, start: Start, given: Given) -> int:
    """The id of a topic's group, which is made if there is none of this name. Raises: Full, and as
    find_group."""
    log, topic = Log(tx, ref.id), logs.load(tx, *ref)
    group_id = find_group(tx, ref.id, name, given)
    if group_id is not None:
        return group_id
    config = GroupConfig(ref.id, name, _checked(GroupSettings(), given))
    cursor = positions.resolve_start(log, topic, start, "start")
    row = new_group(config, *positions.counters_at(log, topic, cursor))
    return add_group(log, topic, name, row)


def add_group(log: Log, topic: TopicRow, name: str, row: bytes) -> int:
    """Store the row of a new group and the topic's row; returns the group's id. Raises: Full."""
    _take_room(log.tx, len(row))
    group_id = catalog.add_group(log.tx, log.topic_id, name, row)
    known = decode_topic(topic.config)
    topic.config = known._replace(groups=(*known.groups, group_id)).encode()
    logs.store(log.tx, log.topic_id, topic)
    return group_id


def _take_room(tx: Tx, size: int) -> None:
    """Take room for the row of a topic or group: in a full store, too, or nobody could empty it."""
    if not room_of(tx).take(size):
        raise full(tx.engine.path, "nothing is left for another topic or group")


def _check_equal(kind: str, name: str, stored: Settings, given: Given) -> None:
    wanted = _checked(stored, given)
    for field, old, new in zip(stored._fields, stored, wanted, strict=True):
        if old != new:
            raise ConfigConflict(
                f"{kind} {name!r} has {field}={old!r}, not {new!r}; leave the setting out to take"
                f" what is stored, or change it with {kind}.update() or 'diskq {kind} set'"
            )


def _checked(settings: Settings, given: Given) -> Settings:
    if not given:  # most callers need no import then
        return settings
    return known_settings.checked(settings, given)
