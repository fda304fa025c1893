"""Make, find and delete topics and groups: the rows that change seldom.

A deletion first takes the names away in one commit, so that everybody sees it at once, and leaves a
row 'X'; then it removes the rest in bounded commits. If it is cut off, `sweep` goes on at the next
open.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from . import check, leases, limits, log
from .codec import (
    GROUP_KEY,
    HELD_KEY,
    LANE,
    META_KEY,
    TOPIC_KEY,
    U32,
    GroupConfig,
    GroupRow,
    Meta,
    TopicConfig,
    TopicRow,
    decode_group,
    decode_topic,
    encode_topic,
    new_group,
    new_topic,
)
from .delivery import Place, release_run, trim
from .engine import Engine, Tx
from .errors import ConfigConflict, NotFound
from .log import Log
from .model import GroupSettings


class Door(Protocol):
    """What of a store is needed here."""

    @property
    def engine(self) -> Engine: ...
    def commit(self, operation: Callable[[Tx], None]) -> None: ...


Start = int | str | datetime  # an offset, "earliest", "latest", or a time of the first message
DELETED_TOPIC, DELETED_GROUP = 0, 1  # kinds of 'X' rows


def find_topic(tx: Tx, name: str) -> int | None:
    """Id of a topic, None if there is none of this name."""
    data = tx.get(b"N" + name.encode())
    return None if data is None else int(U32.unpack(data)[0])


def find_group(tx: Tx, topic_id: int, name: str) -> int | None:
    """Id of a topic's group, None if there is none of this name."""
    data = tx.get(_group_name_key(topic_id, name))
    return None if data is None else int(U32.unpack(data)[0])


def make_topic(tx: Tx, name: str) -> int:
    """Id of the topic, which is made if need be."""
    topic_id = find_topic(tx, name)
    if topic_id is None:
        meta = _meta(tx)
        topic_id, meta.next_topic = meta.next_topic, meta.next_topic + 1
        tx.put(META_KEY, meta.encode())
        tx.put(b"N" + name.encode(), U32.pack(topic_id))
        tx.put(TOPIC_KEY.pack(b"T", topic_id), new_topic(name))
    return topic_id


def make_group(
    tx: Tx, source: Log, topic_name: str, name: str, start: Start, **given: object
) -> int:
    """Id of the group, which is made if need be. Given settings must equal the stored ones.

    Raises: ConfigConflict.
    """
    topic = log.load(tx, source.topic_id, topic_name)
    group_id = find_group(tx, source.topic_id, name)
    if group_id is not None:
        stored = decode_group(leases.load(tx, group_id, name).config).settings
        wanted = check.group_settings(stored, **given)  # type: ignore[arg-type]
        if wanted != stored:
            raise ConfigConflict(_difference(name, stored, wanted))
        return group_id
    settings = check.group_settings(GroupSettings(), **given)  # type: ignore[arg-type]
    meta = _meta(tx)
    group_id, meta.next_group = meta.next_group, meta.next_group + 1
    tx.put(META_KEY, meta.encode())
    tx.put(_group_name_key(source.topic_id, name), U32.pack(group_id))
    cursor = [_start_offset(source, topic, start)]
    config = GroupConfig(source.topic_id, name, settings)
    tx.put(GROUP_KEY.pack(b"G", group_id), new_group(config, cursor))
    known = decode_topic(topic.config)
    topic.config = encode_topic(known._replace(groups=(*known.groups, group_id)))
    log.store(tx, source.topic_id, topic)
    if group_id >= limits.WAKE_WORDS:
        tx.engine.slots.share_words()
    return group_id


def _start_offset(source: Log, topic: TopicRow, start: Start) -> int:
    end = topic.next[LANE]
    if start == "latest":
        return end
    first = source.first()
    oldest = end if first is None else first
    if start == "earliest":
        return oldest
    if isinstance(start, datetime):
        return source.offset_at(int(start.timestamp() * 10**9), end)
    if isinstance(start, str):
        raise ValueError(
            f"start must be 'earliest', 'latest', an offset or a datetime, not {start!r}"
        )
    return min(max(check.count("start", start, 0, 2**56 - 1), oldest), end)


def _difference(name: str, stored: GroupSettings, wanted: GroupSettings) -> str:
    for field, old, new in zip(stored._fields, stored, wanted, strict=True):
        if old != new:
            return (
                f"group {name!r} has {field}={old!r}, not {new!r}; leave the setting out to take"
                " what is stored"
            )
    raise AssertionError("no difference")


