"""Message: one delivery, and the verbs that settle it."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from . import limits
from .clock import NS
from .codec import LeaseRow, decode_record
from .errors import AlreadySettled
from .log import Stored

if TYPE_CHECKING:
    from .consumer import Consumer


class Message:
    """One delivery of a message to a consumer, to be settled once: `ack`, `nack`, `release` or
    `reject`. Each is durable when it returns, and raises LeaseLost, changing nothing, if the lease
    passed to somebody else.

    As a context manager it acks on success and nacks with the error on an exception. Use it in the
    process and consumer that got it; any thread will do.
    """

    __slots__ = (
        "_consumer",
        "_lease",
        "_settled",
        "attempt",
        "body",
        "headers",
        "key",
        "offset",
        "put_at_ns",
    )

    body: bytes
    key: str | None
    headers: dict[str, str]
    offset: int
    put_at_ns: int
    attempt: int

    def __init__(self, consumer: Consumer, lease: LeaseRow, stored: Stored, failures: int) -> None:
        self._consumer = consumer
        self._lease = lease
        self._settled = False
        self.offset, record, flags, self.put_at_ns = stored
        self.attempt = failures + 1
        if flags:
            self.body, self.key, self.headers, _ = decode_record(record, flags)
        else:
            self.body, self.key, self.headers = record, None, {}

    @property
    def topic(self) -> str:
        """Name of the topic."""
        return self._consumer.group.topic.name

    @property
    def group(self) -> str:
        """Name of the group."""
        return self._consumer.group.name

    @property
    def token(self) -> int:
        """The number of this delivery: later deliveries of a message have larger ones, and no two
        deliveries of a store share one. Pass it on to fence effects outside of the store."""
        return self._lease.token + self.offset - self._lease.first

    @property
    def deadline(self) -> float:
        """When others may take the message, in seconds of `time.monotonic()`."""
        return self._lease.deadline_ns / NS

    def ack(self) -> None:
        """The message is done: it leaves the group, durably when this returns.

        Raises: LeaseLost, AlreadySettled, Closed.
        """
        self._consumer.settle_ack([self])

    def nack(self, delay_seconds: float | None = None, *, error: str | None = None) -> None:
        """The delivery failed: the message comes back after `delay_seconds` (default: the group's
        backoff), or is a dead letter after the last delivery. `error` goes to its history.

        Raises: LeaseLost, AlreadySettled, Closed.
        """
        self._consumer.settle_fail(self, "nack", error or "", delay_seconds)

    def reject(self, reason: str = "") -> None:
        """The message can never succeed: it is a dead letter at once.

        Raises: LeaseLost, AlreadySettled, Closed.
        """
        self._consumer.settle_fail(self, "reject", reason, None)

    def release(self) -> None:
        """Give the message back to its old place, uncharged, for the next get of anybody.

        Raises: LeaseLost, AlreadySettled, Closed.
        """
        self._consumer.settle_release(self)

    def extend(self, seconds: float | None = None) -> None:
        """Let the lease end `seconds` from now (default: the group's `lease_seconds`). Messages
        that one `get_many` returned share a lease, and are extended together.

        Raises: LeaseLost, AlreadySettled, Closed.
        """
        self._consumer.extend(self, seconds)

    def __enter__(self) -> Message:
        self._consumer.name_handled(self.offset)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._consumer.name_handled(None)
        if self._settled:
            return
        if error is None:
            self.ack()
        elif isinstance(error, Exception):
            self.nack(error=f"{type(error).__name__}: {error}"[: limits.MAX_ERROR_CHARS])
        else:
            self.release()  # an interrupt is not the message's fault

    def __repr__(self) -> str:
        return f"<Message {self.topic}/{self.offset} attempt {self.attempt} {len(self.body)} bytes>"

    def _settle_once(self) -> None:
        if self._settled:
            raise AlreadySettled(
                f"message {self.offset} was settled before; settle each delivery once",
                offset=self.offset,
            )
