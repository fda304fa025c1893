"""What ends a delivery: ack, nack, release, reject; and what takes messages from a whole group.

    leased --ack--> gone
      |--release, holder died--> ready, in its old place
      |--fail (nack, deadline passed, died while handling it)--> waiting
      '--fail (reject, max_deliveries reached)--> dead

The policy between the faces and the rows; all of it runs inside one transaction. The other half,
what begins a delivery, is delivery.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from . import held, keys, leases, limits, log
from .clock import nanoseconds
from .codec import HELD, SOLO, GroupRow, HeldRow, LeaseRow, TopicRow, decode_group
from .engine import Tx
from .environment import Database, full
from .errors import Corrupt, LeaseLost
from .log import Log
from .model import Failure
from .room import is_tight
from .segment import is_purged


class Place(NamedTuple):
    """A group, and where its messages are."""

    topic_id: int
    topic: str
    group_id: int
    group: str
    database: Database  # of the topic's log


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
        self.log = Log(tx, at.database, at.topic_id)

    def load_topic(self) -> TopicRow:
        """The row of the group's topic. Raises: NotFound."""
        return log.load(self.tx, self.at.topic_id, self.at.topic)

    def store(self) -> None:
        """Write the group's row back, if it changed."""
        leases.store(self.tx, self.id, self.row)

    def leased(self) -> Iterator[LeaseRow]:
        """The leases that somebody has, by deadline."""
        return leases.rows(self.tx, self.id, 1)

    # One message

    def holding(self, lease: LeaseRow, offsets: Sequence[int]) -> LeaseRow:
        """What the store has of this lease. The fence: whoever settles or extends passes here.

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
        leases.update(self.tx, self.id, row)
        self.row.acked += len(offsets)
        self._unlease(len(offsets))
        for offset in offsets if lease.keys else ():
            self._pass_on(lease.keys.get(offset))

    def fail(
        self, lease: LeaseRow, offset: int, cause: str, name: str, error: str, delay_ns: int | None
    ) -> None:
        """A delivery to the consumer `name` failed. Raises: LeaseLost, Full."""
        row = self.holding(lease, [offset])
        if is_tight(self.tx):
            raise full(self.tx.engine.path, "what is left of its disk is kept for acks")
        self._fail(row, offset, cause, name, error, delay_ns)
        leases.update(self.tx, self.id, row)

    def _fail(
        self,
        lease: LeaseRow,
        offset: int,
        cause: str,
        name: str,
        error: str,
        delay_ns: int | None = None,
    ) -> int:
        """Take a message out of its lease: it waits `delay_ns` (default: the backoff), or is dead
        if it was rejected or failed `max_deliveries` times. The caller updates the lease's row.
        Returns how many bytes were copied."""
        lease.settled |= 1 << offset - lease.first
        self._unlease(1)
        message = self._held(lease, offset)
        if is_purged(message.record, message.flags):
            self.row.purged += 1
            held.drop(self.tx, self.id, offset)
            self.free_key(offset, message)
            return 0
        now = self.clock.wall_ns()
        message.failures += 1
        message.history += (Failure(now, cause, name, error[: limits.MAX_ERROR_CHARS]),)
        self.row.failed += 1
        if cause == "reject" or message.failures >= self.settings.max_deliveries:
            held.bury(self.tx, self.id, self.row, offset, message, now)
            self.free_key(offset, message)
        else:
            if delay_ns is None:
                delay_ns = self.settings.backoff.delay_ns(message.failures)
            held.wait(self.tx, self.id, self.row, offset, message, now + delay_ns)
            self.tx.wake(self.id, 1)
        return len(message.record)

    def _held(self, lease: LeaseRow, offset: int) -> HeldRow:
        if lease.flags & HELD:
            return held.load(self.tx, self.id, offset)
        _, record, flags, put = self.log.read(offset, offset + 1)[0]
        return HeldRow(record, flags, *put)

    def release(self, lease: LeaseRow, offset: int) -> None:
        """Give one message back, uncharged and in its old place. Raises: LeaseLost."""
        row = self.holding(lease, [offset])
        if row.unsettled == 1:
            self._release_all(row, solo=False)
            return
        row.settled |= 1 << offset - row.first
        leases.update(self.tx, self.id, row)
        leases.grant(self.tx, self.id, LeaseRow(offset, 1))
        self.row.ready += 1
        self._unlease(1)
        self.tx.wake(self.id, 1)

    def release_owned(self, owner: int | None) -> None:
        """Give back all that a consumer holds, or with None all that anybody holds, uncharged."""
        for lease in list(self.leased()):
            if owner is None or lease.owner == owner:
                self._release_all(lease, solo=False)

    def _release_all(self, lease: LeaseRow, *, solo: bool) -> None:
        if lease.flags & HELD and lease.unsettled:
            message = held.load(self.tx, self.id, lease.first)
            message.flags |= SOLO if solo else 0
            held.wait(self.tx, self.id, self.row, lease.first, message, self.clock.wall_ns())
            lease.settled = 1
            self.row.leased -= 1
            self.tx.wake(self.id, 1)
        leases.give_back(self.tx, self.id, self.row, lease, solo=solo)

    def extend(self, lease: LeaseRow, offset: int, seconds: float | None) -> None:
        """Give a lease a new deadline. Raises: LeaseLost.

        The row's key changes with it: threads that share the lease may settle in this commit, or
        in the next one.
        """
        row = self.holding(lease, [offset])
        duration = nanoseconds(seconds or self.settings.lease_seconds)
        leases.move(self.tx, self.id, row, self.clock.monotonic_ns() + duration)
        lease.moved_ns = row.deadline_ns
        self.tx.after.append(partial(setattr, lease, "deadline_ns", row.deadline_ns))

    def _unlease(self, count: int) -> None:
        """Messages left a lease; consumers that max_in_flight holds back can go on."""
        self.row.leased -= count
        most = self.settings.max_in_flight
        if most is not None and self.row.leased + count >= most:
            self.tx.wake(self.id, count)

    def free_key(self, offset: int, message: HeldRow) -> None:
        """The message has left the group, or is dead: if its key was its own, the next gets it. One
        that cannot be decoded never got a key; it must not be in the way of a purge."""
        key = None
        if self.keyed:
            with suppress(Corrupt):
                key = keys.hash_of(message.record, message.flags)
        if key is not None and keys.holder(self.tx, self.id, key) == offset:
            self._pass_on(key)

    def _pass_on(self, key: int | None) -> None:
        if key is not None:
            keys.pass_on(self.tx, self.id, self.row, key, self.clock.wall_ns())

    # The whole group

    def withdraw(self, floors: Sequence[int], counter: str) -> None:
        """What of the log is below these offsets, one of each lane, leaves the group, and whoever
        has it leased loses it. It must still be in the log."""
        row = self.row
        gone = 0
        for lane, floor in enumerate(floors):
            passed = max(floor - row.offset(lane), 0)
            row.next[lane] += passed
            gone += passed
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
                self._unlease(len(lost))
            else:
                row.ready -= len(lost)
        setattr(row, counter, getattr(row, counter) + gone)
