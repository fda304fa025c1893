"""The values that users see. All are immutable; none knows about storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

from .clock import nanoseconds

if TYPE_CHECKING:
    from datetime import datetime

__all__ = [
    "Backoff", "ConsumerInfo", "DeadLetter", "Failure", "Finding", "GroupSettings", "GroupStats",
    "LogMessage", "NextMessage", "Outgoing", "PendingMessage", "Receipt", "Receipts", "Salvaged",
    "SalvagedTopic", "ScheduledMessage", "SeekPreview", "StoreStats", "TopicSettings", "TopicStats",
    "WaitingMessage",
]  # fmt: skip

LANE_BITS = 56  # of an offset; the bits above are its priority

# The values of settings; a row stores the position in the list.
DURABILITIES = ("commit", "relaxed", "process")
RETENTIONS = ("interest", "limits")
DISCARDS = ("new", "old")
ORDERINGS = ("none", "key")


class Backoff(NamedTuple):
    """How long a failed message waits: `base_seconds * factor ** (failures - 1)`, at most
    `max_seconds`. `Backoff(0)` retries at once."""

    base_seconds: float = 1.0
    factor: float = 2.0
    max_seconds: float = 300.0

    def delay_ns(self, failures: int) -> int:
        """Nanoseconds to wait after the `failures`-th failed delivery, counted from 1."""
        try:
            seconds = self.base_seconds * self.factor ** (failures - 1)
        except OverflowError:
            seconds = self.max_seconds if self.base_seconds else 0.0
        return nanoseconds(min(seconds, self.max_seconds))


class Outgoing(NamedTuple):
    """One message on its way in, for `put_many`: a body, and the options of `Topic.put`."""

    body: bytes
    key: str | None = None
    headers: Mapping[str, str] | None = None
    priority: int = 0
    delay_seconds: float | None = None
    at: datetime | None = None
    ttl_seconds: float | None = None
    dedup_id: str | None = None


class Receipt(NamedTuple):
    """The receipt of a put, returned once the message is stored.

    `offset` is the message's place in its topic; it is None while the message is scheduled, and
    `schedule_id` names it then. With `duplicate`, nothing was stored, and the offset or schedule id
    and the commit are those of the first put with the same `dedup_id`. `commit_id` orders all
    commits of the store.
    """

    offset: int | None
    duplicate: bool
    schedule_id: str | None
    commit_id: int


class Receipts(Sequence[Receipt]):
    """The receipts of a `put_many` of plain messages: a run of offsets, made into receipts on
    demand."""

    def __init__(self, offsets: Sequence[int], commit_id: int) -> None:
        self.offsets = offsets
        self.commit_id = commit_id

    def __len__(self) -> int:
        return len(self.offsets)

    @overload
    def __getitem__(self, at: int) -> Receipt: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Receipt]: ...
    def __getitem__(self, at: int | slice) -> Receipt | Sequence[Receipt]:
        if isinstance(at, slice):
            return Receipts(self.offsets[at], self.commit_id)
        return Receipt(self.offsets[at], False, None, self.commit_id)

    def __repr__(self) -> str:
        return f"Receipts({self.offsets})"


class TopicSettings(NamedTuple):
    """The settings of a topic, stored with it; `Store.topic` explains each."""

    retention: str = "interest"
    max_age_seconds: float | None = None
    max_bytes: int | None = None
    max_messages: int | None = None
    discard: str = "new"
    dedup_seconds: float = 120.0
    priorities: int = 1


class GroupSettings(NamedTuple):
    """The settings of a group, stored with it; `Topic.group` explains each."""

    lease_seconds: float = 30.0
    max_deliveries: int = 5
    backoff: Backoff = Backoff()
    ordering: str = "none"
    max_in_flight: int | None = None
    keep_expired: bool = False


class LogMessage(NamedTuple):
    """A message read from the log without taking it."""

    offset: int
    body: bytes
    key: str | None
    headers: dict[str, str]
    put_at_ns: int

    @property
    def priority(self) -> int:
        """Its lane: higher ones are delivered first."""
        return self.offset >> LANE_BITS


class ScheduledMessage(NamedTuple):
    """A message that gets its offset when it is due."""

    schedule_id: str
    due_ns: int
    body: bytes
    key: str | None
    headers: dict[str, str]
    priority: int


class SeekPreview(NamedTuple):
    """A look at a seek: how many messages it would deliver; `incomplete`: the target lies before
    messages that are not stored any more, or, if it is a time, may do so."""

    messages: int
    incomplete: bool


class NextMessage(NamedTuple):
    """A message that a group would deliver next; `attempt` is the number of that delivery."""

    offset: int
    body: bytes
    key: str | None
    headers: dict[str, str]
    put_at_ns: int
    attempt: int

    @property
    def priority(self) -> int:
        """Its lane: higher ones are delivered first."""
        return self.offset >> LANE_BITS


class WaitingMessage(NamedTuple):
    """A message that failed or was released with a delay, and is delivered again at `due_ns` of the
    wall clock, or soon after. `failures` counts since the put or the last redrive; `history` holds
    the latest 32 entries, oldest first."""

    offset: int
    due_ns: int
    body: bytes
    key: str | None
    headers: dict[str, str]
    put_at_ns: int
    failures: int
    history: tuple[Failure, ...]


class PendingMessage(NamedTuple):
    """A leased message: the name of its consumer (empty once that died), its token, the end of its
    lease on the monotonic clock, and the number of this delivery."""

    offset: int
    consumer: str
    token: int
    deadline_ns: int
    attempt: int


class Failure(NamedTuple):
    """One entry of a message's history: the event that ended a delivery, and the consumer.

    `cause` is one of: nack, reject, expired (deadline passed), crashed (its process died while
    handling it), ttl (it expired before it was delivered), redriven (an operator gave it back; not
    a failure).
    """

    at_ns: int
    cause: str
    consumer: str
    error: str


class DeadLetter(NamedTuple):
    """A message that a group has given up.

    `reason` is "rejected", "max_deliveries" or "expired"; `error` is the last error text; `history`
    holds the latest 32 entries, oldest first; `failures` counts since the put or the last redrive.
    """

    offset: int
    body: bytes
    key: str | None
    headers: dict[str, str]
    put_at_ns: int
    dead_at_ns: int
    reason: str
    error: str
    failures: int
    history: tuple[Failure, ...]


class ConsumerInfo(NamedTuple):
    """A live consumer; `handling` is the offset of the message that it named as being handled, if
    it named one."""

    name: str
    pid: int
    topic: str
    group: str
    waiting: bool
    handling: int | None


class GroupStats(NamedTuple):
    """A group in numbers of messages, all from one snapshot.

    lag = unread + ready + leased + waiting + parked: the messages that are not settled yet. `ready`
    counts those that were given back for the next get, `waiting` retries, due or not, and `parked`
    those that wait for an earlier message of their key. The others are totals since the group
    exists: `expired` messages outlived their TTL, `dropped` ones were removed by the topic's bounds
    before they were settled, `purged` ones by an operator.
    """

    topic: str
    group: str
    lag: int
    unread: int
    ready: int
    leased: int
    waiting: int
    parked: int
    dead: int
    acked: int
    delivered: int
    redelivered: int
    failed: int
    expired: int
    dropped: int
    purged: int
    paused: bool


class TopicStats(NamedTuple):
    """A topic in numbers: `put` counts all messages that ever got an offset, `scheduled` those that
    get one when they are due, `stored` those still in the log, in `segments` with `bytes` in total,
    and `dropped` those that its bounds removed; `last_put_ns`, the time of the latest put, is 0
    before the first."""

    topic: str
    put: int
    scheduled: int
    stored: int
    segments: int
    bytes: int
    dropped: int
    last_put_ns: int
    groups: tuple[GroupStats, ...]


class StoreStats(NamedTuple):
    """A store in numbers, from one snapshot. `file_bytes` is the size of data.mdb, `used_bytes` the
    part of it in use, `limit_bytes` the size at which puts are refused (0: only the disk limits
    it). `oldest_reader_pid` is the process with the oldest read transaction (0: there is none), and
    `oldest_reader_lag` counts the commits since that began: while it lasts, no freed space is used
    again."""

    path: str
    store_id: str
    format_version: int
    durability: str
    commit_id: int
    file_bytes: int
    used_bytes: int
    limit_bytes: int
    readers: int
    oldest_reader_pid: int
    oldest_reader_lag: int
    topics: tuple[TopicStats, ...]
    consumers: tuple[ConsumerInfo, ...]


class SalvagedTopic(NamedTuple):
    """A topic of a damaged store: how many messages are stored and scheduled in the new store, how
    many of the log are lost, and the groups that start again at the oldest message."""

    topic: str
    stored: int
    lost: int
    scheduled: int
    restarted: tuple[str, ...]


class Salvaged(NamedTuple):
    """The result of `diskq.salvage`: the topics that it saved, and the damage in words."""

    topics: list[SalvagedTopic]
    findings: list[str]


class Finding(NamedTuple):
    """A problem that `verify` found, and where."""

    where: str
    problem: str
