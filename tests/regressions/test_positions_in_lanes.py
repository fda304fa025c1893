"""An offset below all that the lowest lane of a topic with priorities has stored: it means the
beginning of every lane, not the end of the others."""

from __future__ import annotations

import pytest

from diskq import Outgoing

URGENT = [Outgoing(b"urgent", priority=1)] * 3


@pytest.fixture
def lanes(store):
    """A topic with two priorities."""
    return store.topic("lanes", priorities=2)


@pytest.fixture
def trimmed(lanes):
    """A group of it that is done with ten messages of the lowest priority, which were trimmed, and
    has three urgent ones before it."""
    group = lanes.group("workers")
    lanes.put_many([b"done"] * 10)
    with group.consumer() as consumer:
        consumer.ack_many(consumer.get_many(10, timeout=0))
    lanes.trim()
    lanes.put_many(URGENT)
    assert (lanes.stats().stored, group.stats().unread) == (3, 3)
    return group


def test_a_group_from_offset_0_misses_no_lane_if_the_lowest_is_empty(lanes):
    lanes.put_many(URGENT)
    assert lanes.group("all", start=0).stats().unread == 3


def test_a_group_from_a_trimmed_offset_misses_no_other_lane(lanes, trimmed):
    assert lanes.group("all", start=3).stats().unread == 3


def test_seeking_a_trimmed_offset_skips_no_other_lane(trimmed):
    trimmed.seek(3)
    assert trimmed.stats().unread == 3


def test_seeking_offset_0_skips_no_lane_if_the_lowest_is_empty(lanes):
    group = lanes.group("workers")
    lanes.put_many(URGENT)
    group.seek(0)
    assert group.stats().unread == 3


@pytest.mark.parametrize("offset", [0, 1, 9])
def test_a_purge_before_a_trimmed_offset_deletes_nothing_of_other_lanes(lanes, trimmed, offset):
    assert lanes.purge(before=offset) == 0
    assert (lanes.stats().stored, trimmed.stats().unread) == (3, 3)


def test_a_purge_before_offset_0_deletes_nothing_if_the_lowest_lane_is_empty(lanes):
    lanes.put_many(URGENT)
    assert lanes.purge(before=0) == 0
    assert lanes.stats().stored == 3
