"""What a queue must do, in memory: the model that the store is compared with, step by step.

It says what happens, in the words of the contract, and nothing about how it is stored. Time comes
in from outside; a lease names its consumer by the number the test gave it.
"""

from __future__ import annotations

from diskq import GroupStats
from diskq.limits import LOOK_SECONDS

NS = 1_000_000_000


class Lease:
    """Messages that were leased together: held by `consumer` until settled or taken back."""

    def __init__(self, consumer, offsets, deadline, retry, solo):
        self.solo = solo  # it was delivered alone, because a batch with it died before
        self.consumer = consumer
        self.offsets = offsets  # those not settled yet, rising
        self.deadline = deadline
        self.retry = retry  # its one message has failed before


class Failed:
    """A message that has failed in a group: waiting, leased again, or dead."""

    def __init__(self):
        self.failures = 0
        self.history = []  # (cause, error)
        self.due = 0
        self.solo = False


class ModelTopic:
    """What was put, and the runs of it that are still stored."""

    def __init__(self):
        self.bodies = []
        self.segments = []  # (first, end)
        self.groups = {}

    @property
    def end(self):
        return len(self.bodies)

    @property
    def first(self):
        return self.segments[0][0] if self.segments else self.end

    def put(self, bodies):
        self.segments.append((self.end, self.end + len(bodies)))
        self.bodies += bodies

    def trim(self):
        """Forget what every group has passed; without a group, nothing."""
        floor = min((group.floor for group in self.groups.values()), default=0)
        self.segments = [segment for segment in self.segments if segment[1] > floor]


