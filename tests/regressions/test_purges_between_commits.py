"""A purge takes several commits. Each test does before one of them what moves a message to another
place."""

from __future__ import annotations

import pytest
from support.stores import bodies

from diskq import Outgoing
from diskq.base import limits


@pytest.fixture
def before_commit(monkeypatch, topic):
    """Calls an action just before the commit of this number that the topic begins."""

    def register(number, action):
        commit = topic.handle.commit
        begun = []

        def count(operation, *until):
            begun.append(operation)
            if len(begun) == number:
                action()
            return commit(operation, *until)

        monkeypatch.setattr(topic.handle, "commit", count)

    monkeypatch.setattr(limits, "MAX_PURGE_SEGMENTS", 1)
    return register


def put_with_other_keys(topic, *texts):
    """Put messages of the key "secret", each behind one of another key, each in its segment."""
    for number, text in enumerate(texts):
        topic.put(b"other", key=f"other {number}")
        topic.put(text, key="secret")


def test_a_message_nacked_while_its_key_is_purged_is_not_delivered(
    topic, group, consumer, before_commit
):
    put_with_other_keys(topic, b"one", b"two")
    messages = consumer.get_many(4, timeout=0)
    before_commit(2, messages[-1].nack)
    assert topic.purge(key="secret") == 2
    for message in messages[:-1]:
        message.release()
    assert bodies(consumer.get_many(4, timeout=0)) == [b"other", b"other"]
    assert group.stats().waiting == 0


def test_a_message_parked_while_its_key_is_purged_is_not_delivered(topic, before_commit):
    group = topic.group("ordered", ordering="key")
    consumer = group.consumer()
    put_with_other_keys(topic, b"one", b"two")
    _, first = consumer.get_many(2, timeout=0)
    before_commit(2, lambda: consumer.get_many(2, timeout=0))
    assert topic.purge(key="secret") == 2
    first.ack()
    assert consumer.get_many(4, timeout=0) == []
    assert (group.stats().parked, group.stats().waiting) == (0, 0)


def test_a_message_that_falls_due_before_its_key_is_purged_is_not_delivered(
    topic, consumer, clock, before_commit
):
    topic.put(b"planned", key="secret", delay_seconds=5)

    def fall_due():
        clock.advance(5)
        topic.put_many([Outgoing(b"other", key="other")])

    before_commit(1, fall_due)
    assert topic.purge(key="secret") == 1
    assert bodies(consumer.get_many(2, timeout=0)) == [b"other"]


def test_messages_that_fall_due_while_their_key_is_purged_are_not_delivered(
    topic, consumer, clock, before_commit, monkeypatch
):
    monkeypatch.setattr(limits, "MAX_TRIM_SEGMENTS", 1)
    for _ in range(3):
        topic.put(b"planned", key="secret", delay_seconds=5)
    put_with_other_keys(topic, b"one", b"two")

    def fall_due():
        clock.advance(5)
        return consumer.get_many(2, timeout=0)

    before_commit(2, fall_due)
    topic.purge(key="secret")
    assert topic.stats().scheduled == 0
    assert [message for message in consumer.get_many(9, timeout=0) if message.key == "secret"] == []


def test_messages_that_fall_due_in_a_lane_that_was_purged_already_are_not_delivered(
    topic, consumer, clock, before_commit, monkeypatch
):
    monkeypatch.setattr(limits, "MAX_TRIM_SEGMENTS", 1)
    topic.update(priorities=2)
    for _ in range(3):
        topic.put(b"planned", key="secret", delay_seconds=5)
    topic.put(b"low", key="other")
    for _ in range(3):
        topic.put(b"high", key="other", priority=1)

    def fall_due():
        clock.advance(5)
        consumer.get_many(1, timeout=0)

    before_commit(3, fall_due)  # the second was in the upper lane already
    topic.purge(key="secret")
    assert topic.stats().scheduled == 0
    assert b"planned" not in bodies(consumer.get_many(9, timeout=0))


def test_a_message_that_falls_due_before_all_are_purged_is_not_delivered(
    topic, consumer, clock, before_commit
):
    topic.put(b"planned", delay_seconds=5)
    topic.put(b"now")

    def fall_due():
        clock.advance(5)
        consumer.get_nowait().release()

    before_commit(1, fall_due)
    assert topic.purge() == 2
    assert consumer.get_many(2, timeout=0) == []
