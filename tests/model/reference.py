"""What a queue must do, in memory: the model that the store is compared with, step by step.

It says what happens, in the words of the contract, and nothing about how it is stored. Time comes
in from outside; a lease names its consumer by the number the test gave it.
"""

from __future__ import annotations

from itertools import takewhile

from diskq import GroupStats
from diskq.base.limits import LOOK_SECONDS

NS = 1_000_000_000
LANE = 2**56
SEGMENT_BYTES, RECORD_BYTES, END_BYTES = 36, 14, 4  # of the format: what a bound in bytes counts


def stamp(clock):
    """When something is put: wall clock, monotonic clock, boot."""
    return clock.wall, clock.monotonic, clock.boot


def age(clock, put_at, when):
    """Nanoseconds since something was put: by the monotonic clock, if that is of this boot."""
    wall, monotonic, boot = when
    if boot == clock.boot:
        return clock.monotonic - monotonic
    since = put_at if put_at <= clock.wall else wall
    return max(clock.wall - since, clock.monotonic - clock.opened, 0)


class Full(Exception):
    """A put found no room."""


class TooLarge(Exception):
    """A put never fits."""


class Put:
    """A message: what was put, and when it got its offset."""

    def __init__(self, body, key=None, lane=0, due=0, ttl=0, dedup=None, special=False):
        self.body, self.key, self.lane, self.due = body, key, lane, due
        self.ttl, self.dedup, self.special = ttl, dedup, special
        self.put_at = 0  # what users see
        self.when = None  # what its age counts from; None: from `due`, by the wall clock
        self.purged = False

    @property
    def plain(self):
        return self.key is None and not self.ttl and not self.special

    def size(self, rich):
        head = RECORD_BYTES + len(self.key or "") if rich else 0
        return len(self.body) + head


class Segment:
    """A run of messages of one lane that were put together."""

    def __init__(self, lane, first, messages, rich):
        self.lane, self.first, self.messages = lane, first, messages
        self.put_at = messages[0].put_at
        self.rich = rich

    @property
    def end(self):
        return self.first + len(self.messages)

    @property
    def size(self):
        sizes = [
            RECORD_BYTES + len(each.key) if each.purged else each.size(self.rich)
            for each in self.messages
        ]
        return SEGMENT_BYTES + END_BYTES * len(sizes) + sum(sizes)


class Lease:
    """Messages that were leased together: held by `consumer` until settled or taken back."""

    def __init__(self, consumer, offsets, now, lasts, retry, prefetched):
        self.consumer = consumer
        self.offsets = offsets  # those not settled yet, rising
        self.deadline = now + lasts
        self.lasts = lasts
        self.retry = retry  # its one message is not in the log any more
        self.prefetched = prefetched
        self.handed = set()  # offsets that were handed out
        self.alone = False  # it was granted as a suspect

    @property
    def in_hand(self):
        """What may have killed its consumer."""
        return [each for each in self.offsets if not self.prefetched or each in self.handed]

    @property
    def untouched(self):
        """What others may take, and what a deadline does not charge."""
        if not self.prefetched or self.retry or self.alone:
            return []
        return [offset for offset in self.offsets if offset not in self.handed]


class Failed:
    """A message out of the log's way for a group: waiting, leased again, parked or dead."""

    def __init__(self, message):
        self.message = message
        self.failures = 0
        self.history = []  # (cause, error)
        self.due = 0
        self.returned = False  # for later, uncharged
        self.expires = True
        self.purged = message.purged  # of a key, while somebody had it


