"""Consumer: one member of a group. Leases messages, waits for them, settles them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from threading import Thread, current_thread
from typing import TYPE_CHECKING

from ..base import check, errors, limits
from ..base.ondemand import lazy
from ..delivery import settle
from ..delivery import take as takes
from ..delivery.grants import Grant, Member
from ..format.layout import HELD
from ..storage.tx import Tx
from ..tables import leases
from ..tables.group_tx import GroupTx
from .membership import Membership
from .message import Message
from .waiting import may_get, wait_for_message

if TYPE_CHECKING:
    from . import heartbeat as heartbeats
    from .group import Group
else:
    heartbeats = lazy("api.heartbeat")

_MOST_STRAYS = 16


class Consumer:
    """One member of a group, in one process; made by `Group.consumer`.

    A context manager: leaving it gives back what is not settled, uncharged. Safe across threads.
    It belongs to the process that made it: a forked child makes its own.

    `for message in consumer` waits for messages without end, and acks each in the commit that
    leases the next one, unless the body settled it, or tried to: what a failed settle or
    transaction had is left alone, and comes again after its deadline. So is a message whose lease
    was lost while the body handled it. An exception or `break` leaves the last message unsettled.
    The loop ends when the consumer is closed, by any thread.

    If the process dies, the message it was handling is charged: the one in a `with` block, or the
    only one it has. If it had several, each is delivered alone from then on, and while a thread has
    one of these, other threads of the process get none of the group, until it is known which one
    kills. So a get may wait, or raise Empty, though messages are there.

    With `prefetch`, one commit leases so many messages, which are handed out one by one, each with
    at least two thirds of its `lease_seconds` left. Only those handed out count as being handled:
    should the process die, the others are not charged; and consumers without work take the later
    half of what is left.
    """

    def __init__(self, group: Group, name: str, prefetch: int, heartbeat: bool) -> None:
        self.group = group
        self.name = name
        self._prefetch = prefetch
        self._fetched: deque[Message] = deque()
        self._strays: list[list[Grant | Message]] = []  # leased for calls that were interrupted
        self._heartbeat: heartbeats.Heartbeat | None = None
        self._member = Membership(group.handle, group.place, name, prefetches=prefetch > 1)
        # The word of the group before it was seen to be empty: while that is the same, a get looks
        # first, and takes no write lock for nothing.
        self._emptied: int | None = self._member.engine.slots.word(group.id)
        if heartbeat:
            self._heartbeat = heartbeats.Heartbeat(self._member, group.settings.lease_seconds)

    @property
    def member(self) -> Membership:
        """For diskq's own use."""
        return self._member

    # Taking

    def get(self, block: bool = True, timeout: float | None = None) -> Message:
        """Lease the next message; wait for one up to `timeout` seconds, None: without end.

        The lease is durable when this returns. `timeout` includes the wait for others that write
        to the store; without it that wait is bounded by the store's `busy_seconds`, and without
        blocking by 0.1 s.

        Raises: Empty, Busy (it could not even look), Closed, WrongProcess, NotFound (the group was
        deleted), StoreMoved, Corrupt.
        """
        messages = self._take(1, check.timeout(timeout) if block else 0)
        if not messages:
            if self._member.engine.read(lambda tx: GroupTx(tx, self._member.place).paused):
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
                if self._member.presence.closed:
                    return
                raise
            yield message
            done = None if message.settled or message.failed else message
            if message.failed:
                self._member.unname([message])

    def _take(
        self, limit: int, timeout: float | None, done: Message | None = None
    ) -> list[Message]:
        """Lease up to `limit` messages, and ack `done` in the same commit; wait for them. If an
        interrupt keeps them from whoever asked, they are given back."""
        taken: list[Grant | Message] = []
        if any(self._strays):
            self._give_back()
        try:
            return self._take_into(taken, limit, timeout, done)
        except BaseException as error:
            if taken or not isinstance(error, errors.DiskqError):
                self._strays.append(taken)
                with suppress(errors.DiskqError):
                    self._give_back()
            raise

    def _take_into(
        self,
        taken: list[Grant | Message],
        limit: int,
        timeout: float | None,
        done: Message | None,
    ) -> list[Message]:
        thread = current_thread()
        until = None if timeout is None else time.monotonic() + timeout
        if self._fetched:
            if messages := self._take_fetched(taken, limit, thread, done):
                return messages
            done = None
        last = looked = False
        try:
            while True:
                self._member.check_open()
                seen = self._member.engine.slots.word(self._member.place.group_id)
                grants: list[Grant] = []
                stuck = False
                if done is not None or seen != self._emptied or may_get(self._member, thread):
                    leased = self._lease_in_time(taken, limit, thread, done, until, looked)
                    if leased is None:
                        return []
                    grants, stuck = leased
                elif timeout == 0:
                    return []
                done, looked = None, True
                self._member.check_open()  # a signal handler may have closed it meanwhile
                if grants and (messages := self._messages(taken, grants, limit, thread)):
                    return messages
                if last:
                    return []
                if not wait_for_message(self._member, seen, until, thread, stuck=stuck):
                    # Others left a share to this one until now: what has come is looked at once.
                    self._member.presence.count_waiting(thread, False)
                    last = self._member.engine.slots.word(self._member.place.group_id) != seen
                    if not last:
                        return []
        finally:
            if self._member.presence.waiting:
                self._member.presence.count_waiting(thread, False)

    def _take_fetched(
        self, taken: list[Grant | Message], limit: int, thread: Thread, done: Message | None
    ) -> list[Message]:
        """Ack `done`, unless its lease was lost, and hand out messages that were prefetched."""
        self._member.check_open()
        if done is not None:
            with suppress(errors.LeaseLost):
                self.ack_many([done])
        return self._hand_out(taken, limit, thread)

    def _lease_in_time(
        self,
        taken: list[Grant | Message],
        limit: int,
        thread: Thread,
        done: Message | None,
        until: float | None,
        looked: bool,
    ) -> tuple[list[Grant], bool] | None:
        """As `_lease`; None if a get that has looked before ran out of time while others wrote."""
        try:
            return self._lease(taken, limit, thread, done, until)
        except errors.Busy:
            if looked and done is None:
                return None
            raise

    def _lease(
        self,
        taken: list[Grant | Message],
        limit: int,
        thread: Thread,
        done: Message | None,
        until: float | None,
    ) -> tuple[list[Grant], bool]:
        """Ack `done`, unless its lease was lost, and lease what is ready, in one commit. Returns
        that, and whether there is no room for what comes next. With the commit, `taken` has it,
        too."""

        def take(group: GroupTx) -> tuple[bool, takes.Taken]:
            acked = done is not None and _acked(group, done)
            if acked:
                group.tx.at_commit(done, "settled", True)
            owner, slot, prefetch, *_ = self._member.leaser
            waiting = thread in self._member.presence.waiting
            member = Member(owner, slot, prefetch, thread, waiting)
            taking = takes.take(group, member, max(limit, self._prefetch))
            if taking.grants and waiting:  # in the commit: the next get counts it no more
                self._member.presence.count_waiting(thread, False)
            if taking.grants:
                group.tx.marks.append(partial(taken.extend, taking.grants))
            return acked, taking

        seen = self._member.engine.slots.word(self._member.place.group_id)
        acked, taking = self._member.in_group(take, settles=done is not None, until=until)
        self._emptied = None if taking.more else seen
        if done is not None:
            if acked:
                self._member.count_acked([done])
            else:
                self._member.give_up([done])
        return taking.grants, taking.stuck

    def _give_back(self) -> None:
        """Release what was leased for calls that were interrupted, uncharged."""
        strays = list(self._strays)

        def release(group: GroupTx) -> None:
            for taken in strays:
                for each in taken:
                    messages = [each] if isinstance(each, Message) else each.messages
                    for message in messages:
                        with suppress(errors.LeaseLost):
                            settle.release(group, each.lease, message.offset, 0)
                group.tx.marks.append(taken.clear)

        if any(strays):
            self._member.in_group(release, settles=False)
        while len(self._strays) > _MOST_STRAYS and not self._strays[0]:
            del self._strays[0]  # the latest may be filled yet, by a commit of another thread

    def _messages(
        self, taken: list[Grant | Message], grants: Sequence[Grant], limit: int, thread: Thread
    ) -> list[Message]:
        found: list[Message] = []
        for lease, messages, failures, parts in grants:
            if parts:
                both = zip(messages, parts, strict=True)
                found += [Message(self._member, lease, each, failures, its) for each, its in both]
            else:
                found += [Message(self._member, lease, each, failures) for each in messages]
        if self._heartbeat is not None:
            self._heartbeat.watch(found)
        if self._member.leaser.prefetch:
            self._fetched += found
            taken.clear()
            handed = self._hand_out(taken, limit, thread)
            for lease, *_ in grants:  # what is left of them is in nobody's hand
                lease.hands.pop(None, None)
            return handed
        if len(grants) > 1:
            found.sort(key=_delivery_order)
        return found

    def _hand_out(self, taken: list[Grant | Message], limit: int, thread: Thread) -> list[Message]:
        """The next prefetched messages that nobody took back meanwhile. They are named as handled
        before that is looked up, so nobody takes them after that; behind whoever may be taking them
        right now, it is looked up in a commit."""
        found: list[Message] = []
        while len(found) < limit:
            try:
                taken.extend(map(deque.popleft, (self._fetched,)))  # in one step
            except IndexError:
                break
            message = taken[-1]
            assert isinstance(message, Message)
            self._member.presence.hand_out(message.token)
            message.lease.hands[message.offset] = thread
            self._member.presence.name(message.token, message.offset)
            if self._still_held(message):
                found.append(message)
            else:
                self._member.unname([message])
        return found

    def _still_held(self, message: Message) -> bool:
        """Whether nobody took a prefetched message back; one that waited for long gets its time."""
        lease, offset = message.lease, message.offset
        left_ns = lease.deadline_ns - self._member.engine.clock.monotonic_ns()
        if 3 * left_ns < 2 * lease.lasts_ns:
            try:
                self._member.in_group(
                    lambda group: settle.extend(group, lease, offset, None), settles=False
                )
            except errors.LeaseLost:
                return False
            return True
        if self._member.engine.slots.turns.stealing():
            return self.group.handle.commit(lambda tx: _is_held(tx, message))
        return self._member.engine.read(lambda tx: _is_held(tx, message))

    # Settling

    def ack_many(self, messages: Iterable[Message]) -> None:
        """Ack messages of this consumer in one commit: all of them, or on an error none.

        Raises: LeaseLost, AlreadySettled, Closed, WrongProcess.
        """
        self._member.ack_many(messages)

    # Closing

    def close(self) -> None:
        """Give back what is not settled, uncharged, and leave the group. May be called twice, and
        by a signal handler. Never waits for long: where it cannot commit, other consumers take back
        what it held, as if it had died with nothing in hand."""
        self._member.close()

    @property
    def usable(self) -> bool:
        """Whether it is open and of this process."""
        return self._member.usable

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Consumer {self.name} of {self.group.topic.name}/{self.group.name}>"


def _delivery_order(message: Message) -> tuple[bool, int, int]:
    """Retries as they came, then the higher priority, then the lower offset."""
    if message.lease.flags & HELD:
        return False, 0, 0
    return True, -message.priority, message.offset


def _acked(group: GroupTx, message: Message) -> bool:
    """Ack a message, unless its lease was lost."""
    try:
        settle.ack(group, message.lease, [message.offset])
    except errors.LeaseLost:
        return False
    return True


def _is_held(tx: Tx, message: Message) -> bool:
    row = leases.find(tx, message.member.place.group_id, message.lease)
    return row is not None and row.holds(message.offset)
