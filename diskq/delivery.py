"""What begins a delivery: who gets which messages next; and who died or let a deadline pass.

    unread, ready, due --take--> leased

A get prefers retries that are due, then the highest priority, then the lowest offset. On its way it
passes over what expired, was purged, or is to wait for an earlier message of its key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import islice, takewhile
from operator import itemgetter
from typing import NamedTuple

from . import ages, held, keys, leases, limits, schedule
from .clock import NS, nanoseconds
from .codec import HELD, PREFETCHED, SOLO, HeldRow, LeaseRow, TopicRow, decode_topic
from .log import Stored, parts_of
from .model import LANE_BITS, Failure
from .room import is_low, is_tight
from .segment import PURGED, TTL, Parts, is_purged, ttl_of
from .settle import Settling
from .slots import SEVERAL

_FLAGS = itemgetter(2)  # of a Stored
_KEYED_READ = 64  # unread messages that a get looks at together in search of a free key


class Member(NamedTuple):
    """A consumer, as lease rows name it; `prefetch`: it handles what it gets one by one."""

    owner: int
    slot: int
    prefetch: bool = False


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
    _passed = 0  # messages that were not to be delivered in this transaction; large ones count more

    # Taking

    def take(self, member: Member, limit: int) -> list[Grant]:
        """Lease up to `limit` messages. First, now and then, and whenever it finds nothing, it
        takes back what dead consumers held."""
        if self.paused:
            return []
        if self.row.leased:
            self._expire()
            looked_ns = self.tx.engine.looked_ns.get(self.id, 0)
            if self.clock.monotonic_ns() - looked_ns > nanoseconds(limits.LOOK_SECONDS):
                self._reap()
        topic = self.topic = self.load_topic()
        if self._may_promote():
            schedule.promote(self.log, topic)
        grants = self._grant_all(member, limit)
        if not grants and self.row.leased and self._reap():
            grants = self._grant_all(member, limit)
        if not grants and self.row.leased and self._may_steal(member):
            from .stealing import steal

            grants = steal(self, member, limit)
        if grants and self.row.waiting:
            self._pass_on_the_watch()
        return grants

    def _grant_all(self, member: Member, limit: int) -> list[Grant]:
        if limit > 1:
            available = self._unread() + self.row.ready + self.row.waiting
            limit = self._fair_share(member, limit, available)
        if self.settings.max_in_flight is not None:
            limit = min(limit, self.settings.max_in_flight - self.row.leased)
        grants: list[Grant] = []
        while limit > 0 and self.tx.tokens_left >= limits.MAX_GET_MESSAGES:
            grant = self._next(limit, not grants, member.prefetch)
            if grant is None:
                break
            if grant.messages:
                grants.append(self.grant(grant, member))
                alone = grant.lease.flags & SOLO or (grant.lease.flags & HELD and member.prefetch)
                limit -= limit if alone else len(grant.messages)
            if self._passed > limits.MAX_COPIED_MESSAGES:
                break
        return grants

    def _next(self, limit: int, alone: bool, prefetch: bool) -> Grant | None:
        """The next messages in order, out of one place; none if all of them were passed over."""
        row, topic = self.row, self.topic
        if row.waiting and (alone or not prefetch):
            retry = self._take_retry(alone)
            if retry is not None:
                return retry
        for lane in range(len(topic.next) - 1, -1, -1):
            if row.ready:
                run = leases.take_back(self.tx, self.id, row, lane, limit, alone)
                if run is not None:
                    return self._take_returned(run)
            if topic.next[lane] > row.next[lane] and not (self.keyed and self._is_blocked(lane)):
                return self._take_unread(lane, limit)
        return None

    def _take_retry(self, alone: bool) -> Grant | None:
        due = held.next_due(self.tx, self.id)
        if due is None or due[0] > self.clock.wall_ns():
            return None
        offset = due[1]
        message = held.load(self.tx, self.id, offset)
        solo = message.flags & SOLO
        if solo and not alone:
            return None
        message.flags &= ~SOLO
        lease = LeaseRow(offset, 1, flags=HELD | solo)
        stored = Stored(offset, message.record, message.flags, message.put)
        if message.flags & (TTL | PURGED) and self._is_gone(stored, message):
            return Grant(lease, [], 0)
        held.lease(self.tx, self.id, self.row, offset, message)
        self._copied(len(message.record))
        self.row.redelivered += bool(message.history)
        self.note_keys(lease, [stored])
        return Grant(lease, [stored], message.failures)

    def _take_returned(self, run: LeaseRow) -> Grant:
        messages = self.log.read(run.first, run.first + run.count, self.topic)
        messages = [message for message in messages if run.holds(message.offset)]
        messages = self.sift(messages)
        if messages:
            run = leases.run_of([message.offset for message in messages], run.flags)
            self.note_keys(run, messages)
            self.row.redelivered += len(messages)
        return Grant(run, messages, 0)

    def _take_unread(self, lane: int, limit: int) -> Grant:
        base = lane << LANE_BITS
        first = base + self.row.next[lane]
        read, wanted = (self.log.read_run, _KEYED_READ) if self.keyed else (self.log.read, limit)
        found = read(first, min(first + wanted, base + self.topic.next[lane]), self.topic)
        messages, passed = (
            self._admit(found, limit) if self.keyed else (self.sift(found), len(found))
        )
        self.row.next[lane] += passed
        if len(messages) == passed:
            run = LeaseRow(first, passed)
        else:
            run = leases.run_of([message.offset for message in messages] or [first])
        if self.keyed:
            self.note_keys(run, messages)
        return Grant(run, messages, 0)

    def _admit(self, found: list[Stored], limit: int) -> tuple[list[Stored], int]:
        """The first messages, up to `limit`, whose keys are free and now theirs; and how many were
        looked at. Those of busy keys are parked."""
        admitted: list[Stored] = []
        for passed, message in enumerate(found):
            if len(admitted) == limit:
                return admitted, passed
            if self._is_gone(message, None):
                continue
            key = keys.hash_of(message.record, message.flags)
            if key is None or keys.holder(self.tx, self.id, key) is None:
                admitted.append(message)
                if key is not None:
                    keys.take(self.tx, self.id, key, message.offset)
            elif is_tight(self.tx):  # nothing is parked now, so nothing passes it
                return admitted, passed
            else:
                parked = HeldRow(message.record, message.flags, *message.put)
                keys.park(self.tx, self.id, self.row, key, message.offset, parked)
                if self._copied(len(message.record)):
                    return admitted, passed + 1
        return admitted, len(found)

    def note_keys(self, lease: LeaseRow, messages: Sequence[Stored]) -> None:
        """Remember whose keys end with this lease: an ack then need not read the messages."""
        if self.keyed:
            hashes = ((each.offset, keys.hash_of(each.record, each.flags)) for each in messages)
            lease.keys = {offset: key for offset, key in hashes if key is not None}

    def grant(self, grant: Grant, member: Member) -> Grant:
        """Store the lease of a grant, whose messages can be decoded. Raises: Corrupt."""
        lease, count, parts = grant.lease, len(grant.messages), grant.parts
        if any(map(_FLAGS, grant.messages)):
            parts = [parts_of(message) for message in grant.messages]
        lease.owner, lease.slot, prefetch = member
        lease.flags |= PREFETCHED if prefetch else 0
        lease.token = self.tx.next_tokens(lease.count)
        lease.granted_ns = self.clock.wall_ns()
        lease.deadline_ns = self.clock.monotonic_ns() + nanoseconds(self.settings.lease_seconds)
        leases.grant(self.tx, self.id, lease)
        self.row.leased += count
        self.row.delivered += count
        return Grant(lease, grant.messages, grant.failures, parts)

    def _unread(self) -> int:
        return sum(self.topic.next) - sum(self.row.next)

    def _fair_share(self, member: Member, limit: int, available: int) -> int:
        """A batch leaves their share to the consumers that are waiting now."""
        waiting = self.tx.engine.slots.count_waiting(self.id, member.slot)
        return min(limit, max(1, -(-available // (waiting + 1))))

    def _pass_on_the_watch(self) -> None:
        """Who takes a message stops waiting for the next retry: another one is to wait for it."""
        due = held.next_due(self.tx, self.id)
        if due and due[0] - self.clock.wall_ns() < nanoseconds(limits.WAIT_SECONDS):
            self.tx.wake(self.id, 1)

    # Passing over what is not to be delivered any more

    @cached_property
    def _now(self) -> ages.Now:
        return ages.Now(self.tx)

    def sift(self, messages: list[Stored]) -> list[Stored]:
        """Those to be delivered; the others are counted and end here."""
        aged = decode_topic(self.topic.config).settings.max_age_seconds is not None
        kinds = set(map(_FLAGS, messages)) if any(map(_FLAGS, messages)) else ()
        if not aged and not any(kind & (TTL | PURGED) for kind in kinds):
            return messages
        return [message for message in messages if not self._is_gone(message, None)]

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
        self._passed += 1
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
        message.history += (Failure(now, "ttl", "", ""),)
        held.bury(self.tx, self.id, self.row, offset, message, now)

    # Taking back

    def _expire(self) -> None:
        """Take messages back whose deadline passed, now that somebody wants them. What was only
        prefetched, behind the one being handled, is not charged; nor is any that there is no room
        to copy."""
        now = self.clock.monotonic_ns()
        passed = takewhile(lambda lease: lease.deadline_ns <= now, self.leased())
        expired = list(islice(passed, limits.MAX_EXPIRED_LEASES))
        tight = bool(expired) and is_tight(self.tx)
        for lease in expired:
            name = self._holder_name(lease)
            untouched = set(lease.offsets() if tight else self.untouched(lease))
            for offset in [offset for offset in lease.offsets() if offset not in untouched]:
                if self._copied(self._fail(lease, offset, "expired", name, "")):
                    leases.update(self.tx, self.id, lease)  # the rest with the next get
                    return
            self._release_all(lease, solo=False)

    def _copied(self, size: int) -> bool:
        """Note that a message of so many bytes was copied; whether that is enough for one get."""
        self._passed += 1 + limits.MAX_COPIED_MESSAGES * size // (self.tx.engine.reserve // 4)
        return self._passed >= limits.MAX_COPIED_MESSAGES

    def untouched(self, lease: LeaseRow) -> list[int]:
        """What of a prefetched lease its holder has not begun to handle."""
        if not lease.flags & PREFETCHED or lease.flags & HELD:
            return []
        slot = self.tx.engine.slots.read(lease.slot)
        handed = slot.handed - lease.token + lease.first if slot.owner == lease.owner else 0
        return [offset for offset in lease.offsets() if offset > handed]

    def _reap(self) -> bool:
        """Take back the leases of dead consumers; charge only what they were handling."""
        began_ns = self.clock.monotonic_ns()
        dead: dict[tuple[int, int], list[LeaseRow]] = {}
        found = list(islice(self._dead(), limits.MAX_DEAD_OWNERS_LEASES))
        for lease in found:
            dead.setdefault((lease.slot, lease.owner), []).append(lease)
        more = len(found) == limits.MAX_DEAD_OWNERS_LEASES
        for (slot, owner), its in dead.items():
            self._take_from_dead(slot, owner, its, more)
        now_ns = self.clock.monotonic_ns()  # with many leases the look is long: then seldom
        self.tx.engine.looked_ns[self.id] = now_ns + 20 * (now_ns - began_ns)
        return bool(dead)

    def _dead(self) -> Iterator[LeaseRow]:
        alive: dict[tuple[int, int], bool] = {}
        for lease in self.leased():
            who = lease.slot, lease.owner
            if who not in alive:
                alive[who] = self.tx.engine.slots.alive(*who)
            if not alive[who]:
                yield lease

    def _take_from_dead(self, index: int, owner: int, its: list[LeaseRow], more: bool) -> None:
        """The message that the dead consumer named, or its only one, is charged. If it named none
        of several, they are delivered each alone from now on, and so charged at the next death."""
        slots = self.tx.engine.slots
        slot = slots.read(index)
        named = slot.handling if slot.owner == owner else None
        several = sum(lease.unsettled for lease in its) > 1
        for lease in its:
            blamed = named
            unknown = named == SEVERAL or (named is None and not lease.flags & PREFETCHED)
            if unknown and lease.unsettled == 1 and (not several or lease.flags & SOLO):
                blamed = lease.next_unsettled
            if blamed is not None and lease.holds(blamed):
                self._fail(lease, blamed, "crashed", self._holder_name(lease), "", delay_ns=0)
            self._release_all(lease, solo=unknown)
        if not more:  # else it still says which of the others was handled
            self.tx.after.append(partial(slots.forget, index, owner))

    def _holder_name(self, lease: LeaseRow) -> str:
        slot = self.tx.engine.slots.read(lease.slot)
        return slot.name if slot.owner == lease.owner else ""

    # Waiting

    def look(self, member: Member) -> float:
        """Seconds until there may be a message to take, 0 if there seems to be one now."""
        row = self.row
        self.topic = self.load_topic()
        if self.paused:
            return limits.WAIT_SECONDS
        most = self.settings.max_in_flight
        room = most is None or row.leased < most
        unread = (lane for lane, end in enumerate(self.topic.next) if end > row.next[lane])
        if room and (row.ready or not all(map(self._is_blocked, unread))):
            return 0
        waits = [limits.WAIT_SECONDS]
        if room and row.waiting and (due := held.next_due(self.tx, self.id)):
            waits.append((due[0] - self.clock.wall_ns()) / NS)
        if room and self._may_promote():
            waits.append((schedule.next_due(self.tx, self.at.topic_id) - self.clock.wall_ns()) / NS)
        if row.leased and (first := next(self.leased(), None)):
            waits.append((first.deadline_ns - self.clock.monotonic_ns()) / NS)
            if any(self._dead()) or self._may_steal(member):
                return 0
        return max(min(waits), 0)

    def _may_promote(self) -> bool:
        """Whether what falls due gets its offset now: not while room is low and other is unread."""
        return bool(self.topic.scheduled) and not (self._unread() > 0 and is_low(self.tx))

    def _is_blocked(self, lane: int) -> bool:
        """Whether the next unread message of a lane would be parked, and there is no room."""
        if not self.keyed or not is_tight(self.tx):
            return False
        first = self.row.offset(lane)
        _, record, flags, _ = self.log.read_run(first, first + 1, self.topic)[0]
        key = keys.hash_of(record, flags)
        return key is not None and keys.holder(self.tx, self.id, key) is not None

    def _may_steal(self, member: Member) -> bool:
        others = (lease for lease in self.leased() if lease.owner != member.owner)
        return any(self.untouched(lease) for lease in others)
