"""The rows of `state` and `held`, and their keys. Pure bytes to values and back.

Bytes come from a file that anybody may have written: what cannot be decoded is Corrupt, and no
other error.

Integers are big-endian, so that plain byte order sorts keys; `docs/reference/format.md` has every
field. To change the format:

1. raise FORMAT_VERSION;  2. teach the decoders both versions, or refuse the old one in engine.py;
3. keep a store written by the last release under tests/ and open it there;  4. amend format.md.

    'M'                                    the store
    'T' topic u32                          a topic: counters, next offset per lane, configuration
    'N' name                               id of a topic
    'G' group u32                          a group: counters, cursor per lane, configuration
    'H' topic u32, name                    id of a group
    'L' group u32, deadline u64, first u64 a lease over a run of offsets; deadline 0: given back
    'D' group u32, due_ns u64, offset u64  a waiting message's next delivery, and if it is a suspect
    'K' group u32, key hash u64            the offset that has this key: leased, ready or waiting
    'O' topic u32, first u64               a gap in a topic's log: the offset where it stops
    'X' kind u8, id u32                    a deleted topic or group whose rows are being removed

    held, messages that left the log's way for one group:
    group u32, kind u8, offset u64             waiting, leased again or dead
    group u32, PARK u8, key hash u64, offset u64   parked: an earlier message has their key

    schedule: topic u32, due_ns u64, n u64     a message without an offset yet
    dedup: topic u32, bucket u64, digest       the receipt of a put with a dedup_id
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from struct import Struct, pack
from struct import error as struct_error
from threading import Thread
from typing import Any, ClassVar, NamedTuple
from zlib import crc32

from .clock import NS, Stamp, nanoseconds
from .decoding import WRONG, damaged, decode_name, unpacked
from .errors import WAY_OUT, Corrupt
from .limits import MAX_HISTORY, MAX_HISTORY_BYTES, MAX_PRIORITIES
from .model import LANE_BITS, Backoff, Failure, GroupSettings, TopicSettings

FORMAT_VERSION = 2
MAX_RUN = 1 << 24  # messages of a lease: one commit has no more tokens

U16, U32, U64 = Struct(">H"), Struct(">I"), Struct(">Q")
ID_KEY = Struct(">cI")  # a prefix of `state`, and a topic or group
TIME_KEY = Struct(">cIQQ")  # lease and due rows: prefix, group, time, offset
HELD_KEY = Struct(">IBQ")
PARK_KEY = Struct(">IBQQ")
SCHEDULE_KEY = Struct(">IQQ")
DEDUP_KEY = Struct(">IQ16s")
KEY_KEY = Struct(">cIQ")  # of the row that says which message has a key
GAP_KEY = Struct(">cIQ")
META_KEY = b"M"
_MOST_SECONDS = 1e9  # of a stored duration: no sum of times is over 64 bits


class Row:
    """A row's numbers, by name: its annotations, in the order of its layout. Subclasses add what
    has no fixed size.

    `unpack(data)` takes the numbers from the front of `data`, `pack()` has them as they are stored.
    Both are written out per class, as dataclasses do: a loop over the names takes twice as long.
    """

    layout: ClassVar[Struct]
    unpack: Callable[[bytes], None]
    pack: Callable[[], bytes]

    def __init_subclass__(cls, layout: str = "") -> None:
        if layout:
            cls.layout = Struct(layout)
            numbers = ", ".join(f"self.{name}" for name in cls.__annotations__)
            source = f"""
