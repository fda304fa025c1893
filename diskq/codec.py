"""Bytes to values and back: the format of a store. Pure; knows neither LMDB nor time.

Integers are big-endian, so that plain byte order sorts keys. `docs/reference/format.md` says the
same in prose. To change the format:

1. raise FORMAT_VERSION;  2. teach `decode_*` both versions, or refuse the old one in engine.py;
3. keep a store written by the last release under tests/ and open it there;  4. amend format.md.

Database `log`, `log.<topic>`: a segment, an immutable run of messages

    key    topic u32, first offset u64
    value  crc32 u32, version u8, flags u8, zero u16, count u32, put_at_ns u64,
           count times the end of a record u32, the records
    record body, or with flag RICH: key length + 1 u16 (0: no key), headers length u32, ttl_ns u64
           (0: none), key, headers (name length u16, name, value length u32, value, ...), body

The crc covers all of the value behind it, then the key: a segment in a wrong place is damage too.
An offset's top byte is its priority lane; each lane counts from 0.

Database `state`: every small row that changes

    'M'                                    the store
    'T' topic u32                          a topic: counters, next offset per lane, configuration
    'N' name                               id of a topic
    'G' group u32                          a group: counters, cursor per lane, configuration
    'H' topic u32, name                    id of a group
    'L' group u32, deadline u64, first u64 a lease over a run of offsets; deadline 0: given back
    'D' group u32, due_ns u64, offset u64  a waiting message's next delivery; no value
    'X' kind u8, id u32                    a deleted topic or group whose rows are being removed

Database `held`: messages out of the log's way for one group

    key    group u32, kind u8 (LIVE waiting or leased, DEAD), offset u64
    value  state u8, flags u8, failures u16, due_ns u64, put_at_ns u64, history length u32,
           history (at_ns u64, cause u8, consumer length u16, error length u16, both), record
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from struct import Struct, pack, unpack_from
from typing import NamedTuple
from zlib import crc32

from .errors import Corrupt
from .limits import MAX_HISTORY, SEGMENT_BYTES
from .model import Backoff, Failure, GroupSettings, Outgoing

FORMAT_VERSION = 1
SEGMENT_VERSION = 1

U32 = Struct(">I")
U64 = Struct(">Q")
LOG_KEY = Struct(">IQ")
TOPIC_KEY = Struct(">cI")
GROUP_KEY = Struct(">cI")
LEASE_KEY = Struct(">cIQQ")
HELD_KEY = Struct(">IBQ")
META_KEY = b"M"
LANE = 0  # every message is in the first lane until topics can have priorities


# Segments ---------------------------------------------------------------------------------------

RICH = 1
_SEGMENT = Struct(">IBBHIQ")
_RECORD = Struct(">HIQ")


class Packed(NamedTuple):
    """Messages encoded outside of the lock: all of a segment but its place, time and crc."""

    count: int
    flags: int
    content: bytes  # ends and records
    crc: int  # of content


def pack_messages(messages: Sequence[bytes | Outgoing]) -> list[Packed]:
    """Encode messages into segments of about SEGMENT_BYTES, a larger message alone."""
    flags = 0
    records: Sequence[bytes] = messages  # type: ignore[assignment]
    if any(type(message) is not bytes for message in messages):
        flags = RICH
        records = [_encode_record(message) for message in messages]
    if len(records) == 1:
        return [_pack_run(records, flags)]
    room = SEGMENT_BYTES - _SEGMENT.size
    packed = []
    start = 0
    ends = list(accumulate(len(record) + U32.size for record in records))
    while start < len(records):
        base = ends[start - 1] if start else 0
        stop = _last_within(ends, base + room, start)
        packed.append(_pack_run(records[start:stop], flags))
        start = stop
    return packed


def _last_within(ends: list[int], bound: int, start: int) -> int:
    """Index behind the last of `ends` that is <= bound, at least one behind `start`."""
    from bisect import bisect_right

    return max(bisect_right(ends, bound, start), start + 1)


def _pack_run(records: Sequence[bytes], flags: int) -> Packed:
    ends = accumulate(map(len, records))
    content = pack(f">{len(records)}I", *ends) + b"".join(records)
    return Packed(len(records), flags, content, crc32(content))


def encode_segment(key: bytes, packed: Packed, put_at_ns: int) -> bytes:
    """The value of a segment that goes to `key`."""
    head = _SEGMENT.pack(0, SEGMENT_VERSION, packed.flags, 0, packed.count, put_at_ns)[4:]
    return U32.pack(crc32(head + key, packed.crc)) + head + packed.content


def count_in(value: bytes) -> int:
    """How many messages a segment's value says it has, unchecked."""
    return int(_SEGMENT.unpack_from(value)[4])


