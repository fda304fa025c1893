"""Consumer: one member of a group. Leases messages, waits for them, settles them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from . import check, delivery, leases, limits
from .clock import nanoseconds
from .codec import LeaseRow, decode_group
from .delivery import Grant, Member
from .engine import Tx
from .errors import AlreadySettled, Closed, Empty, NotFound, WrongProcess
from .message import Message

if TYPE_CHECKING:
    from .group import Group


class Consumer:
    """One member of a group, in one process; made by `Group.consumer`.

    A context manager: leaving it gives back what is not settled, uncharged. Safe across threads.
    It belongs to the process that made it: a forked child makes its own.

    `for message in consumer` waits for messages without end, and acks each in the commit that
    leases the next one, unless the body settled it. An exception or `break` leaves the last message
    unsettled. The loop ends when the consumer is closed, by whatever thread.
    """

    def __init__(self, group: Group, name: str) -> None:
        self.group = group
        self.name = name
        self._closed = False
        self._current: Message | None = None
        self._acked = self._acked_bytes = 0  # since it last looked for segments to trim
        self._engine = group.topic.store.engine
        self._place = group.place()
        self._generation = self._engine.generation
        owner = int.from_bytes(os.urandom(8), "big") | 1
        self._member = Member(owner, self._engine.slots.take(owner, group.id, name))

    # Taking

    def get(self, block: bool = True, timeout: float | None = None) -> Message:
        """Lease the next message; wait for one up to `timeout` seconds, None: without end.

        The lease is durable when this returns.

        Raises: Empty, Closed, WrongProcess, NotFound (the group was deleted), Corrupt.
        """
        messages = self._take(1, check.timeout(timeout) if block else 0)
        if not messages:
            raise Empty(f"no message is ready in group {self.group.name!r}")
        return messages[0]

    def get_nowait(self) -> Message:
        """Lease the next message, if one is ready now.

        Raises: as `get`.
        """
        return self.get(block=False)

    def get_many(self, n: int, timeout: float | None = None) -> list[Message]:
        """Lease up to `n` messages that are ready, in one commit; wait up to `timeout` seconds
        for the first, None: without end. Empty when nothing came.

        While other consumers of the group wait, a batch is at most its fair share of what is ready.

        Raises: as `get`, but Empty.
        """
        n = check.count("n", n, 1, limits.MAX_GET_MESSAGES)
        return self._take(n, check.timeout(timeout))

    def __iter__(self) -> Consumer:
        return self

    def __next__(self) -> Message:
        done, self._current = self._current, None
        if self._closed:
            raise StopIteration
        if done is not None and done._settled:
            done = None
        try:
            self._current = self._take(1, None, done)[0]
        except Closed:
            if not self._closed:
                raise
            raise StopIteration from None
        return self._current

    def _take(
        self, limit: int, timeout: float | None, done: Message | None = None
    ) -> list[Message]:
        """Ack `done`, if given, in the commit that leases up to `limit` messages; wait for them."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            self._check_open()
            seen = self._engine.slots.word(self.group.id)
            grants = self._engine.commit(lambda tx: self._ack_and_take(tx, done, limit))
            if done is not None:
                self._count_acked([done])
                done = None
            if grants:
                return self._messages(grants)
            if not self._wait(seen, until):
                return []

    def _ack_and_take(self, tx: Tx, done: Message | None, limit: int) -> list[Grant]:
        at = self._place
        group = leases.load(tx, at.group_id, at.group)
        if done is not None:
            delivery.ack(tx, at, group, done._lease, [done.offset])
            self._trim_now_and_then(tx)
        grants = delivery.take(tx, at, group, self._member, limit)
        leases.store(tx, at.group_id, group)
        return grants

    def _messages(self, grants: Sequence[Grant]) -> list[Message]:
        return [
            Message(self, lease, stored, failures)
            for lease, stored_messages, failures in grants
            for stored in stored_messages
        ]

    def _wait(self, seen: int, until: float | None) -> bool:
        """Sleep until the group may have a message; False if none came in time."""
        slots, group_id = self._engine.slots, self.group.id
        slots.set_waiting(self._member.slot, True)
        try:
            while slots.word(group_id) == seen:
                self._check_open()
                seconds = self._engine.read(lambda tx: delivery.look(tx, self._place))
                if seconds <= 0:
                    return True
                if until is not None:
                    left = until - time.monotonic()
                    if left <= 0:
                        return False
                    seconds = min(seconds, left)
                slots.wait(group_id, seen, seconds)
            return True
        finally:
            slots.set_waiting(self._member.slot, False)

    # Settling

    def ack_many(self, messages: Iterable[Message]) -> None:
        """Ack messages of this consumer in one commit: all of them, or on an error none.

        Raises: LeaseLost, AlreadySettled, Closed.
        """
        self.settle_ack(list(messages))

    def settle_ack(self, messages: Sequence[Message]) -> None:
        """What `Message.ack` and `ack_many` do."""
        by_lease: dict[LeaseRow, list[int]] = {}
        for message in messages:
            self._check_mine(message)
            by_lease.setdefault(message._lease, []).append(message.offset)
        for offsets in by_lease.values():
            if len(set(offsets)) < len(offsets):
                raise AlreadySettled("a message is in the list twice; settle each delivery once")

        def operation(tx: Tx) -> None:
            at = self._place
            group = leases.load(tx, at.group_id, at.group)
            for lease, offsets in by_lease.items():
                delivery.ack(tx, at, group, lease, offsets)
            leases.store(tx, at.group_id, group)
            self._trim_now_and_then(tx)

        self._engine.commit(operation)
        self._count_acked(messages)

    def settle_fail(
        self, message: Message, cause: str, error: str, delay_seconds: float | None
    ) -> None:
        """What `Message.nack` and `reject` do."""
        self._check_mine(message)
        if not isinstance(error, str):
            raise TypeError(f"an error or reason must be str, not {type(error).__name__}")
        delay_ns = None
        if delay_seconds is not None:
            most = limits.MAX_DELAY_SECONDS
            delay_ns = nanoseconds(check.seconds("delay_seconds", delay_seconds, 0, most))

        def operation(tx: Tx) -> None:
            at, offset = self._place, message.offset
            group = leases.load(tx, at.group_id, at.group)
            row = delivery.holding(tx, at, message._lease, [offset])
            delivery.fail(tx, at, group, row, offset, cause, self.name, error, delay_ns=delay_ns)
            leases.update(tx, at.group_id, row)
            leases.store(tx, at.group_id, group)

        self._engine.commit(operation)
        message._settled = True

    def settle_release(self, message: Message) -> None:
        """What `Message.release` does."""
        self._check_mine(message)

        def operation(tx: Tx) -> None:
            at = self._place
            group = leases.load(tx, at.group_id, at.group)
            row = delivery.holding(tx, at, message._lease, [message.offset])
            delivery.release(tx, at, group, row, message.offset)
            leases.store(tx, at.group_id, group)

        self._engine.commit(operation)
        message._settled = True

    def extend(self, message: Message, seconds: float | None) -> None:
        """What `Message.extend` does."""
        self._check_mine(message)
        if seconds is not None:
            bounds = limits.MIN_LEASE_SECONDS, limits.MAX_LEASE_SECONDS
            seconds = check.seconds("seconds", seconds, *bounds)

        def operation(tx: Tx) -> int:
            at = self._place
            row = delivery.holding(tx, at, message._lease, [message.offset])
            group = leases.load(tx, at.group_id, at.group)
            lease_seconds = seconds or decode_group(group.config).settings.lease_seconds
            deadline_ns = tx.engine.clock.monotonic_ns() + nanoseconds(lease_seconds)
            leases.move(tx, at.group_id, row, deadline_ns)
            return row.deadline_ns

        message._lease.deadline_ns = self._engine.commit(operation)

    def name_handled(self, offset: int | None) -> None:
        """Name the message being handled, for blame after a crash; no commit."""
        self._check_open()
        self._engine.slots.handle(self._member.slot, offset)

    def _count_acked(self, messages: Sequence[Message]) -> None:
        for message in messages:
            message._settled = True
            self._acked_bytes += len(message.body)
        self._acked += len(messages)

    def _trim_now_and_then(self, tx: Tx) -> None:
        if self._acked >= limits.TRIM_MESSAGES or self._acked_bytes >= limits.TRIM_BYTES:
            delivery.trim(tx, self._place)
            tx.after.append(self._reset_acked)

    def _reset_acked(self) -> None:
        self._acked = self._acked_bytes = 0

    # Closing

    def close(self) -> None:
        """Give back what is not settled, uncharged, and leave the group. May be called twice."""
        if self._closed or self._generation != self._engine.generation:
            return
        self._closed = True

        def operation(tx: Tx) -> None:
            at = self._place
            group = leases.load(tx, at.group_id, at.group)
            for row in list(leases.rows(tx, at.group_id, 1)):
                if row.owner == self._member.owner:
                    delivery.release_run(tx, at, group, row, solo=False)
            leases.store(tx, at.group_id, group)
            delivery.trim(tx, at)

        try:
            self._engine.commit(operation)
        except NotFound:
            pass  # the group was deleted, and its leases with it
        self._engine.slots.nudge(self.group.id)
        self._engine.slots.release(self._member.slot, clean=True)

    def __enter__(self) -> Consumer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Never commit from here: any thread may hold any lock. Others see the slot free, and take
        # back what it held.
        if not getattr(self, "_closed", True) and self._generation == self._engine.generation:
            self._engine.abandon(self._member.slot)

    def __repr__(self) -> str:
        return f"<Consumer {self.name} of {self.group.topic.name}/{self.group.name}>"

    @property
    def usable(self) -> bool:
        """Whether it is open and of this process."""
        return not self._closed and self._generation == self._engine.generation

    def _check_open(self) -> None:
        if self._generation != self._engine.generation:
            raise WrongProcess(
                f"consumer {self.name!r} belongs to the process that forked this one; make another"
            )
        if self._closed:
            raise Closed(f"consumer {self.name!r} is closed; make another")

    def _check_mine(self, message: Message) -> None:
        if not isinstance(message, Message):
            raise TypeError(f"expected a Message, not {type(message).__name__}")
        self._check_open()
        if message._consumer is not self:
            raise ValueError(f"message {message.offset} was leased by another consumer")
        message._settle_once()