def unpack(self, data): {numbers} = layout.unpack_from(data)
def pack(self): return layout.pack({numbers})"""
            made: dict[str, Any] = {}
            exec(source, {"layout": cls.layout}, made)
            cls.unpack, cls.pack = made["unpack"], made["pack"]


DURABILITIES = ("commit", "relaxed", "process")
COPY = b"\xff" * 16  # a boot that never was: whoever opens a copy voids the leases in it


class Meta(Row, layout=">HB16s16sQQQIIQ"):
    """The store. Raises: Corrupt."""

    format_version: int
    durability: int  # index into DURABILITIES
    store_id: bytes
    boot_id: bytes  # of the boot that the leases belong to
    created_ns: int
    commit_base: int  # added to LMDB's transaction ids, which a compacting copy resets
    max_bytes: int  # 0: as many as the disk has
    next_topic: int
    next_group: int
    boot_noted_ns: int  # elapsed_ns when the store was first opened in that boot

    def __init__(self, data: bytes) -> None:
        try:
            self.unpack(data)
            DURABILITIES[self.durability]
        except WRONG as error:
            raise damaged("the row of the store") from error


def new_meta(durability: str, max_bytes: int, store_id: bytes, boot_id: bytes, now: int) -> bytes:
    """The row of a new store."""
    number = DURABILITIES.index(durability)
    return Meta.layout.pack(FORMAT_VERSION, number, store_id, boot_id, now, 0, max_bytes, 1, 1, 0)


def format_version(data: bytes) -> int:
    """The version in a store's row, readable in every version. Raises: Corrupt."""
    return int(unpacked(U16, data[: U16.size])[0])


class CountedRow(Row):
    """Counters, then how far each lane is (`next`), then an encoded configuration.

    Raises: Corrupt.
    """

    next: list[int]

    def __init__(self, data: bytes) -> None:
        self.data = data  # as it was read
        try:
            self.unpack(data)
            lanes = _LANES[data[self.layout.size]]
            self.next = list(lanes.unpack_from(data, self.layout.size)[1:])
            if max(self.next) >> LANE_BITS:
                raise OverflowError(self.next)
        except WRONG as error:
            raise damaged("the row of a topic or group") from error
        self.config = data[self.layout.size + lanes.size :]

    def encode(self) -> bytes:
        """The row as it is stored. Raises: Corrupt, if it was wrong when it was read."""
        try:
            return self.pack() + _encode_lanes(self.next) + self.config
        except struct_error as error:  # a counter fell below 0
            raise damaged("the row of a topic or group, whose counters do not add up,") from error

    def offset(self, lane: int) -> int:
        """The offset that is next in a lane."""
        return (lane << LANE_BITS) + self.next[lane]

    @property
    def offsets(self) -> list[int]:
        """The offset that is next in each lane."""
        return [self.offset(lane) for lane in range(len(self.next))]


_LANES = [Struct(f">B{lanes}Q") for lanes in range(MAX_PRIORITIES + 1)]


def _encode_lanes(lanes: Sequence[int]) -> bytes:
    return _LANES[len(lanes)].pack(len(lanes), *lanes)


class TopicRow(CountedRow, layout=">QQQQQQQQQ"):
    """A topic: its counters, `next` to be put in each lane, its TopicConfig."""

    last_put_ns: int
    stored: int
    segments: int
    bytes: int
    dropped: int
    scheduled: int
    numbered: int  # messages ever scheduled
    rewritten: int  # how often stored segments were changed, by a purge
    gaps: int  # rows of gaps in its log


class GroupRow(CountedRow, layout=">QQQQQQQQQQQQqQ"):
    """A group: its counters, `next` never taken in each lane (its cursor), its GroupConfig.

    Always: sum(next) = skipped + acked + ready + leased + waiting + parked + dead + expired
    + dropped + purged.
    """

    acked: int
    delivered: int
    redelivered: int
    failed: int
    ready: int
    leased: int
    waiting: int
    parked: int
    dead: int
    expired: int
    dropped: int
    purged: int
    skipped: int  # offsets before its start or in gaps, less those that it gave back in a seek
    ahead: int  # offsets in gaps that its cursor has yet to pass


RETENTIONS = ("interest", "limits")
DISCARDS = ("new", "old")
ORDERINGS = ("none", "key")


class TopicConfig(NamedTuple):
    """What of a topic changes seldom."""

    name: str
    settings: TopicSettings = TopicSettings()
    groups: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """The configuration as it is stored."""
        retention, age, size, messages, discard, dedup, priorities = self.settings
        kinds = RETENTIONS.index(retention), DISCARDS.index(discard)
        bounds = nanoseconds(age or 0), size or 0, messages or 0
        name = self.name.encode()
        rest = nanoseconds(dedup), priorities, len(name)
        head = _TOPIC_CONFIG.pack(*kinds, *bounds, *rest)
        return head + name + pack(f">{len(self.groups)}I", *self.groups)