class Segment:
    """A decoded segment; its messages are cut out on demand."""

    __slots__ = ("count", "data", "ends", "first", "flags", "put_at_ns", "start")

    def __init__(self, key: bytes, value: bytes) -> None:
        try:
            crc, version, self.flags, _, self.count, self.put_at_ns = _SEGMENT.unpack_from(value)
            self.start = _SEGMENT.size + 4 * self.count
            content = memoryview(value)[_SEGMENT.size :]
            sound = crc32(value[4 : _SEGMENT.size] + key, crc32(content)) == crc
            self.ends = unpack_from(f">{self.count}I", content)
        except Exception:
            sound = False
        topic_id, self.first = LOG_KEY.unpack(key)
        if not sound:
            raise Corrupt(
                f"segment at offset {self.first} of topic {topic_id} fails its checksum;"
                " run 'diskq verify' and restore the store from a backup",
                offset=self.first,
            )
        if version != SEGMENT_VERSION:
            raise Corrupt(f"segment at offset {self.first} has unknown version {version}")
        self.data = value

    def records(self, start: int, stop: int) -> list[bytes]:
        """Records `start` to `stop` by position in the segment."""
        base, ends, data = self.start, self.ends, self.data
        begin = base + (ends[start - 1] if start else 0)
        records = []
        for end in ends[start:stop]:
            end += base
            records.append(data[begin:end])
            begin = end
        return records


class Parts(NamedTuple):
    """A record taken apart; `ttl_ns` 0 means it never expires."""

    body: bytes
    key: str | None
    headers: dict[str, str]
    ttl_ns: int


def _encode_record(message: bytes | Outgoing) -> bytes:
    if type(message) is bytes:
        return _RECORD.pack(0, 0, 0) + message
    body, key, headers = message  # type: ignore[misc]
    raw_key = b"" if key is None else key.encode()
    raw_headers = encode_headers(headers or {})
    head = _RECORD.pack(0 if key is None else len(raw_key) + 1, len(raw_headers), 0)
    return b"".join((head, raw_key, raw_headers, body))


def decode_record(record: bytes, flags: int) -> Parts:
    """Take a record of a segment or held row with these flags apart."""
    if not flags & RICH:
        return Parts(record, None, {}, 0)
    key_length, headers_length, ttl_ns = _RECORD.unpack_from(record)
    at = _RECORD.size
    key = None
    if key_length:
        key = record[at : at + key_length - 1].decode()
        at += key_length - 1
    headers = decode_headers(record[at : at + headers_length]) if headers_length else {}
    return Parts(record[at + headers_length :], key, headers, ttl_ns)


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """Headers as they are stored; their length is what the limit counts."""
    parts = []
    for name, value in headers.items():
        raw_name, raw_value = name.encode(), value.encode()
        parts += (pack(">H", len(raw_name)), raw_name, U32.pack(len(raw_value)), raw_value)
    return b"".join(parts)


def decode_headers(data: bytes) -> dict[str, str]:
    """The inverse of encode_headers."""
    headers = {}
    at = 0
    while at < len(data):
        (length,) = unpack_from(">H", data, at)
        name = data[at + 2 : at + 2 + length].decode()
        at += 2 + length
        (length,) = unpack_from(">I", data, at)
        headers[name] = data[at + 4 : at + 4 + length].decode()
        at += 4 + length
    return headers


# Store ------------------------------------------------------------------------------------------

DURABILITIES = ("commit", "relaxed", "process")
_META = Struct(">HB16s16sQQQII")


class Meta:
    """The row of the store: what holds for all of it."""

    __slots__ = (
        "boot_id",
        "commit_base",
        "created_ns",
        "durability",
        "format_version",
        "max_bytes",
        "next_group",
        "next_topic",
        "store_id",
    )

    def __init__(self, data: bytes) -> None:
        (
            self.format_version,
            durability,
            self.store_id,
            self.boot_id,
            self.created_ns,
            self.commit_base,  # added to LMDB's transaction ids, which a compacting copy resets
            self.max_bytes,
            self.next_topic,
            self.next_group,
        ) = _META.unpack_from(data)
        self.durability = DURABILITIES[durability]

    def encode(self) -> bytes:
        return _META.pack(
            self.format_version,
            DURABILITIES.index(self.durability),
            self.store_id,
            self.boot_id,
            self.created_ns,
            self.commit_base,
            self.max_bytes,
            self.next_topic,
            self.next_group,
        )


def new_meta(
    durability: str, store_id: bytes, boot_id: bytes, created_ns: int, max_bytes: int
) -> bytes:
    """The row of a new store."""
    number = DURABILITIES.index(durability)
    return _META.pack(FORMAT_VERSION, number, store_id, boot_id, created_ns, 0, max_bytes, 1, 1)


def format_version(data: bytes) -> int:
    """The version in a store's row, readable in every version."""
    return int.from_bytes(data[:2], "big")


