"""Consumer: one member of a group. Leases messages, waits for them, settles them."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from . import check, errors, leases, limits, retention
from .codec import HELD, LeaseRow
from .delivery import Delivery, Grant, Member
from .engine import Tx
from .log import Log
from .message import Action, Message
from .slots import NOTHING, SEVERAL

if TYPE_CHECKING:
    from .group import Group
    from .heartbeat import Heartbeat

T = TypeVar("T")


class Consumer:
    """One member of a group, in one process; made by `Group.consumer`.

    A context manager: leaving it gives back what is not settled, uncharged. Safe across threads.
    It belongs to the process that made it: a forked child makes its own.

    `for message in consumer` waits for messages without end, and acks each in the commit that
    leases the next one, unless the body settled it, or tried to: what a failed settle or
    transaction had is left alone, and comes again after its deadline. An exception or `break`
    leaves the last message unsettled. The loop ends when the consumer is closed, by any thread.

    With `prefetch`, one commit leases so many messages, which are handed out one by one. Only those
    handed out count as being handled: should the process die, the others are not charged; and
    consumers without work take the later half of what is left.
    """

    def __init__(self, group: Group, name: str, prefetch: int, heartbeat: bool) -> None:
        self.group = group
        self.name = name
        self._closed = False
        self._acked = self._acked_bytes = 0  # since it last looked for segments to trim
        self._engine = group.topic.store.engine
        self._generation = self._engine.generation
        self.place = group.place
        owner = int.from_bytes(os.urandom(8), "big") | 1
        slot = self._engine.slots.take(owner, group.id, name)
        self._member = Member(owner, slot, prefetch > 1)
        self._prefetch = prefetch
        self._fetched: deque[Message] = deque()
        self._handed = 0  # the latest token of those handed out
        self._heartbeat: Heartbeat | None = None
        if heartbeat:
            from .heartbeat import Heartbeat  # a cron job pays for each import

            self._heartbeat = Heartbeat(self)

    # Taking

    def get(self, block: bool = True, timeout: float | None = None) -> Message:
        """Lease the next message; wait for one up to `timeout` seconds, None: without end.

        The lease is durable when this returns.

        Raises: Empty, Closed, WrongProcess, NotFound (the group was deleted), Corrupt.
        """
        messages = self._take(1, check.timeout(timeout) if block else 0)
        if not messages:
            if self._engine.read(lambda tx: Delivery(tx, self.place).paused):
                raise errors.Empty(f"group {self.group.name!r} is paused; resume() lets it go on")
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
            done = None if message.settled or message.failed else message

    def _take(
        self, limit: int, timeout: float | None, done: Message | None = None
    ) -> list[Message]:
        """Lease up to `limit` messages, and ack `done` in the same commit; wait for them."""
        if self._fetched:
            self.check_open()
            if done is not None:
                self.ack_many([done])
                done = None
            if messages := self._hand_out(limit):
                return messages
        until = None if timeout is None else time.monotonic() + timeout

        def take(at: Delivery) -> list[Grant]:
            if done is not None:
                at.ack(done.lease, [done.offset])
            return at.take(self._member, max(limit, self._prefetch))

        while True:
            self.check_open()
            seen = self._engine.slots.word(self.group.id)
            grants = self.in_group(take, settles=done is not None)
            if done is not None:
                self.count_acked([done])
                done = None
            if grants and (messages := self._messages(grants, limit)):
                return messages
            if not self._wait(seen, until):
                return []

    def _messages(self, grants: Sequence[Grant], limit: int) -> list[Message]:
        found: list[Message] = []
        for lease, messages, failures, parts in grants:
            if parts:
                both = zip(messages, parts, strict=True)
                found += [Message(self, lease, each, failures, its) for each, its in both]
            else:
                found += [Message(self, lease, each, failures) for each in messages]
        if self._heartbeat is not None:
            self._heartbeat.watch(found)
        if self._member.prefetch:
            self._fetched += found
            return self._hand_out(limit)
        if len(grants) > 1:  # runs that were given back may interleave
            found.sort(key=_delivery_order)
        return found

    def _hand_out(self, limit: int) -> list[Message]:
        """The next prefetched messages that nobody took back meanwhile. They are named as handled
        before that is looked up, so nobody takes them after that; behind whoever may be taking them
        right now, it is looked up in a commit."""
        found: list[Message] = []
        while len(found) < limit:
            try:
                message = self._fetched.popleft()
            except IndexError:
                break
            self._handed = max(self._handed, message.token)
            self._engine.slots.hand_out(self._member.slot, self._handed)
            self.name_handled(message.offset)
            stealing = self._engine.slots.stealing()
            look = self._engine.commit if stealing else self._engine.read
            if look(lambda tx: _is_held(tx, message)):  # noqa: B023
                found.append(message)
        if len(found) > 1:
            self.name_handled(SEVERAL)
        return found

    def _wait(self, seen: int, until: float | None) -> bool:
        """Sleep until the group may have a message; False if none came in time."""
        slots, group_id = self._engine.slots, self.group.id
        dead: list[tuple[int, int]] = []
        slots.set_waiting(self._member.slot, True)
        try:
            while slots.word(group_id) == seen:
                seconds, paused = self._engine.read(self._look)
                if seconds <= 0:
                    break
                for index, owner in () if paused else dead:  # they held nothing, or it was seen
                    slots.forget(index, owner)
                if until is not None:
                    seconds = min(seconds, until - time.monotonic())
                    if seconds <= 0:
                        return False
                dead = self._sleep(seen, seconds)
            return True
        finally:
            slots.set_waiting(self._member.slot, False)

    def _look(self, tx: Tx) -> tuple[float, bool]:
        at = Delivery(tx, self.place)
        return at.look(self._member), at.paused

    def _sleep(self, seen: int, seconds: float) -> list[tuple[int, int]]:
        """Sleep on the group's word. Death wakes nobody, so look now and then whether consumers of
        other processes live; returns those that died."""
        slots, group_id = self._engine.slots, self.group.id
        end = time.monotonic() + seconds
        while slots.word(group_id) == seen and (left := end - time.monotonic()) > 0:
            self.check_open()  # who closes it wakes us, but leaves the word alone
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
        self.check_open()
        messages = list(messages)
        by_lease: dict[LeaseRow, list[int]] = {}
        for message in messages:
            self.check_unsettled(message)
            by_lease.setdefault(message.lease, []).append(message.offset)
        if any(len(set(offsets)) < len(offsets) for offsets in by_lease.values()):
            raise errors.AlreadySettled("a message is in the list twice; settle each delivery once")

        def ack(at: Delivery) -> None:
            for lease, offsets in by_lease.items():
                at.ack(lease, offsets)

        self._settle(messages, ack)
        self.count_acked(messages)

    def settle(self, message: Message, action: Action, settled: bool) -> None:
        """For Message: run an action on a message of this consumer in one commit."""
        self.check_open()
        self.check_unsettled(message)
        self._settle([message], action)
        if settled:
            self.count_acked([message])

    def _settle(self, messages: Sequence[Message], action: Callable[[Delivery], None]) -> None:
        try:
            self.in_group(action)
        except errors.LeaseLost:
            for message in messages:
                message.failed = True
            raise

    def name_handled(self, offset: int | None) -> None:
        """For Message: name the message being handled, for blame after a crash; no commit."""
        if self.usable:
            self._engine.slots.handle(self._member.slot, offset)

    def in_group(self, action: Callable[[Delivery], T], *, settles: bool = True) -> T:
        """For diskq's own use: run an action on the group in one commit; trim now and then."""

        def operation(tx: Tx) -> T:
            at = Delivery(tx, self.place)
            result = action(at)
            at.store()
            if settles:
                self.trim(tx)
            return result

        return self._engine.commit(operation)

    def trim(self, tx: Tx) -> None:
        """For diskq's own use: trim the log if much was acked, or if somebody waits for room."""
        due = self._acked >= limits.TRIM_MESSAGES or self._acked_bytes >= limits.TRIM_BYTES
        if due or self._engine.slots.room_wanted(self.place.topic_id):
            place = self.place
            retention.trim(Log(tx, place.database, place.topic_id), place.topic)
            tx.after.append(self._reset_acked)

    def count_acked(self, messages: Sequence[Message]) -> None:
        """For diskq's own use: note that these messages are acked."""
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
        self._fetched.clear()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._acked = limits.TRIM_MESSAGES
        clean = False  # then others find it dead, and take back what it held
        try:
            self.in_group(lambda at: at.release_owned(self._member.owner))
            clean = True
        except errors.NotFound:
            clean = True  # the group was deleted, and its leases with it
        except (errors.Full, errors.DiskFailed):
            self._engine.slots.handle(self._member.slot, NOTHING)  # closing charges nobody
        finally:
            self._engine.slots.nudge(self.group.id)
            self._engine.slots.release(self._member.slot, clean=clean)

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
            if self._heartbeat is not None:
                self._heartbeat.stop()

    def __repr__(self) -> str:
        return f"<Consumer {self.name} of {self.group.topic.name}/{self.group.name}>"

    def check_open(self) -> None:
        """For diskq's own use. Raises: Closed, WrongProcess."""
        if self._generation != self._engine.generation:
            raise errors.WrongProcess(
                f"consumer {self.name!r} belongs to the process that forked this one; make another"
            )
        if self._closed:
            raise errors.Closed(f"consumer {self.name!r} is closed; make another")

    def check_unsettled(self, message: Message) -> None:
        """For diskq's own use. Raises: AlreadySettled, TypeError, ValueError."""
        if not isinstance(message, Message):
            raise TypeError(f"expected a Message, not {type(message).__name__}")
        if message.consumer is not self:
            raise ValueError(f"message {message.offset} was leased by another consumer")
        if message.settled:
            raise errors.AlreadySettled(
                f"message {message.offset} was settled before, or given to a transaction; settle"
                " each delivery once",
                offset=message.offset,
            )


def _delivery_order(message: Message) -> tuple[bool, int, int]:
    """Retries as they came, then the higher priority, then the lower offset."""
    if message.lease.flags & HELD:
        return False, 0, 0
    return True, -message.priority, message.offset


def _is_held(tx: Tx, message: Message) -> bool:
    row = leases.find(tx, message.consumer.group.id, message.lease)
    return row is not None and row.holds(message.offset)
