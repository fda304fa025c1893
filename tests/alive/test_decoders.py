"""Whatever the bytes of a row are, decoding them works or raises Corrupt, and allocates little."""

from __future__ import annotations

import struct
import tracemalloc

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings

import diskq
from diskq.base.clock import Stamp
from diskq.base.model import Backoff, Failure, GroupSettings, TopicSettings
from diskq.format import decoding, segment
from diskq.format.held_row import HeldRow, decode_held
from diskq.format.layout import SCHEDULE_KEY, TIME_KEY, WAITING, checked
from diskq.format.lease_row import LeaseRow, decode_lease
from diskq.format.rows import (
    GroupConfig,
    GroupRow,
    Meta,
    TopicRow,
    decode_group,
    decode_topic,
    format_version,
    new_group,
    new_meta,
    new_topic,
)
from diskq.tables import dedup, schedule

KEY = segment.LOG_KEY.pack(1, 42)
RICH_RECORD = segment.encode_record(
    diskq.Outgoing(b"body", "key", {"name": "value", "b": ""}, ttl_seconds=5)
)
HEADERS = segment.encode_headers({"name": "value", "b": ""})


def held_row():
    row = HeldRow(RICH_RECORD, segment.RICH | segment.TTL, *Stamp(1, 2, 3, 4))
    row.state, row.failures, row.due_ns = WAITING, 1, 5
    row.history = (Failure(1, "nack", "ca", "why"), Failure(2, "crashed", "", ""))
    return row


def lease_row():
    row = LeaseRow(7, 20, 0b101)
    row.token, row.owner, row.slot = 9, 8, 3
    return row


def log_value(flags, *records):
    return segment.encode_segment(KEY, segment.pack_run(records, flags), *Stamp(1, 2, 3, 4))


def read_segment(value):
    """A segment with all its records taken apart; its checksum is made right before."""
    if len(value) >= 4:
        head = segment._SEGMENT.size
        value = (
            struct.pack(">I", segment.crc32(value[4:head] + KEY, segment.crc32(value[head:])))
            + value[4:]
        )
    read = segment.Segment(KEY, value)
    records = list(read.records(0, read.count))
    assert len(records) == read.count
    assert b"".join(records) == value[read.start :]
    return [segment.decode_record(record, read.flags) for record in records], read.put


def behind_checksum(decode):
    """A decoder behind a checksum, which is made right before."""
    return lambda data: decode(checked(data))


LEASE_KEY = TIME_KEY.pack(b"L", 1, 5, 7)
SCHEDULED = SCHEDULE_KEY.pack(1, 5, 7)
TOPIC = new_topic("mail", TopicSettings(priorities=3))
GROUP = new_group(GroupConfig(1, "g", GroupSettings(backoff=Backoff(1))), [3, 4], 2)
META = new_meta("commit", 0, bytes(16), bytes(16), 5)
# Decoders, and a row that each can decode.
DECODERS = {
    "segment": (read_segment, log_value(segment.RICH | segment.TTL, RICH_RECORD, RICH_RECORD)),
    "plain segment": (read_segment, log_value(0, b"a", b"bc", b"")),
    "head of a segment": (segment.head_of, log_value(0, b"a")),
    "record": (lambda data: segment.decode_record(data, segment.RICH), RICH_RECORD),
    "key of a record": (lambda data: segment.key_of(data, segment.RICH), RICH_RECORD),
    "ttl of a record": (lambda data: segment.ttl_of(data, segment.TTL), RICH_RECORD),
    "purged": (lambda data: segment.is_purged(data, segment.PURGED), RICH_RECORD),
    "headers": (segment.decode_headers, HEADERS),
    "held": (decode_held, held_row().encode()),
    "held, its checksum right": (behind_checksum(decode_held), held_row().encode()[4:]),
    "lease": (lambda data: decode_lease(LEASE_KEY, data), lease_row().encode()),
    "lease key": (lambda data: decode_lease(data, lease_row().encode()), LEASE_KEY),
    "topic": (TopicRow, TOPIC),
    "topic and configuration": (
        lambda data: decode_topic(TopicRow(data).config),
        TOPIC,
    ),
    "topic configuration": (decode_topic, TopicRow(TOPIC).config),
    "group": (GroupRow, GROUP),
    "group configuration": (decode_group, GroupRow(GROUP).config),
    "store": (Meta, META),
    "format version": (format_version, META),
    "scheduled": (
        behind_checksum(lambda data: schedule.decode(SCHEDULED, data)),
        bytes((1, segment.RICH)) + RICH_RECORD,
    ),
    "schedule key": (
        lambda data: schedule.decode(data, checked(bytes(2))),
        SCHEDULED,
    ),
    "receipt": (dedup.decode, dedup.ROW.pack(1, 2, 3, 4, 5, 6)),
    "name": (decoding.decode_name, "mäil".encode()),
}
DAMAGES = st.one_of(
    st.tuples(st.just("change"), st.integers(0, 2000), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, 2000), st.just(0)),
    st.tuples(st.just("add"), st.integers(0, 2000), st.integers(0, 255)),
    st.tuples(st.just("huge"), st.integers(0, 2000), st.integers(0, 255)),
)


