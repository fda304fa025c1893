"""Arguments, checked before anything is touched: each has one clear error, in one place.

A wrong type is a TypeError, a value out of range a ValueError, a message over its size limit
MessageTooLarge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from . import limits
from .clock import NS, nanoseconds
from .codec import DISCARDS, ORDERINGS, RETENTIONS
from .errors import MessageTooLarge
from .model import Backoff, Outgoing

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def name(what: str, value: object) -> str:
    """A name of a topic, group or consumer."""
    found = text(f"{what} name", value)
    if len(found) > limits.MAX_NAME_BYTES:
        raise ValueError(f"{what} name of {len(found)} characters is over {limits.MAX_NAME_BYTES}")
    if not _NAME.fullmatch(found):
        raise ValueError(
            f"{what} name {found!r} must consist of letters, digits, '.', '_' and '-', and begin"
            " with a letter, digit or '_'"
        )
    return found


def text(what: str, value: object) -> str:
    """A str."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be str, not {type(value).__name__}")
    return value


def seconds(what: str, value: object, least: float, most: float) -> float:
    """A duration in seconds between two bounds, both allowed."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be a number of seconds, not {type(value).__name__}")
    try:
        found = float(value)
    except OverflowError:
        found = float("inf") if value > 0 else float("-inf")
    if not least <= found <= most or (isinstance(value, int) and abs(found) == float("inf")):
        raise ValueError(f"{what} must be between {least:g} and {most:g} seconds, not {found!r}")
    return found


def timeout(value: object) -> float | None:
    """How long to wait: None without end, 0 not at all."""
    return None if value is None else seconds("timeout", value, 0, float("inf"))


def count(what: str, value: object, least: int, most: int) -> int:
    """A whole number between two bounds, both allowed."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be int, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{what} must be between {least} and {most}, not {value}")
    return value


def message(value: object) -> bytes | Outgoing:
    """One message on its way in."""
    if isinstance(value, bytes):
        _size("body", len(value), limits.MAX_BODY_BYTES)
        return value
    if isinstance(value, Outgoing):
        return _outgoing(value)
    if isinstance(value, (bytearray, memoryview)):
        return message(bytes(value))
    hint = "; encode it: text.encode()" if isinstance(value, str) else ""
    raise TypeError(f"a message body must be bytes, not {type(value).__name__}{hint}")


def _outgoing(value: Outgoing) -> bytes | Outgoing:
    body = message(value.body)
    if not isinstance(body, bytes):
        raise TypeError("a message body must be bytes, not Outgoing")
    if value == Outgoing(value.body):
        return body
    if value.key is not None:
        _size("key", len(text("key", value.key).encode()), limits.MAX_KEY_BYTES)
    if value.dedup_id is not None:
        _size("dedup_id", len(text("dedup_id", value.dedup_id).encode()), limits.MAX_DEDUP_BYTES)
    _headers({} if value.headers is None else value.headers)
    count("priority", value.priority, 0, limits.MAX_PRIORITIES - 1)
    if value.delay_seconds is not None:
        seconds("delay_seconds", value.delay_seconds, 0, limits.MAX_DELAY_SECONDS)
        if value.at is not None:
            raise ValueError("give either delay_seconds or at, not both")
    if value.at is not None:
        wall_ns("at", value.at)
    if value.ttl_seconds is not None:
        least, most = limits.MIN_AGE_SECONDS, limits.MAX_DELAY_SECONDS
        seconds("ttl_seconds", value.ttl_seconds, least, most)
    return value._replace(body=body)


def wall_ns(what: str, when: object) -> int:
    """A datetime as nanoseconds since 1970; a naive one is local time."""
    from datetime import UTC, datetime, timedelta  # slow to import

    if not isinstance(when, datetime):
        raise TypeError(f"{what} must be a datetime, not {type(when).__name__}")
    try:
        since = when.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    except (OverflowError, ValueError, OSError):
        since = timedelta(days=-1)
    found = since // timedelta(microseconds=1) * 1000
    if not 0 <= found < 2**63:
        raise ValueError(f"{what} must be between the years 1970 and 2261, not {when}")
    return found


