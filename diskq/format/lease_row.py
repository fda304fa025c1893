"""Lease rows: the right to a run of messages, and the set of those that are settled."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from struct import error as struct_error

from .decoding import damaged, unpacked
from .lanes import lane_of
from .layout import HELD, MAX_RUN, TIME_KEY
from .rows import Row


class LeaseRow(Row, layout=">QQQHBI"):
    """The right to the unsettled messages of the run `first` to `first + count`.

    `settled` is a bit set by position. Flag HELD: the only message is in `held`, not in the log.
    Flag SOLO: each message may have killed a consumer that had several, so it is delivered alone.
    Flag PREFETCHED: the messages are handled one by one, in order; other consumers may take the
    last ones.
    """

    token: int
    owner: int
    granted_ns: int
    slot: int
    flags: int
    count: int

    def __init__(self, first: int, count: int, settled: int = 0, flags: int = 0) -> None:
        self.token = self.owner = self.granted_ns = self.slot = self.deadline_ns = 0
        self.first, self.count, self.settled, self.flags = first, count, settled, flags

    @property
    def unsettled(self) -> int:
        """The number of unsettled messages."""
        return self.count - self.settled.bit_count()

    @property
    def lane(self) -> int:
        """The lane of its messages: a run never spans two lanes."""
        return lane_of(self.first)

    @property
    def next_unsettled(self) -> int:
        """The offset of its first unsettled message, of which there must be one."""
        return self.first + (~self.settled & (self.settled + 1)).bit_length() - 1

    def offsets(self) -> list[int]:
        """The offsets of the unsettled messages, rising."""
        run = range(self.first, self.first + self.count)
        return [offset for offset in run if self.holds(offset)] if self.settled else list(run)

    def runs(self) -> Iterator[tuple[int, int]]:
        """First and stop offsets of the runs of its unsettled messages, in order."""
        if not self.settled:
            yield self.first, self.first + self.count
            return
        unsettled = bin((self.settled ^ ((1 << self.count) - 1)) | 1 << self.count)[:2:-1]
        start = unsettled.find("1")
        while start >= 0:
            stop = unsettled.find("0", start)
            stop = self.count if stop < 0 else stop
            yield self.first + start, self.first + stop
            start = unsettled.find("1", stop)

    def holds(self, offset: int) -> bool:
        """Whether the message at this offset is one of its unsettled messages."""
        position = offset - self.first
        return 0 <= position < self.count and not self.settled >> position & 1

    def encode(self) -> bytes:
        """The row as it is stored."""
        return self.pack() + self.settled.to_bytes((self.count + 7) // 8, "big")


def decode_lease(key: bytes, value: bytes) -> LeaseRow:
    """A row from its key and its value, the inverse of LeaseRow.encode. Raises: Corrupt."""
    try:
        _, _, deadline_ns, first = TIME_KEY.unpack(key)
        row = LeaseRow(first, 0)
        row.unpack(value)
    except struct_error:
        raise damaged(f"the lease {key!r}") from None
    bitmap, count = value[row.layout.size :], row.count
    row.deadline_ns, row.settled = deadline_ns, int.from_bytes(bitmap, "big")
    whole = len(bitmap) == (count + 7) // 8 and 0 < count <= MAX_RUN
    if not whole or row.settled >> count or lane_of(first + count - 1) != lane_of(first):
        raise damaged(f"the lease at offset {first}")
    return row


_FLAGS_AND_COUNT = Struct(">26xBI")


def span_of(key: bytes, value: bytes) -> tuple[int, int] | None:
    """First and stop offset of a lease's run, None if it is HELD; without decoding the rest."""
    if len(value) < LeaseRow.layout.size:
        raise damaged("a lease")
    flags, count = _FLAGS_AND_COUNT.unpack_from(value)
    first: int = unpacked(TIME_KEY, key)[3]
    return None if flags & HELD else (first, first + count)
