"""Segments: immutable runs of messages, the values of the log. Pure bytes to values and back.

    key     topic u32, first offset u64
    value   crc32 u32, version u8, flags u8, boot u16, count u32, put_at_ns u64, wall_ns u64,
            elapsed_ns u64, count times the end of a record u32, the records
    record  body, or with flag RICH: key length + 1 u16 (0: no key), headers length u32, ttl_ns u64
            (0: none; all bits: the message was purged, and only its key is left), key,
            headers (name length u16, name, value length u32, value, ...), body

The crc covers all of the value behind it, then the key: a segment in a wrong place is damage too.
An offset's top byte is its priority lane; each lane counts from 0. Integers are big-endian.
Whatever the bytes are, decoding them either works or raises Corrupt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from struct import Struct, pack, unpack_from
from typing import NamedTuple
from zlib import crc32

from ..base.clock import Stamp, nanoseconds
from ..base.errors import WAY_OUT, Corrupt
from ..base.limits import SEGMENT_BYTES
from ..base.model import Outgoing
from .decoding import WRONG, damaged, unpacked
from .layout import RETURNED, SOLO, U16, U32

LOG_KEY = Struct(">IQ")
SEGMENT_VERSION = 1
RICH, TTL, PURGED = 1, 8, 16  # TTL: some messages may expire; PURGED: some were purged
FLAGS = {0, *(RICH | more for more in (0, TTL, PURGED, TTL | PURGED))}  # of records
_OF_HELD = SOLO | RETURNED  # flags of a held message's history, not of its record
_GONE = 2**64 - 1  # as the ttl_ns of a purged message
_SEGMENT = Struct(">IBBHIQQQ")
_RECORD = Struct(">HIQ")


class Packed(NamedTuple):
    """A run of messages encoded outside the lock: a segment without its place, time and crc."""

    length: int
    flags: int
    content: bytes  # ends and records
    crc: int  # of content

    @property
    def size(self) -> int:
        """Bytes of the segment's value."""
        return _SEGMENT.size + len(self.content)


