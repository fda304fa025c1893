"""Ages of messages and ids, for TTLs, max_age and dedup windows, whatever the wall clock does.

Within one boot a monotonic clock counts an age: a wall clock that is wrong at the put, or later,
neither prolongs a life nor ends one early. That clock starts again with the machine, so the age of
anything older than the boot goes by the wall clock; if that dates the put into the future, it
counts as made when the store was first opened in this boot.
"""

from __future__ import annotations

from zlib import crc32

from ..base.clock import Stamp
from ..storage.tx import Tx

_BOOTS = 2**16 - 1


class Now:
    """The clocks as they were read once in a transaction."""

    __slots__ = ("_boot", "_elapsed_ns", "_since_boot_ns", "_wall_ns")

    def __init__(self, tx: Tx) -> None:
        clock, meta = tx.engine.clock, tx.engine.meta
        self._wall_ns = clock.wall_ns()
        self._elapsed_ns = clock.elapsed_ns()
        self._since_boot_ns = self._elapsed_ns - meta.boot_noted_ns
        self._boot = crc32(meta.boot_id) % _BOOTS + 1  # that the leases belong to; never 0

    def stamp(self, last_put_ns: int) -> Stamp:
        """The time of a put now into a topic whose latest put was at `last_put_ns`."""
        wall_ns = self._wall_ns
        return Stamp(max(wall_ns, last_put_ns), wall_ns, self._elapsed_ns, self._boot)

    def age_ns(self, put: Stamp) -> int:
        """Nanoseconds since a put, at least 0."""
        put_at_ns, since_ns, elapsed_ns, boot = put
        since_ns = since_ns or put_at_ns
        if not boot:
            return max(self._wall_ns - since_ns, 0)
        if boot == self._boot and elapsed_ns <= self._elapsed_ns:
            return self._elapsed_ns - elapsed_ns
        if put_at_ns <= self._wall_ns:  # the later of two that may be right: nothing ends early
            since_ns = put_at_ns
        return max(self._wall_ns - since_ns, self._since_boot_ns, 0)


def due_stamp(due_ns: int, last_put_ns: int) -> Stamp:
    """The time of the put of a scheduled message: its age counts from `due_ns`, however late the
    message gets its offset, and goes by the wall clock, as the delay did."""
    return Stamp(max(due_ns, last_put_ns), due_ns)
