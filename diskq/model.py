"""The values that users see. All immutable; none knows about storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, overload

from .clock import nanoseconds

__all__ = [
    "Backoff", "ConsumerInfo", "DeadLetter", "Failure", "Finding", "GroupSettings", "GroupStats",
    "LogMessage", "Outgoing", "Receipt", "Receipts", "StoreStats", "TopicStats",
]  # fmt: skip


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
    """One message on its way in, for `put_many`: a body with a key or headers."""

    body: bytes
    key: str | None = None
    headers: Mapping[str, str] | None = None


class Receipt(NamedTuple):
    """What a put returns once the message is stored.

    `offset` is the message's place in its topic; `commit_id` orders all commits of the store.
    """

    offset: int
    commit_id: int


class Receipts(Sequence[Receipt]):
    """The receipts of a `put_many`: consecutive offsets of one commit, made on demand."""

    def __init__(self, first: int, count: int, commit_id: int) -> None:
        self.offsets = range(first, first + count)
        self.commit_id = commit_id

    def __len__(self) -> int:
        return len(self.offsets)

    @overload
    def __getitem__(self, at: int) -> Receipt: ...
    @overload
    def __getitem__(self, at: slice) -> list[Receipt]: ...
    def __getitem__(self, at: int | slice) -> Receipt | list[Receipt]:
        if isinstance(at, slice):
            return [Receipt(offset, self.commit_id) for offset in self.offsets[at]]
        return Receipt(self.offsets[at], self.commit_id)

    def __repr__(self) -> str:
        return f"Receipts({self.offsets.start}..{self.offsets.stop - 1})"


class GroupSettings(NamedTuple):
    """How a group delivers; stored in the group, see `Topic.group` for the meaning of each."""

    lease_seconds: float = 30.0
    max_deliveries: int = 5
    backoff: Backoff = Backoff()
    max_in_flight: int | None = None


class LogMessage(NamedTuple):
    """A message read from the log without taking it."""

    offset: int
    body: bytes
    key: str | None
    headers: dict[str, str]
    put_at_ns: int


class Failure(NamedTuple):
    """One entry of a message's history: what ended a delivery and whose it was.

    `cause` is one of: nack, reject, expired (deadline passed), crashed (its process died while
    handling it), redriven (an operator gave it back; not a failure).
    """

    at_ns: int
    cause: str
    consumer: str
    error: str


class DeadLetter(NamedTuple):
    """A message a group has given up.

    `reason` is "rejected" or "max_deliveries"; `error` is the last error text; `history` holds the
    latest 32 entries, oldest first; `failures` counts since the put or the last redrive.
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
    """A live consumer: its `handling` is the offset it named as being handled, if it named one."""

    name: str
    pid: int
    topic: str
    group: str
    waiting: bool
    handling: int | None


class GroupStats(NamedTuple):
    """A group in numbers of messages, all from one snapshot.

    lag = unread + ready + leased + waiting: what is not settled yet. `ready` counts what was given
    back and waits for nobody; `waiting` counts retries, due or not. `delivered`, `redelivered`,
    `acked` and `failed` count since the group exists.
    """

    topic: str
    group: str
    lag: int
    unread: int
    ready: int
    leased: int
    waiting: int
    dead: int
    acked: int
    delivered: int
    redelivered: int
    failed: int


class TopicStats(NamedTuple):
    """A topic in numbers: `put` counts all messages ever put; `stored` those still in the log, in
    `segments` of `bytes`; `last_put_ns` is 0 if none was ever put."""

    topic: str
    put: int
    stored: int
    segments: int
    bytes: int
    last_put_ns: int
    groups: tuple[GroupStats, ...]


class StoreStats(NamedTuple):
    """A store in numbers, from one snapshot. `file_bytes` is the size of data.mdb, `used_bytes`
    what of it is in use, `limit_bytes` where puts begin to be refused (0: only by the disk).
    `oldest_reader_lag` counts the commits since the oldest read transaction began: a large number
    keeps freed space from being reused."""

    path: str
    store_id: str
    format_version: int
    durability: str
    commit_id: int
    file_bytes: int
    used_bytes: int
    limit_bytes: int
    readers: int
    oldest_reader_lag: int
    topics: tuple[TopicStats, ...]
    consumers: tuple[ConsumerInfo, ...]


class Finding(NamedTuple):
    """Something `verify` found wrong: where, and what."""

    where: str
    problem: str
