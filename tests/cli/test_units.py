"""Durations, sizes and times, read and written."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskq.cli import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5),
        ("0", 0),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("1.5m", 90),
    ],
)
def test_durations_are_numbers_with_units(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "5x", "-5", "5 s", "1h 30m", "1e3", "nan", "inf", "m5", "٣s"]
)
def test_what_is_no_duration_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration") as caught:
        units.parse_duration(text)
    assert repr(text) in str(caught.value)


@given(st.integers(0, 10**10))
def test_a_duration_is_shown_as_it_is_read(milliseconds: int) -> None:
    shown = units.show_duration(milliseconds / 1000)
    assert round(units.parse_duration(shown) * 1000) == milliseconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("64KiB", 65536), ("1.5 GiB", 3 * 2**29), ("7 B", 7)],
)
def test_sizes_are_in_binary_units(text: str, size: int) -> None:
    assert units.parse_size(text) == size


def test_what_is_over_has_a_minus() -> None:
    assert units.show_duration(-1.5) == "-1s500ms"
    assert units.show_duration(-0.0) == "0s"


@pytest.mark.parametrize("text", ["", "MiB", "-1", "5MB", "5 mib", "1e9", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        units.parse_size(text)


@given(st.integers(0, 2**50))
def test_a_size_is_shown_to_a_tenth_of_its_unit(size: int) -> None:
    assert abs(units.parse_size(units.show_size(size)) - size) <= size / 10


def test_a_start_is_a_word_an_offset_or_a_time() -> None:
    assert units.parse_start("latest") == "latest"
    assert units.parse_start("17") == 17
    assert units.parse_start("2026-01-31T08:00") == datetime(2026, 1, 31, 8).astimezone()
    for text in ("tomorrow", "-1", "", "2026-13-01", "٣", "9" * 5000):
        with pytest.raises(ValueError, match="is not a start"):
            units.parse_start(text)


def test_a_place_is_an_offset_or_a_time() -> None:
    assert units.parse_place("17") == 17
    assert units.parse_place("2026-01-31T08:00") == datetime(2026, 1, 31, 8).astimezone()
    for text in ("latest", "-1", "", "1.5", "٣"):
        with pytest.raises(ValueError, match="is not a place in a topic"):
            units.parse_place(text)


def test_a_time_is_local_unless_it_names_its_zone() -> None:
    assert units.parse_time("2026-01-31") == datetime(2026, 1, 31).astimezone()
    assert units.parse_time("2026-01-31T08:00+02:00") == datetime(2026, 1, 31, 6, tzinfo=UTC)
    for text in ("tomorrow", "latest", "17", "", "2026-13-01", "0001-01-01T00:00+23:59"):
        with pytest.raises(ValueError, match="is not a time") as caught:
            units.parse_time(text)
        assert repr(text) in str(caught.value)


def test_a_count_is_a_whole_number() -> None:
    assert units.parse_count("0") == 0
    assert units.parse_count(str(2**63)) == 2**63
    for text in ("", "-1", "1.5", "1e3", " 1", "٣", "9" * 5000):
        with pytest.raises(ValueError, match="is not a whole number"):
            units.parse_count(text)


def test_a_bounded_number_names_the_bound_that_it_is_over_or_below() -> None:
    parse = units.duration(0.5, 86400)
    assert (parse("500ms"), parse("1d")) == (0.5, 86400)
    with pytest.raises(ValueError, match=r"^499ms is below 500ms, the least$"):
        parse("499ms")
    with pytest.raises(ValueError, match=r"^25h is over 1d, the most$"):
        parse("25h")
    with pytest.raises(ValueError, match=r"^11 is over 10, the most$"):
        units.within(units.parse_count, 1, 10)("11")


def test_no_time_is_a_dash() -> None:
    assert units.show_time(0) == "-"
    assert len(units.show_time(10**18)) == len("2001-09-09 01:46:40")
