"""Dead letters: list them, give them back, forget them. Imported on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from ..base import check, limits
from ..base.errors import NotFound
from ..base.model import DeadLetter, Failure
from ..delivery import key_order, leaving
from ..format.decoding import damaged
from ..format.held_row import HeldRow
from ..format.layout import DEAD
from ..format.segment import TTL, decode_record
from ..storage.handle import Handle
from ..storage.reserve import room_of
from ..storage.tx import Tx
from ..tables import group_tx, held
from ..tables.group_tx import GroupTx, Place

_PAGE = 100  # fetched per read transaction


def dead(handle: Handle, place: Place, start: int) -> Iterator[DeadLetter]:
    """See Group.dead."""
    start = check.count("start", start, 0, 2**64 - 1)

    def page(tx: Tx) -> list[tuple[int, HeldRow]]:
        group_tx.load(tx, place.group_id, place.group)
        return list(islice(held.rows(tx, place.group_id, DEAD, start), _PAGE))

    while found := handle.read(page):
        for offset, row in found:
            yield _dead_letter(offset, row)
        start = found[-1][0] + 1


def redrive(handle: Handle, place: Place, limit: int | None, offsets: Sequence[int] | None) -> int:
    """See Group.redrive."""
    if offsets is not None:
        if limit is not None:
            raise ValueError("redrive takes a limit or offsets, not both")
        chosen = _offsets(offsets)
        return handle.commit(lambda tx: _revive(tx, place, chosen))
    left = handle.read(lambda tx: group_tx.load(tx, place.group_id, place.group).dead)
    if limit is not None:
        left = min(left, check.count("limit", limit, 0, 2**63))
    count = 0
    while count < left and (done := _redrive_some(handle, place, left - count)):
        count += done
    return count


def forget(handle: Handle, place: Place, offsets: Sequence[int]) -> None:
    """See Group.forget_dead."""
    chosen = _offsets(offsets)

    def operation(tx: Tx) -> None:
        group = GroupTx(tx, place)
        for offset in chosen:
            _load(group, offset)
            held.remove_dead(group, offset)
            group.row.purged += 1
        group.store()

    handle.commit(operation)


def _offsets(offsets: Sequence[int]) -> list[int]:
    most = limits.MAX_REDRIVE_MESSAGES
    if len(offsets) > most:
        raise ValueError(f"{len(offsets)} offsets are over {most}, the most for one call")
    return [check.count("offset", offset, 0, 2**64 - 1) for offset in offsets]


def _redrive_some(handle: Handle, place: Place, limit: int) -> int:
    def operation(tx: Tx) -> int:
        most = min(limit, limits.MAX_REDRIVE_MESSAGES)
        chosen = list(islice(held.offsets(tx, place.group_id, DEAD), most))
        return _revive(tx, place, chosen, part=True)

    return handle.commit(operation)


def _revive(tx: Tx, place: Place, offsets: Sequence[int], *, part: bool = False) -> int:
    """Each waits for a delivery at once, or behind the holder of its key, with a clean slate but
    its history; it expires no more. Returns how many; only of a `part`, fewer than were asked for.

    Raises: NotFound, Full.
    """
    group = GroupTx(tx, place)
    now, room = tx.engine.clock.wall_ns(), room_of(tx)
    for count, offset in enumerate(offsets):
        row = _load(group, offset)
        enough = part and count > 0
        if (enough and room.spent) or not room.take(row.size, kept=True):
            if not enough:
                raise leaving.no_room(group)
            group.store()
            return count
        held.remove_dead(group, offset)
        row.failures = 0
        row.flags &= ~TTL
        row.note(Failure(now, "redriven", "", ""))
        if key_order.wait_or_park(group, offset, row, now):
            tx.wake(group.id, 1)
    group.store()
    return len(offsets)


def _load(group: GroupTx, offset: int) -> HeldRow:
    """A dead letter. Raises: NotFound."""
    row = held.get(group.tx, group.id, DEAD, offset)
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
