"""Options of puts, and settings of topics and groups, by name: their types, for type checkers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from .model import Backoff

if TYPE_CHECKING:
    from datetime import datetime

# An offset, "earliest", "latest", or a time: that of the first message put then or later.
Start: TypeAlias = "int | str | datetime"


class PutOptions(TypedDict, total=False):
    """Options of a put by name; see `Topic.put`."""

    key: str | None
    headers: Mapping[str, str] | None
    priority: int
    delay_seconds: float | None
    at: datetime | None
    ttl_seconds: float | None
    dedup_id: str | None


class TopicChanges(TypedDict, total=False):
    """Settings of a topic by name; see `Store.topic`."""

    retention: str | None
    max_age_seconds: float | None
    max_bytes: int | None
    max_messages: int | None
    discard: str | None
    dedup_seconds: float | None
    priorities: int | None


class GroupChanges(TypedDict, total=False):
    """Settings of a group by name; see `Topic.group`."""

    lease_seconds: float | None
    max_deliveries: int | None
    backoff: Backoff | None
    ordering: str | None
    max_in_flight: int | None
    keep_expired: bool | None