# Retention u8, discard u8, max_age_ns u64, max_bytes u64, max_messages u64 (0: no bound), dedup_ns
# u64, priorities u8, length of the name u16. Then the name, and the ids of the groups, u32 each.
_TOPIC_CONFIG = Struct(">BBQQQQBH")


def new_topic(name: str, settings: TopicSettings) -> bytes:
    """The row of a new topic."""
    lanes = _encode_lanes([0] * settings.priorities)
    config = TopicConfig(name, settings).encode()
    return TopicRow.layout.pack(*[0] * 9) + lanes + config


@lru_cache(maxsize=1024)
def decode_topic(config: bytes) -> TopicConfig:
    """The configuration in a TopicRow. Raises: Corrupt."""
    try:
        retention, discard, age, size, messages, dedup, lanes, length = _TOPIC_CONFIG.unpack_from(
            config
        )
        groups_at = _TOPIC_CONFIG.size + length
        groups = [int(group) for (group,) in U32.iter_unpack(config[groups_at:])]
        bounds = age / NS if age else None, size or None, messages or None
        rest = DISCARDS[discard], dedup / NS, lanes
        settings = TopicSettings(RETENTIONS[retention], *bounds, *rest)
        if len(config) < groups_at:
            raise IndexError(groups_at)
    except WRONG as error:
        raise damaged("the configuration of a topic") from error
    name = decode_name(config[_TOPIC_CONFIG.size : groups_at])
    return TopicConfig(name, settings, tuple(groups))


class GroupConfig(NamedTuple):
    """What of a group changes seldom."""

    topic_id: int
    name: str
    settings: GroupSettings
    paused: bool = False

    def encode(self) -> bytes:
        """The configuration as it is stored."""
        lease_seconds, max_deliveries, backoff, ordering, in_flight, keep_expired = self.settings
        numbers = (self.topic_id, lease_seconds, max_deliveries, *backoff, in_flight or 0)
        flags = (ORDERINGS.index(ordering), keep_expired, self.paused)
        return _GROUP_CONFIG.pack(*numbers, *flags) + self.name.encode()


# Topic u32, lease_seconds f64, max_deliveries u32, backoff 3 f64, max_in_flight u32 (0: no bound),
# ordering u8, keep_expired u8, paused u8. Then the name.
_GROUP_CONFIG = Struct(">IdIdddIBBB")


def new_group(config: GroupConfig, cursor: Sequence[int], ahead: int) -> bytes:
    """The row of a new group whose next message in each lane is `cursor`, with so many offsets in
    gaps ahead of that."""
    counters = GroupRow.layout.pack(*[0] * 12, sum(cursor), ahead)
    return counters + _encode_lanes(cursor) + config.encode()


@lru_cache(maxsize=1024)
def decode_group(config: bytes) -> GroupConfig:
    """The configuration in a GroupRow. Raises: Corrupt."""
    try:
        topic_id, lease_seconds, deliveries, *rest = _GROUP_CONFIG.unpack_from(config)
        ways = Backoff(*rest[:3]), ORDERINGS[rest[4]], rest[3] or None, bool(rest[5])
        if not all(0 <= number <= _MOST_SECONDS for number in (lease_seconds, *rest[:3])):
            raise ValueError(lease_seconds, *rest[:3])  # also what is no number
    except WRONG as error:
        raise damaged("the configuration of a group") from error
    settings = GroupSettings(lease_seconds, deliveries, *ways)
    return GroupConfig(topic_id, decode_name(config[_GROUP_CONFIG.size :]), settings, bool(rest[6]))


HELD, SOLO, PREFETCHED = 1, 2, 4  # flags of a lease; SOLO of a held message too
RETURNED = 4  # flag of a held message: it was delivered, and given back for later


