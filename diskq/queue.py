"""Queue: a topic and its group "default" in one object, for who needs no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .consumer import Consumer
from .message import Message
from .model import Outgoing, Receipt, Receipts

if TYPE_CHECKING:
    from .group import Group
    from .topic import Topic

DEFAULT_GROUP = "default"


class Queue:
    """A queue on disk; made by `Store.queue`. Each message goes to one of those who get it.

    Safe across threads and processes. The first `get` of a process makes its consumer.
    """

    def __init__(self, topic: Topic, group: Group) -> None:
        self.topic = topic
        self.group = group
        self._consumer: Consumer | None = None

    def put(
        self, body: bytes, *, key: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Receipt:
        """See `Topic.put`."""
        return self.topic.put(body, key=key, headers=headers)

    def put_many(self, messages: Iterable[bytes | Outgoing]) -> Receipts:
        """See `Topic.put_many`."""
        return self.topic.put_many(messages)

    def get(self, block: bool = True, timeout: float | None = None) -> Message:
        """See `Consumer.get`."""
        return self._own_consumer().get(block, timeout)

    def get_nowait(self) -> Message:
        """See `Consumer.get_nowait`."""
        return self._own_consumer().get_nowait()

    def get_many(self, n: int, timeout: float | None = None) -> list[Message]:
        """See `Consumer.get_many`."""
        return self._own_consumer().get_many(n, timeout)

    def consumer(self, name: str | None = None) -> Consumer:
        """See `Group.consumer`."""
        return self.group.consumer(name)

    def qsize(self) -> int:
        """How many messages are not done yet, those being handled included; dead ones are not."""
        return self.group.stats().lag

    def empty(self) -> bool:
        """Whether `qsize()` is 0."""
        return self.qsize() == 0

    def _own_consumer(self) -> Consumer:
        consumer = self._consumer
        if consumer is None or not consumer.usable:
            consumer = self._consumer = self.consumer()
        return consumer

    def __repr__(self) -> str:
        return f"<Queue {self.topic.name}>"
