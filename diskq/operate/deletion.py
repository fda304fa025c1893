"""Deletion of topics and groups.

A deletion first takes the names away in one commit, so that everybody sees it at once, and leaves a
row 'X'; then it removes the rest in bounded commits. If it is cut off, `sweep` goes on at the next
open.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from ..base import limits
from ..base.errors import Busy, NotFound
from ..delivery import retention
from ..format.decoding import unpacked
from ..format.layout import DELETED_GROUP, DELETED_KEY, DELETED_TOPIC, ID_KEY, U32
from ..format.rows import decode_group, decode_topic
from ..storage.engine import Engine
from ..storage.handle import Handle
from ..storage.tx import Tx
from ..tables import catalog, group_rows, group_tx, log
from ..tables.group_tx import Place
from ..tables.log import Log


def delete_topic(handle: Handle, name: str) -> None:
    """Remove a topic, its groups and its messages.

    Raises: NotFound.
    """

    def operation(tx: Tx) -> None:
        topic_id = catalog.find_topic(tx, name)
        if topic_id is None:
            raise NotFound(
                f"there is no topic {name!r}; see store.topics() or 'diskq topic ls'", topic=name
            )
        topic = log.load(tx, topic_id, name)
        for group_id in decode_topic(topic.config).groups:
            _take_away(tx, topic_id, group_id, "")
        tx.delete(catalog.topic_name(name))
        tx.delete(ID_KEY.pack(b"T", topic_id))
        tx.announced.add(topic_id)
        tx.put(_deleted(DELETED_TOPIC, topic_id), b"")

    handle.commit(operation)
    with suppress(Busy):  # it is deleted; the next opening goes on
        sweep(handle.engine, handle.busy_seconds)


def delete_group(handle: Handle, place: Place) -> None:
    """Remove a group, its leases and held messages.

    Raises: NotFound.
    """

    def operation(tx: Tx) -> None:
        topic = log.load(tx, place.topic_id, place.topic)
        known = decode_topic(topic.config)
        _take_away(tx, place.topic_id, place.group_id, place.group)
        left = tuple(group for group in known.groups if group != place.group_id)
        topic.config = known._replace(groups=left).encode()
        log.store(tx, place.topic_id, topic)
        retention.trim(Log(tx, place.topic_id), place.topic)

    handle.commit(operation)
    with suppress(Busy):  # it is deleted; the next opening goes on
        sweep(handle.engine, handle.busy_seconds)


def _take_away(tx: Tx, topic_id: int, group_id: int, known_as: str) -> None:
    name = decode_group(group_tx.load(tx, group_id, known_as).config).name
    tx.delete(catalog.group_name(topic_id, name))
    tx.delete(ID_KEY.pack(b"G", group_id))
    tx.put(_deleted(DELETED_GROUP, group_id), b"")
    tx.wake(group_id, limits.MAX_CONSUMERS)  # its consumers learn that it is gone


def sweep(engine: Engine, busy_seconds: float) -> None:
    """Remove what deleted topics and groups left behind, in bounded commits."""
    for key, _ in engine.read(lambda tx: list(tx.scan(b"X"))):
        while engine.commit(partial(_sweep_some, key), None, busy_seconds):
            pass


def _sweep_some(key: bytes, tx: Tx) -> bool:
    number, most = int(unpacked(DELETED_KEY, key)[2]), limits.MAX_TRIM_SEGMENTS
    if key[1] == DELETED_TOPIC:
        places = tx.log(number), tx.engine.schedule, tx.engine.dedup
        more = any(tx.erase(U32.pack(number), most, place) for place in places)
        more = more or tx.erase(ID_KEY.pack(b"O", number), most) > 0
    else:
        more = group_rows.remove_some(tx, number, most) > 0
    if not more:
        tx.delete(key)
    return more


def _deleted(kind: int, number: int) -> bytes:
    return DELETED_KEY.pack(b"X", kind, number)
