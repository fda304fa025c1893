"""What happens to a message of a group: leased, acked, given back, failed; and who died.

    ready --take--> leased --ack--> gone
                      |--release, holder died--> ready, in its old place
                      |--fail (nack, deadline passed, died while handling it)--> waiting
                      '--fail (reject, max_deliveries reached)--> dead

The policy between the faces and the rows; all of it runs inside one transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice, takewhile
from typing import NamedTuple

from . import held, leases, limits, log
from .clock import NS, nanoseconds
from .codec import HELD, SOLO, GroupRow, HeldRow, LeaseRow, decode_group, decode_topic
from .engine import Tx
from .environment import Database
from .errors import LeaseLost
from .log import Log, Stored
from .model import Failure
from .segment import LANE


class Place(NamedTuple):
    """A group, and where its messages are."""

    topic_id: int
    topic: str
    group_id: int
    group: str
    database: Database  # of the topic's log


class Member(NamedTuple):
    """A consumer, as lease rows name it."""

    owner: int
    slot: int


class Grant(NamedTuple):
    """Messages leased together, and how often they failed before."""

    lease: LeaseRow
    messages: Sequence[Stored]
    failures: int


class Delivery:
    """A group inside one transaction; `store` writes its row back."""

    def __init__(self, tx: Tx, at: Place, row: GroupRow | None = None) -> None:
        self.tx = tx
        self.at = at
        self.id = at.group_id
        self.clock = tx.engine.clock
        self.row = row or leases.load(tx, at.group_id, at.group)
        self.settings = decode_group(self.row.config).settings
        self.log = Log(tx, at.database, at.topic_id)

    def store(self) -> None:
        """Write the group's row back, if it changed."""
        leases.store(self.tx, self.id, self.row)

    # Taking

    def take(self, member: Member, limit: int) -> list[Grant]:
        """Lease up to `limit` messages: retries that are due, then the lowest offsets.

        First, now and then, and whenever it finds nothing, it takes back what dead consumers held.
        """
        if self.row.leased:
            self._expire()
            looked_ns = self.tx.engine.looked_ns.get(self.id, 0)
            if self.clock.monotonic_ns() - looked_ns > nanoseconds(limits.LOOK_SECONDS):
                self._reap()
        grants = self._grant_all(member, limit)
        if not grants and self.row.leased and self._reap():
            grants = self._grant_all(member, limit)
        if grants and self.row.waiting:
            self._pass_on_the_watch()
        return grants

    def _grant_all(self, member: Member, limit: int) -> list[Grant]:
        row = self.row
        end = log.load(self.tx, self.at.topic_id, self.at.topic).next[LANE]
        unread = end - row.next[LANE]
        if limit > 1:
            limit = self._fair_share(member, limit, unread + row.ready + row.waiting)
        if self.settings.max_in_flight is not None:
            limit = min(limit, self.settings.max_in_flight - row.leased)
        grants: list[Grant] = []
        while limit > 0 and self.tx.tokens_left >= limits.MAX_GET_MESSAGES:
            grant = (
                (row.waiting and self._take_retry(not grants))
                or (row.ready and self._take_returned(limit, not grants))
                or (end > row.next[LANE] and self._take_unread(limit, end))
            )
            if not grant:
                break
            self._grant(grant, member)
            grants.append(grant)
            limit -= limit if grant.lease.flags & SOLO else len(grant.messages)
        return grants

    def _take_retry(self, alone: bool) -> Grant | None:
        due = held.next_due(self.tx, self.id)
        if due is None or due[0] > self.clock.wall_ns():
            return None
        message = held.load(self.tx, self.id, due[1])
        solo = message.flags & SOLO
        if solo and not alone:
            return None
        message.flags &= ~SOLO
        held.lease(self.tx, self.id, self.row, due[1], message)
        self.row.redelivered += 1
        stored = Stored(due[1], message.record, message.flags, message.put_at_ns)
        return Grant(LeaseRow(due[1], 1, flags=HELD | solo), [stored], message.failures)

    def _take_returned(self, limit: int, alone: bool) -> Grant | None:
        run = leases.take_back(self.tx, self.id, self.row, limit, alone)
        if run is None:
            return None
        messages = self.log.read(run.first, run.first + run.count)
        messages = [message for message in messages if run.holds(message.offset)]
        self.row.redelivered += len(messages)
        return Grant(run, messages, 0)

    def _take_unread(self, limit: int, end: int) -> Grant:
        first = self.row.next[LANE]
        messages = self.log.read(first, min(first + limit, end))
        self.row.next[LANE] += len(messages)
        return Grant(LeaseRow(first, len(messages)), messages, 0)

    def _grant(self, grant: Grant, member: Member) -> None:
        lease, count = grant.lease, len(grant.messages)
        lease.owner, lease.slot = member
        lease.token = self.tx.next_tokens(lease.count)
        lease.granted_ns = self.clock.wall_ns()
        lease.deadline_ns = self.clock.monotonic_ns() + nanoseconds(self.settings.lease_seconds)
        leases.grant(self.tx, self.id, lease)
        self.row.leased += count
        self.row.delivered += count

    def _fair_share(self, member: Member, limit: int, available: int) -> int:
        """A batch leaves their share to the consumers that are waiting now."""
        waiting = self.tx.engine.slots.count_waiting(self.id, member.slot)
        return min(limit, max(1, -(-available // (waiting + 1))))

    def _pass_on_the_watch(self) -> None:
        """Who takes a message stops waiting for the next retry: another one is to wait for it."""
        due = held.next_due(self.tx, self.id)
        if due and due[0] - self.clock.wall_ns() < nanoseconds(limits.WAIT_SECONDS):
            self.tx.wake(self.id, 1)

    # Taking back

    def _leased(self) -> Iterator[LeaseRow]:
        return leases.rows(self.tx, self.id, 1)

    def _expire(self) -> None:
        """Take messages back whose deadline passed, now that somebody wants them."""
        now = self.clock.monotonic_ns()
        passed = takewhile(lambda lease: lease.deadline_ns <= now, self._leased())
        for lease in list(islice(passed, limits.MAX_EXPIRED_LEASES)):
            name = self._holder_name(lease)
            for offset in lease.offsets():
                self._fail(lease, offset, "expired", name, "")
            leases.update(self.tx, self.id, lease)

    def _reap(self) -> bool:
        """Take back the leases of dead consumers; charge only what they were handling."""
        self.tx.engine.looked_ns[self.id] = self.clock.monotonic_ns()
        dead: dict[tuple[int, int], list[LeaseRow]] = {}
        for lease in islice(self._dead(), limits.MAX_DEAD_OWNERS_LEASES):
            dead.setdefault((lease.slot, lease.owner), []).append(lease)
        for (slot, owner), its in dead.items():
            self._take_from_dead(slot, owner, its)
        return bool(dead)

    def _dead(self) -> Iterator[LeaseRow]:
        alive: dict[tuple[int, int], bool] = {}
        for lease in self._leased():
            who = lease.slot, lease.owner
            if who not in alive:
                alive[who] = self.tx.engine.slots.alive(*who)
            if not alive[who]:
                yield lease

    def _take_from_dead(self, index: int, owner: int, its: list[LeaseRow]) -> None:
        """The message that the dead consumer named, or its only one, is charged. If it named none
        of several, they are delivered each alone from now on, and so charged at the next death."""
        slots = self.tx.engine.slots
        slot = slots.read(index)
        named = slot.handling if slot.owner == owner else None
        several = sum(lease.unsettled for lease in its) > 1
        for lease in its:
            blamed = named
            if named is None and lease.unsettled == 1 and (not several or lease.flags & SOLO):
                blamed = lease.next_unsettled
            if blamed is not None and lease.holds(blamed):
                self._fail(lease, blamed, "crashed", self._holder_name(lease), "", delay_ns=0)
            self._release_all(lease, solo=named is None)
        self.tx.after.append(partial(slots.forget, index, owner))

    def _holder_name(self, lease: LeaseRow) -> str:
        slot = self.tx.engine.slots.read(lease.slot)
        return slot.name if slot.owner == lease.owner else ""

    def look(self) -> float:
        """Seconds until there may be a message to take, 0 if there seems to be one now."""
        row = self.row
        most = self.settings.max_in_flight
        room = most is None or row.leased < most
        end = log.load(self.tx, self.at.topic_id, self.at.topic).next[LANE]
        if room and (row.ready or end > row.next[LANE]):
            return 0
        waits = [limits.WAIT_SECONDS]
        if room and row.waiting and (due := held.next_due(self.tx, self.id)):
            waits.append((due[0] - self.clock.wall_ns()) / NS)
        if row.leased and (first := next(self._leased(), None)):
            waits.append((first.deadline_ns - self.clock.monotonic_ns()) / NS)
            if any(self._dead()):
                return 0
        return max(min(waits), 0)

    # Settling

    def holding(self, lease: LeaseRow, offsets: Sequence[int]) -> LeaseRow:
        """What the store has of this lease. The fence: whoever settles or extends passes here.

        Raises: LeaseLost unless it still holds all of these messages.
        """
        row = leases.find(self.tx, self.id, lease)
        for offset in offsets:
            if row is None or not row.holds(offset):
                raise LeaseLost(
                    f"the lease of message {offset} in group {self.at.group!r} was lost: others"
                    " took the message back; drop this work, it is being done again",
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

    def fail(
        self, lease: LeaseRow, offset: int, cause: str, name: str, error: str, delay_ns: int | None
    ) -> None:
        """A delivery to the consumer `name` failed. Raises: LeaseLost."""
        row = self.holding(lease, [offset])
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
    ) -> None:
        """Take a message out of its lease: it waits `delay_ns` (default: the backoff), or is dead
        if it was rejected or failed `max_deliveries` times. The caller updates the lease's row."""
        if lease.flags & HELD:
            message = held.load(self.tx, self.id, offset)
        else:
            _, record, flags, put_at_ns = self.log.read(offset, offset + 1)[0]
            message = HeldRow(record, flags, put_at_ns)
        now = self.clock.wall_ns()
        message.failures += 1
        message.history += (Failure(now, cause, name, error[: limits.MAX_ERROR_CHARS]),)
        lease.settled |= 1 << offset - lease.first
        self.row.failed += 1
        self._unlease(1)
        if cause == "reject" or message.failures >= self.settings.max_deliveries:
            held.bury(self.tx, self.id, self.row, offset, message, now)
            return
        if delay_ns is None:
            delay_ns = self.settings.backoff.delay_ns(message.failures)
        held.wait(self.tx, self.id, self.row, offset, message, now + delay_ns)
        self.tx.wake(self.id, 1)

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
        for lease in list(self._leased()):
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


def trim(tx: Tx, at: Place) -> int:
    """Delete segments that every group of the topic has passed, a bounded number; returns how
    many. Group rows must have been stored before."""
    topic = log.load(tx, at.topic_id, at.topic)
    groups = decode_topic(topic.config).groups
    floors = [leases.floor(tx, group, leases.load(tx, group, "")) for group in groups]
    deleted = Log(tx, at.database, at.topic_id).trim(topic, min(floors)) if floors else 0
    if deleted:
        log.store(tx, at.topic_id, topic)
    return deleted
