"""A clock that tests move by hand, so that no test sleeps to see a deadline pass."""

from __future__ import annotations

import diskq

NS = 1_000_000_000


class ManualClock(diskq.Clock):
    """Stands still until told otherwise; `reboot` makes it another boot of the machine."""

    def __init__(self) -> None:
        self.wall = 1_700_000_000 * NS
        self.monotonic = 5_000 * NS
        self.boot = 1

    def wall_ns(self) -> int:  # type: ignore[override]
        return self.wall

    def monotonic_ns(self) -> int:  # type: ignore[override]
        return self.monotonic

    def boot_id(self) -> bytes:  # type: ignore[override]
        return self.boot.to_bytes(16, "big")

    def advance(self, seconds: float) -> None:
        """Let time pass, on both clocks."""
        self.advance_ns(int(seconds * NS))

    def advance_ns(self, nanoseconds: int) -> None:
        """The same, to the nanosecond."""
        self.wall += nanoseconds
        self.monotonic += nanoseconds

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as NTP does; neither leases nor ages may care."""
        self.wall += int(seconds * NS)

    def reboot(self) -> None:
        """The machine starts anew: another boot id, and monotonic time begins again."""
        self.boot += 1
        self.monotonic = 10 * NS
