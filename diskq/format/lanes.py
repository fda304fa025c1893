"""Lanes: each priority of a topic has its own offsets, which begin at a multiple of 2**56."""

from __future__ import annotations

from ..base.model import LANE_BITS


def lane_of(offset: int) -> int:
    """The lane of an offset."""
    return offset >> LANE_BITS


def lane_start(lane: int) -> int:
    """The first offset of a lane; that of the next lane is the end of this one."""
    return lane << LANE_BITS


class Cursor(list[int]):
    """One position per lane: an offset in each of them, lowest lane first."""

    @classmethod
    def at_start(cls, lanes: int) -> Cursor:
        """The first offset of each lane."""
        return cls(map(lane_start, range(lanes)))

    def has_passed(self, offset: int) -> bool:
        """Whether an offset is before the position in its lane."""
        lane = lane_of(offset)
        return lane < len(self) and offset < self[lane]

    @property
    def counts(self) -> list[int]:
        """How many offsets of each lane are before the position in it."""
        return [offset - lane_start(lane) for lane, offset in enumerate(self)]
