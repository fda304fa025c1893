"""Topics with gaps, and a look at them."""

from __future__ import annotations

from diskq.tables import gaps

from .stores import offsets

STORED = (0, 7, 8, 13)  # of 20 messages, in the topics with gaps


def put_each(topic, count, **options):
    """Put so many messages, each in a segment of its own; their bodies are their numbers."""
    first = topic.stats().put
    for number in range(first, first + count):
        topic.put(b"%d" % number, **options)


def ready(consumer):
    """The offsets of all that can be delivered now."""
    return offsets(consumer.get_many(10_000, timeout=0))


def gaps_of(topic):
    """First and stop offsets of the gaps."""
    return topic.store.handle.engine.read(lambda tx: list(gaps.rows(tx, topic.id)))


def settle_all_but(topic, group, *kept, count=20):
    """Put `count` messages and settle all but those with these offsets, which stay leased, by one
    lease each; returns them."""
    put_each(topic, count)
    consumer = group.consumer("slow")
    left = []
    for message in [consumer.get_nowait() for _ in range(count)]:
        if message.offset in kept:
            left.append(message)
        else:
            message.ack()
    topic.trim()
    return left


def make_gaps(topic, group):
    """Put 20 messages, a second apart, and settle all but STORED, which one consumer keeps leased
    and which are returned; the others leave gaps."""
    messages = []
    consumer = group.consumer()
    for number in range(20):
        topic.put(b"%d" % number)
        messages.append(consumer.get_nowait())
        topic.store.handle.engine.clock.advance(1)
    consumer.ack_many(message for message in messages if message.offset not in STORED)
    topic.trim()
    assert gaps_of(topic) == [(1, 7), (9, 13), (14, 20)]
    return [message for message in messages if message.offset in STORED]