class ModelTopic:
    """What was put, what is still stored of it, and what is to come."""

    def __init__(self, clock, dedup_seconds, **settings):
        self.clock = clock
        self.ends = [0] * settings.get("priorities", 1)
        self.messages = {}  # by offset, also those that are gone
        self.segments = []
        self.scheduled = []  # (due, number, message)
        self.numbered = self.dropped = 0
        self.known = {}  # dedup id -> (put_at, offset or None, schedule id or None)
        self.groups = {}
        self.last_put = 0
        self.retention = settings.get("retention", "interest")
        self.discard = settings.get("discard", "new")
        self.max_messages = settings.get("max_messages")
        self.max_bytes = settings.get("max_bytes")
        self.max_age = settings.get("max_age_seconds")
        self.dedup_ns = dedup_seconds * NS

    @property
    def put_count(self):
        return sum(self.ends)

    @property
    def stored(self):
        return sum(len(segment.messages) for segment in self.segments)

    def end(self, lane):
        return lane * LANE + self.ends[lane]

    def first(self, lane):
        return min((s.first for s in self.segments if s.lane == lane), default=self.end(lane))

    def upcoming(self, offset):
        """The first stored offset of a lane from this one on, its end if there is none."""
        lane = offset // LANE
        behind = (s for s in self.segments if s.lane == lane and s.end > offset)
        return min((max(s.first, offset) for s in behind), default=self.end(lane))

    def stored_from(self, cursor):
        """How many messages are stored from these offsets on, one of each lane."""
        return sum(max(s.end - max(s.first, cursor[s.lane]), 0) for s in self.segments)

    def is_in_gap(self, offset):
        """Whether it was settled by all groups, and went before an older message."""
        return self.first(offset // LANE) < offset < self.upcoming(offset)

    @property
    def gaps(self):
        """First and stop offsets of what is missing behind the oldest message of each lane."""
        found = []
        for lane in range(len(self.ends)):
            mine = sorted((s.first, s.end) for s in self.segments if s.lane == lane)
            ends = [end for _, end in mine]
            firsts = [*(first for first, _ in mine[1:]), self.end(lane)]
            found += [pair for pair in zip(ends, firsts, strict=False) if pair[0] < pair[1]]
        return found

    def floors(self, to):
        """Where a start or a seek goes, in each lane."""
        lanes = range(len(self.ends))
        if to == "earliest":
            return [self.first(lane) for lane in lanes]
        if to == "latest":
            return [self.end(lane) for lane in lanes]
        if isinstance(to, int):
            mine = min(to // LANE, lanes[-1])
            behind = [s for s in self.segments if s.lane == mine and s.end > to]
            when = min((s.put_at for s in behind), default=2**63)
            if to < max(self.first(mine), 1):
                when = 0
            found = [self.since(lane, when) for lane in lanes]
            found[mine] = self.upcoming(min(max(to, self.first(mine)), self.end(mine)))
            return found
        return [self.since(lane, to[0]) for lane in lanes]

    def since(self, lane, when):
        found = (s.first for s in self.segments if s.lane == lane and s.put_at >= when)
        return min(found, default=self.end(lane))

    # Putting

    def put(self, messages):
        """The receipts: duplicate, offset or None, schedule id or None."""
        self.promote()
        now = self.clock.wall
        known = {each.dedup: self.find(each.dedup) for each in messages if each.dedup}
        named = {
            each.dedup: each for each in messages[::-1] if each.dedup and not known[each.dedup]
        }
        new = [*(each for each in messages if not each.dedup), *named.values()]
        drafts = any(each.special for each in messages)
        rich = drafts or not all(each.plain for each in messages)
        immediate = [each for each in new if each.due <= now]
        size = sum(each.size(rich) for each in immediate) + END_BYTES * len(immediate)
        size += SEGMENT_BYTES * len({each.lane for each in immediate})
        if immediate:
            self.make_room(len(immediate), size)
        receipts = []
        lanes = {}
        for each in messages:
            found = self.find(each.dedup) if each.dedup else None
            if found:
                receipts.append((True, *found))
                continue
            if each.due > now:
                name = f"{each.due}-{self.numbered}"
                self.scheduled.append((each.due, self.numbered, each))
                self.numbered += 1
                place = None, name
            else:
                lane = lanes.setdefault(each.lane, [])
                place = self.end(each.lane) + len(lane), None
                lane.append(each)
            if each.dedup:
                self.known[each.dedup] = (now, stamp(self.clock), *place)
            receipts.append((False, *place))
        for lane, its in sorted(lanes.items()):
            self.append(lane, its, rich)
        return receipts

    def find(self, dedup):
        if dedup not in self.known:
            return None
        put_at, when, *place = self.known[dedup]
        return place if age(self.clock, put_at, when) < self.dedup_ns else None

    def append(self, lane, messages, rich, due=None):
        """Give messages the next offsets of a lane: put now, or when they were due."""
        self.last_put = max(self.last_put, self.clock.wall if due is None else due)
        for offset, each in enumerate(messages, self.end(lane)):
            each.put_at = self.last_put
            each.when = stamp(self.clock) if due is None else None
            self.messages[offset] = each
        self.segments.append(Segment(lane, self.end(lane), messages, rich))
        self.ends[lane] += len(messages)

    def age(self, message):
        """Nanoseconds since it was put, or was due."""
        if message.when is None:
            return max(self.clock.wall - message.due, 0)
        return age(self.clock, message.put_at, message.when)

    def promote(self):
        """What is due gets its offsets, in order of time."""
        due = sorted(each[:2] for each in self.scheduled if each[0] <= self.clock.wall)
        found = {each[:2]: each for each in self.scheduled}
        times = {}  # what is due at one time is a segment in each lane
        for key in due:
            self.scheduled.remove(found[key])
            times.setdefault((key[0], found[key][2].lane), []).append(found[key][2])
        for (time, lane), its in sorted(times.items()):
            self.append(lane, its, True, time)

    # Leaving

    def over(self, count, size):
        many = self.max_messages
        here = self.stored + count
        stored_bytes = sum(segment.size for segment in self.segments)
        too_many = many is not None and here > many
        return too_many or (self.max_bytes is not None and stored_bytes + size > self.max_bytes)

    def make_room(self, count, size):
        if self.max_messages is None and self.max_bytes is None and self.max_age is None:
            return
        if (self.max_messages and count > self.max_messages) or (
            self.max_bytes and size > self.max_bytes
        ):
            raise TooLarge
        self.drop_old(count, size)
        if self.over(count, size):
            self.forget_settled()
        if self.over(count, size):
            raise Full

    def drop_old(self, count, size):
        gone = 0
        if self.max_age is not None:
            oldest = sorted(self.segments, key=lambda each: (each.put_at, each.lane, each.first))
            old = takewhile(lambda each: self.age(each.messages[0]) >= self.max_age * NS, oldest)
            gone += self.drop(list(old))
        if self.discard == "old" or self.retention == "limits":
            if self.retention == "interest" and self.over(count, size):
                gone += self.forget_settled()
            while self.over(count, size) and self.segments:
                oldest = min(self.segments, key=lambda each: (each.put_at, each.first))
                gone += self.drop([oldest])
        return gone

    def drop(self, segments):
        for segment in segments:
            for group in self.groups.values():
                group.withdraw(segment.lane, segment.end, "dropped")
            self.segments.remove(segment)
            self.dropped += len(segment.messages)
        return len(segments)

    def forget_settled(self):
        """Forget the segments that every group has settled; without a group, nothing."""
        if self.retention != "interest" or not self.groups:
            return 0
        before = len(self.segments)
        self.segments = [
            each
            for each in self.segments
            if any(group.needs(each) for group in self.groups.values())
        ]
        return before - len(self.segments)

    def trim(self):
        while self.drop_old(0, 0) + self.forget_settled():
            pass  # a segment that went may have been before one that is too old

    def purge(self, floors, everything):
        for group in self.groups.values():
            for lane, floor in enumerate(floors):
                group.withdraw(lane, floor, "purged")
            group.purge_held(lambda offset, _: offset < floors[offset // LANE])
        gone = 0
        for segment in list(self.segments):
            passed = min(max(floors[segment.lane] - segment.first, 0), len(segment.messages))
            gone += passed
            segment.first += passed
            segment.messages = segment.messages[passed:]
            if not segment.messages:
                self.segments.remove(segment)
        if everything:
            gone += len(self.scheduled)
            self.scheduled = []
        return gone

    def purge_key(self, floors, key):
        for group in self.groups.values():
            group.purge_held(
                lambda offset, each: each.key == key and offset < floors[offset // LANE], key
            )
        gone = 0
        for segment in self.segments:
            for offset, each in enumerate(segment.messages, segment.first):
                if each.key == key and not each.purged and offset < floors[segment.lane]:
                    each.purged = True
                    gone += 1
        kept = [each for each in self.scheduled if each[2].key != key]
        gone += len(self.scheduled) - len(kept)
        self.scheduled = kept
        return gone

    def readable(self):
        found = [
            (offset, each.body)
            for segment in self.segments
            for offset, each in enumerate(segment.messages, segment.first)
            if not each.purged
        ]
        return sorted(found)


class ModelGroup:
    """One group: cursors, and where all those messages behind them are that were not acked."""

    def __init__(self, topic, cursor, lease_seconds, max_deliveries, backoff, **options):
        self.topic = topic
        self.clock = topic.clock
        self.cursor = list(cursor)
        self.lease_ns = lease_seconds * NS
        self.max_deliveries = max_deliveries
        self.backoff = backoff
        self.max_in_flight = options.get("max_in_flight")
        self.keyed = options.get("ordering") == "key"
        self.keep_expired = options.get("keep_expired", False)
        self.paused = False
        self.acked = self.delivered = self.redelivered = self.failures = 0
        self.expired = self.dropped = self.purged = 0
        self.looked = 0  # for dead consumers, since the store was opened
        self.ready = []  # runs that were given back
        self.suspects = set()  # offsets that are delivered alone, and charged by a death
        self.leases = []
        self.failed = {}  # offset -> Failed
        self.waiting = set()
        self.dead = set()
        self.parked = set()
        self.holders = {}  # key -> the offset that has it

    @property
    def leased(self):
        return sum(len(lease.offsets) for lease in self.leases)

    def needs(self, segment):
        """Whether the group still needs a message of it."""
        runs = list(self.ready)
        runs += [lease.offsets for lease in self.leases if not lease.retry]
        leased = any(segment.first <= offset < segment.end for run in runs for offset in run)
        return leased or segment.end > self.cursor[segment.lane]

    @property
    def unread(self):
        return self.topic.stored_from(self.cursor)

    def advance(self, lane, to):
        """Move the cursor on, and past what is not stored; returns how many messages it passed."""
        before = self.unread
        self.cursor[lane] = self.topic.upcoming(max(to, self.cursor[lane]))
        return before - self.unread

    def stats(self, topic, name):
        ready = sum(map(len, self.ready))
        lag = self.unread + ready + self.leased + len(self.waiting) + len(self.parked)
        return GroupStats(
            topic=topic,
            group=name,
            lag=lag,
            unread=self.unread,
            ready=ready,
            leased=self.leased,
            waiting=len(self.waiting),
            parked=len(self.parked),
            dead=len(self.dead),
            acked=self.acked,
            delivered=self.delivered,
            redelivered=self.redelivered,
            failed=self.failures,
            expired=self.expired,
            dropped=self.dropped,
            purged=self.purged,
            paused=self.paused,
        )

    # Taking

    def take(self, consumer, limit, crashed, prefetch=1):
        """The offsets a get returns, each with its lease. `crashed` has the dead consumers, and
        which message each was handling; they are looked for now and then, and in need."""
        if self.paused:
            return []
        if self.leases:
            for lease in [each for each in self.leases if each.deadline <= self.clock.monotonic]:
                for offset in lease.in_hand:
                    self.fail(lease, offset, "expired")
                self.give_back(lease)
            if self.clock.monotonic - self.looked > LOOK_SECONDS * NS:
                self._reap(crashed)
        self.topic.promote()
        limit = max(limit, prefetch)
        granted = self._grant(consumer, limit, prefetch > 1)
        if not granted and self.leases:
            self._reap(crashed)
            granted = self._grant(consumer, limit, prefetch > 1)
        if not granted:
            granted = self._steal(consumer, limit, prefetch > 1)
        return granted

    def _reap(self, crashed):
        """What had the dead consumers in hand, all of one process? A single message is charged;
        of several, those that were suspects already; or else all of them become suspects."""
        self.looked = self.clock.monotonic
        dead = [lease for lease in self.leases if lease.consumer in crashed]
        candidates = []
        for lease in dead:
            named = crashed[lease.consumer]
            several = named in (None, "several")
            mine = lease.in_hand if several else [each for each in lease.offsets if each == named]
            candidates += [(lease, offset) for offset in mine]
        blamed = [each for each in candidates if each[1] in self.suspects]
        unknown = any(crashed[lease.consumer] == "several" for lease in dead)
        if not blamed and len(candidates) == 1 and not unknown:
            blamed = candidates
        if not blamed:
            self.suspects.update(offset for _, offset in candidates)
        for lease, offset in blamed:
            self.suspects.add(offset)
            self.fail(lease, offset, "crashed", delay_ns=0)
        for lease in dead:
            self.give_back(lease)

    def _grant(self, consumer, limit, prefetched):
        if self.max_in_flight is not None:
            limit = min(limit, self.max_in_flight - self.leased)
        granted = []
        while limit > 0:
            due = min(((self.failed[offset].due, offset) for offset in self.waiting), default=None)
            retry = due is not None and due[0] <= self.clock.wall
            if retry and granted and prefetched:
                retry = False
            if retry:
                offset = due[1]
                message = self.failed[offset]
                if granted and offset in self.suspects:
                    break
                self.waiting.discard(offset)
                if self._gone(offset, message):
                    continue
                offsets, again = [offset], message.history or message.returned
            else:
                found = self._from_lanes(limit, bool(granted))
                if found is None:
                    break
                offsets, again = found
                if not offsets:
                    continue
            lease = self._lease(consumer, offsets, retry, prefetched)
            lease.alone = offsets[0] in self.suspects
            granted += [(offset, lease) for offset in offsets]
            self.redelivered += len(offsets) if again else 0
            limit -= limit if lease.alone or (retry and prefetched) else len(offsets)
        if len({lease for _, lease in granted}) > 1 and not prefetched:
            granted.sort(
                key=lambda item: (0, 0) if item[1].retry else (LANE - item[0] // LANE, item[0])
            )
        return granted

    def _lease(self, consumer, offsets, retry, prefetched):
        lease = Lease(
            consumer, list(offsets), self.clock.monotonic, self.lease_ns, retry, prefetched
        )
        self.leases.append(lease)
        self.delivered += len(offsets)
        return lease

    def _from_lanes(self, limit, granted):
        """The next of the highest lane: what was given back, then what is unread."""
        for lane in reversed(range(len(self.cursor))):
            runs = sorted(each for each in self.ready if each[0] // LANE == lane)
            if runs and runs[0][0] in self.suspects and granted:
                return None
            if runs:
                taken = self._take_back(runs, limit)
                return [each for each in taken if not self._gone(each, None)], True
            if self.cursor[lane] < self.topic.end(lane):
                return self._unread_of(lane, limit), False
        return None

    def _take_back(self, runs, limit):
        """The lowest of what was given back: runs that interleave are one from now on, but none
        with suspects is mixed with others."""
        offsets, *behind = runs
        self.ready.remove(offsets)
        suspect = offsets[0] in self.suspects
        limit = 1 if suspect else limit
        for run in [] if suspect else behind:
            if run[0] in self.suspects:
                limit = min(limit, sum(each < run[0] for each in offsets))
            if run[0] in self.suspects or run[0] > offsets[:limit][-1]:
                break
            self.ready.remove(run)
            offsets = sorted(offsets + run)
        if offsets[limit:]:
            self.ready.append(offsets[limit:])
        return offsets[:limit]

    def _unread_of(self, lane, limit):
        found = []
        seen = 0
        end = self.topic.end(lane)
        if self.keyed:  # a lease is over messages that were put together
            segments = (each for each in self.topic.segments if each.end > self.cursor[lane])
            end = next(each.end for each in segments if each.lane == lane)
        offset = self.cursor[lane] - 1
        while self.cursor[lane] < end and len(found) < limit:
            if self.cursor[lane] > offset + 1 or (not self.keyed and seen == limit):
                break  # a lease is over messages without a gap between them
            seen += 1
            offset = self.cursor[lane]
            self.advance(lane, offset + 1)
            message = self.topic.messages[offset]
            if self._gone(offset, None):
                continue
            if self.keyed and message.key is not None and message.key in self.holders:
                self.parked.add(offset)
                self.failed[offset] = Failed(message)
            else:
                found.append(offset)
                if self.keyed and message.key is not None:
                    self.holders[message.key] = offset
        return found

    def _gone(self, offset, failed):
        """Whether a message is purged, too old or expired, and so ends here."""
        message = self.topic.messages[offset]
        age = self.topic.age(message)
        most = self.topic.max_age
        if failed.purged if failed else message.purged:
            self.purged += 1
            self.failed.pop(offset, None)
        elif failed is None and most is not None and age >= most * NS:
            self.dropped += 1
        elif message.ttl and age >= message.ttl * NS and (failed is None or failed.expires):
            self.failed.pop(offset, None)
            if self.keep_expired:
                self.failed[offset] = failed or Failed(message)
                self.failed[offset].history.append(("ttl", ""))
                self.dead.add(offset)
            else:
                self.expired += 1
        else:
            return False
        self.free(offset)
        return True

    def _steal(self, consumer, limit, prefetched):
        for lease in sorted(self.leases, key=lambda each: (each.deadline, each.offsets[0])):
            while lease.consumer != consumer and (untouched := lease.untouched):
                taken = untouched[len(untouched) // 2 :][-limit:]
                for offset in taken:
                    self._settle(lease, offset)
                if taken := [offset for offset in taken if not self._gone(offset, None)]:
                    mine = self._lease(consumer, taken, False, prefetched)
                    self.redelivered += len(taken)
                    return [(offset, mine) for offset in taken]
        return []

    def attempt(self, offset):
        """Which delivery of the message this is, counted from 1."""
        return self.failed[offset].failures + 1 if offset in self.failed else 1

    # Settling

    def _settle(self, lease, offset):
        lease.offsets.remove(offset)
        if not lease.offsets:
            self.leases.remove(lease)

    def free(self, offset):
        """The message is done: if its key was its own, the next one of the key gets it."""
        key = self.topic.messages[offset].key
        if not self.keyed or key is None or self.holders.get(key) != offset:
            return
        del self.holders[key]
        behind = [each for each in self.parked if self.topic.messages[each].key == key]
        if behind:
            heir = min(behind)
            self.parked.remove(heir)
            self.failed[heir].due = self.clock.wall
            self.waiting.add(heir)
            self.holders[key] = heir

    def renew(self, lease):
        """What is left of a prefetched lease is handled after what was handed out: it has its time
        from then on."""
        if lease.prefetched and 3 * (lease.deadline - self.clock.monotonic) < 2 * lease.lasts:
            lease.deadline = self.clock.monotonic + self.lease_ns
            lease.lasts = self.lease_ns

    def ack(self, lease, offset):
        self._settle(lease, offset)
        self.suspects.discard(offset)
        self.acked += 1
        self.failed.pop(offset, None)
        self.free(offset)

    def fail(self, lease, offset, cause, error="", delay_ns=None):
        self._settle(lease, offset)
        message = self.topic.messages[offset]
        if self.failed[offset].purged if lease.retry else message.purged:
            self.purged += 1
            self.failed.pop(offset, None)
            self.free(offset)
            return
        if cause in ("nack", "reject"):
            self.suspects.discard(offset)
        self.failures += 1
        failed = self.failed.setdefault(offset, Failed(message))
        failed.failures += 1
        failed.history.append((cause, error))
        if cause == "reject" or failed.failures >= self.max_deliveries:
            self.dead.add(offset)
            self.free(offset)
            return
        delay = self.backoff.delay_ns(failed.failures) if delay_ns is None else delay_ns
        failed.due = self.clock.wall + delay
        self.waiting.add(offset)

    def release(self, lease, offset, delay_ns=0):
        if delay_ns:
            self._settle(lease, offset)
            failed = self.failed.setdefault(offset, Failed(self.topic.messages[offset]))
            failed.due, failed.returned = self.clock.wall + delay_ns, True
            self.waiting.add(offset)
        elif lease.retry:
            self.give_back(lease)
        else:
            self._settle(lease, offset)
            self.ready.append([offset])

    def give_back(self, lease):
        """All that is left of a lease, uncharged."""
        if lease in self.leases:
            self.leases.remove(lease)
            if lease.retry:
                self.waiting.add(lease.offsets[0])
            else:
                for suspect in (True, False):
                    some = [each for each in lease.offsets if (each in self.suspects) == suspect]
                    self.ready += [some] if some else []
        lease.offsets = []

    def redrive(self, offsets):
        for offset in offsets:
            failed = self.failed[offset]
            self.dead.discard(offset)
            failed.failures = 0
            failed.expires = False
            failed.history.append(("redriven", ""))
            key = self.topic.messages[offset].key
            if self.keyed and key is not None:
                if key in self.holders:
                    self.parked.add(offset)
                    continue
                self.holders[key] = offset
            failed.due = self.clock.wall
            self.waiting.add(offset)

    def forget_dead(self, offsets):
        for offset in offsets:
            self.dead.discard(offset)
            del self.failed[offset]
            self.purged += 1

    # The whole group

    def withdraw(self, lane, floor, counter):
        """What is below this offset of the log leaves the group."""

        def mine(offset):
            return offset // LANE == lane and offset < floor

        gone = self.advance(lane, floor)
        lost = []
        for lease in list(self.leases):
            for offset in [each for each in lease.offsets if mine(each) and not lease.retry]:
                self._settle(lease, offset)
                lost.append(offset)
        kept = []
        for run in self.ready:
            lost += [each for each in run if mine(each)]
            if left := [each for each in run if not mine(each)]:
                kept.append(left)
        self.ready = kept
        setattr(self, counter, getattr(self, counter) + gone + len(lost))
        for offset in lost:
            self.free(offset)

    def purge_held(self, wanted, key=None):
        """What is out of the log's way; of a key, who has it leased may still ack it."""
        for offset in [each for each in self.parked if wanted(each, self.topic.messages[each])]:
            self.parked.remove(offset)
            del self.failed[offset]
            self.purged += 1
        for offset in [each for each in self.waiting if wanted(each, self.topic.messages[each])]:
            self.waiting.remove(offset)
            del self.failed[offset]
            self.purged += 1
            self.free(offset)
        retries = [lease.offsets[0] for lease in self.leases if lease.retry]
        for offset in [each for each in retries if wanted(each, self.topic.messages[each])]:
            if key is not None:
                self.failed[offset].purged = True
                continue
            lease = next(lease for lease in self.leases if offset in lease.offsets)
            self._settle(lease, offset)
            del self.failed[offset]
            self.purged += 1
            self.free(offset)

    def seek(self, cursor):
        for lease in self.leases:
            lease.offsets = []
        self.leases, self.ready, self.holders = [], [], {}
        self.waiting, self.parked = set(), set()
        self.dead = {
            offset
            for offset in self.dead
            if offset < cursor[offset // LANE] or self.topic.is_in_gap(offset)
        }
        self.suspects &= self.dead
        self.failed = {each: failed for each, failed in self.failed.items() if each in self.dead}
        self.cursor = list(cursor)

    def fork(self, fork):
        """Fill a new group."""
        fork.cursor = list(self.cursor)
        fork.ready = [list(run) for run in self.ready]
        fork.suspects = set(self.suspects)
        for offset, failed in self.failed.items():
            copy = fork.failed[offset] = Failed(failed.message)
            copy.failures, copy.history = failed.failures, list(failed.history)
            copy.due, copy.returned, copy.expires = failed.due, failed.returned, failed.expires
            copy.purged = failed.purged
        fork.waiting, fork.dead = set(self.waiting), set(self.dead)
        fork.parked, fork.holders = set(self.parked), dict(self.holders)
        for lease in self.leases:
            if lease.retry:
                fork.waiting.add(lease.offsets[0])
            else:
                fork.ready.append(list(lease.offsets))
