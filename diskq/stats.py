"""The only source of numbers for every face: one consistent snapshot, nothing is counted here.

Counters live in the rows that commits write anyway, so this costs the same with a long backlog.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from . import files
from .codec import (
    FORMAT_VERSION,
    GROUP_KEY,
    LANE,
    TOPIC_KEY,
    U32,
    GroupRow,
    TopicRow,
    decode_group,
    decode_topic,
)
from .engine import Engine, Tx
from .model import ConsumerInfo, GroupStats, StoreStats, TopicStats


def topic_ids(tx: Tx) -> Iterator[tuple[str, int]]:
    """Names and ids of all topics, by name."""
    return _names(tx, b"N")


def group_ids(tx: Tx, topic_id: int) -> Iterator[tuple[str, int]]:
    """Names and ids of a topic's groups, by name."""
    return _names(tx, TOPIC_KEY.pack(b"H", topic_id))


def _names(tx: Tx, prefix: bytes) -> Iterator[tuple[str, int]]:
    for key, value in tx.scan(prefix):
        yield key[len(prefix) :].decode(), U32.unpack(value)[0]


def group_stats(tx: Tx, topic: TopicRow, group_id: int) -> GroupStats:
    """A group that exists, in numbers."""
    data = tx.get(GROUP_KEY.pack(b"G", group_id))
    assert data is not None
    row = GroupRow(data)
    unread = topic.next[LANE] - row.cursor[LANE]
    return GroupStats(
        topic=decode_topic(topic.config).name,
        group=decode_group(row.config).name,
        lag=unread + row.ready + row.leased + row.waiting,
        unread=unread,
        ready=row.ready,
        leased=row.leased,
        waiting=row.waiting,
        dead=row.dead,
        acked=row.acked,
        delivered=row.delivered,
        redelivered=row.redelivered,
        failed=row.failed,
    )


def topic_stats(tx: Tx, topic_id: int) -> TopicStats:
    """A topic that exists, in numbers."""
    data = tx.get(TOPIC_KEY.pack(b"T", topic_id))
    assert data is not None
    row = TopicRow(data)
    return TopicStats(
        topic=decode_topic(row.config).name,
        put=row.next[LANE],
        stored=row.stored,
        segments=row.segments,
        bytes=row.bytes,
        last_put_ns=row.last_put_ns,
        groups=tuple(group_stats(tx, row, group_id) for _, group_id in group_ids(tx, topic_id)),
    )


def consumers(tx: Tx) -> tuple[ConsumerInfo, ...]:
    """The live consumers of all processes, by slot; none if the store was opened read-only."""
    if tx.engine.readonly:
        return ()
    found = []
    for _, slot in tx.engine.slots.live():
        data = tx.get(GROUP_KEY.pack(b"G", slot.group))
        if data is None:
            continue
        group = decode_group(GroupRow(data).config)
        topic = tx.get(TOPIC_KEY.pack(b"T", group.topic_id))
        name = decode_topic(TopicRow(topic).config).name if topic else ""
        found.append(
            ConsumerInfo(slot.name, slot.pid, name, group.name, slot.waiting, slot.handling)
        )
    return tuple(found)


def store_stats(engine: Engine) -> StoreStats:
    """A store in numbers."""
    info = engine.info()

    def snapshot(tx: Tx) -> StoreStats:
        meta = engine.meta
        return StoreStats(
            path=engine.path,
            store_id=meta.store_id.hex(),
            format_version=FORMAT_VERSION,
            durability=meta.durability,
            commit_id=tx.commit_id,
            file_bytes=os.stat(os.path.join(engine.path, files.DATA)).st_size,
            used_bytes=engine.used_bytes(tx),
            limit_bytes=meta.max_bytes,
            readers=info["readers"],
            oldest_reader_lag=info["last_txnid"] - info["oldest_reader"],
            topics=tuple(topic_stats(tx, topic_id) for _, topic_id in topic_ids(tx)),
            consumers=consumers(tx),
        )

    return engine.read(snapshot)
