"""Durations, sizes and times: parsed from text, and shown to people. Pure, independent of click."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from diskq.base import check

Number = TypeVar("Number", int, float)

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_BYTES = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_DIGITS = 20  # of a number; numbers with more are over every limit
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[dhms])", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]iB|B|)", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds of a duration: `5` or `5s`, `500ms`, `10m`, `1h30m`, `2d`.

    Raises: ValueError.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration; write 5s, 500ms, 10m, 1h30m or 2d")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def parse_size(text: str) -> int:
    """Bytes of a size: `4096`, `64KiB`, `1.5GiB`.

    Raises: ValueError.
    """
    found = _SIZE.fullmatch(text)
    if found is None or len(text) > _DIGITS:
        raise ValueError(f"{text!r} is not a size; write 4096, 64KiB, 64MiB or 1.5GiB")
    return round(float(found[1]) * _BYTES[found[2]])


def parse_count(text: str) -> int:
    """A whole number.

    Raises: ValueError.
    """
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def within(
    parse: Callable[[str], Number], least: float, most: float, show: Callable[[Number], str] = str
) -> Callable[[str], Number]:
    """Parse a number that must be within two bounds, both allowed.

    Raises: ValueError.
    """

    def parse_within(text: str) -> Number:
        value = parse(text)
        if value < least:
            raise ValueError(f"{text} is below {show(type(value)(least))}, the least")
        if value > most:
            raise ValueError(f"{text} is over {show(type(value)(most))}, the most")
        return value

    return parse_within


def duration(least: float, most: float) -> Callable[[str], float]:
    """Parse a duration within two bounds."""
    return within(parse_duration, least, most, show_duration)


def parse_mode(text: str) -> int:
    """Permissions of files: `0660`, `660`.

    Raises: ValueError.
    """
    if not re.fullmatch(r"(0|0o)?[0-7]{3}", text, re.ASCII):
        raise ValueError(f"{text!r} is not a mode; write 0600, 0660 or another one in octal digits")
    return check.mode(int(text, 8))


def parse_text(text: str) -> str:
    """A text in UTF-8 that is not empty.

    Raises: ValueError.
    """
    if not text:
        raise ValueError("it must not be empty; leave it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is not text in UTF-8") from None
    return text


def parse_time(text: str) -> datetime:
    """A time such as `2026-01-31T08:00`, local unless it names a zone. A local time that does not
    exist, when clocks are set forward, is as much later as the clocks are set.

    Raises: ValueError.
    """
    try:
        when = datetime.fromisoformat(text)
        if when.tzinfo is None:  # its astimezone makes a time that does not exist earlier
            seconds = when.replace(microsecond=0).timestamp()
            when = datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=when.microsecond)
        return when.astimezone()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text!r} is not a time; write 2026-01-31T08:00") from None


def parse_place(text: str) -> int | datetime:
    """A place in a topic: an offset, or a time as `parse_time` reads it.

    Raises: ValueError.
    """
    try:
        return parse_count(text) if text.isdecimal() else parse_time(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a place in a topic; write an offset or a time: 2026-01-31T08:00"
        ) from None


def parse_start(text: str) -> int | str | datetime:
    """Where a group starts: `earliest`, `latest`, an offset, or a time as `parse_time` reads it.

    Raises: ValueError.
    """
    if text in ("earliest", "latest"):
        return text
    try:
        return parse_place(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a start; write earliest, latest, an offset, or 2026-01-31T08:00"
        ) from None


def show_duration(seconds: float) -> str:
    """A duration as `parse_duration` reads it, to the millisecond; with a minus if negative."""
    if seconds < 0:
        return f"-{show_duration(-seconds)}"
    left = round(seconds * 1000)
    parts = []
    for unit, scale in _SECONDS.items():
        number, left = divmod(left, round(scale * 1000))
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


def show_size(size: int) -> str:
    """A size to a tenth of its unit, as `parse_size` reads it."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _BYTES[unit]:
            return f"{size / _BYTES[unit]:.1f} {unit}"
    return f"{size} B"


def show_time(nanoseconds: int) -> str:
    """A local time to the second; a dash for 0, which is no time."""
    if not nanoseconds:
        return "-"
    return datetime.fromtimestamp(nanoseconds // 10**9).isoformat(" ")
