"""Arguments, checked before anything is touched: each has one clear error, in one place.

A wrong type is a TypeError, a value out of range a ValueError, a message over its size limit
MessageTooLarge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import limits
from .codec import encode_headers
from .errors import MessageTooLarge
from .model import Backoff, GroupSettings, Outgoing

_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


def name(what: str, value: object) -> str:
    """A name of a topic, group or consumer: 1 to 128 of the name characters, no '.' in front."""
    if not isinstance(value, str):
        raise TypeError(f"{what} name must be str, not {type(value).__name__}")
    if not 0 < len(value) <= limits.MAX_NAME_BYTES:
        raise ValueError(
            f"{what} name must have 1 to {limits.MAX_NAME_BYTES} characters, not {len(value)}"
        )
    if value[0] in ".-" or not _NAME_CHARACTERS.issuperset(value):
        raise ValueError(
            f"{what} name {value!r} must consist of {limits.NAME_ALPHABET}, and begin with a"
            " letter, digit or '_'"
        )
    return value


def seconds(what: str, value: object, least: float, most: float) -> float:
    """A duration in seconds between two bounds, both allowed."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} must be a number of seconds, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{what} must be between {least:g} and {most:g} seconds, not {value!r}")
    return float(value)


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
    if type(value) is bytes:
        if len(value) > limits.MAX_BODY_BYTES:
            raise _too_large("body", len(value), limits.MAX_BODY_BYTES)
        return value
    if isinstance(value, Outgoing):
        body = message(value.body)
        assert isinstance(body, bytes)
        if value.key is None and not value.headers:
            return body
        _key(value.key)
        _headers(value.headers)
        return value
    if isinstance(value, (bytearray, memoryview)):
        return message(bytes(value))
    hint = "; encode it: text.encode()" if isinstance(value, str) else ""
    raise TypeError(f"a message body must be bytes, not {type(value).__name__}{hint}")


def messages(values: object) -> Sequence[bytes | Outgoing]:
    """The messages of one put_many."""
    if isinstance(values, (bytes, str)):
        raise TypeError(f"put_many takes a list of bodies, not one {type(values).__name__}")
    found = list(values)  # type: ignore[call-overload]
    if len(found) > limits.MAX_PUT_MESSAGES:
        raise _too_large("batch", len(found), limits.MAX_PUT_MESSAGES, "messages")
    if set(map(type, found)) == {bytes} and max(map(len, found)) <= limits.MAX_BODY_BYTES:
        size = sum(map(len, found))
    else:
        found = [message(value) for value in found]
        size = sum(len(value if isinstance(value, bytes) else value.body) for value in found)
    if size > limits.MAX_PUT_BYTES:
        raise _too_large("batch", size, limits.MAX_PUT_BYTES)
    return found


def group_settings(
    stored: GroupSettings,
    lease_seconds: object,
    max_deliveries: object,
    backoff: object,
    max_in_flight: object,
) -> GroupSettings:
    """`stored`, with each setting that is not None checked and put in its place."""
    settings = stored
    if lease_seconds is not None:
        bounds = limits.MIN_LEASE_SECONDS, limits.MAX_LEASE_SECONDS
        settings = settings._replace(lease_seconds=seconds("lease_seconds", lease_seconds, *bounds))
    if max_deliveries is not None:
        number = count("max_deliveries", max_deliveries, 1, limits.MAX_DELIVERIES)
        settings = settings._replace(max_deliveries=number)
    if backoff is not None:
        settings = settings._replace(backoff=_backoff(backoff))
    if max_in_flight is not None:
        number = count("max_in_flight", max_in_flight, 1, limits.MAX_IN_FLIGHT)
        settings = settings._replace(max_in_flight=number)
    return settings


def _backoff(value: object) -> Backoff:
    if not isinstance(value, Backoff):
        raise TypeError(f"backoff must be a diskq.Backoff, not {type(value).__name__}")
    base = seconds("backoff base_seconds", value.base_seconds, 0, limits.MAX_DELAY_SECONDS)
    factor = seconds("backoff factor", value.factor, 1, 1000)
    most = seconds("backoff max_seconds", value.max_seconds, 0, limits.MAX_DELAY_SECONDS)
    return Backoff(base, factor, most)


def _key(value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"key must be str, not {type(value).__name__}")
    size = len(value.encode())
    if size > limits.MAX_KEY_BYTES:
        raise _too_large("key", size, limits.MAX_KEY_BYTES)


def _headers(value: object) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise TypeError(f"headers must be a mapping of str to str, not {type(value).__name__}")
    for item in (*value, *value.values()):
        if not isinstance(item, str):
            raise TypeError(f"headers must map str to str, not {item!r}")
    if len(value) > limits.MAX_HEADERS:
        raise _too_large("headers", len(value), limits.MAX_HEADERS, "headers")
    size = len(encode_headers(value)) - 6 * len(value)
    if size > limits.MAX_HEADERS_BYTES:
        raise _too_large("headers", size, limits.MAX_HEADERS_BYTES)


def _too_large(what: str, size: int, limit: int, unit: str = "bytes") -> MessageTooLarge:
    return MessageTooLarge(
        f"{what} of {size} {unit} is over the limit of {limit}; store it elsewhere and put a"
        " reference, or split it",
        size=size,
        limit=limit,
    )