class LeaseRow(Row, layout=">QQQHBI"):
    """The right to the unsettled messages of the run `first` to `first + count`.

    `settled` is a bit set by position. Flag HELD: the one message is in `held`, not in the log.
    Flag SOLO: each may be what killed a consumer that had several, so deliver it alone.
    Flag PREFETCHED: its messages are handled one by one, in order; others may take the last ones.
    """

    token: int
    owner: int
    granted_ns: int
    slot: int
    flags: int
    count: int

    def __init__(self, first: int, count: int, settled: int = 0, flags: int = 0) -> None:
        self.token = self.owner = self.granted_ns = self.slot = self.deadline_ns = 0
        self.moved_ns = 0  # its deadline within a transaction that is not committed yet
        self.lasts_ns = 0  # how long a consumer has from a grant or extension on
        self.first, self.count, self.settled, self.flags = first, count, settled, flags
        self.keys: dict[int, int] = {}  # in a group that keeps key order: hash of each message
        self.hands: dict[int | None, Thread | None] = {}  # who has an offset, or all; see hands.py

    @property
    def unsettled(self) -> int:
        """How many of its messages are not settled."""
        return self.count - self.settled.bit_count()

    @property
    def lane(self) -> int:
        """The lane of its messages: a run is in one."""
        return self.first >> LANE_BITS

    @property
    def next_unsettled(self) -> int:
        """The offset of its first unsettled message; only if there is one."""
        return self.first + (~self.settled & (self.settled + 1)).bit_length() - 1

    def offsets(self) -> list[int]:
        """Offsets of its unsettled messages, rising."""
        run = range(self.first, self.first + self.count)
        return [offset for offset in run if self.holds(offset)] if self.settled else list(run)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Its unsettled messages as runs without a settled one: first and stop offsets, rising."""
        if not self.settled:
            yield self.first, self.first + self.count
            return
        unsettled = bin((self.settled ^ ((1 << self.count) - 1)) | 1 << self.count)[:2:-1]
        start = unsettled.find("1")
        while start >= 0:
            stop = unsettled.find("0", start)
            stop = self.count if stop < 0 else stop
            yield self.first + start, self.first + stop
            start = unsettled.find("1", stop)

    def holds(self, offset: int) -> bool:
        """Whether this offset is one of its unsettled messages."""
        at = offset - self.first
        return 0 <= at < self.count and not self.settled >> at & 1

    def encode(self) -> bytes:
        """The row as it is stored."""
        return self.pack() + self.settled.to_bytes((self.count + 7) // 8, "big")


def decode_lease(key: bytes, value: bytes) -> LeaseRow:
    """The inverse of LeaseRow.encode, with what the key says. Raises: Corrupt."""
    try:
        _, _, deadline_ns, first = TIME_KEY.unpack(key)
        row = LeaseRow(first, 0)
        row.unpack(value)
    except struct_error:
        raise damaged(f"the lease {key!r}") from None
    bitmap, count = value[row.layout.size :], row.count
    row.deadline_ns, row.settled = deadline_ns, int.from_bytes(bitmap, "big")
    whole = len(bitmap) == (count + 7) // 8 and 0 < count <= MAX_RUN
    if not whole or row.settled >> count or first + count - 1 >> LANE_BITS != first >> LANE_BITS:
        raise damaged(f"the lease at offset {first}")
    return row


_FLAGS_AND_COUNT = Struct(">26xBI")


def span_of(key: bytes, value: bytes) -> tuple[int, int] | None:
    """First and stop offset of a lease's run, None if it is HELD: all that a look at many needs."""
    if len(value) < LeaseRow.layout.size:
        raise damaged("a lease")
    flags, count = _FLAGS_AND_COUNT.unpack_from(value)
    first: int = unpacked(TIME_KEY, key)[3]
    return None if flags & HELD else (first, first + count)


LIVE, DEAD, PARK = 0, 1, 2  # kinds of keys of held messages
WAITING, BURIED, PARKED = _STATES = 1, 3, 4  # their states; a leased one keeps WAITING, see held.py
CAUSES = ("", "nack", "reject", "expired", "crashed", "redriven", "ttl")
_HISTORY = Struct(">QBHH")


