"""Checks of arguments, before anything is touched: each error is raised in one place.

A wrong type is a TypeError, a value out of range a ValueError, a message over its size limit
MessageTooLarge. The values of settings are checked in options.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from . import limits, ondemand
from .clock import NS
from .errors import MessageTooLarge
from .model import Outgoing

if TYPE_CHECKING:
    from .options import PutOptions

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


def mode(value: object) -> int:
    """Permissions of a store's files: the owner may read and write, and no x is set."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"mode must be an int such as 0o660, not {type(value).__name__}")
    if value & ~0o666 or value & 0o600 != 0o600:
        raise ValueError(
            "mode must be 0o600, 0o660 or another mode that lets the owner read and write, without"
            f" any x, not {value:#o}"
        )
    return value


def utf8(what: str, value: object) -> bytes:
    """A str as it is stored."""
    try:
        return text(what, value).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} {value!r} is not text in UTF-8") from None


def seconds(what: str, value: object, least: float, most: float, unit: str = " seconds") -> float:
    """A duration in seconds, or another number, between two bounds, both allowed."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        of_unit = unit and f" of{unit}"
        raise TypeError(f"{what} must be a number{of_unit}, not {type(value).__name__}")
    try:
        found = float(value)
    except OverflowError:
        found = float("inf") if value > 0 else float("-inf")
    if not least <= found <= most or (isinstance(value, int) and abs(found) == float("inf")):
        bounds = f"between {least:g} and {most:.10g}"
        if most == float("inf"):
            bounds = f"at least {least:g}"
        raise ValueError(f"{what} must be {bounds}{unit}, not {found!r}")
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


def unknown(kind: str, given: Collection[str], known: Collection[str]) -> TypeError:
    """The error for a keyword that does not exist."""
    what = next(what for what in given if what not in known)
    return TypeError(f"there is no {kind} {what!r}; there are {', '.join(known)}")


def outgoing(body: bytes, options: PutOptions) -> Outgoing:
    """An unchecked message of a body and the options of a put."""
    try:
        return Outgoing(body, **options)
    except TypeError:
        raise unknown("option", options, Outgoing._fields[1:]) from None


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
    _label("key", value.key, limits.MAX_KEY_BYTES)
    _label("dedup_id", value.dedup_id, limits.MAX_DEDUP_BYTES)
    if value.headers is not None:
        _headers(value.headers)
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


def _label(what: str, value: object, most: int) -> None:
    """Check a key or an id, if there is one. An empty one is a mistake: it would be the same for
    all messages."""
    if value is None:
        return
    _size(what, len(utf8(what, value)), most)
    if not value:
        raise ValueError(f"{what} must not be empty; leave it out")


def wall_ns(what: str, when: object, kinds: str = "a datetime") -> int:
    """A datetime as nanoseconds since 1970; a naive one is local time. A local time that does not
    exist, when clocks are set forward, is as much later as they are set; a local time that exists
    twice is the first one, unless its `fold` is 1."""
    if not isinstance(when, ondemand.datetime.datetime):
        raise TypeError(f"{what} must be {kinds}, not {type(when).__name__}")
    try:
        if when.utcoffset() is None:  # astimezone would make a time that does not exist earlier
            local = when.replace(tzinfo=None, microsecond=0)
            found = int(local.timestamp()) * NS + when.microsecond * 1000
        else:
            since = when - ondemand.datetime.datetime(1970, 1, 1, tzinfo=ondemand.datetime.UTC)
            found = since // ondemand.datetime.timedelta(microseconds=1) * 1000
    except (OverflowError, ValueError, OSError):
        found = -1
    if not 0 <= found < 2**63:
        raise ValueError(f"{what} must be between the years 1970 and 2261, not {when}")
    return found


def messages(values: object) -> Sequence[bytes | Outgoing]:
    """The messages of one put_many."""
    if isinstance(values, (bytes, str, Outgoing)) or not hasattr(values, "__iter__"):
        raise TypeError(f"put_many takes a list of bodies, not {type(values).__name__}")
    found: list[bytes | Outgoing] = list(values)
    _size("batch", len(found), limits.MAX_PUT_MESSAGES, "messages")
    if set(map(type, found)) != {bytes} or max(map(len, found)) > limits.MAX_BODY_BYTES:
        found = [message(value) for value in found]
    size = sum(len(value if isinstance(value, bytes) else value.body) for value in found)
    _size("batch", size, limits.MAX_PUT_BYTES)
    return found


def _headers(value: object) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"headers must be a mapping of str to str, not {type(value).__name__}")
    size = sum(len(utf8("a header's name or value", item)) for item in (*value, *value.values()))
    _size("headers", len(value), limits.MAX_HEADERS, "headers")
    _size("headers", size, limits.MAX_HEADERS_BYTES)


def _size(what: str, size: int, limit: int, unit: str = "bytes") -> None:
    if size > limit:
        raise MessageTooLarge(
            f"{what} of {size} {unit} is over the limit of {limit}; store it elsewhere and put a"
            " reference, or split it",
            size=size,
            limit=limit,
        )
