"""Consumer: one member of a group. Leases messages, waits for them, settles them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..base import check, errors, limits
from ..base.ondemand import lazy
from ..tables.group_tx import GroupTx
from .membership import Membership
from .message import Message
from .taking import Taking

if TYPE_CHECKING:
    from . import heartbeat as heartbeats
    from .group import Group
else:
    heartbeats = lazy("api.heartbeat")


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
        self._member = Membership(group.handle, group.place, name, prefetches=prefetch > 1)
        try:
            beat = None
            if heartbeat:
                beat = heartbeats.Heartbeat(self._member, group.settings.lease_seconds)
            self._taking = Taking(self._member, prefetch, beat)
        except BaseException:
            self._member.close()
            raise

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
        messages = self._taking.take(1, check.timeout(timeout) if block else 0)
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
        return self._taking.take(n, check.timeout(timeout))

    def __iter__(self) -> Iterator[Message]:
        done: Message | None = None
        while True:
            try:
                [message] = self._taking.take(1, None, done)
            except errors.Closed:
                if self._member.presence.closed:
                    return
                raise
            yield message
            done = None if message.settled or message.failed else message
            if message.failed:
                self._member.unname([message])

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
