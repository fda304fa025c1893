"""Names, ids and rows of topics and groups, and whether each row belongs to one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

from ..base.errors import Corrupt
from ..base.model import Finding
from ..format.decoding import unpacked
from ..format.layout import DELETED_GROUP, ID_KEY, META_KEY, U32
from ..format.rows import GroupRow, Meta, TopicRow, decode_group, decode_topic
from ..storage.tx import Tx
from ..tables import catalog

R = TypeVar("R", TopicRow, GroupRow)


def sound_rows(
    tx: Tx, prefix: bytes, kind: Callable[[bytes], R], decode: Callable[[bytes], object]
) -> dict[int, R]:
    """The topics or groups, by id, whose rows can be decoded; the others are findings."""
    found: dict[int, R] = {}
    for key, value in tx.scan(prefix):
        with suppress(Corrupt):
            row = kind(value)
            decode(row.config)
            found[unpacked(ID_KEY, key)[1]] = row
    return found


def check_names(
    tx: Tx, topics: dict[int, TopicRow], groups: dict[int, GroupRow]
) -> Iterator[Finding]:
    """Names, rows and lists of ids tell the same."""
    data = tx.get(META_KEY)
    assert data is not None
    meta = Meta(data)
    if max(topics, default=0) >= meta.next_topic or max(groups, default=0) >= meta.next_group:
        yield Finding("store", "an id is in use that is still to be given out")
    named = {topic_id: name for name, topic_id in catalog.topic_ids(tx)}
    rows = {topic_id: decode_topic(topic.config).name for topic_id, topic in topics.items()}
    if named != rows:
        yield Finding("store", f"topics by name {named}, by row {rows}")
    for topic_id, topic in topics.items():
        ids = decode_topic(topic.config).groups
        named = {group_id: name for name, group_id in catalog.group_ids(tx, topic_id)}
        rows = {
            group_id: decode_group(group.config).name
            for group_id, group in groups.items()
            if decode_group(group.config).topic_id == topic_id
        }
        if named != rows or sorted(ids) != sorted(rows):
            yield Finding("store", f"groups by name {named}, by row {rows}, by topic {ids}")


def check_owners(tx: Tx, topics: set[int], groups: set[int]) -> Iterator[Finding]:
    """Every row belongs to a topic or group that exists, or is being deleted."""
    for key, _ in tx.scan(b"X"):
        (groups if key[1] == DELETED_GROUP else topics).add(U32.unpack(key[2:])[0])
    for prefix, owners in ((b"L", groups), (b"D", groups), (b"K", groups), (b"O", topics)):
        for key, _ in tx.scan(prefix):
            if U32.unpack_from(key, 1)[0] not in owners:
                yield Finding("store", f"row {key!r} belongs to nothing")
    engine = tx.engine
    for name, owners in ((engine.held, groups), (engine.schedule, topics), (engine.dedup, topics)):
        for key, _ in tx.scan(b"", database=name):
            if U32.unpack_from(key)[0] not in owners:
                yield Finding("store", f"row {key!r} belongs to nothing")
