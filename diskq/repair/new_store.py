"""The new store that salvage writes. Imported on demand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from ..base import limits
from ..base.clock import Clock
from ..format.layout import (
    COPY,
    FORMAT_VERSION,
    ID_KEY,
    META_KEY,
    U32,
)
from ..format.rows import GroupRow, Meta, decode_group, decode_topic, new_meta
from ..storage.creation import COPIED, create_in, later
from ..storage.engine import Engine
from ..storage.tx import Tx
from ..tables import catalog, gaps, log
from .log_copy import LogCopy, Put
from .remains import Remains

_BATCH_BYTES = 16 * limits.MIB


def create(remains: Remains, place: str) -> None:
    """An empty store, like the old one, whose tokens go on behind those of the old one."""
    meta = Meta(new_meta("commit", 0, os.urandom(16), COPY, Clock.wall_ns()))
    with remains.noting("the row of the store"):
        old = Meta(remains.state[META_KEY])
        if old.format_version == FORMAT_VERSION and old.durability < 3:
            meta = old
    meta.boot_id = COPY
    meta.commit_base = later(meta.commit_base + remains.snapshot.txn_id, COPIED)
    create_in(place, meta.pack())


def put_all(engine: Engine, puts: Iterator[Put]) -> None:
    """Write rows, in commits of bounded size."""
    while batch := list(_some(puts)):
        engine.commit(partial(_put_batch, batch=batch))


def write_heads(tx: Tx, remains: Remains, copy: LogCopy) -> None:
    """The rows of topics and groups, their names, and the ids to go on with."""
    meta = catalog.load_meta(tx)
    for topic_id, row in remains.topics.items():
        copy.topic(topic_id)
        config = decode_topic(row.config)
        ids = [at for at, group in remains.groups.items() if _topic_of(group) == topic_id]
        settings = config.settings._replace(priorities=len(row.next))
        row.config = config._replace(settings=settings, groups=tuple(ids)).encode()
        log.store(tx, topic_id, row)
        tx.put(b"N" + config.name.encode(), U32.pack(topic_id))
        meta.next_topic = max(meta.next_topic, topic_id + 1)
    for group_id, group in remains.groups.items():
        name = decode_group(group.config).name
        topic_id = _topic_of(group)
        group.ahead = gaps.ahead(tx, topic_id, remains.topics[topic_id], group.offsets)
        tx.put(ID_KEY.pack(b"G", group_id), group.encode())
        tx.put(catalog.group_name(topic_id, name), U32.pack(group_id))
        meta.next_group = max(meta.next_group, group_id + 1)
    catalog.store_meta(tx, meta)


def _topic_of(group: GroupRow) -> int:
    return decode_group(group.config).topic_id


def _some(puts: Iterator[Put]) -> Iterator[Put]:
    size = 0
    for put in puts:
        yield put
        size += len(put[2])
        if size > _BATCH_BYTES:
            return


def _put_batch(tx: Tx, batch: list[Put]) -> None:
    for database, key, value in batch:
        tx.put(key, value, db=database)
