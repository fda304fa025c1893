"""Consumer: one member of a group. Leases messages, waits for them, settles them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from . import check, delivery, errors, limits
from .codec import HELD, LeaseRow
from .delivery import Delivery, Grant, Member
from .engine import Tx
from .message import Message

if TYPE_CHECKING:
    from .group import Group

T = TypeVar("T")


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
        self._acked = self._acked_bytes = 0  # since it last looked for segments to trim
        self._engine = group.topic.store.engine
        self._generation = self._engine.generation
        self._place = group.place()
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
            raise errors.Empty(f"no message is ready in group {self.group.name!r}; try again later")
        return messages[0]

    def get_nowait(self) -> Message:
        """Lease the next message, if one is ready now. Raises: as `get`."""
        return self.get(block=False)

    def get_many(self, n: int, timeout: float | None = None) -> list[Message]:
        """Lease up to `n` messages that are ready, in one commit; wait up to `timeout` seconds
        for the first, None: without end. Empty when nothing came.

        While other consumers of the group wait, a batch is at most its fair share of what is ready.

        Raises: as `get`, but Empty.
        """
        n = check.count("n", n, 1, limits.MAX_GET_MESSAGES)
        return self._take(n, check.timeout(timeout))

    def __iter__(self) -> Iterator[Message]:
        done: Message | None = None
        while True:
            try:
                [message] = self._take(1, None, done)
            except errors.Closed:
                if self._closed:
                    return
                raise
            yield message
            done = None if message.settled else message

    def _take(
        self, limit: int, timeout: float | None, done: Message | None = None
    ) -> list[Message]:
        """Lease up to `limit` messages, and ack `done` in the same commit; wait for them."""
        until = None if timeout is None else time.monotonic() + timeout

        def take(at: Delivery) -> list[Grant]:
            if done is not None:
                at.ack(done.lease, [done.offset])
            return at.take(self._member, limit)

        while True:
            self._check_open()
            seen = self._engine.slots.word(self.group.id)
            grants = self._in_group(take)
            if done is not None:
                self._count_acked([done])
                done = None
            if grants:
                return self._messages(grants)
            if not self._wait(seen, until):
                return []

    def _messages(self, grants: Sequence[Grant]) -> list[Message]:
        found = [
            Message(self, lease, stored, failures)
            for lease, messages, failures in grants
            for stored in messages
        ]
        if len(grants) > 1:  # runs that were given back may interleave
            found.sort(key=lambda found: 0 if found.lease.flags & HELD else found.offset + 1)
        return found

    def _wait(self, seen: int, until: float | None) -> bool:
        """Sleep until the group may have a message; False if none came in time."""
        slots, group_id = self._engine.slots, self.group.id
        dead: list[tuple[int, int]] = []
        slots.set_waiting(self._member.slot, True)
        try:
            while slots.word(group_id) == seen:
                self._check_open()
                seconds = self._engine.read(lambda tx: Delivery(tx, self._place).look())
                if seconds <= 0:
                    break
                for index, owner in dead:  # they held nothing, or look had seen it
                    slots.forget(index, owner)
                if until is not None:
                    seconds = min(seconds, until - time.monotonic())
                    if seconds <= 0:
                        return False
                dead = self._sleep(seen, seconds)
            return True
        finally:
            slots.set_waiting(self._member.slot, False)

    def _sleep(self, seen: int, seconds: float) -> list[tuple[int, int]]:
        """Sleep on the group's word. Death wakes nobody, so look now and then whether consumers of
        other processes live; returns those that died."""
        slots, group_id = self._engine.slots, self.group.id
        end = time.monotonic() + seconds
        while slots.word(group_id) == seen and (left := end - time.monotonic()) > 0:
            others, dead = slots.peers(group_id)
            if dead:
                return dead
            slots.wait(group_id, seen, min(left, limits.LOOK_SECONDS) if others else left)
        return []

    # Settling

    def ack_many(self, messages: Iterable[Message]) -> None:
        """Ack messages of this consumer in one commit: all of them, or on an error none.

        Raises: LeaseLost, AlreadySettled, Closed, WrongProcess.
        """
        messages = list(messages)
        by_lease: dict[LeaseRow, list[int]] = {}
        for message in messages:
            self._check_unsettled(message)
            by_lease.setdefault(message.lease, []).append(message.offset)
        if any(len(set(offsets)) < len(offsets) for offsets in by_lease.values()):
            raise errors.AlreadySettled("a message is in the list twice; settle each delivery once")

        def ack(at: Delivery) -> None:
            for lease, offsets in by_lease.items():
                at.ack(lease, offsets)

        self._in_group(ack)
        self._count_acked(messages)

    def settle(self, message: Message, action: Callable[[Delivery], None], settled: bool) -> None:
        """For Message: run an action on a message of this consumer in one commit."""
        self._check_unsettled(message)
        self._in_group(action)
        message.settled = settled

    def name_handled(self, offset: int | None) -> None:
        """For Message: name the message being handled, for blame after a crash; no commit."""
        if self.usable:
            self._engine.slots.handle(self._member.slot, offset)

    def _in_group(self, action: Callable[[Delivery], T]) -> T:
        """Run an action on the group in one commit; trim the log now and then."""

        def operation(tx: Tx) -> T:
            at = Delivery(tx, self._place)
            result = action(at)
            at.store()
            if self._acked >= limits.TRIM_MESSAGES or self._acked_bytes >= limits.TRIM_BYTES:
                delivery.trim(tx, self._place)
                tx.after.append(self._reset_acked)
            return result

        return self._engine.commit(operation)

    def _count_acked(self, messages: Sequence[Message]) -> None:
        for message in messages:
            message.settled = True
            self._acked_bytes += len(message.body)
        self._acked += len(messages)

    def _reset_acked(self) -> None:
        self._acked = self._acked_bytes = 0

    # Closing

    def close(self) -> None:
        """Give back what is not settled, uncharged, and leave the group. May be called twice."""
        if self._closed or not self.usable:
            return
        self._closed = True
        self._acked = limits.TRIM_MESSAGES
        with suppress(errors.NotFound):  # the group was deleted, and its leases with it
            self._in_group(lambda at: at.release_owned(self._member.owner))
        self._engine.slots.nudge(self.group.id)
        self._engine.slots.release(self._member.slot, clean=True)

    @property
    def usable(self) -> bool:
        """Whether it is open and of this process."""
        return not self._closed and self._generation == self._engine.generation

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Never commit from here: any thread may hold any lock. Others see the slot free, and take
        # back what it held.
        if getattr(self, "_member", None) is not None and self.usable:
            self._engine.abandon(self._member.slot)

    def __repr__(self) -> str:
        return f"<Consumer {self.name} of {self.group.topic.name}/{self.group.name}>"

    def _check_open(self) -> None:
        if self._generation != self._engine.generation:
            raise errors.WrongProcess(
                f"consumer {self.name!r} belongs to the process that forked this one; make another"
            )
        if self._closed:
            raise errors.Closed(f"consumer {self.name!r} is closed; make another")

    def _check_unsettled(self, message: Message) -> None:
        if not isinstance(message, Message):
            raise TypeError(f"expected a Message, not {type(message).__name__}")
        self._check_open()
        if message.consumer is not self:
            raise ValueError(f"message {message.offset} was leased by another consumer")
        if message.settled:
            raise errors.AlreadySettled(
                f"message {message.offset} was settled before; settle each delivery once",
                offset=message.offset,
            )
