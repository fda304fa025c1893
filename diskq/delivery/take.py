"""Taking begins a delivery: which messages a consumer gets next.

    unread, ready, due --take--> leased

A get prefers retries that are due, then the highest priority, then the lowest offset, among what
may be delivered now. On its way it passes over what expired, was purged, or waits for an earlier
message of its key. Where there is no room to move such a message, its lane stands still. A suspect
(see reclaim.py) is delivered alone, and holds back what comes after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from operator import itemgetter
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

from ..base import limits
from ..base.clock import NS, nanoseconds
from ..base.model import LANE_BITS, Failure
from ..base.ondemand import lazy
from ..format.held_row import HeldRow
from ..format.layout import HELD, PREFETCHED, RETURNED, SOLO
from ..format.lease_row import LeaseRow
from ..format.rows import TopicRow, decode_topic
from ..format.segment import PURGED, TTL, Parts, is_purged, ttl_of
from ..storage.hands import Hand
from ..storage.reserve import is_spent, room_of
from ..tables import ages, gaps, held, key_owners, leases, schedule
from ..tables.log import Stored, parts_of
from . import reclaim
from .settle import Settling

if TYPE_CHECKING:
    from . import stealing
else:
    stealing = lazy("delivery.stealing")


_FLAGS = itemgetter(2)  # of a Stored
_KEYED_READ = 64  # unread messages that a get looks at together in search of a free key


class Member(NamedTuple):
    """A consumer, as lease rows name it; `prefetch`: it handles what it gets one by one. And which
    of its threads asks, and whether that one counts as waiting."""

    owner: int
    slot: int
    prefetch: bool = False
    thread: Thread | None = None
    waiting: bool = False


class Grant(NamedTuple):
    """Messages leased together, maybe none, and how often they failed before; once it is stored,
    also their parts, unless all of them are plain bodies."""

    lease: LeaseRow
    messages: Sequence[Stored]
    failures: int
    parts: Sequence[Parts] = ()


class Delivery(Settling):
    """A group inside one transaction, for who takes messages and settles them."""

    topic: TopicRow
    stuck: frozenset[int] = frozenset()  # lanes whose next message has no room to be moved

    # Taking

    def take(self, member: Member, limit: int) -> list[Grant]:
        """Lease up to `limit` messages. First, now and then, and whenever it finds nothing, it
        takes back what dead consumers held."""
        if self.paused:
            return []
        if self.row.leased:
            reclaim.expire(self)
            looked_ns = self.tx.engine.looked_ns.get(self.id, 0)
            if self.clock.monotonic_ns() - looked_ns > nanoseconds(limits.LOOK_SECONDS):
                reclaim.reap(self)
        topic = self.topic = self.load_topic()
        later = bool(topic.scheduled) and room_of(self.tx).low
        if topic.scheduled and not later:
            schedule.promote(self.log, topic)
        grants = self._grant_all(member, limit)
        if not grants and self.row.leased and reclaim.reap(self):
            grants = self._grant_all(member, limit)
        if not grants and later:  # it may fail, which must not hold up what is there
            schedule.promote(self.log, topic)
            grants = self._grant_all(member, limit)
        steals = not grants and self.row.leased and not self._is_held_up(member)
        if steals and self._may_steal(member):
            grants = stealing.steal(self, member, limit)
        if grants and self.row.waiting:
            self._pass_on_the_watch()
        return grants

    def _grant_all(self, member: Member, limit: int) -> list[Grant]:
        if self.hands.suspects and self._waits_for_suspect(member):
            return []
        if self.settings.max_in_flight is not None:
            limit = min(limit, self.settings.max_in_flight - self.row.leased)
        if limit > 1:
            limit = self._fair_share(member, limit)
        grants: list[Grant] = []
        while limit > 0 and self.tx.tokens_left >= limits.MAX_GET_MESSAGES:
            grant = self._next(member, limit, not grants)
            if grant is None:
                break
            if grant.messages:
                grants.append(self.grant(grant, member))
                alone = grant.lease.flags & SOLO or (grant.lease.flags & HELD and member.prefetch)
                limit -= limit if alone else len(grant.messages)
            if self.tx.room is not None and is_spent(self.tx):
                break
        return grants

    def _next(self, member: Member, limit: int, alone: bool) -> Grant | None:
        """The next messages in order, out of one place; none if all of them were passed over."""
        row, topic = self.row, self.topic
        if row.waiting and (alone or not member.prefetch):
            due = held.next_due(self.tx, self.id)
            if due is not None and due.due_ns <= self.clock.wall_ns():
                if due.suspect and not self._may_take_suspect(member, alone):
                    return None
                return self._take_retry(due.offset, SOLO if due.suspect else 0)
        for lane in range(len(topic.next) - 1, -1, -1):
            if lane in self.stuck:
                continue
            if row.ready and (run := leases.first_ready(self.tx, self.id, lane)):
                if run.flags & SOLO and not self._may_take_suspect(member, alone):
                    return None
                return self._take_returned(run, limit)
            if topic.next[lane] > row.next[lane]:
                return self._take_unread(lane, limit)
        return None

    def _take_retry(self, offset: int, solo: int) -> Grant:
        message = held.load(self.tx, self.id, offset)
        lease = LeaseRow(offset, 1, flags=HELD | solo)
        stored = Stored(offset, message.record, message.flags & ~SOLO, message.put)
        if message.flags & (TTL | PURGED) and self._is_gone(stored, message):
            return Grant(lease, [], 0)
        held.lease(self.tx, self.id, self.row, offset, message)
        self.row.redelivered += bool(message.history or message.flags & RETURNED)
        self.note_keys(lease, [stored])
        return Grant(lease, [stored], message.failures)

    def _take_returned(self, first: LeaseRow, limit: int) -> Grant:
        run = leases.take_back(self.tx, self.id, self.row, first, limit)
        found = self.read(run)
        messages, passed = self.sift(found)
        if passed < len(found):
            rest = leases.run_of([message.offset for message in found[passed:]], run.flags)
            leases.grant(self.tx, self.id, rest)
            self.row.ready += rest.unsettled
        if messages:
            run = leases.run_of([message.offset for message in messages], run.flags)
            self.note_keys(run, messages)
            self.row.redelivered += len(messages)
        return Grant(run, messages, 0)

    def read(self, run: LeaseRow) -> list[Stored]:
        """The unsettled messages of a run; what is between them may be gone."""
        found = (self.log.read(first, stop, self.topic) for first, stop in run.runs())
        return list(chain.from_iterable(found))

    def _take_unread(self, lane: int, limit: int) -> Grant:
        base = lane << LANE_BITS
        first = base + self.row.next[lane]
        read, wanted = (self.log.read_run, _KEYED_READ) if self.keyed else (self.log.read, limit)
        stop = min(first + wanted, base + self.topic.next[lane])
        if self.row.ahead:
            gap, _ = next(gaps.rows(self.tx, self.at.topic_id, first), (stop, stop))
            stop = min(stop, gap)
        found = read(first, stop, self.topic)
        messages, passed = self._admit(found, limit) if self.keyed else self.sift(found)
        self.advance(lane, first + passed)
        if len(messages) == passed and messages:
            run = LeaseRow(first, passed)
        else:
            run = leases.run_of([message.offset for message in messages] or [first])
        if self.keyed:
            self.note_keys(run, messages)
        return Grant(run, messages, 0)

    def _admit(self, found: list[Stored], limit: int) -> tuple[list[Stored], int]:
        """The first messages, up to `limit`, whose keys are free and now theirs; and how many were
        passed. Those of busy keys are parked."""
        admitted: list[Stored] = []
        for passed, message in enumerate(found):
            if len(admitted) == limit or is_spent(self.tx) or self._sticks(message):
                return admitted, passed
            if self._is_gone(message, None):
                continue
            key = key_owners.hash_of(message.record, message.flags)
            if key is None or key_owners.holder(self.tx, self.id, key) is None:
                admitted.append(message)
                if key is not None:
                    key_owners.take(self.tx, self.id, key, message.offset)
                continue
            parked = HeldRow(message.record, message.flags, *message.put)
            if not room_of(self.tx).take(parked.size):  # so nothing passes it
                self._stick(message.offset)
                return admitted, passed
            key_owners.park(self.tx, self.id, self.row, key, message.offset, parked)
        return admitted, len(found)

    def note_keys(self, lease: LeaseRow, messages: Sequence[Stored]) -> None:
        """Remember whose keys end with this lease: an ack then need not read the messages."""
        if self.keyed:
            hashes = (
                (each.offset, key_owners.hash_of(each.record, each.flags)) for each in messages
            )
            lease.keys = {offset: key for offset, key in hashes if key is not None}

    def grant(self, grant: Grant, member: Member) -> Grant:
        """Store the lease of a grant, whose messages can be decoded. Raises: Corrupt."""
        lease, count, parts = grant.lease, len(grant.messages), grant.parts
        if any(map(_FLAGS, grant.messages)):
            parts = [parts_of(message) for message in grant.messages]
        lease.owner, lease.slot = member.owner, member.slot
        lease.flags |= PREFETCHED if member.prefetch else 0
        lease.token = self.tx.next_tokens(lease.count)
        lease.granted_ns = self.clock.wall_ns()
        lease.lasts_ns = nanoseconds(self.settings.lease_seconds)
        lease.deadline_ns = self.clock.monotonic_ns() + lease.lasts_ns
        leases.grant(self.tx, self.id, lease)
        self.hands.add(member.thread, lease)
        self.row.leased += count
        self.row.delivered += count
        return Grant(lease, grant.messages, grant.failures, parts)

    def _unread(self) -> int:
        return sum(self.topic.next) - sum(self.row.next) - self.row.ahead

    def _fair_share(self, member: Member, limit: int) -> int:
        """A batch leaves their share to the consumers that are waiting now."""
        waiting = self.tx.engine.slots.count_waiting(self.id) - member.waiting
        if waiting <= 0:
            return limit
        most = limit * (waiting + 1)  # more makes no difference
        now = self.clock.wall_ns()
        due = held.count_due(self.tx, self.id, now, most) if self.row.waiting else 0
        available = min(self._unread() + self.row.ready + due, most)
        if self.settings.max_in_flight is not None:
            available = min(available, self.settings.max_in_flight - self.row.leased)
        return min(limit, max(1, -(-available // (waiting + 1))))

    # Suspects

    def _may_take_suspect(self, member: Member, alone: bool) -> bool:
        """Whether a suspect may be delivered: alone, and to a process that has nothing else of this
        group in hand, but for what the same thread got before."""
        company = map(self._is_in_hand, self.hands.of_others(member.thread))
        return alone and not self._note_held_up(self._has_new_suspect(member) or any(company))

    def _waits_for_suspect(self, member: Member) -> bool:
        """Whether another thread of this process has a suspect in hand, so that this one gets
        nothing."""
        if not self.hands.suspects:
            return False
        suspects = map(self._is_in_hand, self.hands.suspects_of_others(member.thread))
        return self._note_held_up(self._has_new_suspect(member) or any(suspects))

    def _has_new_suspect(self, member: Member) -> bool:
        """Whether this thread got a suspect just now, which another one may be about to handle: it
        gets nothing more until that is named or settled, or for a while."""
        since_ns = self.clock.monotonic_ns() - nanoseconds(limits.HAND_OVER_SECONDS)
        return any(
            lease.deadline_ns - lease.lasts_ns > since_ns and self._is_in_hand(Hand(lease, None))
            for lease in self.hands.own_suspects(member.thread)
        )

    def _note_held_up(self, held_up: bool) -> bool:
        if held_up:
            self.hands.held_up = True
        return held_up

    def _is_in_hand(self, hand: Hand) -> bool:
        """Whether it is still leased and its time not over."""
        row = leases.find(self.tx, self.id, hand.lease)
        if row is None or row.deadline_ns <= self.clock.monotonic_ns():
            return False
        return hand.offset is None or row.holds(hand.offset)

    def _is_held_up(self, member: Member) -> bool:
        """Whether this thread gets nothing now, because of a suspect."""
        if self._waits_for_suspect(member):
            return True
        if not (self.row.waiting or self.row.ready):
            return False
        due = held.next_due(self.tx, self.id) if self.row.waiting else None
        if due and due.due_ns <= self.clock.wall_ns():
            return due.suspect and not self._may_take_suspect(member, True)
        for lane in range(len(self.topic.next) - 1, -1, -1) if self.row.ready else ():
            if run := leases.first_ready(self.tx, self.id, lane):
                return bool(run.flags & SOLO) and not self._may_take_suspect(member, True)
            if self.topic.next[lane] > self.row.next[lane]:
                return False
        return False

    def _pass_on_the_watch(self) -> None:
        """A consumer that takes a message stops waiting for the next retry: another one is to wait
        for it."""
        due = held.next_due(self.tx, self.id)
        if due and due.due_ns - self.clock.wall_ns() < nanoseconds(limits.WAIT_SECONDS):
            self.tx.wake(self.id, 1)

    # Passing over what is not to be delivered any more

    @cached_property
    def _now(self) -> ages.Now:
        return ages.Now(self.tx)

    def sift(self, messages: list[Stored]) -> tuple[list[Stored], int]:
        """Those to be delivered; and how many were passed: the others are counted, and end here."""
        aged = decode_topic(self.topic.config).settings.max_age_seconds is not None
        kinds = set(map(_FLAGS, messages)) if any(map(_FLAGS, messages)) else ()
        if not aged and not any(kind & (TTL | PURGED) for kind in kinds):
            return messages, len(messages)
        kept: list[Stored] = []
        for passed, message in enumerate(messages):
            if (passed and is_spent(self.tx)) or self._sticks(message):
                return kept, passed
            if not self._is_gone(message, None):
                kept.append(message)
        return kept, len(messages)

    def would_end(self, message: Stored, row: HeldRow | None) -> bool:
        """Whether a get would pass over a message, because of its age or a purge; see _is_gone."""
        most = decode_topic(self.topic.config).settings.max_age_seconds if row is None else None
        over = most is not None and self._now.age_ns(message.put) >= nanoseconds(most)
        return over or is_purged(message.record, message.flags) or self._outlived(message)

    def _sticks(self, message: Stored) -> bool:
        """Whether a message has expired, and there is no room for it among the dead letters."""
        if not self.settings.keep_expired or not message.flags & TTL:
            return False
        dies = self._outlived(message) and not is_purged(message.record, message.flags)
        if dies and not room_of(self.tx).take(len(message.record)):
            self._stick(message.offset)
            return True
        return False

    def _stick(self, offset: int) -> None:
        self.stuck |= {offset >> LANE_BITS}

    def _outlived(self, message: Stored) -> bool:
        ttl_ns = ttl_of(message.record, message.flags)
        return bool(ttl_ns) and self._now.age_ns(message.put) >= ttl_ns

    def _is_gone(self, message: Stored, row: HeldRow | None) -> bool:
        """Whether a message was purged, outlived its TTL, or the topic's max_age (then it leaves
        the group now). `row` is its own if it waits, to which a topic's bounds do not apply."""
        offset, record, flags, put = message
        most = decode_topic(self.topic.config).settings.max_age_seconds
        ttl_ns = ttl_of(record, flags)
        age_ns = self._now.age_ns(put) if ttl_ns or most is not None else 0
        if is_purged(record, flags):
            self.row.purged += 1
            if row is not None:
                held.stop_waiting(self.tx, self.id, self.row, offset, row)
        elif row is None and most is not None and age_ns >= nanoseconds(most):
            self.row.dropped += 1
        elif ttl_ns and age_ns >= ttl_ns:
            self._expire_message(offset, row, HeldRow(record, flags, *put))
        else:
            return False
        room_of(self.tx).pass_over()
        self.free_key(offset, HeldRow(record, flags, *put))
        return True

    def _expire_message(self, offset: int, row: HeldRow | None, message: HeldRow) -> None:
        if row is not None:
            held.stop_waiting(self.tx, self.id, self.row, offset, row)
            message = row
        if not self.settings.keep_expired:
            self.row.expired += 1
            return
        now = self.clock.wall_ns()
        message.note(Failure(now, "ttl", "", ""))
        held.bury(self.tx, self.id, self.row, offset, message, now)

    def has_more(self) -> bool:
        """After a take: whether messages are left that another one might get now."""
        return not self.paused and bool(self.row.ready or self._unread())

    # Waiting

    def look(self, member: Member, stuck: bool) -> float:
        """Seconds until there may be a message to take, 0 if there seems to be one now. `stuck`: a
        get has just found that there is no room to move what is in the way of all others."""
        row = self.row
        self.topic = self.load_topic()
        if self.paused:
            return limits.WAIT_SECONDS
        most = self.settings.max_in_flight
        room = most is None or row.leased < most
        held_up = self._is_held_up(member)
        if room and not (held_up or stuck) and (row.ready or self._unread()):
            return 0
        waits = [limits.WAIT_SECONDS]
        if room and not held_up and row.waiting and (due := held.next_due(self.tx, self.id)):
            waits.append((due.due_ns - self.clock.wall_ns()) / NS)
        if room and self.topic.scheduled:
            waits.append((schedule.next_due(self.tx, self.at.topic_id) - self.clock.wall_ns()) / NS)
        if row.leased and (first := next(self.leased(), None)):
            waits.append((first.deadline_ns - self.clock.monotonic_ns()) / NS)
            if any(reclaim.dead(self)) or (not held_up and self._may_steal(member)):
                return 0
        return max(min(waits), 0)

    def _may_steal(self, member: Member) -> bool:
        others = (lease for lease in self.leased() if lease.owner != member.owner)
        return any(reclaim.untouched(self, lease) for lease in others)
