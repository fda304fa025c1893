"""Settling ends a delivery: ack, nack, release, reject. Here is also all that takes messages from a
whole group.

    leased --ack--> gone
      |--release, holder died--> ready, in its old place; or, with a delay, waiting
      |--fail (nack, deadline passed, died while handling it)--> waiting
      '--fail (reject, max_deliveries reached)--> dead

The policy between the faces and the rows; all of it runs inside one transaction. The other half,
what begins a delivery, is delivery.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from ..base import limits
from ..base.clock import nanoseconds
from ..base.errors import Corrupt, Full, LeaseLost
from ..base.model import Failure
from ..format.held_row import HeldRow
from ..format.layout import HELD, PREFETCHED, RETURNED, SOLO
from ..format.lease_row import LeaseRow
from ..format.rows import GroupRow, TopicRow, decode_group
from ..format.segment import is_purged
from ..storage.environment import full
from ..storage.reserve import room_of
from ..storage.tx import Tx
from ..tables import gaps, held, key_owners, leases, log
from ..tables.log import Log


class Place(NamedTuple):
    """A group, and where its messages are."""

    topic_id: int
    topic: str
    group_id: int
    group: str


class Settling:
    """A group inside one transaction; `store` writes its row back."""

    def __init__(self, tx: Tx, at: Place, row: GroupRow | None = None) -> None:
        self.tx = tx
        self.at = at
        self.id = at.group_id
        self.clock = tx.engine.clock
        self.row = row or leases.load(tx, at.group_id, at.group)
        config = decode_group(self.row.config)
        self.settings, self.paused = config.settings, config.paused
        self.keyed = self.settings.ordering == "key"
        self.log = Log(tx, at.topic_id)
        self.hands = tx.engine.hands[self.id]

    def load_topic(self) -> TopicRow:
        """The row of the group's topic. Raises: NotFound."""
        return log.load(self.tx, self.at.topic_id, self.at.topic)

    def store(self) -> None:
        """Write the group's row back, if it changed."""
        leases.store(self.tx, self.id, self.row)

    def leased(self) -> Iterator[LeaseRow]:
        """The leases that somebody has, by deadline."""
        return leases.rows(self.tx, self.id, 1)

    def advance(self, lane: int, to: int) -> int:
        """Move a lane's cursor on to an offset, past the gaps on its way and one that begins there;
        returns how many messages it passed."""
        row, start, gone = self.row, self.row.offset(lane), 0
        for first, stop in gaps.rows(self.tx, self.at.topic_id, start) if row.ahead else ():
            if first > to:
                break
            to = max(to, stop)
            gone += stop - first
        row.next[lane] += to - start
        row.ahead -= gone
        row.skipped += gone
        return to - start - gone

    # One message

    def holding(self, lease: LeaseRow, offsets: Sequence[int]) -> LeaseRow:
        """The row of this lease. The fence: whoever settles or extends passes here.

        Raises: LeaseLost unless it still holds all of these messages.
        """
        row = leases.find(self.tx, self.id, lease)
        for offset in offsets:
            if row is None or not row.holds(offset):
                raise LeaseLost(
                    f"the lease of message {offset} in group {self.at.group!r} was lost: it was"
                    " taken back, and is done again by others or gone; drop this work",
                    topic=self.at.topic,
                    group=self.at.group,
                    offset=offset,
                    token=lease.token + offset - lease.first,
                )
        assert row is not None
        return row

    def ack(self, lease: LeaseRow, offsets: Sequence[int]) -> None:
        """Messages of one lease are done. Raises: LeaseLost."""
        row = self.holding(lease, offsets)
        for offset in offsets:
            row.settled |= 1 << offset - row.first
        if row.flags & HELD:
            held.drop(self.tx, self.id, row.first)
        self._update(lease, row)
        self.row.acked += len(offsets)
        self.unlease(len(offsets))
        for offset in offsets if lease.keys else ():
            self._pass_on(lease.keys.get(offset))

    def fail(
        self, lease: LeaseRow, offset: int, cause: str, name: str, error: str, delay_ns: int | None
    ) -> None:
        """A delivery to the consumer `name` failed. Raises: LeaseLost, Full."""
        row = self.holding(lease, [offset])
        if not self.take_out(row, offset, cause, name, error, delay_ns):
            raise self.full()
        self._update(lease, row)

    def take_out(
        self,
        lease: LeaseRow,
        offset: int,
        cause: str,
        name: str,
        error: str,
        delay_ns: int | None = None,
    ) -> bool:
        """Take a message that failed out of its lease: it waits `delay_ns` (default: the backoff),
        or is dead if it was rejected or failed `max_deliveries` times. The caller updates the
        lease's row. False, and nothing happens, if there is no room for a copy of it."""
        message = self._held(lease, offset)
        if is_purged(message.record, message.flags):
            self._leave(lease, offset)
            self.row.purged += 1
            held.drop(self.tx, self.id, offset)
            self.free_key(offset, message)
            return True
        now, room = self.clock.wall_ns(), room_of(self.tx)
        most = limits.SHORT_HISTORY_BYTES if room.short else limits.MAX_HISTORY_BYTES
        message.note(Failure(now, cause, name, error[: limits.MAX_ERROR_CHARS]), most)
        kept = bool(lease.flags & HELD) or cause == "crashed"
        if not room.take(message.size, kept=kept):
            return False
        self._leave(lease, offset)
        message.failures += 1
        if cause == "crashed":
            message.flags |= SOLO
        elif cause != "expired":  # a handler lived on: it is no suspect any more
            message.flags &= ~SOLO
        self.row.failed += 1
        if cause == "reject" or message.failures >= self.settings.max_deliveries:
            held.bury(self.tx, self.id, self.row, offset, message, now)
            self.free_key(offset, message)
        else:
            if delay_ns is None:
                delay_ns = self.settings.backoff.delay_ns(message.failures)
            held.wait(self.tx, self.id, self.row, offset, message, now + delay_ns)
            self.tx.wake(self.id, 1)
        return True

    def _held(self, lease: LeaseRow, offset: int) -> HeldRow:
        if lease.flags & HELD:
            message = held.load(self.tx, self.id, offset)
        else:
            _, record, flags, put = self.log.read(offset, offset + 1)[0]
            message = HeldRow(record, flags, *put)
        message.flags |= lease.flags & SOLO
        return message

    def release(self, lease: LeaseRow, offset: int, delay_ns: int = 0) -> None:
        """Give one message back, uncharged: in its old place, or to wait. Raises: LeaseLost, with
        a delay also Full."""
        row = self.holding(lease, [offset])
        if delay_ns:
            self._put_off(row, offset, delay_ns)
        elif row.unsettled == 1:
            self.release_all(row)
            return
        else:
            self._leave(row, offset)
            leases.grant(self.tx, self.id, LeaseRow(offset, 1))
            self.row.ready += 1
        self._update(lease, row)
        self.tx.wake(self.id, 1)

    def _put_off(self, row: LeaseRow, offset: int, delay_ns: int) -> None:
        message = self._held(row, offset)
        if not room_of(self.tx).take(message.size, kept=bool(row.flags & HELD)):
            raise self.full()
        message.flags |= RETURNED
        self._leave(row, offset)
        due_ns = self.clock.wall_ns() + delay_ns
        held.wait(self.tx, self.id, self.row, offset, message, due_ns)

    def release_owned(self, owner: int | None) -> None:
        """Give back all that a consumer holds, or with None all that anybody holds, uncharged."""
        for lease in list(self.leased()):
            if owner is None or lease.owner == owner:
                self.release_all(lease)

    def release_all(self, lease: LeaseRow, suspects: Collection[int] = ()) -> None:
        """Give back what is unsettled of a lease. `suspects` are delivered alone from now on; what
        was a suspect before stays one."""
        if lease.flags & HELD and lease.unsettled:
            message = held.load(self.tx, self.id, lease.first)
            suspect = bool(lease.flags & SOLO) or lease.first in suspects
            held.give_back(self.tx, self.id, self.row, lease.first, message, suspect=suspect)
            self._leave(lease, lease.first)
            self.tx.wake(self.id, 1)
        leases.give_back(self.tx, self.id, self.row, lease, suspects)

    def extend(self, lease: LeaseRow, offset: int, seconds: float | None) -> None:
        """Give a lease a new deadline. Raises: LeaseLost.

        The row's key changes with it: threads that share the lease may settle in this commit, or
        in the next one.
        """
        row = self.holding(lease, [offset])
        self._move(lease, row, nanoseconds(seconds or self.settings.lease_seconds))

    def _move(self, lease: LeaseRow, row: LeaseRow, duration_ns: int) -> None:
        leases.move(self.tx, self.id, row, self.clock.monotonic_ns() + duration_ns)
        lease.moved_ns, lease.lasts_ns = row.deadline_ns, duration_ns
        self.tx.at_commit(lease, "deadline_ns", row.deadline_ns)

    def _update(self, lease: LeaseRow, row: LeaseRow) -> None:
        """Store a lease's row after a message left it. The rest of a prefetched one is handled
        after that message, and gets its time in the same commit."""
        if row.flags & PREFETCHED and row.unsettled and self.is_old(lease):
            self._move(lease, row, nanoseconds(self.settings.lease_seconds))
        else:
            leases.update(self.tx, self.id, row)

    def is_old(self, lease: LeaseRow) -> bool:
        """Whether less than two thirds of the time of a lease are left."""
        return 3 * (lease.deadline_ns - self.clock.monotonic_ns()) < 2 * lease.lasts_ns

    def _leave(self, lease: LeaseRow, offset: int) -> None:
        """A message leaves its lease, whose row the caller stores."""
        lease.settled |= 1 << offset - lease.first
        self.unlease(1)

    def full(self) -> Full:
        """The error of a verb that has no room for a copy."""
        return full(self.tx.engine.path, "what is left of its room is kept for acks")

    def unlease(self, count: int) -> None:
        """Messages left a lease; consumers that max_in_flight, or a suspect, holds back can go
        on."""
        self.row.leased -= count
        if self.hands.held_up:
            self.hands.held_up = False
            self.tx.wake(self.id, limits.MAX_CONSUMERS)
        most = self.settings.max_in_flight
        if most is not None and self.row.leased + count >= most:
            self.tx.wake(self.id, count)

    def free_key(self, offset: int, message: HeldRow) -> None:
        """The message has left the group, or is dead: if its key was its own, the next gets it. One
        that cannot be decoded never got a key; it must not be in the way of a purge."""
        key = None
        if self.keyed:
            with suppress(Corrupt):
                key = key_owners.hash_of(message.record, message.flags)
        if key is not None and key_owners.holder(self.tx, self.id, key) == offset:
            self._pass_on(key)

    def _pass_on(self, key: int | None) -> None:
        if key is not None:
            key_owners.pass_on(self.tx, self.id, self.row, key, self.clock.wall_ns())

    # The whole group

    def withdraw(self, floors: Sequence[int], counter: str) -> None:
        """Take all messages below these offsets, one of each lane, from the group; leases of them
        are lost. They must still be in the log."""
        row = self.row
        gone = 0
        for lane, floor in enumerate(floors):
            gone += self.advance(lane, max(floor, row.offset(lane)))
        below = (lease for lease in leases.rows(self.tx, self.id) if not lease.flags & HELD)
        for lease in [lease for lease in below if lease.next_unsettled < floors[lease.lane]]:
            lost = [offset for offset in lease.offsets() if offset < floors[lease.lane]]
            for offset in lost:
                if self.keyed:
                    self.free_key(offset, self._held(lease, offset))
                lease.settled |= 1 << offset - lease.first
            leases.update(self.tx, self.id, lease)
            gone += len(lost)
            if lease.deadline_ns:
                self.unlease(len(lost))
            else:
                row.ready -= len(lost)
        setattr(row, counter, getattr(row, counter) + gone)
