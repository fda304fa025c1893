"""Receipts as `put` prints them: one by one, or counted together."""

from __future__ import annotations

from collections.abc import Sequence

from diskq import Receipt, Receipts, Topic

from . import output, units
from .common import plural


def show(topic: Topic, receipt: Receipt, as_json: bool) -> None:
    """Print one receipt."""
    if as_json:
        output.record({"topic": topic.name, **receipt._asdict(), "due_ns": _due_ns(receipt)})
    else:
        output.line(f"{topic.name} {place(receipt)}")


def place(receipt: Receipt) -> str:
    """The message's offset, or its schedule id and the time when it is due."""
    due_ns = _due_ns(receipt)
    where = f"{receipt.schedule_id} due {units.show_time(due_ns)}" if due_ns else receipt.offset
    return f"{where}{' duplicate' if receipt.duplicate else ''}"


def _due_ns(receipt: Receipt) -> int | None:
    return int(receipt.schedule_id.partition("-")[0]) if receipt.schedule_id else None


class Tally:
    """Counts of the messages of one `put`, over all its commits."""

    def __init__(self) -> None:
        self.stored = self.scheduled = self.duplicates = 0
        self.first = self.last = 0  # offsets of the stored messages
        self._due_ns = 0

    def add(self, receipts: Sequence[Receipt]) -> None:
        """Count these receipts."""
        if isinstance(receipts, Receipts):  # a run of offsets: no need to look at each
            self._note(receipts.offsets[0], receipts.offsets[-1], len(receipts))
            return
        for receipt in receipts:
            if receipt.duplicate:
                self.duplicates += 1
            elif receipt.offset is None:
                self.scheduled += 1
                self._due_ns = max(self._due_ns, _due_ns(receipt) or 0)
            else:
                self._note(receipt.offset, receipt.offset, 1)

    def _note(self, first: int, last: int, count: int) -> None:
        self.first = first if not self.stored else min(first, self.first)
        self.last = last if not self.stored else max(last, self.last)
        self.stored += count

    def parts(self, stored: str) -> str:
        """All counts in words; `stored` are the words for the stored messages, if there are any."""
        parts = [stored] if self.stored else []
        if self.scheduled:
            due = units.show_time(self._due_ns)
            parts.append(f"{plural(self.scheduled, 'message')} scheduled, the last due {due}")
        if self.duplicates:
            parts.append(plural(self.duplicates, "duplicate"))
        return ", ".join(parts)

    def __str__(self) -> str:
        return self.parts(f"{self.first}-{self.last} ({plural(self.stored, 'message')})")
