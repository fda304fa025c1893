"""What is written can be read again, and damage to a segment never goes unnoticed."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

import diskq
from diskq.base import limits
from diskq.base.clock import Stamp
from diskq.base.model import (
    DISCARDS,
    DURABILITIES,
    ORDERINGS,
    RETENTIONS,
    Failure,
    GroupSettings,
    TopicSettings,
)
from diskq.delivery import put
from diskq.format import segment
from diskq.format.held_row import HeldRow, decode_held
from diskq.format.layout import CAUSES, FORMAT_VERSION, SOLO, TIME_KEY, WAITING
from diskq.format.lease_row import LeaseRow, decode_lease
from diskq.format.rows import (
    GroupConfig,
    GroupRow,
    Meta,
    TopicConfig,
    TopicRow,
    decode_group,
    decode_topic,
    format_version,
    new_group,
    new_meta,
    new_topic,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
BODIES = st.binary(max_size=300)
OUTGOING = st.builds(
    diskq.Outgoing,
    BODIES,
    st.none() | TEXT,
    st.none() | st.dictionaries(TEXT, TEXT, max_size=5),
)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
SECONDS = st.floats(0, 1e9)
FAILURES = st.builds(Failure, U64, st.sampled_from(CAUSES[1:]), TEXT, TEXT)


def pack(messages):
    """A batch of messages as a put packs it."""
    return put.prepare(messages).runs


def read_back(packed, first=0, put_at_ns=7):
    """All messages of a packed batch, through the bytes of its segments."""
    found = []
    for run in packed:
        key = segment.LOG_KEY.pack(3, first + len(found))
        value = segment.encode_segment(key, run, put_at_ns)
        read = segment.Segment(key, value)
        assert read.first == first + len(found)
        assert read.put_at_ns == put_at_ns
        assert read.count == segment.head_of(value)[0]
        found += [segment.decode_record(r, read.flags) for r in read.records(0, read.count)]
    return found


@given(st.lists(BODIES, min_size=1, max_size=50))
def test_plain_bodies_come_back_from_their_segments(bodies):
    assert [parts.body for parts in read_back(pack(bodies))] == bodies


@given(st.lists(OUTGOING | BODIES, min_size=1, max_size=30))
def test_keys_and_headers_come_back_from_their_segments(messages):
    for message, parts in zip(messages, read_back(pack(messages)), strict=True):
        body, key, headers, *_ = (
            message if isinstance(message, diskq.Outgoing) else (message, None, None)
        )
        assert (parts.body, parts.key, parts.headers) == (body, key, headers or {})


def test_an_empty_key_is_not_the_same_as_no_key():
    messages = [diskq.Outgoing(b"", ""), diskq.Outgoing(b"", None, {"a": ""})]
    assert [parts.key for parts in read_back(pack(messages))] == ["", None]


@given(st.integers(1, 400), st.integers(0, 200), st.data())
def test_any_part_of_a_segment_can_be_cut_out(count, size, data):
    bodies = [b"%d " % number + bytes(size) for number in range(count)]
    run = pack(bodies)[0]
    key = segment.LOG_KEY.pack(1, 10)
    read = segment.Segment(key, segment.encode_segment(key, run, 0))
    start = data.draw(st.integers(0, read.count))
    stop = data.draw(st.integers(start, read.count))
    assert list(read.records(start, stop)) == bodies[start:stop]


def test_a_batch_is_split_into_segments_of_the_wanted_size_and_a_large_message_is_alone():
    small, large = bytes(1000), bytes(limits.SEGMENT_BYTES)
    packed = pack([small] * 40 + [large] + [small] * 3)
    sizes = []
    for run in packed:
        key = segment.LOG_KEY.pack(1, 0)
        sizes.append((segment.head_of(segment.encode_segment(key, run, 0))[0], len(run.content)))
    assert [count for count, _ in sizes] == [16, 16, 8, 1, 3]
    assert all(size <= limits.SEGMENT_BYTES for count, size in sizes if count > 1)


def test_a_flipped_bit_in_any_byte_of_a_segment_is_noticed():
    key = segment.LOG_KEY.pack(5, 42)
    messages = [b"first", diskq.Outgoing(b"second", "key", {"name": "value"})]
    value = segment.encode_segment(key, pack(messages)[0], 1_700_000_000)
    segment.Segment(key, value)
    for at in range(len(value)):
        for bit in range(8):
            damaged = bytearray(value)
            damaged[at] ^= 1 << bit
            with pytest.raises(diskq.Corrupt, match="offset 42"):
                segment.Segment(key, bytes(damaged))


def test_a_segment_that_is_cut_short_or_too_long_is_noticed():
    key = segment.LOG_KEY.pack(5, 42)
    value = segment.encode_segment(key, pack([b"first", b"second"])[0], 7)
    for length in range(len(value)):
        with pytest.raises(diskq.Corrupt):
            segment.Segment(key, value[:length])
    with pytest.raises(diskq.Corrupt):
        segment.Segment(key, value + b"\0")


def test_a_segment_at_another_place_is_noticed():
    value = segment.encode_segment(segment.LOG_KEY.pack(5, 42), pack([b"body"])[0], 7)
    for topic, offset in (5, 43), (6, 42):
        with pytest.raises(diskq.Corrupt):
            segment.Segment(segment.LOG_KEY.pack(topic, offset), value)


SETTINGS = st.builds(
    TopicSettings,
    st.sampled_from(RETENTIONS),
    st.none() | st.integers(1, 10**9),
    st.none() | st.integers(1, 2**40),
    st.none() | st.integers(1, 2**40),
    st.sampled_from(DISCARDS),
    st.integers(1, 10**6),
    st.integers(1, 10),
)


@given(TEXT.filter(bool), SETTINGS, st.lists(U32, max_size=20), U64, U64)
def test_a_topics_row_comes_back(name, settings, groups, last_put_ns, end):
    row = TopicRow(new_topic(name, settings))
    row.config = TopicConfig(name, settings, tuple(groups)).encode()
    end %= 2**56
    row.last_put_ns, row.next = last_put_ns, [end, 0]
    row.stored, row.segments, row.bytes = 3, 2, 1
    again = TopicRow(row.encode())
    found = decode_topic(again.config)
    assert found == (name, settings, tuple(groups))
    assert again.encode() == row.encode()
    assert (again.last_put_ns, again.next) == (last_put_ns, [end, 0])
    assert (again.stored, again.segments, again.bytes) == (3, 2, 1)


@given(
    TEXT.filter(bool),
    U32,
    st.builds(
        GroupSettings,
        SECONDS,
        U32,
        st.builds(diskq.Backoff, SECONDS, SECONDS, SECONDS),
        st.sampled_from(ORDERINGS),
        st.none() | st.integers(1, 2**32 - 1),
        st.booleans(),
    ),
    st.lists(st.integers(0, 2**50), min_size=1, max_size=10),
)
def test_a_groups_row_comes_back(name, topic_id, settings, cursor):
    config = GroupConfig(topic_id, name, settings)
    row = GroupRow(new_group(config, cursor, ahead=7))
    row.acked, row.leased, row.dead = 1, 2, 3
    again = GroupRow(row.encode())
    assert decode_group(again.config) == config
    assert (again.next, again.skipped) == (cursor, sum(cursor))
    assert (again.acked, again.leased, again.dead) == (1, 2, 3)


@given(U64, st.integers(1, 70), st.data(), U64, U64, U64)
def test_a_lease_row_comes_back(first, count, data, deadline_ns, token, owner):
    settled = data.draw(st.integers(0, 2**count - 1))
    first = min(first, 2**64 - count)  # a run is in one lane
    if first >> 56 != (first + count - 1) >> 56:
        first -= count
    row = LeaseRow(first, count, settled, SOLO)
    row.deadline_ns, row.token, row.owner, row.slot = deadline_ns, token, owner, 77
    again = decode_lease(TIME_KEY.pack(b"L", 9, deadline_ns, first), row.encode())
    assert (again.first, again.count, again.settled) == (first, count, settled)
    assert (again.deadline_ns, again.token, again.owner) == (deadline_ns, token, owner)
    assert (again.slot, again.flags) == (77, SOLO)


@given(st.integers(0, 1000), st.integers(1, 70), st.data())
def test_a_lease_row_knows_which_of_its_messages_are_unsettled(first, count, data):
    settled = data.draw(st.sets(st.integers(0, count - 1)))
    row = LeaseRow(first, count, sum(1 << at for at in settled))
    left = [first + at for at in range(count) if at not in settled]
    assert row.offsets() == left
    assert row.unsettled == len(left)
    assert [o for o in range(first - 1, first + count + 2) if row.holds(o)] == left
    if left:
        assert row.next_unsettled == left[0]


@given(st.binary(max_size=100), st.lists(FAILURES, max_size=limits.MAX_HISTORY), U64, U64)
def test_a_held_row_comes_back_with_its_history(record, history, due_ns, put_at_ns):
    put = Stamp(put_at_ns, due_ns, 5, 6)
    row = HeldRow(record, segment.RICH, *put)
    row.state, row.failures, row.due_ns = WAITING, 3, due_ns
    row.history = tuple(history)
    again = decode_held(row.encode())
    assert (again.record, again.flags, again.put) == (record, segment.RICH, put)
    assert (again.state, again.failures, again.due_ns) == (WAITING, 3, due_ns)
    assert again.history == tuple(history)


def test_a_held_row_keeps_only_the_latest_history():
    row = HeldRow(b"", 0, 0)
    row.state = WAITING
    for at in range(40):
        row.note(Failure(at, "nack", "c", ""))
    kept = decode_held(row.encode()).history
    assert [failure.at_ns for failure in kept] == list(range(8, 40))


@given(
    st.sampled_from(DURABILITIES),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=16, max_size=16),
    U64,
    U64,
)
def test_the_stores_row_comes_back(durability, store_id, boot_id, max_bytes, now):
    data = new_meta(durability, max_bytes, store_id, boot_id, now)
    row = Meta(data)
    assert format_version(data) == FORMAT_VERSION
    assert DURABILITIES[row.durability] == durability
    assert (row.store_id, row.boot_id) == (store_id, boot_id)
    assert (row.max_bytes, row.created_ns) == (max_bytes, now)
    assert row.pack() == data


@given(U32, U64, U64, U32, U64, U64)
def test_keys_sort_as_their_numbers(group, time, offset, other_group, other_time, other_offset):
    this = TIME_KEY.pack(b"L", group, time, offset)
    other = TIME_KEY.pack(b"L", other_group, other_time, other_offset)
    numbers = (group, time, offset), (other_group, other_time, other_offset)
    assert (this < other) == (numbers[0] < numbers[1])
