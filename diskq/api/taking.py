"""Taking: a consumer leases messages, waits for them, and hands out those that it prefetched."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from threading import Thread, current_thread
from typing import TYPE_CHECKING

from ..base import errors
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
    from .heartbeat import Heartbeat

_MOST_STRAYS = 16


class Taking:
    """The gets of one consumer. Safe across threads."""

    def __init__(self, member: Membership, prefetch: int, heartbeat: Heartbeat | None) -> None:
        self._member = member
        self._prefetch = prefetch
        self._heartbeat = heartbeat
        self.fetched: deque[Message] = deque()
        self._strays: list[list[Grant | Message]] = []  # leased for calls that were interrupted
        # The word of the group before it was seen to be empty: while the word stays the same, a get
        # looks first, and takes no write lock for nothing.
        self.emptied: int | None = member.engine.slots.word(member.place.group_id)

    def take(self, limit: int, timeout: float | None, done: Message | None = None) -> list[Message]:
        """Lease up to `limit` messages, and ack `done` in the same commit; wait up to `timeout`
        seconds for them, None: without end. If an interrupt keeps them from the caller, they are
        given back."""
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
        if self.fetched:
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
                if done is not None or seen != self.emptied or may_get(self._member, thread):
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
                self._member.ack_many([done])
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
        self.emptied = None if taking.more else seen
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
            self.fetched += found
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
                taken.extend(map(deque.popleft, (self.fetched,)))  # in one step
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
            return self._member.handle.commit(lambda tx: _is_held(tx, message))
        return self._member.engine.read(lambda tx: _is_held(tx, message))


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
