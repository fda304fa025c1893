"""Queue: a topic and its group "default" in one object, for who needs no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .consumer import Consumer
from .group import Group
from .message import Message
from .topic import Topic

DEFAULT_GROUP = "default"


class Queue:
    """A queue on disk; made by `Store.queue`. Each message goes to one of those who get it.

    `put` and `put_many` are the topic's, `consumer` is the group's. The first `get` of a process
    makes its consumer. Safe across threads and processes.
    """

    if not TYPE_CHECKING:  # for help(); each queue has those of its topic and group
        put, put_many, consumer = Topic.put, Topic.put_many, Group.consumer

    def __init__(self, topic: Topic, group: Group) -> None:
        self.topic = topic
        self.group = group
        self.put = topic.put
        self.put_many = topic.put_many
        self.consumer = group.consumer
        self._own: Consumer | None = None

    def get(self, block: bool = True, timeout: float | None = None) -> Message:
        """See `Consumer.get`."""
        return self._consumer().get(block, timeout)

    def get_nowait(self) -> Message:
        """See `Consumer.get_nowait`."""
        return self._consumer().get_nowait()

    def get_many(self, n: int, timeout: float | None = None) -> list[Message]:
        """See `Consumer.get_many`."""
        return self._consumer().get_many(n, timeout)

    def qsize(self) -> int:
        """How many messages are not done yet, those being handled included; dead ones are not."""
        return self.group.stats().lag

    def empty(self) -> bool:
        """Whether `qsize()` is 0."""
        return self.qsize() == 0

    def _consumer(self) -> Consumer:
        if self._own is None or not self._own.usable:
            self._own = self.consumer()
        return self._own

    def __repr__(self) -> str:
        return f"<Queue {self.topic.name}>"
