"""Rows of messages that were copied out of the log, with their history."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

from ..base.clock import Stamp
from ..base.limits import MAX_HISTORY, MAX_HISTORY_BYTES
from ..base.model import Failure
from .decoding import WRONG, damaged
from .layout import CAUSES, STATES, U32, checked, unchecked
from .rows import Row

_HISTORY = Struct(">QBHH")


class HeldRow(Row, layout=">BBHQQQQH"):
    """A message copied out of the log, with its history. `due_ns` is when it is due, or was due
    before it was leased; for a dead message it is when it died, for a parked one 0. The last four
    numbers are the Stamp of its put."""

    state: int
    flags: int
    failures: int
    due_ns: int
    put_at_ns: int
    wall_ns: int
    elapsed_ns: int
    boot: int

    def __init__(self, record: bytes, flags: int, *put: int) -> None:
        self.record, self.flags = record, flags
        self.put_at_ns, self.wall_ns, self.elapsed_ns, self.boot = Stamp(*put)
        self.state = self.failures = self.due_ns = 0
        self.history: tuple[Failure, ...] = ()
        self.history_bytes = 0

    @property
    def put(self) -> Stamp:
        """The time of its put."""
        return Stamp(self.put_at_ns, self.wall_ns, self.elapsed_ns, self.boot)

    @property
    def size(self) -> int:
        """Bytes of the row as it is stored, or a little more."""
        return 2 * _HISTORY.size + self.layout.size + len(self.record) + self.history_bytes

    def note(self, failure: Failure, most: int = MAX_HISTORY_BYTES) -> None:
        """Add an entry to the history, which keeps the latest entries within `most` bytes: if they
        are larger, the oldest error texts are shortened first, then the names of consumers."""
        self.history += (failure,)
        self.history_bytes += _size(failure)
        while len(self.history) > MAX_HISTORY:
            self.history_bytes -= _size(self.history[0])
            self.history = self.history[1:]
        if self.history_bytes > most:
            self._shorten(most)

    def _shorten(self, most: int) -> None:
        entries, over = list(self.history), self.history_bytes - most
        for field in ("error", "consumer"):
            for at, entry in enumerate(entries):
                text = getattr(entry, field).encode(errors="backslashreplace")
                kept = text[: max(len(text) - max(over, 0), 0)]
                over -= len(text) - len(kept)
                if len(kept) < len(text):
                    entries[at] = entry._replace(**{field: kept.decode(errors="ignore")})
        self.history = tuple(entries)
        self.history_bytes = sum(map(_size, entries))

    def encode(self) -> bytes:
        """The row as it is stored."""
        history = b"".join(map(_encode_failure, self.history))
        return checked(self.pack() + U32.pack(len(history)) + history + self.record)


def decode_held(data: bytes) -> HeldRow:
    """The inverse of HeldRow.encode. Raises: Corrupt."""
    data = unchecked(data)
    at = HeldRow.layout.size
    history_at = at + U32.size
    try:
        record_at = history_at + U32.unpack_from(data, at)[0]
        row = HeldRow(data[record_at:], 0, 0)
        row.unpack(data)
        row.history = tuple(_decode_history(data[history_at:record_at]))
        row.history_bytes = record_at - history_at
        if len(data) < record_at or row.state not in STATES:
            raise IndexError(record_at)
    except WRONG as error:
        raise damaged("a message out of the log") from error
    return row


def _size(failure: Failure) -> int:
    texts = failure.error, failure.consumer
    return _HISTORY.size + sum(
        len(text) if text.isascii() else len(text.encode(errors="backslashreplace"))
        for text in texts
    )


def _encode_failure(failure: Failure) -> bytes:
    error = failure.error.encode(errors="backslashreplace")  # it may have the name of an odd file
    consumer = failure.consumer.encode()
    head = _HISTORY.pack(failure.at_ns, CAUSES.index(failure.cause), len(consumer), len(error))
    return head + consumer + error


def _decode_history(data: bytes) -> Iterator[Failure]:
    at = 0
    while at < len(data):
        at_ns, cause, consumer_length, error_length = _HISTORY.unpack_from(data, at)
        error_at = at + _HISTORY.size + consumer_length
        consumer = data[at + _HISTORY.size : error_at].decode()
        at = error_at + error_length
        yield Failure(at_ns, CAUSES[cause], consumer, data[error_at:at].decode())
    if at != len(data):
        raise IndexError(at)