def delete_topic(store: Door, name: str) -> None:
    """Remove a topic, its groups and its messages.

    Raises: NotFound.
    """

    def operation(tx: Tx) -> None:
        topic_id = find_topic(tx, name)
        if topic_id is None:
            raise NotFound(f"there is no topic {name!r}; see 'diskq topic ls'", topic=name)
        topic = log.load(tx, topic_id, name)
        for group_id in decode_topic(topic.config).groups:
            _take_group_away(tx, topic_id, group_id)
        tx.delete(b"N" + name.encode())
        tx.delete(TOPIC_KEY.pack(b"T", topic_id))
        tx.put(_deleted_key(DELETED_TOPIC, topic_id), b"")

    store.commit(operation)
    sweep(store.engine)


def delete_group(store: Door, at: Place) -> None:
    """Remove a group, its leases and held messages.

    Raises: NotFound.
    """

    def operation(tx: Tx) -> None:
        leases.load(tx, at.group_id, at.group)
        topic = log.load(tx, at.topic_id, at.topic)
        config = decode_topic(topic.config)
        left = tuple(group for group in config.groups if group != at.group_id)
        topic.config = encode_topic(TopicConfig(config.name, left))
        log.store(tx, at.topic_id, topic)
        _take_group_away(tx, at.topic_id, at.group_id)
        trim(tx, at)

    store.commit(operation)
    sweep(store.engine)


def _take_group_away(tx: Tx, topic_id: int, group_id: int) -> None:
    data = tx.get(GROUP_KEY.pack(b"G", group_id))
    assert data is not None
    tx.delete(_group_name_key(topic_id, decode_group(GroupRow(data).config).name))
    tx.delete(GROUP_KEY.pack(b"G", group_id))
    tx.put(_deleted_key(DELETED_GROUP, group_id), b"")
    tx.wake(group_id, limits.MAX_CONSUMERS)  # its consumers learn that it is gone


def sweep(engine: Engine) -> None:
    """Remove what deleted topics and groups left behind, in bounded commits."""
    for key in engine.read(lambda tx: [key for key, _ in tx.scan(b"X")]):
        kind, number = key[1], U32.unpack(key[2:])[0]
        database = engine.log(number) if kind == DELETED_TOPIC else None
        step = _sweep_group if kind == DELETED_GROUP else _sweep_topic
        while engine.commit(lambda tx: step(tx, database, number)):  # noqa: B023 - runs at once
            pass


def _sweep_topic(tx: Tx, database: object, topic_id: int) -> bool:
    if Log(tx, database, topic_id).erase():
        return True
    tx.delete(_deleted_key(DELETED_TOPIC, topic_id))
    return False


def _sweep_group(tx: Tx, database: object, group_id: int) -> bool:
    bound = limits.MAX_TRIM_SEGMENTS
    for prefix in (GROUP_KEY.pack(b"L", group_id), GROUP_KEY.pack(b"D", group_id)):
        keys = [key for (key, _), _ in zip(tx.scan(prefix), range(bound), strict=False)]
        for key in keys:
            tx.delete(key)
        if keys:
            return True
    cursor = tx.cursor(tx.engine.held)
    for _ in range(bound):
        start = HELD_KEY.pack(group_id, 0, 0)
        if not cursor.set_range(start) or cursor.key()[:4] != start[:4]:
            tx.delete(_deleted_key(DELETED_GROUP, group_id))
            return False
        cursor.delete()
    return True


def _deleted_key(kind: int, number: int) -> bytes:
    return b"X" + bytes([kind]) + U32.pack(number)


def _group_name_key(topic_id: int, name: str) -> bytes:
    return TOPIC_KEY.pack(b"H", topic_id) + name.encode()


def _meta(tx: Tx) -> Meta:
    data = tx.get(META_KEY)
    assert data is not None
    return Meta(data)


def note_boot(tx: Tx) -> None:
    """Void all leases if the machine was started anew; nobody is charged for that."""
    meta = _meta(tx)
    boot_id = tx.engine.clock.boot_id()
    if meta.boot_id == boot_id:
        return
    meta.boot_id = boot_id
    tx.put(META_KEY, meta.encode())
    for key, value in list(tx.scan(b"G")):
        group_id = GROUP_KEY.unpack(key)[1]
        group = GroupRow(value)
        config = decode_group(group.config)
        at = Place(config.topic_id, "", group_id, config.name, None)
        for row in list(leases.rows(tx, group_id, 1)):
            release_run(tx, at, group, row, solo=False)
        leases.store(tx, group_id, group)
