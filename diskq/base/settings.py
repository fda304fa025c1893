"""Settings of topics and groups by name: the values that each may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from . import check, limits
from .clock import NS, nanoseconds
from .model import DISCARDS, ORDERINGS, RETENTIONS, Backoff

Settings = TypeVar("Settings", bound=NamedTuple)


def checked(stored: Settings, given: Mapping[str, object]) -> Settings:
    """`stored` with each given setting that is not None, after a check."""
    if not set(given) <= set(stored._fields):
        raise check.unknown("setting", given, stored._fields)
    values = {
        what: _SETTINGS[what](what, value) for what, value in given.items() if value is not None
    }
    return stored._replace(**values)


def changed(stored: Settings, given: Mapping[str, object]) -> Settings:
    """`stored` with changes; None removes a bound that is optional."""
    for what, value in given.items():
        if value is None and stored._field_defaults.get(what) is not None:
            raise TypeError(f"{what} must have a value, not None")
    gone = {what: None for what, value in given.items() if value is None}
    return checked(stored, given)._replace(**gone)


def _backoff(what: str, value: object) -> Backoff:
    if not isinstance(value, Backoff):
        raise TypeError(f"{what} must be a diskq.Backoff, not {type(value).__name__}")
    most = limits.MAX_DELAY_SECONDS
    return Backoff(
        check.seconds("backoff base_seconds", value.base_seconds, 0, most),
        check.seconds("backoff factor", value.factor, 1, 1000, unit=""),
        check.seconds("backoff max_seconds", value.max_seconds, 0, most),
    )


def _boolean(what: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be bool, not {type(value).__name__}")
    return value


def _counted(least: int, most: int) -> Callable[[str, object], object]:
    return lambda what, value: check.count(what, value, least, most)


def _timed(least: float, most: float) -> Callable[[str, object], object]:
    return lambda what, value: nanoseconds(check.seconds(what, value, least, most)) / NS


def _one_of(*choices: str) -> Callable[[str, object], object]:
    def chosen(what: str, value: object) -> object:
        if value not in choices:
            raise ValueError(f"{what} must be one of {', '.join(choices)}, not {value!r}")
        return value

    return chosen


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
