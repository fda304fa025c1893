"""The only reader of time. Two clocks, because they answer different questions:

- `wall_ns` dates messages and retries: it must mean something after a reboot;
- `monotonic_ns` bounds leases: no NTP step moves it, and `boot_id` tells when it started anew.
"""

from __future__ import annotations

import time

NS = 1_000_000_000


class Clock:
    """The clocks of this machine, in integer nanoseconds. Safe to share."""

    wall_ns = staticmethod(time.time_ns)
    monotonic_ns = staticmethod(time.monotonic_ns)

    @staticmethod
    def boot_id() -> bytes:
        """16 bytes that change at every boot; zeros where the system does not tell.

        Source: https://docs.kernel.org/admin-guide/sysctl/kernel.html#random
        """
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                return bytes.fromhex(file.read().strip().replace("-", ""))
        except (OSError, ValueError):
            return bytes(16)


def nanoseconds(seconds: float) -> int:
    """Whole nanoseconds of a duration in seconds."""
    return round(seconds * NS)
