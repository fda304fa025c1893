"""A group inside one transaction: the value that everything about a group works on; and its row.

Functions that change rows of a group take a GroupTx, since its counters change with them. Functions
that only read take a transaction and the id of the group.
"""

from __future__ import annotations

from typing import NamedTuple

from ..base.errors import NotFound
from ..format.layout import ID_KEY
from ..format.rows import GroupRow, TopicRow, decode_group
from ..storage.tx import Tx
from . import log
from .log import Log


class Place(NamedTuple):
    """A group and its topic, by id and by name."""

    topic_id: int
    topic: str
    group_id: int
    group: str


class GroupTx:
    """A group inside one transaction. Counters and the cursor change in `row`, which `store` writes
    back.

    Raises: NotFound if the group was deleted.
    """

    __slots__ = (
        *("clock", "hands", "id", "keyed", "log"),
        *("paused", "place", "row", "settings", "tx"),
    )

    def __init__(self, tx: Tx, place: Place, row: GroupRow | None = None) -> None:
        self.tx = tx
        self.place = place
        self.id = place.group_id
        self.clock = tx.engine.clock
        self.row = row or load(tx, place.group_id, place.group)
        config = decode_group(self.row.config)
        self.settings, self.paused = config.settings, config.paused
        self.keyed = self.settings.ordering == "key"
        self.log = Log(tx, place.topic_id)
        self.hands = tx.engine.hands[self.id]  # what this process has leased of the group

    def load_topic(self) -> TopicRow:
        """The row of the group's topic. Raises: NotFound."""
        return log.load(self.tx, self.place.topic_id, self.place.topic)

    def store(self) -> None:
        """Write the group's row back if it changed."""
        store(self.tx, self.id, self.row)


def load(tx: Tx, group_id: int, name: str) -> GroupRow:
    """The row of a group, which the caller may change and store.

    Raises: NotFound if the group was deleted.
    """
    data = tx.get(ID_KEY.pack(b"G", group_id))
    if data is None:
        raise NotFound(
            f"group {name!r} does not exist any more; see topic.groups() or 'diskq group ls'",
            group=name,
        )
    return GroupRow(data)


def store(tx: Tx, group_id: int, row: GroupRow) -> None:
    """Write the row of a group back if it changed."""
    data = row.encode()
    if data != row.data:
        tx.put(ID_KEY.pack(b"G", group_id), data)