class HeldRow(Row, layout=">BBHQQQQH"):
    """A message out of the log's way, with all that happened to it. `due_ns` is when it is due, or
    was before it was leased; of a dead one it is when it died, of a parked one 0. The last four
    numbers are the Stamp of its put."""

    state: int
    flags: int
    failures: int
    due_ns: int
    put_at_ns: int
    wall_ns: int
    elapsed_ns: int
    boot: int

    def __init__(self, record: bytes, flags: int, *put: int) -> None:
        self.record, self.flags = record, flags
        self.put_at_ns, self.wall_ns, self.elapsed_ns, self.boot = Stamp(*put)
        self.state = self.failures = self.due_ns = 0
        self.history: tuple[Failure, ...] = ()
        self.history_bytes = 0

    @property
    def put(self) -> Stamp:
        """When it was put."""
        return Stamp(self.put_at_ns, self.wall_ns, self.elapsed_ns, self.boot)

    @property
    def size(self) -> int:
        """Bytes of the row as it is stored, or a little more."""
        return 2 * _HISTORY.size + self.layout.size + len(self.record) + self.history_bytes

    def note(self, failure: Failure, most: int = MAX_HISTORY_BYTES) -> None:
        """Add to the history, which keeps the latest entries within `most` bytes: where that is not
        enough the oldest texts are shortened first, then the names in it."""
        self.history += (failure,)
        self.history_bytes += _size(failure)
        while len(self.history) > MAX_HISTORY:
            self.history_bytes -= _size(self.history[0])
            self.history = self.history[1:]
        if self.history_bytes > most:
            self._shorten(most)

    def _shorten(self, most: int) -> None:
        entries, over = list(self.history), self.history_bytes - most
        for field in ("error", "consumer"):
            for at, entry in enumerate(entries):
                text = getattr(entry, field).encode(errors="backslashreplace")
                kept = text[: max(len(text) - max(over, 0), 0)]
                over -= len(text) - len(kept)
                if len(kept) < len(text):
                    entries[at] = entry._replace(**{field: kept.decode(errors="ignore")})
        self.history = tuple(entries)
        self.history_bytes = sum(map(_size, entries))

    def encode(self) -> bytes:
        """The row as it is stored."""
        history = b"".join(map(_encode_failure, self.history))
        return checked(self.pack() + U32.pack(len(history)) + history + self.record)


def decode_held(data: bytes) -> HeldRow:
    """The inverse of HeldRow.encode. Raises: Corrupt."""
    data = unchecked(data)
    at = HeldRow.layout.size
    history_at = at + U32.size
    try:
        record_at = history_at + U32.unpack_from(data, at)[0]
        row = HeldRow(data[record_at:], 0, 0)
        row.unpack(data)
        row.history = tuple(_decode_history(data[history_at:record_at]))
        row.history_bytes = record_at - history_at
        if len(data) < record_at or row.state not in _STATES:
            raise IndexError(record_at)
    except WRONG as error:
        raise damaged("a message out of the log") from error
    return row


def checked(content: bytes) -> bytes:
    """A row that has messages, with its checksum."""
    return U32.pack(crc32(content)) + content


def unchecked(data: bytes) -> bytes:
    """The inverse of `checked`. Raises: Corrupt."""
    if data[:4] != U32.pack(crc32(data[4:])):
        raise Corrupt(
            f"a message out of the log fails its checksum; run 'diskq verify', then {WAY_OUT}"
        )
    return data[4:]


def _size(failure: Failure) -> int:
    texts = failure.error, failure.consumer
    return _HISTORY.size + sum(
        len(text) if text.isascii() else len(text.encode(errors="backslashreplace"))
        for text in texts
    )


def _encode_failure(failure: Failure) -> bytes:
    error = failure.error.encode(errors="backslashreplace")  # it may name an odd file
    consumer = failure.consumer.encode()
    head = _HISTORY.pack(failure.at_ns, CAUSES.index(failure.cause), len(consumer), len(error))
    return head + consumer + error


def _decode_history(data: bytes) -> Iterator[Failure]:
    at = 0
    while at < len(data):
        at_ns, cause, consumer_length, error_length = _HISTORY.unpack_from(data, at)
        error_at = at + _HISTORY.size + consumer_length
        consumer = data[at + _HISTORY.size : error_at].decode()
        at = error_at + error_length
        yield Failure(at_ns, CAUSES[cause], consumer, data[error_at:at].decode())
    if at != len(data):
        raise IndexError(at)
