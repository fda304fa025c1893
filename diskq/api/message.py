"""Message: one delivery, and the verbs that settle it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from ..base import check, limits
from ..base.clock import NS, nanoseconds
from ..base.errors import Full
from ..delivery import settle
from ..format.lanes import lane_of
from ..format.segment import Parts
from ..storage.hands import Lease
from ..tables.group_tx import GroupTx
from ..tables.log import Stored
from .membership import Membership

Action: TypeAlias = Callable[[GroupTx], None]


class Message:
    """One delivery of a message to a consumer, to be settled once: `ack`, `nack`, `release` or
    `reject`. Each is durable when it returns, and raises LeaseLost, changing nothing, if the
    message was taken back meanwhile; and AlreadySettled, Closed or WrongProcess.

    As a context manager it acks on success and nacks with the error on an exception. Use it in the
    process that got it; any thread will do. A child that is forked inside the block leaves the
    message to its parent.
    """

    __slots__ = (
        *("attempt", "body", "headers", "key", "offset"),
        *("_put", "failed", "lease", "member", "settled", "__weakref__"),
    )

    def __init__(
        self,
        member: Membership,
        lease: Lease,
        stored: Stored,
        failures: int,
        parts: Parts | None = None,
    ) -> None:
        self.member = member
        self.lease = lease
        self.settled = False
        self.failed = False  # to be settled: an iteration that goes on leaves it alone
        self.offset, self.body, _, self._put = stored
        self.attempt = failures + 1
        self.key: str | None = None
        self.headers: dict[str, str] = {}
        if parts is not None:
            self.body, self.key, self.headers, _ = parts

    @property
    def topic(self) -> str:
        """Name of the topic."""
        return self.member.place.topic

    @property
    def group(self) -> str:
        """Name of the group."""
        return self.member.place.group

    @property
    def put_at_ns(self) -> int:
        """When it was put, or was due if it was scheduled, by the wall clock. It never goes back
        within a topic."""
        return self._put.put_at_ns

    @property
    def priority(self) -> int:
        """The lane it was put in: higher ones are delivered first."""
        return lane_of(self.offset)

    @property
    def token(self) -> int:
        """The number of this delivery: later deliveries of a message have larger ones, and no two
        deliveries of a store share one. Pass it on to fence effects outside of the store."""
        return self.lease.token + self.offset - self.lease.first

    @property
    def deadline(self) -> float:
        """When others may take the message, in seconds of `time.monotonic()`."""
        return self.lease.deadline_ns / NS

    def ack(self) -> None:
        """The message is done and leaves the group."""
        self.member.ack_many([self])

    def nack(self, delay_seconds: float | None = None, *, error: str | None = None) -> None:
        """The delivery failed: the message comes back after `delay_seconds` (default: the group's
        backoff), or is a dead letter after the last delivery. `error` goes to its history."""
        self.member.settle(self, self.nacking(delay_seconds, error), ends=True)

    def reject(self, reason: str = "") -> None:
        """The message can never succeed: it is a dead letter at once."""
        self.member.settle(self, self.rejecting(reason), ends=True)

    def release(self, delay_seconds: float | None = None) -> None:
        """Give the message back, uncharged: to its old place, for the next get of any consumer; or
        with `delay_seconds` it waits that long, and others come first."""
        self.member.settle(self, self.releasing(delay_seconds), ends=True)

    def extend(self, seconds: float | None = None) -> None:
        """Let the lease end `seconds` from now (default: the group's `lease_seconds`). Messages
        that one `get_many` returned share a lease, and are extended together."""
        if seconds is not None:
            bounds = limits.MIN_LEASE_SECONDS, limits.MAX_LEASE_SECONDS
            seconds = check.seconds("seconds", seconds, *bounds)
        self.member.settle(
            self, lambda group: settle.extend(group, self.lease, self.offset, seconds), ends=False
        )

    # The actions that a transaction runs in its commit.

    def acking(self) -> Action:
        """For diskq's own use: the action of `ack`."""
        return lambda group: settle.ack(group, self.lease, [self.offset])

    def nacking(self, delay_seconds: float | None, error: str | None) -> Action:
        """For diskq's own use: the action of `nack`."""
        delay_ns = None if delay_seconds is None else _delay_ns(delay_seconds)
        return _failing(self, "nack", check.text("error", error or ""), delay_ns)

    def rejecting(self, reason: str) -> Action:
        """For diskq's own use: the action of `reject`."""
        return _failing(self, "reject", check.text("reason", reason), None)

    def releasing(self, delay_seconds: float | None) -> Action:
        """For diskq's own use: the action of `release`."""
        delay_ns = 0 if delay_seconds is None else _delay_ns(delay_seconds)
        return lambda group: settle.release(group, self.lease, self.offset, delay_ns)

    def __enter__(self) -> Message:
        self.member.name_handled(self)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self.member.inherited:  # a child that was forked in the block leaves it
            return
        try:
            if not self.settled:
                self._settle_after(error)
        finally:
            self.member.unname([self])

    def _settle_after(self, error: BaseException | None) -> None:
        if error is None:
            self.ack()
        elif isinstance(error, Exception):
            with suppress(Full):
                self.nack(error=_text_of(error))
        if not self.settled:  # an interrupt is not its fault; and there is room to release it
            self.release()

    def __repr__(self) -> str:
        return f"<Message {self.topic}/{self.offset} attempt {self.attempt} {len(self.body)} bytes>"


def _failing(message: Message, cause: str, error: str, delay_ns: int | None) -> Action:
    failure = cause, message.member.name, error, delay_ns
    return lambda group: settle.fail(group, message.lease, message.offset, *failure)


def _text_of(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as worse:  # its text cannot be had
        return f"{type(error).__name__}, and then {type(worse).__name__} from its __str__"


def _delay_ns(seconds: float) -> int:
    return nanoseconds(check.seconds("delay_seconds", seconds, 0, limits.MAX_DELAY_SECONDS))
