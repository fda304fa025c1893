"""Make and find topics, groups, and places in a topic.

What changes or deletes them is in changes.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from ..base import check, limits
from ..base.errors import ConfigConflict
from ..base.model import LANE_BITS, GroupSettings, TopicSettings
from ..base.ondemand import lazy
from ..format.decoding import decode_name, unpacked
from ..format.layout import ID_KEY, META_KEY, U32
from ..format.rows import (
    GroupConfig,
    Meta,
    TopicRow,
    decode_group,
    decode_topic,
    new_group,
    new_topic,
)
from ..storage.environment import full
from ..storage.reserve import room_of
from ..storage.tx import Tx
from . import gaps, group_tx, log
from .log import Log

if TYPE_CHECKING:
    from ..base import options
else:
    options = lazy("base.options")


if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from ..base.options import Settings

# An offset, "earliest", "latest", or when the first message was put.
Start: TypeAlias = "int | str | datetime"
Given: TypeAlias = "Mapping[str, object]"  # settings by name; None: not given


def topic_ids(tx: Tx) -> Iterator[tuple[str, int]]:
    """Names and ids of all topics, by name."""
    return _names(tx, b"N")


def group_ids(tx: Tx, topic_id: int) -> Iterator[tuple[str, int]]:
    """Names and ids of a topic's groups, by name."""
    return _names(tx, ID_KEY.pack(b"H", topic_id))


def _names(tx: Tx, prefix: bytes) -> Iterator[tuple[str, int]]:
    for key, value in tx.scan(prefix):
        yield decode_name(key[len(prefix) :]), unpacked(U32, value)[0]


def find_topic(tx: Tx, name: str, given: Given | None = None) -> int | None:
    """Id of a topic, None if there is none of this name. Given settings must be its own.

    Raises: ConfigConflict.
    """
    data = tx.get(b"N" + name.encode())
    if data is None:
        return None
    topic_id = int(unpacked(U32, data)[0])
    if given:
        _check_equal(
            "topic", name, decode_topic(log.load(tx, topic_id, name).config).settings, given
        )
    return topic_id


def make_topic(tx: Tx, name: str, given: Given) -> int:
    """Id of the topic, which is made if need be. Raises: Full, and as find_topic."""
    found = find_topic(tx, name, given)
    if found is not None:
        return found
    row = new_topic(name, _checked(TopicSettings(), given))
    _take_room(tx, len(row))
    meta = load_meta(tx)
    topic_id: int = meta.next_topic
    meta.next_topic += 1
    store_meta(tx, meta)
    tx.put(b"N" + name.encode(), U32.pack(topic_id))
    tx.put(ID_KEY.pack(b"T", topic_id), row)
    return topic_id


def _take_room(tx: Tx, size: int) -> None:
    """Room for the row of a topic or group: in a full store, too, or nobody could empty it."""
    if not room_of(tx).take(size):
        raise full(tx.engine.path, "nothing is left for another topic or group")


def find_group(tx: Tx, topic_id: int, name: str, given: Given) -> int | None:
    """Id of a topic's group, None if there is none of this name. Given settings must be its own.

    Raises: ConfigConflict.
    """
    data = tx.get(group_name(topic_id, name))
    if data is None:
        return None
    group_id = int(unpacked(U32, data)[0])
    if given:
        stored = decode_group(group_tx.load(tx, group_id, name).config).settings
        _check_equal("group", name, stored, given)
    return group_id


def _check_equal(kind: str, name: str, stored: Settings, given: Given) -> None:
    wanted = _checked(stored, given)
    for field, old, new in zip(stored._fields, stored, wanted, strict=True):
        if old != new:
            raise ConfigConflict(
                f"{kind} {name!r} has {field}={old!r}, not {new!r}; leave the setting out to take"
                f" what is stored, or change it with {kind}.update() or 'diskq {kind} set'"
            )


def _checked(settings: Settings, given: Given) -> Settings:
    if not given:  # most do without the import
        return settings
    return options.settings(settings, given)