class ModelGroup:
    """One group: a cursor, and where all those messages behind it are that were not acked."""

    def __init__(self, topic, start, lease_seconds, max_deliveries, backoff, max_in_flight):
        self.topic = topic
        self.cursor = start
        self.lease_ns = lease_seconds * NS
        self.max_deliveries = max_deliveries
        self.backoff = backoff
        self.max_in_flight = max_in_flight
        self.acked = self.delivered = self.redelivered = self.failures = 0
        self.looked = 0  # for dead consumers, since the store was opened
        self.ready = []  # (offsets, one by one): runs that were given back
        self.leases = []
        self.failed = {}  # offset -> Failed
        self.waiting = set()
        self.dead = set()

    @property
    def leased(self):
        return sum(len(lease.offsets) for lease in self.leases)

    @property
    def floor(self):
        """The first offset that the group still needs from the log."""
        needed = [run[0] for run, _ in self.ready]
        needed += [lease.offsets[0] for lease in self.leases if not lease.retry]
        return min(needed, default=self.cursor)

    def stats(self, topic, name):
        unread = self.topic.end - self.cursor
        ready = sum(len(run) for run, _ in self.ready)
        return GroupStats(
            topic=topic,
            group=name,
            lag=unread + ready + self.leased + len(self.waiting),
            unread=unread,
            ready=ready,
            leased=self.leased,
            waiting=len(self.waiting),
            dead=len(self.dead),
            acked=self.acked,
            delivered=self.delivered,
            redelivered=self.redelivered,
            failed=self.failures,
        )

    def has_something(self, now, *, leaving):
        """Whether a get returns something for sure; `leaving` messages are acked with it."""
        room = self.max_in_flight is None or self.leased - leaving < self.max_in_flight
        due = any(self.failed[offset].due <= now.wall for offset in self.waiting)
        return bool(room and (due or self.ready or self.cursor < self.topic.end))

    def take(self, consumer, limit, now, crashed):
        """The offsets a get returns, each with its lease. `crashed` has the dead consumers, and
        which message each was handling; they are looked for now and then, and in need."""
        if self.leases:
            for lease in list(self.leases):
                if lease.deadline <= now.monotonic:
                    for offset in list(lease.offsets):
                        self.fail(lease, offset, now, "expired")
            if now.monotonic - self.looked > LOOK_SECONDS * NS:
                self._reap(now, crashed)
        granted = self._grant(consumer, limit, now)
        if not granted and self.leases:
            self._reap(now, crashed)
            granted = self._grant(consumer, limit, now)
        return granted

    def _reap(self, now, crashed):
        self.looked = now.monotonic
        for consumer, handled in crashed.items():
            self._take_from_dead(consumer, handled, now)

    def _grant(self, consumer, limit, now):
        if self.max_in_flight is not None:
            limit = min(limit, self.max_in_flight - self.leased)
        granted = []
        while limit > 0:
            due = min(((self.failed[offset].due, offset) for offset in self.waiting), default=None)
            retry = due is not None and due[0] <= now.wall
            self.ready.sort()
            again = True
            if retry and not (granted and self.failed[due[1]].solo):
                offsets = [due[1]]
                self.waiting.discard(due[1])
                solo, self.failed[due[1]].solo = self.failed[due[1]].solo, False
            elif self.ready and not (granted and self.ready[0][1]):
                retry = False
                run, solo = self.ready.pop(0)
                cut = 1 if solo else limit
                offsets = run[:cut]
                if run[cut:]:
                    self.ready.append((run[cut:], solo))
            elif self.cursor < self.topic.end:
                retry = solo = again = False
                offsets = list(range(self.cursor, min(self.cursor + limit, self.topic.end)))
                self.cursor += len(offsets)
            else:
                break
            lease = Lease(consumer, offsets, now.monotonic + self.lease_ns, retry, solo)
            self.leases.append(lease)
            granted += [(offset, lease) for offset in offsets]
            self.delivered += len(offsets)
            self.redelivered += len(offsets) if again else 0
            limit -= limit if solo else len(offsets)
        if len({lease for _, lease in granted}) > 1:
            granted.sort(key=lambda item: 0 if item[1].retry else item[0] + 1)
        return granted

    def _take_from_dead(self, consumer, handled, now):
        """Only what was being handled is charged; if that is not known, the only one, or what was
        delivered alone because of an earlier death."""
        leases = [lease for lease in self.leases if lease.consumer == consumer]
        several = sum(len(lease.offsets) for lease in leases) > 1
        for lease in leases:
            blamed = handled
            if handled is None and len(lease.offsets) == 1 and (lease.solo or not several):
                blamed = lease.offsets[0]
            if blamed in lease.offsets:
                self.fail(lease, blamed, now, "crashed", delay_ns=0)
            self.give_back(lease, now, one_by_one=handled is None)

    def attempt(self, offset):
        """Which delivery of the message this is, counted from 1."""
        return self.failed[offset].failures + 1 if offset in self.failed else 1

    # Settling

    def _settle(self, lease, offset):
        lease.offsets.remove(offset)
        if not lease.offsets:
            self.leases.remove(lease)

    def ack(self, lease, offset):
        self._settle(lease, offset)
        self.acked += 1
        self.failed.pop(offset, None)

    def fail(self, lease, offset, now, cause, error="", delay_ns=None):
        self._settle(lease, offset)
        self.failures += 1
        message = self.failed.setdefault(offset, Failed())
        message.failures += 1
        message.history.append((cause, error))
        if cause == "reject" or message.failures >= self.max_deliveries:
            self.dead.add(offset)
            return
        delay = self.backoff.delay_ns(message.failures) if delay_ns is None else delay_ns
        message.due = now.wall + delay
        self.waiting.add(offset)

    def release(self, lease, offset, now):
        if lease.retry:
            self.give_back(lease, now)
        else:
            self._settle(lease, offset)
            self.ready.append(([offset], False))

    def give_back(self, lease, now, *, one_by_one=False):
        """All that is left of a lease, uncharged."""
        if lease in self.leases:
            self.leases.remove(lease)
            if lease.retry:
                self.failed[lease.offsets[0]].due = now.wall
                self.failed[lease.offsets[0]].solo = one_by_one
                self.waiting.add(lease.offsets[0])
            else:
                self.ready.append((lease.offsets, one_by_one))
        lease.offsets = []

    def redrive(self, offsets, now):
        for offset in offsets:
            self.dead.discard(offset)
            self.failed[offset].failures = 0
            self.failed[offset].history.append(("redriven", ""))
            self.failed[offset].due = now.wall
            self.waiting.add(offset)
