"""References: a topic by its id and name, as operations get it."""

from __future__ import annotations

from typing import NamedTuple


class TopicRef(NamedTuple):
    """A topic; the name is for error messages."""

    id: int
    name: str
