"""Messages that cannot be decoded, though their checksums are right, made purged ones: for salvage.
Imported on demand.

They are lost, but keep their offset and their place, so that all that is known of their neighbours
stays true.
"""

from __future__ import annotations

from contextlib import suppress

from ..base.errors import Corrupt
from ..format.held_row import decode_held
from ..format.layout import RETURNED, SOLO
from ..format.segment import (
    PURGED,
    RICH,
    Segment,
    decode_record,
    encode_segment,
    key_of,
    pack_run,
    purged_record,
)
from ..tables import schedule
from ..tables.schedule import Scheduled


def hollow_segment(key: bytes, value: bytes, segment: Segment) -> tuple[bytes, list[str]]:
    """The value of a segment, and a text for each message in it that is lost."""
    if not segment.flags:
        return value, []
    records = list(segment.records(0, segment.count))
    lost = [at for at, record in enumerate(records) if not _is_sound(record, segment.flags)]
    if not lost:
        return value, []
    for at in lost:
        records[at] = purged_record(None)
    run = pack_run(records, segment.flags | PURGED)
    found = [f"message {segment.first + at} cannot be decoded, and is lost" for at in lost]
    return encode_segment(key, run, *segment.put), found


def hollow_held(key: bytes, value: bytes) -> tuple[bytes, list[str]]:
    """The same of a held message. Raises: Corrupt, if not even its row can be decoded."""
    row = decode_held(value)
    if _is_sound(row.record, row.flags):
        return value, []
    message_key = None
    with suppress(Corrupt, ValueError):
        if found := key_of(row.record, row.flags):
            found.decode()
            message_key = found
    row.record, row.flags = (
        purged_record(message_key),
        RICH | PURGED | row.flags & (SOLO | RETURNED),
    )
    return row.encode(), [f"held message {key.hex()} cannot be decoded, and is lost"]


def sound_scheduled(key: bytes, value: bytes) -> Scheduled:
    """A scheduled message. Raises: Corrupt, if it cannot be decoded; it is left out then."""
    message = schedule.decode(key, value)
    decode_record(message.record, message.flags)
    return message


def _is_sound(record: bytes, flags: int) -> bool:
    try:
        decode_record(record, flags)
    except Corrupt:
        return False
    return True