def damage(data, kind, at, number):
    """A row that is a little wrong; its checksum, if the decoder makes it right, is not."""
    at %= len(data) + 1
    if kind == "cut":
        return data[:at]
    if kind == "add":
        return data[:at] + bytes([number]) * (number + 1) + data[at:]
    if kind == "huge":  # a length or a count that lies
        return data[:at] + b"\xff" * 4 + data[at + 4 :]
    return data[:at] + bytes(each ^ number for each in data[at : at + 1]) + data[at + 1 :]


def outcome(decode, data):
    """What decoding comes to: a value, or Corrupt; anything else is a mistake."""
    try:
        return decode(data)
    except diskq.Corrupt:
        return diskq.Corrupt


@pytest.mark.parametrize("name", DECODERS)
def test_a_sound_row_is_decoded(name):
    decode, sound = DECODERS[name]
    assert outcome(decode, sound) is not diskq.Corrupt


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=400, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.binary(max_size=200))
@example(data=b"")
@example(data=b"\xff" * 200)
def test_random_bytes_are_decoded_or_corrupt(name, data):
    outcome(DECODERS[name][0], data)


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=400, suppress_health_check=list(HealthCheck), deadline=None)
@given(damages=st.lists(DAMAGES, min_size=1, max_size=3))
def test_a_sound_row_with_something_changed_is_decoded_or_corrupt(name, damages):
    decode, data = DECODERS[name]
    for each in damages:
        data = damage(data, *each)
    outcome(decode, data)


@pytest.mark.parametrize("name", DECODERS)
def test_every_row_that_is_cut_short_or_has_one_byte_changed_is_decoded_or_corrupt(name):
    decode, sound = DECODERS[name]
    for at in range(len(sound)):
        outcome(decode, sound[:at])
        for number in 1, 0x80, 0xFF:
            outcome(decode, damage(sound, "change", at, number))


@pytest.mark.parametrize("flags", range(256))
def test_records_of_all_flags_are_decoded_or_corrupt(flags):
    for record in RICH_RECORD, b"", b"plain", bytes(14):
        for decode in segment.decode_record, segment.key_of, segment.ttl_of, segment.is_purged:
            outcome(lambda data: decode(data, flags), record)  # noqa: B023


def test_a_count_or_a_length_that_lies_allocates_little():
    tracemalloc.start()
    try:
        for decode, sound in DECODERS.values():
            for at in range(len(sound)):
                outcome(decode, damage(sound, "huge", at, 0))
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_numbers_that_no_setting_has_are_corrupt():
    good = GroupConfig(1, "g", GroupSettings())
    for seconds in float("nan"), float("inf"), -1.0, 1e300:
        for settings_ in (
            GroupSettings(lease_seconds=seconds),
            GroupSettings(backoff=Backoff(seconds)),
            GroupSettings(backoff=Backoff(1, seconds)),
            GroupSettings(backoff=Backoff(1, 2, seconds)),
        ):
            with pytest.raises(diskq.Corrupt):
                decode_group(good._replace(settings=settings_).encode())


def test_counters_that_fall_below_zero_are_corrupt():
    row = GroupRow(GROUP)
    row.leased -= 1
    with pytest.raises(diskq.Corrupt, match="do not add up"):
        row.encode()


U64 = st.integers(0, 2**64 - 1)


@given(U64, U64, st.integers(0, 2**16 - 1), U64, U64, U64)
def test_a_receipt_comes_back(wall_ns, elapsed_ns, boot, commit_id, place, number):
    data = dedup.ROW.pack(wall_ns, elapsed_ns, boot, commit_id, place, number)
    put = Stamp(wall_ns, wall_ns, elapsed_ns, boot)
    assert dedup.decode(data) == (put, commit_id, place, number)


@given(U64, U64, U64, st.integers(0, 2**16 - 1))
def test_the_time_of_a_segment_comes_back(put_at_ns, wall_ns, elapsed_ns, boot):
    put = Stamp(put_at_ns, wall_ns, elapsed_ns, boot)
    value = segment.encode_segment(KEY, segment.pack_run([b"a"], 0), *put)
    assert segment.Segment(KEY, value).put == put
    assert segment.head_of(value) == (1, put)


def test_a_decoder_that_raises_something_else_is_found_out():
    """Control."""
    with pytest.raises(struct.error):
        outcome(segment.LOG_KEY.unpack, b"short")
