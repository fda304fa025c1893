"""Make, find and delete topics and groups: the rows that change seldom.

A deletion first takes the names away in one commit, so that everybody sees it at once, and leaves a
row 'X'; then it removes the rest in bounded commits. If it is cut off, `sweep` goes on at the next
open.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from . import check, leases, limits, log
from .codec import (
    HELD_KEY,
    ID_KEY,
    META_KEY,
    U32,
    GroupConfig,
    GroupRow,
    Meta,
    TopicRow,
    decode_group,
    decode_topic,
    new_group,
    new_topic,
)
from .delivery import Delivery, Place, trim
from .engine import Engine, Tx
from .errors import ConfigConflict, NotFound
from .log import Log
from .model import GroupSettings
from .segment import LANE

if TYPE_CHECKING:
    from datetime import datetime

# An offset, "earliest", "latest", or when the first message was put.
Start: TypeAlias = "int | str | datetime"
DELETED_TOPIC, DELETED_GROUP = 0, 1  # kinds of 'X' rows


def find_topic(tx: Tx, name: str) -> int | None:
    """Id of a topic, None if there is none of this name."""
    data = tx.get(b"N" + name.encode())
    return None if data is None else int(U32.unpack(data)[0])


def make_topic(tx: Tx, name: str) -> int:
    """Id of the topic, which is made if need be."""
    topic_id = find_topic(tx, name)
    if topic_id is None:
        meta = _meta(tx)
        topic_id = meta.next_topic
        meta.next_topic += 1
        tx.put(META_KEY, meta.pack())
        tx.put(b"N" + name.encode(), U32.pack(topic_id))
        tx.put(ID_KEY.pack(b"T", topic_id), new_topic(name))
    return topic_id


def find_group(tx: Tx, topic_id: int, name: str, given: dict[str, object]) -> int | None:
    """Id of a topic's group, None if there is none of this name. Given settings must be its own.

    Raises: ConfigConflict.
    """
    data = tx.get(_group_name(topic_id, name))
    if data is None:
        return None
    group_id = int(U32.unpack(data)[0])
    stored = decode_group(leases.load(tx, group_id, name).config).settings
    wanted = check.group_settings(stored, given)
    for field, old, new in zip(stored._fields, stored, wanted, strict=True):
        if old != new:
            raise ConfigConflict(
                f"group {name!r} has {field}={old!r}, not {new!r}; leave the setting out to take"
                " what is stored"
            )
    return group_id


def make_group(
    tx: Tx, source: Log, topic_name: str, name: str, start: Start, given: dict[str, object]
) -> int:
    """Id of the group, which is made if need be. Raises: as find_group."""
    topic = log.load(tx, source.topic_id, topic_name)
    found = find_group(tx, source.topic_id, name, given)
    if found is not None:
        return found
    settings = check.group_settings(GroupSettings(), given)
    cursor = [_start_offset(source, topic, start)]
    meta = _meta(tx)
    group_id: int = meta.next_group
    meta.next_group += 1
    tx.put(META_KEY, meta.pack())
    tx.put(_group_name(source.topic_id, name), U32.pack(group_id))
    config = GroupConfig(source.topic_id, name, settings)
    tx.put(ID_KEY.pack(b"G", group_id), new_group(config, cursor))
    known = decode_topic(topic.config)
    topic.config = known._replace(groups=(*known.groups, group_id)).encode()
    log.store(tx, source.topic_id, topic)
    if group_id >= limits.WAKE_WORDS:
        tx.engine.slots.share_words()
    return group_id


def _wall_ns(when: object) -> int:
    from datetime import UTC, datetime, timedelta  # slow to import

    if not isinstance(when, datetime):
        raise TypeError(f"start must be int, str or datetime, not {type(when).__name__}")
    since = when.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1) * 1000


def _start_offset(source: Log, topic: TopicRow, start: Start) -> int:
    end = topic.next[LANE]
    first = source.first()
    oldest = end if first is None else first
    if isinstance(start, str) and start in ("earliest", "latest"):
        return oldest if start == "earliest" else end
    if isinstance(start, str):
        raise ValueError(f"start must be 'earliest', 'latest', an offset or a time, not {start!r}")
    if not isinstance(start, int):
        return source.offset_at(_wall_ns(start), end)
    return min(max(check.count("start", start, 0, 2**56 - 1), oldest), end)


def delete_topic(engine: Engine, name: str) -> None:
    """Remove a topic, its groups and its messages.

    Raises: NotFound.
    """

    def operation(tx: Tx) -> None:
        topic_id = find_topic(tx, name)
        if topic_id is None:
            raise NotFound(f"there is no topic {name!r}; see 'diskq topic ls'", topic=name)
        topic = log.load(tx, topic_id, name)
        for group_id in decode_topic(topic.config).groups:
            _take_away(tx, topic_id, group_id, "")
        tx.delete(b"N" + name.encode())
        tx.delete(ID_KEY.pack(b"T", topic_id))
        tx.put(_deleted(DELETED_TOPIC, topic_id), b"")

    engine.commit(operation)
    sweep(engine)


def delete_group(engine: Engine, at: Place) -> None:
    """Remove a group, its leases and held messages.

    Raises: NotFound.
    """

    def operation(tx: Tx) -> None:
        topic = log.load(tx, at.topic_id, at.topic)
        known = decode_topic(topic.config)
        _take_away(tx, at.topic_id, at.group_id, at.group)
        left = tuple(group for group in known.groups if group != at.group_id)
        topic.config = known._replace(groups=left).encode()
        log.store(tx, at.topic_id, topic)
        trim(tx, at)

    engine.commit(operation)
    sweep(engine)


def _take_away(tx: Tx, topic_id: int, group_id: int, known_as: str) -> None:
    name = decode_group(leases.load(tx, group_id, known_as).config).name
    tx.delete(_group_name(topic_id, name))
    tx.delete(ID_KEY.pack(b"G", group_id))
    tx.put(_deleted(DELETED_GROUP, group_id), b"")
    tx.wake(group_id, limits.MAX_CONSUMERS)  # its consumers learn that it is gone


def sweep(engine: Engine) -> None:
    """Remove what deleted topics and groups left behind, in bounded commits."""
    for key, _ in engine.read(lambda tx: list(tx.scan(b"X"))):
        number = int(U32.unpack(key[2:])[0])
        database = engine.log(number) if key[1] == DELETED_TOPIC else None
        while engine.commit(lambda tx: _sweep_some(tx, key, number, database)):  # noqa: B023
            pass


def _sweep_some(tx: Tx, key: bytes, number: int, database: object) -> bool:
    if key[1] == DELETED_TOPIC:
        more = Log(tx, database, number).erase()
    else:
        more = _erase(tx, ID_KEY.pack(b"L", number)) or _erase(tx, ID_KEY.pack(b"D", number))
        more = more or _erase(tx, HELD_KEY.pack(number, 0, 0)[:4], tx.engine.held)
    if not more:
        tx.delete(key)
    return more


def _erase(tx: Tx, prefix: bytes, database: object = None) -> bool:
    keys = [key for key, _ in islice(tx.scan(prefix, database=database), limits.MAX_TRIM_SEGMENTS)]
    for key in keys:
        tx.lmdb.delete(key, db=database or tx.engine.state)  # type: ignore[arg-type]
    return bool(keys)


def note_boot(tx: Tx) -> None:
    """Void all leases if the machine was started anew; nobody is charged for that."""
    meta = _meta(tx)
    boot_id = tx.engine.clock.boot_id()
    if meta.boot_id != boot_id:
        meta.boot_id = boot_id
        tx.put(META_KEY, meta.pack())
        for key, value in list(tx.scan(b"G")):
            row = GroupRow(value)
            config = decode_group(row.config)
            at = Place(config.topic_id, "", ID_KEY.unpack(key)[1], config.name, None)
            group = Delivery(tx, at, row)
            group.release_owned(None)
            group.store()


def _deleted(kind: int, number: int) -> bytes:
    return b"X" + bytes([kind]) + U32.pack(number)


def _group_name(topic_id: int, name: str) -> bytes:
    return ID_KEY.pack(b"H", topic_id) + name.encode()


def _meta(tx: Tx) -> Meta:
    data = tx.get(META_KEY)
    assert data is not None
    return Meta(data)
