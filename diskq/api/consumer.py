"""Consumer: one member of a group. Leases messages, waits for them, settles them."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import repeat
from threading import Thread, current_thread
from typing import TYPE_CHECKING, TypeVar

from ..base import check, errors, guard, limits
from ..base.ondemand import lazy
from ..delivery import retention, settle, take, waiting
from ..delivery.grants import Grant, Member
from ..format.layout import HELD, SOLO
from ..storage.hands import Lease
from ..storage.tx import Tx
from ..tables import leases
from ..tables.group_tx import GroupTx
from ..tables.log import Log
from .message import Action, Message
from .presence import Presence

if TYPE_CHECKING:
    from . import heartbeat as heartbeats
else:
    heartbeats = lazy("api.heartbeat")


if TYPE_CHECKING:
    from .group import Group
    from .heartbeat import Heartbeat

T = TypeVar("T")
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
        self._acked = self._acked_bytes = 0  # since it last looked for segments to trim
        self._store = group.topic.store
        self._engine = self._store.engine
        self._clean = False  # it gave back what it held
        self._strays: list[list[Grant | Message]] = []  # leased for calls that were interrupted
        self.place = group.place
        self._prefetch = prefetch
        self._fetched: deque[Message] = deque()
        self._heartbeat: Heartbeat | None = None
        owner = int.from_bytes(os.urandom(8), "big") | 1
        try:
            self._join(owner, heartbeat)
        except BaseException:
            self._engine.slots.give_up(owner)
            raise

    def _join(self, owner: int, heartbeat: bool) -> None:
        group_id, name = self.group.id, self.name
        slot = self._store.commit(lambda tx: tx.engine.slots.take(owner, group_id, name))
        self._member = Member(owner, slot, self._prefetch > 1)
        self._presence = Presence(self._engine, slot, self._engine.hands[self.group.id])
        if heartbeat:
            self._heartbeat = heartbeats.Heartbeat(self)

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
            if self._engine.read(lambda tx: GroupTx(tx, self.place).paused):
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
                if self._presence.closed:
                    return
                raise
            yield message
            done = None if message.settled or message.failed else message
            if message.failed:
                self.unname([message])

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
            self.check_open()
            if done is not None:
                with suppress(errors.LeaseLost):
                    self.ack_many([done])
                done = None
            if messages := self._hand_out(taken, limit, thread):
                return messages
        last = looked = False
        try:
            while True:
                self.check_open()
                seen = self._engine.slots.word(self.group.id)
                try:
                    grants, stuck = self._lease(taken, limit, thread, done, until)
                except errors.Busy:
                    if looked and done is None:
                        return []
                    raise
                done, looked = None, True
                self.check_open()  # a signal handler may have closed it meanwhile
                if grants and (messages := self._messages(taken, grants, limit, thread)):
                    return messages
                if last:
                    return []
                if not self._wait(seen, until, thread, stuck):
                    # Others left a share to this one until now: what has come is looked at once.
                    self._presence.count_waiting(thread, False)
                    last = self._engine.slots.word(self.group.id) != seen
                    if not last:
                        return []
        finally:
            if self._presence.waiting:
                self._presence.count_waiting(thread, False)

    def _lease(
        self,
        taken: list[Grant | Message],
        limit: int,
        thread: Thread,
        done: Message | None,
        until: float | None,
    ) -> tuple[list[Grant], bool]:
        """Ack `done`, unless its lease was lost, and lease what is there, in one commit. Returns
        the grants, and whether a lane stands still for the lack of room. With the commit, `taken`
        has the grants, too."""

        def lease(group: GroupTx) -> tuple[bool, list[Grant], bool]:
            acked = done is not None and _acked(group, done)
            if acked:
                group.tx.at_commit(done, "settled", True)
            owner, slot, prefetch, *_ = self._member
            waiting = thread in self._presence.waiting
            member = Member(owner, slot, prefetch, thread, waiting)
            grants, stuck = take.take(group, member, max(limit, self._prefetch))
            if grants and waiting:  # in the commit: who takes something next counts it no more
                self._presence.count_waiting(thread, False)
            if grants:
                group.tx.marks.append(partial(taken.extend, grants))
            return acked, grants, stuck

        acked, grants, stuck = self.in_group(lease, settles=done is not None, until=until)
        if done is not None:
            if acked:
                self.count_acked([done])
            else:
                self._give_up([done])
        return grants, stuck

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
            self.in_group(release, settles=False)
        while len(self._strays) > _MOST_STRAYS and not self._strays[0]:
            del self._strays[0]  # the latest may be filled yet, by a commit of another thread

    def _messages(
        self, taken: list[Grant | Message], grants: Sequence[Grant], limit: int, thread: Thread
    ) -> list[Message]:
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
            self._presence.hand_out(message.token)
            message.lease.hands[message.offset] = thread
            self._presence.name(message)
            if self._still_held(message):
                found.append(message)
            else:
                self.unname([message])
        return found

    def _still_held(self, message: Message) -> bool:
        """Whether nobody took a prefetched message back; one that waited for long gets its time."""
        lease, offset = message.lease, message.offset
        left_ns = lease.deadline_ns - self._engine.clock.monotonic_ns()
        if 3 * left_ns < 2 * lease.lasts_ns:
            try:
                self.in_group(
                    lambda group: settle.extend(group, lease, offset, None), settles=False
                )
            except errors.LeaseLost:
                return False
            return True
        if self._engine.slots.turns.stealing():
            return self._store.commit(lambda tx: _is_held(tx, message))
        return self._engine.read(lambda tx: _is_held(tx, message))

    def _wait(self, seen: int, until: float | None, thread: Thread, stuck: bool) -> bool:
        """Sleep until the group may have a message; False if none came in time. If the last get was
        `stuck`, sleep at least once: what it saw does not count."""
        slots, group_id = self._engine.slots, self.group.id
        dead: list[tuple[int, int]] = []
        known: set[tuple[int, int]] = set()
        self._presence.count_waiting(thread, True)
        slept = False
        while slots.word(group_id) == seen and not (stuck and slept):
            self._engine.check_place()
            seconds, paused = self._engine.read(partial(self._look, thread, stuck))
            if seconds <= 0:
                break
            for index, owner in () if paused else dead:  # they held nothing, or it was seen
                slots.forget(index, owner)
            if until is not None:
                seconds = min(seconds, until - time.monotonic())
                if seconds <= 0:
                    return False
            dead = self._sleep(seen, seconds, known)
            known.update(dead)
            slept = True
        return True

    def _look(self, thread: Thread, stuck: bool, tx: Tx) -> tuple[float, bool]:
        group, member = GroupTx(tx, self.place), self._member._replace(thread=thread)
        return waiting.seconds_to_wait(group, member, stuck=stuck), group.paused

    def _sleep(
        self, seen: int, seconds: float, known: set[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Sleep on the group's word. Death wakes nobody, so look now and then whether consumers of
        other processes live; returns those that died, but for those that are known to be dead."""
        slots, group_id = self._engine.slots, self.group.id
        end = time.monotonic() + seconds
        while slots.word(group_id) == seen and (left := end - time.monotonic()) > 0:
            self.check_open()  # who closes it wakes us, but leaves the word alone
            others, dead = slots.peers(group_id)
            if dead := [each for each in dead if each not in known]:
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
        by_lease: dict[Lease, list[int]] = {}
        for message in messages:
            self.check_unsettled(message)
            by_lease.setdefault(message.lease, []).append(message.offset)
        if any(len(set(offsets)) < len(offsets) for offsets in by_lease.values()):
            raise errors.AlreadySettled("a message is in the list twice; settle each delivery once")

        def ack(group: GroupTx) -> None:
            for lease, offsets in by_lease.items():
                settle.ack(group, lease, offsets)

        self._settle(messages, ack, True)

    def settle(self, message: Message, action: Action, settled: bool) -> None:
        """For Message: run an action on a message of this consumer in one commit."""
        self.check_open()
        self.check_unsettled(message)
        self._settle([message], action, settled)

    def _settle(self, messages: Sequence[Message], action: Action, settled: bool) -> None:
        def act(group: GroupTx) -> None:
            action(group)
            if settled:
                mark_settled(group.tx, messages)

        try:
            self.in_group(act)
        except errors.LeaseLost:
            self._give_up(messages)
            raise
        if settled:
            self.count_acked(messages)

    def _give_up(self, messages: Sequence[Message]) -> None:
        """Their lease was lost."""
        for message in messages:
            message.failed = True
        self.unname(messages)

    def name_handled(self, message: Message) -> None:
        """For Message: name it as being handled, by this thread."""
        message.lease.hands[message.offset] = current_thread()
        if message.lease.flags & SOLO:  # it has no other message
            message.lease.hands.pop(None, None)
        self._presence.name(message)

    def unname(self, messages: Iterable[Message]) -> None:
        """For Message: these are not handled any more."""
        self._presence.unname(messages)

    def in_group(
        self,
        action: Callable[[GroupTx], T],
        *,
        settles: bool = True,
        until: float | None = None,
    ) -> T:
        """For diskq's own use: run an action on the group in one commit; trim now and then."""

        def operation(tx: Tx) -> T:
            group = GroupTx(tx, self.place)
            result = action(group)
            group.store()
            if settles:
                self.trim(tx)
            return result

        return self._engine.commit(operation, until, self._store.busy_seconds)

    def trim(self, tx: Tx) -> None:
        """For diskq's own use: trim the log if much was acked, or if somebody waits for room."""
        due = self._acked >= limits.TRIM_MESSAGES or self._acked_bytes >= limits.TRIM_BYTES
        if due or self._engine.slots.room_wanted(self.place.topic_id):
            place = self.place
            retention.trim(Log(tx, place.topic_id), place.topic)
            tx.at_commit(self, "_acked", 0)
            tx.at_commit(self, "_acked_bytes", 0)

    def count_acked(self, messages: Sequence[Message]) -> None:
        """For diskq's own use: note that these messages are acked."""
        self._acked += len(messages)
        self._acked_bytes += sum(len(message.body) for message in messages)
        if self._presence.named:
            self._presence.unname(messages)

    # Closing

    def close(self) -> None:
        """Give back what is not settled, uncharged, and leave the group. May be called twice, and
        by a signal handler. Never waits for long: where it cannot commit, others take back what it
        held, as if it had died with nothing in hand."""
        if not (self._presence.gone or self.inherited):
            guard.surely(self._release_all, self._leave)

    def _release_all(self) -> None:
        self._presence.closed = True
        self._fetched.clear()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._acked = limits.TRIM_MESSAGES
        until = time.monotonic() + min(self._store.busy_seconds, limits.CLOSE_SECONDS)
        try:
            self.in_group(
                lambda group: settle.release_owned(group, self._member.owner), until=until
            )
            self._clean = True
        except errors.NotFound:
            self._clean = True  # the group was deleted, and its leases with it
        except errors.DiskqError:
            pass  # others find it dead, and take back what it held

    def _leave(self) -> None:
        """Give the slot up; may be called again."""
        slots, slot, owner = self._engine.slots, self._member.slot, self._member.owner
        if not self._clean:
            self._presence.name_nothing()
        slots.nudge(self.group.id)
        slots.release(slot, owner, clean=self._clean)
        self._presence.gone = True

    @property
    def usable(self) -> bool:
        """Whether it is open and of this process."""
        return self._presence.usable

    @property
    def inherited(self) -> bool:
        """For diskq's own use: whether it belongs to a process that forked this one."""
        return self._presence.inherited

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Never commit from here: any thread may hold any lock. Others see the slot free, and take
        # back what it held.
        presence = getattr(self, "_presence", None)
        if presence is not None and not (presence.gone or self.inherited):
            self._engine.abandon(self._member.slot, self._member.owner)
            if self._heartbeat is not None:
                self._heartbeat.stop()

    def __repr__(self) -> str:
        return f"<Consumer {self.name} of {self.group.topic.name}/{self.group.name}>"

    def check_open(self) -> None:
        """For diskq's own use. Raises: Closed, WrongProcess."""
        if self._presence.generation != self._engine.generation:
            raise errors.WrongProcess(
                f"consumer {self.name!r} belongs to the process that forked this one; make another"
            )
        if self._presence.closed:
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


def mark_settled(tx: Tx, messages: Sequence[Message]) -> None:
    """For diskq's own use: let messages count as settled in the moment in which they are."""
    marks = map(setattr, messages, repeat("settled"), repeat(True))
    tx.marks.append(partial(deque, marks, 0))


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
    row = leases.find(tx, message.consumer.group.id, message.lease)
    return row is not None and row.holds(message.offset)
