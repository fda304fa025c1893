"""The rows of the store, of topics and of groups: counters and configurations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from struct import Struct, pack
from struct import error as struct_error
from typing import Any, ClassVar, NamedTuple

from ..base.clock import NS, nanoseconds
from ..base.limits import MAX_PRIORITIES
from ..base.model import (
    DISCARDS,
    DURABILITIES,
    ORDERINGS,
    RETENTIONS,
    Backoff,
    GroupSettings,
    TopicSettings,
)
from .decoding import WRONG, damaged, decode_name, unpacked
from .lanes import Cursor, lane_of, lane_start
from .layout import FORMAT_VERSION, U16, U32

_MOST_SECONDS = 1e9  # of a stored duration: no sum of times is over 64 bits


class Row:
    """A row's numbers, by name: the annotations of the class, in the order of its layout.
    Subclasses add the parts without a fixed size.

    `unpack(data)` takes the numbers from the front of `data`, `pack()` returns them as stored. Both
    are generated for each class, as dataclasses do: a loop over the names takes twice as long.
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


class Meta(Row, layout=">HB16s16sQQQIIQ"):
    """The row of the store. Raises: Corrupt."""

    format_version: int
    durability: int  # index into DURABILITIES
    store_id: bytes
    boot_id: bytes  # of the boot that the leases belong to
    created_ns: int
    commit_base: int  # added to LMDB's transaction ids, which a compacting copy resets
    max_bytes: int  # 0: no bound but the disk
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
    """Counters, then the position of each lane (`next`), then an encoded configuration.

    Raises: Corrupt.
    """

    next: list[int]

    def __init__(self, data: bytes) -> None:
        self.data = data  # as it was read
        try:
            self.unpack(data)
            lanes = _LANES[data[self.layout.size]]
            self.next = list(lanes.unpack_from(data, self.layout.size)[1:])
            if lane_of(max(self.next)):
                raise OverflowError(self.next)
        except WRONG as error:
            raise damaged("the row of a topic or group") from error
        self.config = data[self.layout.size + lanes.size :]

    def encode(self) -> bytes:
        """The row as it is stored. Raises: Corrupt if it was wrong when it was read."""
        try:
            return self.pack() + _encode_lanes(self.next) + self.config
        except struct_error as error:  # a counter fell below 0
            raise damaged("the row of a topic or group, whose counters do not add up,") from error

    def offset(self, lane: int) -> int:
        """The offset that is next in a lane."""
        return lane_start(lane) + self.next[lane]

    @property
    def offsets(self) -> Cursor:
        """The offset that is next in each lane."""
        return Cursor(map(self.offset, range(len(self.next))))


_LANES = [Struct(f">B{lanes}Q") for lanes in range(MAX_PRIORITIES + 1)]


def _encode_lanes(lanes: Sequence[int]) -> bytes:
    return _LANES[len(lanes)].pack(len(lanes), *lanes)


class TopicRow(CountedRow, layout=">QQQQQQQQQ"):
    """A topic: its counters, the number that the next put in each lane gets (`next`), and its
    TopicConfig."""

    last_put_ns: int
    stored: int
    segments: int
    bytes: int
    dropped: int
    scheduled: int
    numbered: int  # messages ever scheduled
    rewritten: int  # how often a purge changed stored segments
    gaps: int  # rows of gaps in its log


class GroupRow(CountedRow, layout=">QQQQQQQQQQQQqQ"):
    """A group: its counters, the first number never taken in each lane (`next`, its cursor), and
    its GroupConfig.

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
    skipped: int  # offsets before its start or in gaps, less those that a seek gave back
    ahead: int  # offsets in gaps that its cursor has yet to pass


class TopicConfig(NamedTuple):
    """The configuration of a topic: it changes seldom."""

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
    """The configuration of a group: it changes seldom."""

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
    """The row of a new group whose next message in each lane is `cursor`; `ahead` offsets behind
    that are in gaps."""
    counters = GroupRow.layout.pack(*[0] * 12, sum(cursor), ahead)
    return counters + _encode_lanes(cursor) + config.encode()


@lru_cache(maxsize=1024)
def decode_group(config: bytes) -> GroupConfig:
    """The configuration in a GroupRow. Raises: Corrupt."""
    try:
        topic_id, lease_seconds, deliveries, *rest = _GROUP_CONFIG.unpack_from(config)
        ways = Backoff(*rest[:3]), ORDERINGS[rest[4]], rest[3] or None, bool(rest[5])
        if not all(0 <= number <= _MOST_SECONDS for number in (lease_seconds, *rest[:3])):
            raise ValueError(lease_seconds, *rest[:3])  # or one is NaN
    except WRONG as error:
        raise damaged("the configuration of a group") from error
    settings = GroupSettings(lease_seconds, deliveries, *ways)
    return GroupConfig(topic_id, decode_name(config[_GROUP_CONFIG.size :]), settings, bool(rest[6]))
