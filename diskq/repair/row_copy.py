"""Rows of groups and topics, copied to a new store. For salvage; imported on demand."""

from __future__ import annotations

from collections.abc import Iterator

from ..format.decoding import unpacked
from ..format.layout import (
    DEDUP_KEY,
    ID_KEY,
    KEY_KEY,
    TIME_KEY,
    U32,
)
from ..storage.engine import Engine
from ..tables import dedup
from .hollow import hollow_held, sound_scheduled
from .log_copy import LogCopy, Put
from .remains import Remains


def group_rows(remains: Remains, engine: Engine) -> Iterator[Put]:
    """Leases, due times, keys and held messages of the groups that are there."""
    for kind, size in (
        (b"L", TIME_KEY.size),
        (b"D", TIME_KEY.size),
        (b"K", KEY_KEY.size),
    ):
        for key, value in remains.state_rows(kind, size):
            if ID_KEY.unpack_from(key)[1] in remains.groups:
                yield engine.state, key, value
    for key, value in remains.items(b"held"):
        with remains.noting("held messages"):
            kept, lost = hollow_held(key, value)
            if U32.unpack_from(key)[0] in remains.groups:
                remains.findings += lost
                yield engine.held, key, kept


def topic_rows(remains: Remains, copy: LogCopy, engine: Engine) -> Iterator[Put]:
    """Scheduled messages and receipts of the topics that are there."""
    for key, value in remains.items(b"schedule"):
        with remains.noting("scheduled messages"):
            message, topic_id = sound_scheduled(key, value), U32.unpack_from(key)[0]
            if topic_id in remains.topics:
                row = copy.topic(topic_id)
                row.next[message.lane]
                row.scheduled += 1
                row.numbered = max(row.numbered, message.number + 1)
                yield engine.schedule, key, value
    for key, value in remains.items(b"dedup"):
        with remains.noting("receipts of dedup_ids"):
            dedup.decode(value)
            if unpacked(DEDUP_KEY, key)[0] in remains.topics:
                yield engine.dedup, key, value
