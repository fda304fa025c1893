"""Names and ids of topics and groups, and the row of the store, which has the next ids.

state  'M'                 the store
state  'N' name            id of a topic
state  'H' topic, name     id of a group
"""

from __future__ import annotations

from collections.abc import Iterator

from ..base import limits
from ..format.decoding import decode_name, unpacked
from ..format.layout import ID_KEY, META_KEY, U32
from ..format.rows import Meta
from ..storage.tx import Tx


def topic_ids(tx: Tx) -> Iterator[tuple[str, int]]:
    """Names and ids of all topics, by name."""
    return _names(tx, b"N")


def group_ids(tx: Tx, topic_id: int) -> Iterator[tuple[str, int]]:
    """Names and ids of a topic's groups, by name."""
    return _names(tx, ID_KEY.pack(b"H", topic_id))


def _names(tx: Tx, prefix: bytes) -> Iterator[tuple[str, int]]:
    for key, value in tx.scan(prefix):
        yield decode_name(key[len(prefix) :]), unpacked(U32, value)[0]


def topic_name(name: str) -> bytes:
    """The key of a topic's id."""
    return b"N" + name.encode()


def group_name(topic_id: int, name: str) -> bytes:
    """The key of a group's id."""
    return ID_KEY.pack(b"H", topic_id) + name.encode()


def find_topic(tx: Tx, name: str) -> int | None:
    """The id of a topic, None if there is none of this name."""
    return _id(tx.get(topic_name(name)))


def find_group(tx: Tx, topic_id: int, name: str) -> int | None:
    """The id of a topic's group, None if there is none of this name."""
    return _id(tx.get(group_name(topic_id, name)))


def _id(data: bytes | None) -> int | None:
    return None if data is None else int(unpacked(U32, data)[0])


def add_topic(tx: Tx, name: str, row: bytes) -> int:
    """Store the row of a new topic; returns its id."""
    meta = load_meta(tx)
    topic_id: int = meta.next_topic
    meta.next_topic += 1
    store_meta(tx, meta)
    tx.put(topic_name(name), U32.pack(topic_id))
    tx.put(ID_KEY.pack(b"T", topic_id), row)
    return topic_id


def add_group(tx: Tx, topic_id: int, name: str, row: bytes) -> int:
    """Store the row of a new group; returns its id, which the topic's row must know, too."""
    meta = load_meta(tx)
    group_id: int = meta.next_group
    meta.next_group += 1
    store_meta(tx, meta)
    tx.put(group_name(topic_id, name), U32.pack(group_id))
    tx.put(ID_KEY.pack(b"G", group_id), row)
    return group_id


def load_meta(tx: Tx) -> Meta:
    """The store's row, which the caller may change and store."""
    data = tx.get(META_KEY)
    assert data is not None
    return Meta(data)


def store_meta(tx: Tx, meta: Meta) -> None:
    """Write the store's row back."""
    tx.put(META_KEY, meta.pack())
    if meta.next_group + meta.next_topic >= limits.WAKE_WORDS:
        tx.engine.slots.share_words()
