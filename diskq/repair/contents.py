"""Decode every row of a store, for verify: each row that cannot be decoded is a finding, and the
other rows are checked all the same. Imported on demand.

The log is left out: verify decodes its segments one by one anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct

from ..base.errors import Corrupt
from ..base.model import Finding
from ..format.decoding import damaged, decode_name, unpacked
from ..format.held_row import decode_held
from ..format.layout import (
    DEAD,
    DEDUP_KEY,
    DELETED_KEY,
    HELD_KEY,
    ID_KEY,
    KEY_KEY,
    LIVE,
    PARK,
    PARK_KEY,
    SOLO,
    TIME_KEY,
    U32,
    U64,
)
from ..format.lease_row import decode_lease
from ..format.rows import GroupRow, Meta, TopicRow, decode_group, decode_topic
from ..format.segment import Segment, decode_record
from ..storage.tx import Tx
from ..tables import dedup, gaps, schedule

_NOTHING = Struct("")


def undecodable(tx: Tx) -> Iterator[Finding]:
    """A finding for each row outside of the logs that cannot be decoded."""
    engine = tx.engine
    places = (
        ("state", None, _decode_state),
        ("held", engine.held, _decode_held),
        ("schedule", engine.schedule, _decode_scheduled),
        ("dedup", engine.dedup, _decode_receipt),
    )
    for name, database, decode in places:
        for key, value in tx.scan(b"", database=database):
            if problem := _problem(decode, key, value):
                yield Finding("store", f"row {key.hex()} of {name}: {problem}")


def undecodable_records(where: str, segment: Segment) -> Iterator[Finding]:
    """A finding for each message of a sound segment that cannot be decoded."""
    if segment.flags:  # else they are plain bodies
        records = segment.records(0, segment.count)
        for offset, record in enumerate(records, segment.first):
            if problem := _problem(decode_record, record, segment.flags):
                yield Finding(where, f"offset {offset}: {problem}")


def _problem(decode: Callable[..., object], *of: object) -> str:
    """The reason why decoding fails, empty if it does not."""
    try:
        decode(*of)
    except Corrupt as error:
        return str(error).partition(";")[0]
    return ""


def _decode_state(key: bytes, value: bytes) -> None:
    kind = _STATE.get(key[:1])
    if kind is not None:
        kind(key, value)


def _decode_topic(key: bytes, value: bytes) -> None:
    unpacked(ID_KEY, key)
    row = TopicRow(value)
    if decode_topic(row.config).settings.priorities != len(row.next):
        raise damaged("the row of a topic, which has other priorities than lanes,")


def _decode_group(key: bytes, value: bytes) -> None:
    unpacked(ID_KEY, key)
    decode_group(GroupRow(value).config)


def _decode_due(key: bytes, value: bytes) -> None:
    unpacked(TIME_KEY, key)
    if value not in (b"", bytes([SOLO])):
        raise damaged("the flags of a waiting message")


def _decode_held(key: bytes, value: bytes) -> None:
    kind = key[U32.size : U32.size + 1]
    layout = PARK_KEY if kind == bytes([PARK]) else HELD_KEY
    if unpacked(layout, key)[1] not in (LIVE, DEAD, PARK):
        raise damaged("the kind of a message out of the log")
    row = decode_held(value)
    decode_record(row.record, row.flags)


def _decode_scheduled(key: bytes, value: bytes) -> None:
    message = schedule.decode(key, value)
    decode_record(message.record, message.flags)


def _decode_receipt(key: bytes, value: bytes) -> None:
    unpacked(DEDUP_KEY, key)
    dedup.decode(value)


_STATE: dict[bytes, Callable[[bytes, bytes], object]] = {
    b"M": lambda _, value: Meta(value),
    b"T": _decode_topic,
    b"G": _decode_group,
    b"N": lambda key, value: (decode_name(key[1:]), unpacked(U32, value)),
    b"H": lambda key, value: (
        unpacked(ID_KEY, key[: ID_KEY.size]),
        decode_name(key[ID_KEY.size :]),
        unpacked(U32, value),
    ),
    b"L": decode_lease,
    b"D": _decode_due,
    b"K": lambda key, value: (unpacked(KEY_KEY, key), unpacked(U64, value)),
    b"O": gaps.decode,
    b"X": lambda key, value: (unpacked(DELETED_KEY, key), unpacked(_NOTHING, value)),
}