def messages(values: object) -> Sequence[bytes | Outgoing]:
    """The messages of one put_many."""
    if isinstance(values, (bytes, str)):
        raise TypeError(f"put_many takes a list of bodies, not one {type(values).__name__}")
    found: list[bytes | Outgoing] = list(values)  # type: ignore[call-overload]
    _size("batch", len(found), limits.MAX_PUT_MESSAGES, "messages")
    if set(map(type, found)) != {bytes} or max(map(len, found)) > limits.MAX_BODY_BYTES:
        found = [message(value) for value in found]
    size = sum(len(value if isinstance(value, bytes) else value.body) for value in found)
    _size("batch", size, limits.MAX_PUT_BYTES)
    return found


Settings = TypeVar("Settings", bound=NamedTuple)


def settings(stored: Settings, given: Mapping[str, object]) -> Settings:
    """`stored`, with each given setting that is not None checked and put in its place."""
    for what in given:
        if what not in stored._fields:
            raise TypeError(f"there is no setting {what!r}; there are {', '.join(stored._fields)}")
    checked = {
        what: _SETTINGS[what](what, value) for what, value in given.items() if value is not None
    }
    return stored._replace(**checked)


def changes(stored: Settings, given: Mapping[str, object]) -> Settings:
    """`stored` with changes; None takes a bound away, where there may be none."""
    for what, value in given.items():
        if value is None and stored._field_defaults.get(what) is not None:
            raise TypeError(f"{what} must have a value, not None")
    gone = {what: None for what, value in given.items() if value is None}
    return settings(stored, given)._replace(**gone)


def _backoff(what: str, value: object) -> Backoff:
    if not isinstance(value, Backoff):
        raise TypeError(f"{what} must be a diskq.Backoff, not {type(value).__name__}")
    most = limits.MAX_DELAY_SECONDS
    return Backoff(
        seconds("backoff base_seconds", value.base_seconds, 0, most),
        seconds("backoff factor", value.factor, 1, 1000),
        seconds("backoff max_seconds", value.max_seconds, 0, most),
    )


def _boolean(what: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be bool, not {type(value).__name__}")
    return value


def _counted(least: int, most: int) -> Callable[[str, object], object]:
    return lambda what, value: count(what, value, least, most)


def _timed(least: float, most: float) -> Callable[[str, object], object]:
    return lambda what, value: nanoseconds(seconds(what, value, least, most)) / NS


def _one_of(*choices: str) -> Callable[[str, object], object]:
    def check(what: str, value: object) -> object:
        if value not in choices:
            raise ValueError(f"{what} must be one of {', '.join(choices)}, not {value!r}")
        return value

    return check


_SETTINGS: dict[str, Callable[[str, object], object]] = {
    "retention": _one_of(*RETENTIONS),
    "max_age_seconds": _timed(limits.MIN_AGE_SECONDS, limits.MAX_DELAY_SECONDS),
    "max_bytes": _counted(limits.PAGE_BYTES, limits.TIB),
    "max_messages": _counted(1, limits.MAX_TOPIC_MESSAGES),
    "discard": _one_of(*DISCARDS),
    "dedup_seconds": _timed(limits.MIN_AGE_SECONDS, limits.MAX_DEDUP_SECONDS),
    "priorities": _counted(1, limits.MAX_PRIORITIES),
    "lease_seconds": _timed(limits.MIN_LEASE_SECONDS, limits.MAX_LEASE_SECONDS),
    "max_deliveries": _counted(1, limits.MAX_DELIVERIES),
    "backoff": _backoff,
    "ordering": _one_of(*ORDERINGS),
    "max_in_flight": _counted(1, limits.MAX_IN_FLIGHT),
    "keep_expired": _boolean,
}


def _headers(value: object) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"headers must be a mapping of str to str, not {type(value).__name__}")
    for item in (*value, *value.values()):
        text("a header's name and value", item)
    _size("headers", len(value), limits.MAX_HEADERS, "headers")
    size = sum(len(item.encode()) for item in (*value, *value.values()))
    _size("headers", size, limits.MAX_HEADERS_BYTES)


def _size(what: str, size: int, limit: int, unit: str = "bytes") -> None:
    if size > limit:
        raise MessageTooLarge(
            f"{what} of {size} {unit} is over the limit of {limit}; store it elsewhere and put a"
            " reference, or split it",
            size=size,
            limit=limit,
        )
