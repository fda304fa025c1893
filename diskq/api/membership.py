"""Membership: a consumer's place in its group, and its transactions.

Consumer, Message, Heartbeat and Transaction share it; it knows none of them.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import repeat
from threading import current_thread
from typing import Protocol, TypeVar

from ..base import errors, guard, limits
from ..delivery import retention
from ..delivery import settle as settling
from ..delivery.grants import Member
from ..format.layout import SOLO
from ..storage.handle import Handle
from ..storage.hands import Lease
from ..storage.tx import Tx
from ..tables.group_tx import GroupTx, Place
from ..tables.log import Log
from .presence import Presence

T = TypeVar("T")


class Delivered(Protocol):
    """A message, as far as its settling needs it."""

    lease: Lease
    offset: int
    body: bytes
    settled: bool
    failed: bool
    member: Membership

    @property
    def token(self) -> int:
        """The number of this delivery."""


class Membership:
    """One member of a group, in one process: its slot, and what it settles.

    It belongs to the process that made it. Safe across threads.
    """

    def __init__(self, handle: Handle, place: Place, name: str, *, prefetches: bool) -> None:
        self.handle = handle
        self.engine = handle.engine
        self.place = place
        self.name = name
        self.at_close: list[Callable[[], object]] = []  # to be called when it closes
        self._acked = self._acked_bytes = 0  # since it last looked for segments to trim
        self._gave_back = False  # all that it held
        owner = int.from_bytes(os.urandom(8), "big") | 1
        try:
            slot = handle.commit(lambda tx: tx.engine.slots.take(owner, place.group_id, name))
            self.leaser = Member(owner, slot, prefetches)
            self.presence = Presence(self.engine, slot, self.engine.hands[place.group_id])
        except BaseException:
            self.engine.slots.give_up(owner)
            raise

    # Transactions

    def in_group(
        self,
        action: Callable[[GroupTx], T],
        *,
        settles: bool = True,
        until: float | None = None,
    ) -> T:
        """Run an action on the group in one commit; trim the log now and then if it `settles`."""

        def operation(tx: Tx) -> T:
            group = GroupTx(tx, self.place)
            result = action(group)
            group.store()
            if settles:
                self.trim(tx)
            return result

        return self.engine.commit(operation, until, self.handle.busy_seconds)

    def settle(self, message: Delivered, action: Callable[[GroupTx], None], *, ends: bool) -> None:
        """Run an action on a message of this member in one commit; the message is settled if that
        `ends` its delivery.

        Raises: LeaseLost, AlreadySettled, Closed, WrongProcess, Full.
        """
        self.check_open()
        self.check_unsettled(message)
        self._settle([message], action, ends)

    def ack_many(self, messages: Iterable[Delivered]) -> None:
        """See `Consumer.ack_many`."""
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
                settling.ack(group, lease, offsets)

        self._settle(messages, ack, True)

    def _settle(
        self, messages: Sequence[Delivered], action: Callable[[GroupTx], None], ends: bool
    ) -> None:
        def settle(group: GroupTx) -> None:
            action(group)
            if ends:
                mark_settled(group.tx, messages)

        try:
            self.in_group(settle)
        except errors.LeaseLost:
            self.give_up(messages)
            raise
        if ends:
            self.count_acked(messages)

    def trim(self, tx: Tx) -> None:
        """Trim the log if much was acked, or if a put waits for room."""
        due = self._acked >= limits.TRIM_MESSAGES or self._acked_bytes >= limits.TRIM_BYTES
        if due or self.engine.slots.room_wanted(self.place.topic_id):
            retention.trim(Log(tx, self.place.topic_id), self.place.topic)
            tx.at_commit(self, "_acked", 0)
            tx.at_commit(self, "_acked_bytes", 0)

    def count_acked(self, messages: Sequence[Delivered]) -> None:
        """Note that these messages are settled."""
        self._acked += len(messages)
        self._acked_bytes += sum(len(message.body) for message in messages)
        if self.presence.named:
            self.unname(messages)

    # Messages that it handles

    def give_up(self, messages: Sequence[Delivered]) -> None:
        """Note that the lease of these messages was lost."""
        for message in messages:
            message.failed = True
        self.unname(messages)

    def name_handled(self, message: Delivered) -> None:
        """Name a message as being handled, by this thread."""
        message.lease.hands[message.offset] = current_thread()
        if message.lease.flags & SOLO:  # it has no other message
            message.lease.hands.pop(None, None)
        self.presence.name(message.token, message.offset)

    def unname(self, messages: Iterable[Delivered]) -> None:
        """Note that these messages are not handled any more."""
        self.presence.unname(message.token for message in messages)

    # Closing

    @property
    def usable(self) -> bool:
        """Whether it is open and of this process."""
        return self.presence.usable

    @property
    def inherited(self) -> bool:
        """Whether it belongs to a process that forked this one."""
        return self.presence.inherited

    def check_open(self) -> None:
        """Raises: Closed, WrongProcess."""
        if self.presence.generation != self.engine.generation:
            raise errors.WrongProcess(
                f"consumer {self.name!r} belongs to the process that forked this one; make another"
            )
        if self.presence.closed:
            raise errors.Closed(f"consumer {self.name!r} is closed; make another")

    def check_unsettled(self, message: Delivered) -> None:
        """Raises: AlreadySettled, TypeError, ValueError."""
        if getattr(message, "member", None) is not self:
            if not hasattr(message, "lease"):
                raise TypeError(f"expected a Message, not {type(message).__name__}")
            raise ValueError(f"message {message.offset} was leased by another consumer")
        if message.settled:
            raise errors.AlreadySettled(
                f"message {message.offset} was settled before, or given to a transaction; settle"
                " each delivery once",
                offset=message.offset,
            )

    def close(self) -> None:
        """Give back what is not settled, uncharged, and leave the group. May be called twice, and
        by a signal handler."""
        if not (self.presence.gone or self.inherited):
            guard.surely(self._release_all, self._leave)

    def _release_all(self) -> None:
        self.presence.closed = True
        for call in self.at_close:
            call()
        self._acked = limits.TRIM_MESSAGES
        until = time.monotonic() + min(self.handle.busy_seconds, limits.CLOSE_SECONDS)
        try:
            owner = self.leaser.owner
            self.in_group(lambda group: settling.release_owned(group, owner), until=until)
            self._gave_back = True
        except errors.NotFound:
            self._gave_back = True  # the group was deleted, and its leases with it
        except errors.DiskqError:
            pass  # other consumers find it dead, and take back what it held

    def _leave(self) -> None:
        """Give the slot up; may be called again."""
        slots, slot, owner = self.engine.slots, self.leaser.slot, self.leaser.owner
        if not self._gave_back:
            self.presence.name_nothing()
        slots.nudge(self.place.group_id)
        slots.release(slot, owner, clean=self._gave_back)
        self.presence.gone = True

    def __del__(self) -> None:
        # Never commit from here: any thread may hold any lock. Other consumers see the slot free,
        # and take back what it held.
        presence = getattr(self, "presence", None)
        if presence is not None and not (presence.gone or self.inherited):
            self.engine.abandon(self.leaser.slot, self.leaser.owner)
            for call in self.at_close:
                with suppress(Exception):
                    call()


def mark_settled(tx: Tx, messages: Sequence[Delivered]) -> None:
    """Let messages count as settled in the moment in which they are."""
    marks = map(setattr, messages, repeat("settled"), repeat(True))
    tx.marks.append(partial(deque, marks, 0))
