"""Duplicates whose receipt once was not found."""

from __future__ import annotations

from contextlib import suppress

import pytest

import diskq
from diskq.base import limits


def fill(topic):
    """Put until even a message of a page finds no room."""
    for size in (20_000, 3_000):
        with suppress(diskq.Full):
            while True:
                topic.put(bytes(size))


def test_a_message_that_was_only_scheduled_has_a_duplicate_after_the_clock_was_set_back(
    topic, clock
):
    first = topic.put(b"x", delay_seconds=7200, dedup_id="one")
    clock.step_wall(-200)
    second = topic.put(b"x", delay_seconds=7200, dedup_id="one")
    assert second == first._replace(duplicate=True)
    assert topic.stats().scheduled == 1


def test_a_duplicate_has_its_receipt_in_a_full_store(open_store):
    store = open_store(durability="process", max_bytes=limits.MIN_STORE_BYTES)
    topic = store.topic("mail")
    first = topic.put(b"first", dedup_id="one")
    fill(topic)
    with pytest.raises(diskq.Full):
        topic.put(bytes(20_000), dedup_id="other")
    assert topic.put(b"first", dedup_id="one") == first._replace(duplicate=True)
