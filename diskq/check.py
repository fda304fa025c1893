"""Arguments, checked before anything is touched: each has one clear error, in one place.

A wrong type is a TypeError, a value out of range a ValueError, a message over its size limit
MessageTooLarge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from . import limits
from .errors import MessageTooLarge
from .model import Backoff, GroupSettings, Outgoing

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
        body = message(value.body)
        if not isinstance(body, bytes):
            raise TypeError("a message body must be bytes, not Outgoing")
        if value.key is not None:
            _size("key", len(text("key", value.key).encode()), limits.MAX_KEY_BYTES)
        _headers({} if value.headers is None else value.headers)
        return value._replace(body=body) if value.key is not None or value.headers else body
    if isinstance(value, (bytearray, memoryview)):
        return message(bytes(value))
    hint = "; encode it: text.encode()" if isinstance(value, str) else ""
    raise TypeError(f"a message body must be bytes, not {type(value).__name__}{hint}")


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


def group_settings(stored: GroupSettings, given: Mapping[str, object]) -> GroupSettings:
    """`stored`, with each given setting that is not None checked and put in its place."""
    checked = {
        what: _SETTINGS[what](what, value) for what, value in given.items() if value is not None
    }
    return stored._replace(**checked)  # type: ignore[arg-type]


def _backoff(what: str, value: object) -> Backoff:
    if not isinstance(value, Backoff):
        raise TypeError(f"{what} must be a diskq.Backoff, not {type(value).__name__}")
    base = seconds("backoff base_seconds", value.base_seconds, 0, limits.MAX_DELAY_SECONDS)
    factor = seconds("backoff factor", value.factor, 1, 1000)
    return Backoff(
        base, factor, seconds("backoff max_seconds", value.max_seconds, 0, limits.MAX_DELAY_SECONDS)
    )


def _lease_seconds(what: str, value: object) -> float:
    return seconds(what, value, limits.MIN_LEASE_SECONDS, limits.MAX_LEASE_SECONDS)


_SETTINGS: dict[str, Callable[[str, object], object]] = {
    "lease_seconds": _lease_seconds,
    "max_deliveries": lambda what, value: count(what, value, 1, limits.MAX_DELIVERIES),
    "backoff": _backoff,
    "max_in_flight": lambda what, value: count(what, value, 1, limits.MAX_IN_FLIGHT),
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
