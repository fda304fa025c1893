"""Group: an independent reader of a topic, with its own position, leases and dead letters.

The verbs of operators are imported when they are used: each cron job pays for every import.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Unpack

from ..base import check, limits
from ..base.model import (
    DeadLetter,
    GroupSettings,
    GroupStats,
    NextMessage,
    PendingMessage,
    SeekPreview,
    WaitingMessage,
)
from ..base.ondemand import lazy
from ..storage.handle import Handle
from ..tables.group_tx import Place
from .consumer import Consumer

if TYPE_CHECKING:
    from ..base.options import GroupChanges, Start
    from ..operate import configure, dead_letters, deletion, fork, peek, seek, stats
    from .topic import Topic
else:
    deletion = lazy("operate.deletion")
    fork = lazy("operate.fork")
    seek = lazy("operate.seek")
    configure = lazy("operate.configure")
    dead_letters = lazy("operate.dead_letters")
    stats = lazy("operate.stats")
    peek = lazy("operate.peek")


class Group:
    """An independent reader of a topic; made by `Topic.group`. Consumers of one group share its
    messages, each message going to one of them. Safe across threads, and usable after a fork."""

    def __init__(self, topic: Topic, name: str, group_id: int) -> None:
        self.topic = topic
        self.name = name
        self.id = group_id
        self.handle: Handle = topic.handle  # for diskq's own use
        self.place: Place = Place(topic.id, topic.name, group_id, name)

    def consumer(
        self, name: str | None = None, *, prefetch: int = 1, heartbeat: bool = False
    ) -> Consumer:
        """A new member of the group. `name` appears in `info` and in the history of messages; by
        default it is made of the process id. `prefetch` (1, at most 10,000): messages leased in one
        commit when one is wanted. `heartbeat`: a thread extends the leases of its messages for as
        long as the process lives.

        Raises: Unsupported if 1024 consumers of the store are alive, or no thread can be started
        for the heartbeat; Busy, StoreMoved, ReadOnly, Closed.
        """
        self.handle.check_writable()
        if name is None:
            name = f"pid-{os.getpid()}"
        check.name("consumer", name)
        check.count("prefetch", prefetch, 1, limits.MAX_GET_MESSAGES)
        if not isinstance(heartbeat, bool):
            raise TypeError(f"heartbeat must be bool, not {type(heartbeat).__name__}")
        consumer: Consumer | None = None
        try:
            consumer = Consumer(self, name, prefetch, heartbeat)
            self.topic.store.adopt(consumer.member)
            return consumer
        except BaseException:  # nobody else can close it
            if consumer is not None:
                consumer.close()
            raise

    @property
    def settings(self) -> GroupSettings:
        """The stored settings."""
        return configure.of_group(self.handle, self.place)

    def stats(self) -> GroupStats:
        """The group in numbers, from one snapshot; the same cost with any backlog."""
        return self.handle.read(lambda tx: stats.group_stats(tx, self.id, self.name))

    def pending(self) -> list[PendingMessage]:
        """The leased messages, by the end of their leases, from one snapshot."""
        return self.handle.read(lambda tx: list(stats.pending(tx, self.id, self.name)))

    def peek(self, limit: int) -> list[NextMessage]:
        """The messages that gets would return next, at most `limit` (10,000), without taking them,
        from one snapshot: as if the group was not paused, and one consumer took all of them.
        Messages that are leased, parked or not due yet are left out.

        Raises: NotFound, Corrupt, Closed, TypeError, ValueError.
        """
        return peek.peek(self.handle, self.place, limit)

    def waiting(self) -> Iterator[WaitingMessage]:
        """The messages that wait for another delivery, in the order in which they are due.
        Messages that fail or are taken meanwhile may or may not appear."""
        return peek.waiting(self.handle, self.place)

    # Dead letters

    def dead(self, start: int = 0) -> Iterator[DeadLetter]:
        """The dead letters with offset `start` and above, by offset. Messages that die or are
        redriven meanwhile may or may not appear."""
        return dead_letters.dead(self.handle, self.place, start)

    def redrive(self, limit: int | None = None, offsets: Sequence[int] | None = None) -> int:
        """Give dead letters back to this group, to be delivered at once, with all their deliveries
        left: the first `limit` by offset, those at `offsets` (at most 1,000), or all. Returns how
        many. In a group with key order, one whose key is busy waits for its turn.

        Raises: NotFound if one of `offsets` is not dead; then none is given back.
        """
        return dead_letters.redrive(self.handle, self.place, limit, offsets)

    def forget_dead(self, offsets: Sequence[int]) -> None:
        """Remove these dead letters for good (at most 1,000).

        Raises: NotFound if one of them is not dead; then none is removed.
        """
        dead_letters.forget(self.handle, self.place, offsets)

    # Changes

    def seek(self, to: Start) -> None:
        """Let the group go on at "earliest", "latest", an offset, or the first message put at a
        datetime or later, whatever it did with those messages before. Whoever has a message leased
        loses it; what waits or is parked is forgotten, and so are dead letters that come again. One
        commit, which is long if very much waits.

        Only what is stored comes again. With `retention="interest"`, the default, a topic keeps
        what some group has not settled; with "limits" it keeps more. An offset may be at most the
        end of the topic, the one that is put next.

        Raises: NotFound, ReadOnly, Closed, TypeError, ValueError.
        """
        place = self.place
        self.handle.commit(lambda tx: seek.seek_group(tx, place, to))

    def preview_seek(self, to: Start) -> SeekPreview:
        """Look at a seek without doing it: how many messages it would deliver, and whether the
        target may lie before messages that are not stored any more.

        Raises: NotFound, Closed, TypeError, ValueError.
        """
        return seek.preview(self.handle, self.place, to)

    def fork(self, name: str) -> Group:
        """A new group with the cursor and the settings of this one, and a copy of its waiting,
        parked and dead messages. Messages that are leased here are ready there. From then on the
        groups are independent.

        Raises: ConfigConflict if the name is in use, NotFound, Full, ReadOnly, Closed.
        """
        check.name("group", name)
        place = self.place
        group_id = self.handle.commit(lambda tx: fork.fork_group(tx, place, name))
        return Group(self.topic, name, group_id)

    def pause(self) -> None:
        """Deliver nothing until `resume`; what is leased can be settled."""
        self._set_paused(True)

    def resume(self) -> None:
        """Deliver again."""
        self._set_paused(False)

    def _set_paused(self, paused: bool) -> None:
        self.handle.commit(lambda tx: configure.set_paused(tx, self.place, paused))

    def update(self, **settings: Unpack[GroupChanges]) -> GroupSettings:
        """Change settings, for what is delivered from now on; None takes `max_in_flight` away.
        Returns all settings. `ordering` cannot change.

        Raises: ConfigConflict, NotFound, ReadOnly, TypeError, ValueError.
        """
        return self.handle.commit(lambda tx: configure.update_group(tx, self.place, settings))

    def delete(self) -> None:
        """Remove the group with its position, waiting messages and dead letters. Its consumers get
        NotFound from now on; what only this group still needed leaves the log.

        Raises: NotFound.
        """
        self.handle.check_writable()
        deletion.delete_group(self.handle, self.place)

    def __repr__(self) -> str:
        return f"<Group {self.topic.name}/{self.name}>"