# Topics -----------------------------------------------------------------------------------------

_TOPIC = Struct(">QQQQQBH")
_TOPIC_CONFIG = Struct(">BBQQQQH")  # retention, discard, ages, sizes: one value each in version 1


class TopicConfig(NamedTuple):
    """What of a topic changes seldom."""

    name: str
    groups: tuple[int, ...]


class TopicRow:
    """A topic: its counters, and its next offset in each lane."""

    __slots__ = ("bytes", "config", "dropped", "last_put_ns", "next", "segments", "stored")

    def __init__(self, data: bytes) -> None:
        (
            self.last_put_ns,
            self.stored,
            self.segments,
            self.bytes,
            self.dropped,
            lanes,
            _,
        ) = _TOPIC.unpack_from(data)
        self.next = list(unpack_from(f">{lanes}Q", data, _TOPIC.size))
        self.config = data[_TOPIC.size + 8 * lanes :]

    def encode(self) -> bytes:
        lanes = len(self.next)
        return (
            _TOPIC.pack(
                self.last_put_ns, self.stored, self.segments, self.bytes, self.dropped, lanes, 0
            )
            + pack(f">{lanes}Q", *self.next)
            + self.config
        )


def new_topic(name: str) -> bytes:
    """The row of a new topic."""
    return _TOPIC.pack(0, 0, 0, 0, 0, 1, 0) + U64.pack(0) + encode_topic(TopicConfig(name, ()))


def encode_topic(config: TopicConfig) -> bytes:
    name = config.name.encode()
    settings = _TOPIC_CONFIG.pack(0, 0, 0, 0, 0, 0, len(name))
    return settings + name + pack(f">{len(config.groups)}I", *config.groups)


@lru_cache(maxsize=1024)
def decode_topic(data: bytes) -> TopicConfig:
    *_, length = _TOPIC_CONFIG.unpack_from(data)
    at = _TOPIC_CONFIG.size + length
    groups = unpack_from(f">{(len(data) - at) // 4}I", data, at)
    return TopicConfig(data[_TOPIC_CONFIG.size : at].decode(), groups)


# Groups -----------------------------------------------------------------------------------------

_GROUP = Struct(">QQQQQQQQqB")
_GROUP_CONFIG = Struct(">IdIdddIBBH")


class GroupConfig(NamedTuple):
    """What of a group changes seldom."""

    topic_id: int
    name: str
    settings: GroupSettings


class GroupRow:
    """A group: its cursor in each lane, and how many messages are in which state.

    Always: sum(cursor) = skipped + acked + ready + leased + waiting + dead.
    """

    __slots__ = (
        "acked",
        "config",
        "cursor",
        "data",
        "dead",
        "delivered",
        "failed",
        "leased",
        "ready",
        "redelivered",
        "skipped",
        "waiting",
    )

    def __init__(self, data: bytes) -> None:
        (
            self.acked,
            self.delivered,
            self.redelivered,
            self.failed,
            self.ready,
            self.leased,
            self.waiting,
            self.dead,
            self.skipped,
            lanes,
        ) = _GROUP.unpack_from(data)
        self.data = data  # as it was read
        self.cursor = list(unpack_from(f">{lanes}Q", data, _GROUP.size))
        self.config = data[_GROUP.size + 8 * lanes :]

    def encode(self) -> bytes:
        lanes = len(self.cursor)
        return (
            _GROUP.pack(
                self.acked,
                self.delivered,
                self.redelivered,
                self.failed,
                self.ready,
                self.leased,
                self.waiting,
                self.dead,
                self.skipped,
                lanes,
            )
            + pack(f">{lanes}Q", *self.cursor)
            + self.config
        )


def new_group(config: GroupConfig, cursor: Sequence[int]) -> bytes:
    """The row of a new group whose next message in each lane is `cursor`."""
    counters = _GROUP.pack(0, 0, 0, 0, 0, 0, 0, 0, sum(cursor), len(cursor))
    return counters + pack(f">{len(cursor)}Q", *cursor) + encode_group(config)


def encode_group(config: GroupConfig) -> bytes:
    settings = config.settings
    name = config.name.encode()
    head = _GROUP_CONFIG.pack(
        config.topic_id,
        settings.lease_seconds,
        settings.max_deliveries,
        *settings.backoff,
        settings.max_in_flight or 0,
        0,  # ordering and paused: one value each in version 1
        0,
        len(name),
    )
    return head + name


@lru_cache(maxsize=1024)
def decode_group(data: bytes) -> GroupConfig:
    topic_id, lease_seconds, max_deliveries, base, factor, most, in_flight, _, _, length = (
        _GROUP_CONFIG.unpack_from(data)
    )
    name = data[_GROUP_CONFIG.size : _GROUP_CONFIG.size + length].decode()
    backoff = Backoff(base, factor, most)
    settings = GroupSettings(lease_seconds, max_deliveries, backoff, in_flight or None)
    return GroupConfig(topic_id, name, settings)