def stored_size(records: Sequence[int], runs: int) -> int:
    """About how many bytes records of these sizes take in segments, of which there are at least
    `runs`."""
    content = sum(records) + U32.size * len(records)
    return content + _SEGMENT.size * (runs + content // SEGMENT_BYTES)


def pack_messages(
    messages: Sequence[bytes | Outgoing], outgoing: Sequence[Outgoing]
) -> list[Packed]:
    """Encode messages, some of which are `outgoing`, into segments of about SEGMENT_BYTES; a larger
    message is alone in its segment."""
    if not outgoing:
        return pack_records(messages, 0)  # type: ignore[arg-type]
    expire = any(message.ttl_seconds is not None for message in outgoing)
    records = [encode_record(message) for message in messages]
    return pack_records(records, RICH | TTL if expire else RICH)


def pack_records(records: Sequence[bytes], flags: int) -> list[Packed]:
    """Encode records likewise."""
    if len(records) == 1:
        return [pack_run(records, flags)]
    room = SEGMENT_BYTES - _SEGMENT.size
    ends = list(accumulate(len(record) + U32.size for record in records))
    packed = []
    start = base = 0
    while start < len(records):
        stop = max(bisect_right(ends, base + room, start), start + 1)
        packed.append(pack_run(records[start:stop], flags))
        start, base = stop, ends[stop - 1]
    return packed


def pack_run(records: Sequence[bytes], flags: int) -> Packed:
    """Encode records into one segment."""
    ends = pack(f">{len(records)}I", *accumulate(map(len, records)))
    content = b"".join((ends, *records))
    return Packed(len(records), flags, content, crc32(content))


def encode_segment(
    key: bytes,
    packed: Packed,
    put_at_ns: int,
    wall_ns: int = 0,
    elapsed_ns: int = 0,
    boot: int = 0,
) -> bytes:
    """The value of a segment at `key`; the numbers are those of a Stamp."""
    numbers = SEGMENT_VERSION, packed.flags, boot, packed.length, put_at_ns, wall_ns, elapsed_ns
    head = _SEGMENT.pack(0, *numbers)[4:]
    return U32.pack(crc32(head + key, packed.crc)) + head + packed.content


def head_of(value: bytes) -> tuple[int, Stamp]:
    """The number of messages in a segment's value, and the time of their put, without a look at the
    checksum. Raises: Corrupt."""
    try:
        _, _, _, boot, count, put_at_ns, wall_ns, elapsed_ns = _SEGMENT.unpack_from(value)
    except WRONG:
        raise damaged("a segment") from None
    return count, Stamp(put_at_ns, wall_ns, elapsed_ns, boot)


class Segment:
    """A decoded segment; its records are cut out on demand. Raises: Corrupt."""

    __slots__ = ("count", "data", "ends", "first", "flags", "put", "start")

    def __init__(self, key: bytes, value: bytes) -> None:
        try:
            topic_id, self.first = LOG_KEY.unpack(key)
            crc, version, flags, boot, count, put_at_ns, wall_ns, elapsed_ns = _SEGMENT.unpack_from(
                value
            )
            self.flags, self.count = flags, count
            self.put = Stamp(put_at_ns, wall_ns, elapsed_ns, boot)
            self.ends = unpack_from(f">{count}I", value, _SEGMENT.size)
            content_crc = crc32(memoryview(value)[_SEGMENT.size :])
            sound = crc == crc32(value[4 : _SEGMENT.size] + key, content_crc)
            self.start = start = _SEGMENT.size + U32.size * count
            whole = self.ends[-1] == len(value) - start and version == SEGMENT_VERSION
            whole = (
                whole and flags in FLAGS and (count == 1 or list(self.ends) == sorted(self.ends))
            )
        except WRONG:
            sound = whole = False
        if not (sound and whole):
            topic_id, first = unpacked(LOG_KEY, key)
            why = "cannot be decoded" if sound else "fails its checksum"
            raise Corrupt(
                f"the segment at offset {first} of topic {topic_id} {why}; run 'diskq verify', then"
                f" {WAY_OUT}",
                offset=first,
            )
        self.data = value

    @property
    def put_at_ns(self) -> int:
        """The time of the put of all its messages, as users see it."""
        return self.put.put_at_ns

    def records(self, start: int, stop: int) -> Iterator[bytes]:
        """Records `start` to before `stop`, by position in the segment."""
        base, data = self.start, self.data
        begin = base + (self.ends[start - 1] if start else 0)
        for end in self.ends[start:stop]:
            yield data[begin : base + end]
            begin = base + end


class Parts(NamedTuple):
    """The parts of a record; `ttl_ns` 0 means that it never expires."""

    body: bytes
    key: str | None
    headers: dict[str, str]
    ttl_ns: int


def encode_record(message: bytes | Outgoing) -> bytes:
    """A message as a record of a RICH segment."""
    if isinstance(message, bytes):
        return _RECORD.pack(0, 0, 0) + message
    key = b"" if message.key is None else message.key.encode()
    headers = encode_headers(message.headers or {})
    ttl_ns = 0 if message.ttl_seconds is None else nanoseconds(message.ttl_seconds)
    head = _RECORD.pack(0 if message.key is None else len(key) + 1, len(headers), ttl_ns)
    return b"".join((head, key, headers, message.body))


def decode_record(record: bytes, flags: int, what: str = "a message") -> Parts:
    """Decode a record of a segment or held row with these flags. Raises: Corrupt."""
    if not (flags := flags & ~_OF_HELD):
        return Parts(record, None, {}, 0)
    if flags not in FLAGS:
        raise damaged(f"{what} with the flags {flags}")
    try:
        key_length, headers_length, ttl_ns = _RECORD.unpack_from(record)
        headers_at = _RECORD.size + max(key_length - 1, 0)
        body_at = headers_at + headers_length
        key = record[_RECORD.size : headers_at].decode() if key_length else None
        headers = decode_headers(record[headers_at:body_at]) if headers_length else {}
        if body_at > len(record):
            raise IndexError(body_at)
    except (Corrupt, *WRONG) as error:
        raise damaged(what) from error
    return Parts(record[body_at:], key, headers, ttl_ns)


def key_of(record: bytes, flags: int) -> bytes | None:
    """The key in a record, None if it has none. Raises: Corrupt."""
    if not flags & RICH or not (length := _head_of_record(record)[0]):
        return None
    key = record[_RECORD.size : _RECORD.size + length - 1]
    if len(key) != length - 1:
        raise damaged("the key of a message")
    return key


def ttl_of(record: bytes, flags: int) -> int:
    """Nanoseconds until a record expires, 0 if it never does. Raises: Corrupt."""
    return _head_of_record(record)[2] if flags & TTL else 0


def is_purged(record: bytes, flags: int) -> bool:
    """Whether only the key of a message is left. Raises: Corrupt."""
    return bool(flags & PURGED) and _head_of_record(record)[2] == _GONE


def _head_of_record(record: bytes) -> tuple[int, int, int]:
    """Key length + 1, headers length and ttl_ns."""
    try:
        return _RECORD.unpack_from(record)
    except WRONG:
        raise damaged("a message") from None


def purged_record(key: bytes | None) -> bytes:
    """The record of a purged message with this key."""
    return _RECORD.pack(0 if key is None else len(key) + 1, 0, _GONE) + (key or b"")


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Headers as they are stored."""
    parts: list[bytes] = []
    for name, value in headers.items():
        raw_name, raw_value = name.encode(), value.encode()
        parts += U16.pack(len(raw_name)), raw_name, U32.pack(len(raw_value)), raw_value
    return b"".join(parts)


def decode_headers(data: bytes) -> dict[str, str]:
    """The inverse of encode_headers. Raises: Corrupt."""
    texts: list[str] = []
    at = 0
    try:
        while at < len(data):
            length = U32 if len(texts) % 2 else U16
            start = at + length.size
            at = start + length.unpack_from(data, at)[0]
            texts.append(data[start:at].decode())
        if at != len(data):
            raise IndexError(at)
        return dict(zip(texts[::2], texts[1::2], strict=True))
    except WRONG as error:
        raise damaged("the headers of a message") from error
