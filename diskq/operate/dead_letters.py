"""Dead letters: list them, give them back, forget them. Imported on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from ..base import check, limits
from ..base.errors import NotFound
from ..base.model import DeadLetter, Failure
from ..delivery import key_order, leaving
from ..format.decoding import damaged
from ..format.held_row import HeldRow
from ..format.layout import DEAD
from ..format.segment import TTL, decode_record
from ..storage.reserve import room_of
from ..storage.tx import Tx
from ..tables import group_tx, held
from ..tables.group_tx import GroupTx, Place

if TYPE_CHECKING:
    from ..api.group import Group

_PAGE = 100  # fetched per read transaction


def dead(group: Group, start: int) -> Iterator[DeadLetter]:
    """See Group.dead."""
    start = check.count("start", start, 0, 2**64 - 1)

    def page(tx: Tx) -> list[tuple[int, HeldRow]]:
        group_tx.load(tx, group.id, group.name)
        return list(islice(held.rows(tx, group.id, DEAD, start), _PAGE))

    while found := group.topic.store.engine.read(page):
        for offset, row in found:
            yield _dead_letter(offset, row)
        start = found[-1][0] + 1


def redrive(group: Group, limit: int | None, offsets: Sequence[int] | None) -> int:
    """See Group.redrive."""
    if offsets is not None:
        if limit is not None:
            raise ValueError("redrive takes a limit or offsets, not both")
        chosen = _offsets(offsets)
        place = group.place
        return group.topic.store.commit(lambda tx: _revive(tx, place, chosen))
    left = group.stats().dead
    if limit is not None:
        left = min(left, check.count("limit", limit, 0, 2**63))
    count = 0
    while count < left and (done := _redrive_some(group, left - count)):
        count += done
    return count


def forget(group: Group, offsets: Sequence[int]) -> None:
    """See Group.forget_dead."""
    chosen = _offsets(offsets)

    place = group.place

    def operation(tx: Tx) -> None:
        at = GroupTx(tx, place)
        for offset in chosen:
            _load(at, offset)
            held.remove_dead(at, offset)
            at.row.purged += 1
        at.store()

    group.topic.store.commit(operation)


def _offsets(offsets: Sequence[int]) -> list[int]:
    most = limits.MAX_REDRIVE_MESSAGES
    if len(offsets) > most:
        raise ValueError(f"{len(offsets)} offsets are over {most}, the most for one call")
    return [check.count("offset", offset, 0, 2**64 - 1) for offset in offsets]


def _redrive_some(group: Group, limit: int) -> int:
    place = group.place

    def operation(tx: Tx) -> int:
        most = min(limit, limits.MAX_REDRIVE_MESSAGES)
        chosen = list(islice(held.offsets(tx, group.id, DEAD), most))
        return _revive(tx, place, chosen, part=True)

    return group.topic.store.commit(operation)


def _revive(tx: Tx, place: Place, offsets: Sequence[int], *, part: bool = False) -> int:
    """Each waits for a delivery at once, or behind the holder of its key, with a clean slate but
    its history; it expires no more. Returns how many; only of a `part`, fewer than were asked for.

    Raises: NotFound, Full.
    """
    at = GroupTx(tx, place)
    now, room = tx.engine.clock.wall_ns(), room_of(tx)
    for count, offset in enumerate(offsets):
        row = _load(at, offset)
        enough = part and count > 0
        if (enough and room.spent) or not room.take(row.size, kept=True):
            if not enough:
                raise leaving.no_room(at)
            at.store()
            return count
        held.remove_dead(at, offset)
        row.failures = 0
        row.flags &= ~TTL
        row.note(Failure(now, "redriven", "", ""))
        if key_order.wait_or_park(at, offset, row, now):
            tx.wake(at.id, 1)
    at.store()
    return len(offsets)


def _load(at: GroupTx, offset: int) -> HeldRow:
    """A dead letter. Raises: NotFound."""
    row = held.get(at.tx, at.id, DEAD, offset)
    if row is None:
        raise NotFound(
            f"no dead letter has offset {offset}; see group.dead() or 'diskq dead ls'",
            offset=offset,
        )
    return row


def _dead_letter(offset: int, row: HeldRow) -> DeadLetter:
    body, key, headers, _ = decode_record(row.record, row.flags, f"dead letter {offset}")
    last = next((each for each in reversed(row.history) if each.cause != "redriven"), None)
    if last is None:
        raise damaged(f"the history of dead letter {offset}")
    reason = {"reject": "rejected", "ttl": "expired"}.get(last.cause, "max_deliveries")
    return DeadLetter(
        offset=offset,
        body=body,
        key=key,
        headers=headers,
        put_at_ns=row.put_at_ns,
        dead_at_ns=row.due_ns,
        reason=reason,
        error=last.error,
        failures=row.failures,
        history=row.history,
    )