# Leases -----------------------------------------------------------------------------------------

HELD, SOLO = 1, 2
_LEASE = Struct(">QQQHBI")


class LeaseRow:
    """The right to the unsettled messages of the run `first` to `first + count`.

    `settled` is a bit set by position. Flag HELD: the one message is in `held`, not in the log.
    Flag SOLO: a batch died and nobody knows of which message, so deliver them one by one.
    """

    __slots__ = (
        "count",
        "deadline_ns",
        "first",
        "flags",
        "granted_ns",
        "owner",
        "settled",
        "slot",
        "token",
    )

    def __init__(
        self,
        first: int,
        count: int,
        settled: int = 0,
        flags: int = 0,
        deadline_ns: int = 0,
        token: int = 0,
        owner: int = 0,
        slot: int = 0,
        granted_ns: int = 0,
    ) -> None:
        self.first = first
        self.count = count
        self.settled = settled
        self.flags = flags
        self.deadline_ns = deadline_ns
        self.token = token
        self.owner = owner
        self.slot = slot
        self.granted_ns = granted_ns

    @property
    def unsettled(self) -> int:
        """How many of its messages are not settled."""
        return self.count - self.settled.bit_count()

    @property
    def next_unsettled(self) -> int:
        """The offset of its first unsettled message; only if there is one."""
        return self.first + (~self.settled & (self.settled + 1)).bit_length() - 1

    def positions(self) -> list[int]:
        """Positions of its unsettled messages in the run, rising."""
        settled = self.settled
        if not settled:
            return list(range(self.count))
        return [at for at in range(self.count) if not settled >> at & 1]

    def holds(self, offset: int) -> bool:
        """Whether this offset is one of its unsettled messages."""
        at = offset - self.first
        return 0 <= at < self.count and not self.settled >> at & 1

    def encode(self) -> bytes:
        return _LEASE.pack(
            self.token, self.owner, self.granted_ns, self.slot, self.flags, self.count
        ) + self.settled.to_bytes((self.count + 7) // 8, "big")


def decode_lease(key: bytes, value: bytes) -> LeaseRow:
    _, _, deadline_ns, first = LEASE_KEY.unpack(key)
    token, owner, granted_ns, slot, flags, count = _LEASE.unpack_from(value)
    settled = int.from_bytes(value[_LEASE.size :], "big")
    return LeaseRow(first, count, settled, flags, deadline_ns, token, owner, slot, granted_ns)


# Held messages ----------------------------------------------------------------------------------

LIVE, DEAD = 0, 1  # kinds of keys
WAITING, LEASED, BURIED = 1, 2, 3  # states
CAUSES = ("", "nack", "reject", "expired", "crashed", "redriven")
_HELD = Struct(">BBHQQI")
_HISTORY = Struct(">QBHH")


class HeldRow:
    """A message out of the log's way, with all that happened to it. `due_ns` is 0 unless waiting;
    of a dead one it is when it died."""

    __slots__ = ("due_ns", "failures", "flags", "history", "put_at_ns", "record", "state")

    def __init__(
        self,
        state: int,
        flags: int,
        failures: int,
        due_ns: int,
        put_at_ns: int,
        history: tuple[Failure, ...],
        record: bytes,
    ) -> None:
        self.state = state
        self.flags = flags
        self.failures = failures
        self.due_ns = due_ns
        self.put_at_ns = put_at_ns
        self.history = history
        self.record = record

    def encode(self) -> bytes:
        history = b"".join(map(_encode_failure, self.history[-MAX_HISTORY:]))
        head = _HELD.pack(
            self.state, self.flags, self.failures, self.due_ns, self.put_at_ns, len(history)
        )
        return head + history + self.record


def decode_held(data: bytes) -> HeldRow:
    state, flags, failures, due_ns, put_at_ns, length = _HELD.unpack_from(data)
    start = _HELD.size
    history = tuple(_decode_history(data[start : start + length]))
    return HeldRow(state, flags, failures, due_ns, put_at_ns, history, data[start + length :])


def _encode_failure(failure: Failure) -> bytes:
    consumer, error = failure.consumer.encode(), failure.error.encode()
    head = _HISTORY.pack(failure.at_ns, CAUSES.index(failure.cause), len(consumer), len(error))
    return head + consumer + error


def _decode_history(data: bytes) -> Iterable[Failure]:
    at = 0
    while at < len(data):
        at_ns, cause, consumer, error = _HISTORY.unpack_from(data, at)
        at += _HISTORY.size
        texts = data[at : at + consumer].decode(), data[at + consumer : at + consumer + error]
        at += consumer + error
        yield Failure(at_ns, CAUSES[cause], texts[0], texts[1].decode())
