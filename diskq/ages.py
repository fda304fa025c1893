"""How old things are, for TTLs, max_age and dedup windows, whatever happens to the wall clock.

Within one boot an age is what a monotonic clock counted: a wall clock that is wrong when something
is put, or when it is looked at, neither prolongs a life nor ends one early. That clock starts again
with the machine, so what is older than the boot goes by the wall clock, and what that puts into the
future counts as put when the store was first opened in this boot.
"""

from __future__ import annotations

from zlib import crc32

from .clock import Stamp
from .engine import Tx

_BOOTS = 2**16 - 1


def stamp(tx: Tx, last_put_ns: int) -> Stamp:
    """The time of a put now into a topic whose latest put was at `last_put_ns`."""
    clock = tx.engine.clock
    wall_ns = clock.wall_ns()
    return Stamp(max(wall_ns, last_put_ns), wall_ns, clock.elapsed_ns(), _boot(tx))


def due_stamp(due_ns: int, last_put_ns: int) -> Stamp:
    """The time of a scheduled message, which is put when somebody notes that it is due: its age
    counts from `due_ns`, and goes by the wall clock as the delay did."""
    return Stamp(max(due_ns, last_put_ns), due_ns)


def age_ns(tx: Tx, put: Stamp) -> int:
    """Nanoseconds since something was put, at least 0."""
    clock = tx.engine.clock
    since_ns = put.wall_ns or put.put_at_ns
    if not put.boot:
        return max(clock.wall_ns() - since_ns, 0)
    now_ns = clock.elapsed_ns()
    if put.boot == _boot(tx) and put.elapsed_ns <= now_ns:
        return now_ns - put.elapsed_ns
    wall_ns = clock.wall_ns()
    if put.put_at_ns <= wall_ns:  # the later of two that may be right: nothing ends early
        since_ns = put.put_at_ns
    return max(wall_ns - since_ns, now_ns - tx.engine.meta.boot_noted_ns, 0)


def _boot(tx: Tx) -> int:
    """A short name of the boot that the leases belong to, never 0."""
    return crc32(tx.engine.meta.boot_id) % _BOOTS + 1