def make_group(tx: Tx, source: Log, topic_name: str, name: str, start: Start, given: Given) -> int:
    """Id of the group, which is made if need be. Raises: Full, and as find_group."""
    topic = log.load(tx, source.topic_id, topic_name)
    found = find_group(tx, source.topic_id, name, given)
    if found is not None:
        return found
    settings = _checked(GroupSettings(), given)
    config = GroupConfig(source.topic_id, name, settings)
    row = new_group(config, *position(source, topic, places(source, topic, start, "start")))
    return add_group(source, topic, name, row)


def add_group(source: Log, topic: TopicRow, name: str, row: bytes) -> int:
    """Store the row of a new group; returns its id. Raises: Full."""
    tx = source.tx
    _take_room(tx, len(row))
    meta = load_meta(tx)
    group_id: int = meta.next_group
    meta.next_group += 1
    store_meta(tx, meta)
    tx.put(group_name(source.topic_id, name), U32.pack(group_id))
    tx.put(ID_KEY.pack(b"G", group_id), row)
    known = decode_topic(topic.config)
    topic.config = known._replace(groups=(*known.groups, group_id)).encode()
    log.store(tx, source.topic_id, topic)
    return group_id


def places(source: Log, topic: TopicRow, to: Start, what: str) -> list[int]:
    """`positions` to go on from, which must not be beyond the end of the topic."""
    cursor = positions(source, topic, to, what)
    if isinstance(to, int):
        end = topic.offset(min(to >> LANE_BITS, len(cursor) - 1))
        if to > end:
            name = decode_topic(topic.config).name
            raise ValueError(f"offset {to} is beyond the end of topic {name!r}, which is {end}")
    return cursor


def positions(source: Log, topic: TopicRow, to: Start, what: str) -> list[int]:
    """The offsets, one of each lane, that "earliest", "latest", an offset or a time mean. With
    priorities, an offset also means the time of its message, for the other lanes."""
    lanes = range(len(topic.next))
    if to == "earliest":
        return [source.first(topic, lane) for lane in lanes]
    if to == "latest":
        return topic.offsets
    kinds = "'earliest', 'latest', an offset or a datetime"
    if isinstance(to, str):
        raise ValueError(f"{what} must be {kinds}, not {to!r}")
    if not isinstance(to, int):
        when_ns = check.wall_ns(what, to, kinds)
        return [source.offset_at(topic, lane, when_ns) for lane in lanes]
    offset = check.count(what, to, 0, 2**64 - 1)
    mine = min(offset >> LANE_BITS, lanes[-1])
    segment = next(source.segments(offset), None)
    found = segment is not None and segment.first >> LANE_BITS == mine
    when_ns = segment.put_at_ns if segment and found else 2**63
    if offset < max(source.first(topic, mine), 1):  # before what is stored: before all of it
        when_ns = 0
    cursor = [source.offset_at(topic, lane, when_ns) for lane in lanes]
    here = min(max(offset, source.first(topic, mine)), topic.offset(mine))
    cursor[mine] = gaps.past(source.tx, source.topic_id, topic, here)
    return cursor


def position(source: Log, topic: TopicRow, cursor: Sequence[int]) -> tuple[list[int], int]:
    """`next` and `ahead` of a group that goes on at these offsets, one of each lane."""
    counts = [offset - (lane << LANE_BITS) for lane, offset in enumerate(cursor)]
    return counts, gaps.ahead(source.tx, source.topic_id, topic, cursor)


def group_name(topic_id: int, name: str) -> bytes:
    """The key of a group's id."""
    return ID_KEY.pack(b"H", topic_id) + name.encode()


def load_meta(tx: Tx) -> Meta:
    """The store's row, to be changed and stored again."""
    data = tx.get(META_KEY)
    assert data is not None
    return Meta(data)


def store_meta(tx: Tx, meta: Meta) -> None:
    """Write the store's row back."""
    tx.put(META_KEY, meta.pack())
    if meta.next_group + meta.next_topic >= limits.WAKE_WORDS:
        tx.engine.slots.share_words()
