"""The only reader of time. Three clocks, because they answer different questions:

- `wall_ns` dates messages, delays and retries: it has a meaning after a reboot;
- `monotonic_ns` bounds leases: no NTP step moves it, and `boot_id` tells when it started again;
- `elapsed_ns` measures ages: it is monotonic too, and goes on while the machine sleeps.
"""

from __future__ import annotations

import time
from typing import NamedTuple

NS = 1_000_000_000
_COARSE_NS = NS // 100  # the time asleep is the difference of two readings, so it trembles


class Clock:
    """The clocks of this machine, in integer nanoseconds. Safe to share."""

    wall_ns = staticmethod(time.time_ns)
    monotonic_ns = staticmethod(time.monotonic_ns)

    def elapsed_ns(self) -> int:
        """`monotonic_ns`, and the time that the machine was suspended since it booted."""
        asleep = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
        return self.monotonic_ns() + (asleep + _COARSE_NS // 2) // _COARSE_NS * _COARSE_NS

    @staticmethod
    def boot_id() -> bytes:
        """16 bytes that change at every boot; zeros where the system does not tell.

        Source: https://docs.kernel.org/admin-guide/sysctl/kernel.html#random
        """
        try:
            with open("/proc/sys/kernel/random/boot_id", "rb") as file:
                return bytes.fromhex(file.read().decode().strip().replace("-", ""))
        except (OSError, ValueError):
            return bytes(16)


class Stamp(NamedTuple):
    """The time of a put on every clock; `boot` names the boot that `elapsed_ns` belongs to.

    Users see `put_at_ns`. It orders a topic, so it never goes back within one, whatever the clock
    does: the age of a message is computed from the other fields, see ages.py.
    """

    put_at_ns: int
    wall_ns: int = 0  # the time by the wall clock; 0: the same as put_at_ns
    elapsed_ns: int = 0
    boot: int = 0  # 0: its age goes by the wall clock alone


def nanoseconds(seconds: float) -> int:
    """Whole nanoseconds of a duration in seconds."""
    return round(seconds * NS)
