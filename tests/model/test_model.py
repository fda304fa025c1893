"""The store against the model: any sequence of verbs leaves both in the same state.

After each step `verify` finds nothing and all numbers equal the model's. The last tests plant a
fault each and show that this harness finds it.
"""

from __future__ import annotations

import copy
import gc
import os
import shutil
import tempfile
import threading
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from reference import LANE, Full, ModelGroup, ModelTopic, Put, TooLarge
from support.clock import NS, ManualClock
from support.stores import dump

import diskq
from diskq.delivery import cursor
from diskq.tables import ages, dedup, gaps, group_tx, held, key_owners, leases

MEMORY = Path("/dev/shm")
PLACE = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None

GROUPS = ("ga", "gb", "gc")
KEYS = ("k", "l")
LEASE_SECONDS = 10
CONFIGS = st.sampled_from(
    [
        {"max_deliveries": 2, "backoff": diskq.Backoff(0)},
        {"max_deliveries": 3, "backoff": diskq.Backoff(1, 2, 300), "keep_expired": True},
        {"max_deliveries": 1, "backoff": diskq.Backoff(1)},
        {"max_deliveries": 3, "backoff": diskq.Backoff(0), "max_in_flight": 3},
        {"max_deliveries": 2, "backoff": diskq.Backoff(0), "ordering": "key"},
        {"max_deliveries": 3, "backoff": diskq.Backoff(1), "ordering": "key", "keep_expired": True},
    ]
)
TOPICS = st.sampled_from(
    [
        {},
        {"priorities": 3},
        {"max_messages": 14},
        {"max_messages": 14, "discard": "old", "priorities": 2},
        {"max_messages": 20, "retention": "limits"},
        {"max_age_seconds": 30},
        {"retention": "limits", "max_age_seconds": 400, "max_bytes": 4096, "priorities": 2},
        {"max_bytes": 4096, "discard": "old"},
    ]
)
PICK = st.integers(0, 1000)  # which of those there are, modulo how many there are
PLAIN = st.fixed_dictionaries({"key": st.sampled_from([None, *KEYS, *KEYS])})
OPTIONS = st.fixed_dictionaries(
    {
        "key": st.sampled_from([None, *KEYS, *KEYS]),
        "lane": st.integers(0, 2),
        "delay": st.sampled_from([0, 0, 2, 30]),
        "at": st.booleans(),
        "ttl": st.sampled_from([0, 0, 5, 60]),
        "dedup": st.none() | st.sampled_from(["a", "b", "c"]),
    }
)
WRONG = st.sampled_from([-7200, -40, 40, 7200])  # seconds that a clock is wrong by for a moment
WHERE = st.one_of(
    st.sampled_from(["earliest", "latest", "time"]), st.integers(0, 20), st.integers(LANE, LANE + 9)
)


class Delivery:
    """A message the test holds, and the lease the model gave it."""

    def __init__(self, message, lease):
        self.message = message
        self.offset = message.offset
        self.lease = lease

    @property
    def lost(self):
        return self.offset not in self.lease.offsets


def name_of(delivery):
    """What tells a delivery from others, also of the same message."""
    return delivery.lease, delivery.offset


class Member:
    """A consumer the test holds."""

    def __init__(self, number, group, handle, prefetch):
        self.number = number
        self.prefetch = prefetch
        self.fetched = []  # granted, but not handed out
        self.named = set()  # the deliveries that it handles, as far as it says so: lease and offset
        self.group = group  # name
        self.handle = handle
        self.held = []  # deliveries not settled by this consumer
        self.loop = iter(handle)
        self.current = None  # the delivery its loop is at


# What operators do is done seldom, or nothing would ever last for long.
seldom = precondition(lambda machine: machine.steps % 6 == 5)


# What is older than the boot goes by the wall clock: then a wrong one may end it early.
in_one_boot = precondition(lambda machine: machine.clock.boot == 1)


def holds_something(machine):
    return any(member.held for member in machine.members)


class QueueMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.path = tempfile.mkdtemp(dir=PLACE, prefix="diskq-model-")
        self.clock = ManualClock()
        self.clock.opened = 0  # in this boot, if not in the first one
        self.members = []
        self.crashed = {}  # number of a dead consumer -> the offset it named, None, or "several"
        self.made = 0
        self.tokens = {}  # (group, offset) -> the latest
        self.other_count = 0
        self.bodies = 0
        self.ids = {}  # dedup ids under another name

    @initialize(topic=TOPICS, config=CONFIGS, many=st.lists(PLAIN, max_size=8), two=st.booleans())
    def begin(self, topic, config, many, two):
        self.settings = topic
        self.open()
        self.topic_model = ModelTopic(self.clock, dedup_seconds=20, **topic)
        self.models = self.topic_model.groups
        self.make_group("ga", "earliest", config)
        self.join(0, 1)
        if two:
            self.join(0, 4)
        self.put(many, True)

    def open(self):
        self.steps = 0  # since then
        self.store = diskq.open(self.path, durability="process", clock=self.clock)
        self.topic = self.store.topic("t", dedup_seconds=20, **self.settings)
        self.other = self.store.topic("other")
        self.settings = {}

    def teardown(self):
        self.members.clear()
        self.store.close()
        shutil.rmtree(self.path)

    # Helpers

    def group(self, name):
        return next(group for group in self.topic.groups() if group.name == name)

    def within(self, where, call):
        """A place, after a call with one beyond the end was refused: then the latest."""
        lanes = len(self.topic_model.ends)
        if not isinstance(where, int):
            return where
        if where <= self.topic_model.end(min(where // LANE, lanes - 1)):
            return where
        with pytest.raises(ValueError, match=f"offset {where} is beyond the end"):
            call(where)
        return "latest"

    def make_group(self, name, start, config):
        start = self.within(start, lambda at: self.topic.group(name, start=at, **config))
        cursor = self.topic_model.floors(self.place(start))
        self.topic.group(name, start=self.when(start), lease_seconds=LEASE_SECONDS, **config)
        self.models[name] = ModelGroup(self.topic_model, cursor, LEASE_SECONDS, **config)

    def place(self, where):
        """A place as the model takes it: a time is one five seconds ago."""
        return (self.clock.wall - 5 * NS,) if where == "time" else where

    def when(self, where):
        """The same for the store."""
        if where != "time":
            return where
        whole = timedelta(microseconds=(self.clock.wall - 5 * NS) // 1000)
        return datetime(1970, 1, 1, tzinfo=UTC) + whole

    def member(self, pick):
        if not self.members:
            self.join(pick, 1)
        return self.members[pick % len(self.members)]

    def model_of(self, member):
        return self.models[member.group]

    def received(self, member, messages, granted):
        """The messages are what the model granted, and each is a new delivery."""
        assert [message.offset for message in messages] == [offset for offset, _ in granted]
        model = self.model_of(member)
        for message, (offset, lease) in zip(messages, granted, strict=True):
            assert message.body == self.topic_model.messages[offset].body
            assert message.key == self.topic_model.messages[offset].key
            assert message.priority == offset // LANE
            assert message.attempt == model.attempt(offset)
            assert message.token > self.tokens.get((member.group, offset), 0)
            assert message.token not in self.tokens.values()
            self.tokens[member.group, offset] = message.token
            member.held.append(Delivery(message, lease))

    def forget(self, member, handling=None):
        """The consumer dies, maybe while handling one of its messages: nothing of it is left in
        this process."""
        self.members.remove(member)
        if handling is not None and member.held:
            chosen = handling % len(member.held)
            member.held[chosen].message.__enter__()
            member.named.add(name_of(member.held[chosen]))
        offsets = {offset for _, offset in member.named}  # it may have a message twice
        named = [*offsets, None][0] if len(offsets) < 2 else "several"
        self.crashed[member.number] = named
        member.held.clear()
        member.fetched.clear()
        member.current = None
        gone = weakref.ref(member.handle.member)
        member.handle = member.loop = None
        if gone() is not None:
            gc.collect()
        assert gone() is None

    # Putting

    def outgoing(self, choices):
        """Messages for the store, and for the model."""
        real, puts = [], []
        for choice in choices:
            self.bodies += 1
            body = (b"body %d" % self.bodies).ljust(200)
            lane = min(choice.get("lane", 0), len(self.topic_model.ends) - 1)
            delay, ttl, dedup_id = (choice.get(name) or 0 for name in ("delay", "ttl", "dedup"))
            dedup_id = self.ids.get(dedup_id, dedup_id)
            due = self.clock.wall + delay * NS if delay or choice.get("at") else 0
            real.append(
                diskq.Outgoing(
                    body,
                    choice["key"],
                    priority=lane,
                    delay_seconds=None if choice.get("at") else delay or None,
                    at=self.at(due) if choice.get("at") else None,
                    ttl_seconds=ttl or None,
                    dedup_id=dedup_id or None,
                )
            )
            special = bool(lane or delay or choice.get("at") or dedup_id)
            puts.append(Put(body, choice["key"], lane, due, ttl, dedup_id or None, special))
        return real, puts

    @staticmethod
    def at(wall_ns):
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=wall_ns // 1000)

    @rule(many=st.lists(PLAIN, min_size=1, max_size=6), one_by_one=st.booleans())
    def put(self, many, one_by_one):
        if one_by_one:
            for choice in many:
                self.put_all([choice])
        elif many:
            self.put_all(many)

    @rule(many=st.lists(OPTIONS, min_size=1, max_size=4))
    def put_with_options(self, many):
        self.put_all(many)

    @in_one_boot
    @rule(many=st.lists(OPTIONS, min_size=1, max_size=3), seconds=WRONG)
    def put_while_the_clock_is_wrong(self, many, seconds):
        self.clock.step_wall(seconds)
        self.put_all(many)
        self.clock.step_wall(-seconds)

    @in_one_boot
    @rule(pick=PICK, count=st.integers(1, 4), seconds=WRONG)
    def get_while_the_clock_is_wrong(self, pick, count, seconds):
        self.clock.step_wall(seconds)
        self.get_many(pick, count)
        self.clock.step_wall(-seconds)

    def put_all(self, choices):
        real, puts = self.outgoing(choices)
        expected = self.expect(lambda topic, _: topic.put(copy.deepcopy(puts)), None)
        if expected is not None:
            before = dump(self.store)
            with pytest.raises(expected):
                self.topic.put_many(real, block=False)
            assert dump(self.store) == before
            return
        if len(real) == 1:
            receipts = [self.topic.put(**self.options_of(real[0]), block=False)]
        else:
            receipts = self.topic.put_many(real, block=False)
        self.check_receipts(receipts, self.topic_model.put(puts))

    @staticmethod
    def options_of(outgoing):
        return {name: value for name, value in outgoing._asdict().items() if value is not None}

    @staticmethod
    def check_receipts(receipts, expected):
        found = [(each.duplicate, each.offset, each.schedule_id) for each in receipts]
        assert found == expected

    def expect(self, action, payload):
        """What a copy of the model raises, as the store would: nothing is changed by it."""
        try:
            action(*copy.deepcopy((self.topic_model, payload)))
        except Full:
            return diskq.Full
        except TooLarge:
            return diskq.MessageTooLarge
        return None

    @precondition(lambda self: self.topic_model.scheduled)
    @rule(pick=PICK)
    def cancel(self, pick):
        scheduled = self.topic_model.scheduled
        due, number, _ = gone = scheduled[pick % len(scheduled)]
        self.topic.cancel(f"{due}-{number}")
        scheduled.remove(gone)
        with pytest.raises(diskq.NotFound):
            self.topic.cancel(f"{due}-{number}")

    # What leaves the log

    @rule()
    def trim(self):
        self.topic.trim()
        self.topic_model.trim()

    @seldom
    @rule(
        how=st.sampled_from(["all", "before", "key", "both"]),
        where=WHERE,
        key=st.sampled_from(KEYS),
    )
    def purge(self, how, where, key):
        to = self.place(where) if how in ("before", "both") else "latest"
        floors = self.topic_model.floors(to)
        options = {}
        if how in ("before", "both"):
            options["before"] = self.when(where)
        if how in ("key", "both"):
            options["key"] = key
            expected = self.topic_model.purge_key(floors, key)
        else:
            expected = self.topic_model.purge(floors, everything=how == "all")
        assert self.topic.purge(**options) == expected

    @seldom
    @rule(change=st.sampled_from(["lanes", "more", "unbounded", "old", "interest"]))
    def update_topic(self, change):
        model = self.topic_model
        if change == "lanes" and len(model.ends) < 3:
            self.topic.update(priorities=len(model.ends) + 1)
            model.ends.append(0)
            for number, group in enumerate(self.models.values()):
                group.cursor.append((len(model.ends) - 1) * LANE)
                assert number < len(GROUPS)
        elif change == "more" and model.max_messages is not None:
            model.max_messages += 5
            self.topic.update(max_messages=model.max_messages)
        elif change == "unbounded":
            model.max_messages = None
            self.topic.update(max_messages=None)
        elif change == "old":
            model.discard = "old"
            self.topic.update(discard="old")
        else:
            model.retention = "interest"
            self.topic.update(retention="interest")

    # Groups and consumers

    @seldom
    @precondition(lambda self: len(self.models) < len(GROUPS))
    @rule(config=CONFIGS, start=WHERE)
    def new_group(self, config, start):
        name = next(name for name in GROUPS if name not in self.models)
        self.make_group(name, start, config)

    @seldom
    @precondition(lambda self: len(self.models) < len(GROUPS))
    @rule(pick=PICK)
    def fork(self, pick):
        old = sorted(self.models)[pick % len(self.models)]
        name = next(name for name in GROUPS if name not in self.models)
        assert self.group(old).fork(name).name == name
        model = ModelGroup(
            self.topic_model,
            self.models[old].cursor,
            LEASE_SECONDS,
            self.models[old].max_deliveries,
            self.models[old].backoff,
            max_in_flight=self.models[old].max_in_flight,
            ordering="key" if self.models[old].keyed else "none",
            keep_expired=self.models[old].keep_expired,
        )
        self.models[old].fork(model)
        self.models[name] = model

    @seldom
    @rule(pick=PICK, to=WHERE)
    def seek(self, pick, to):
        name = sorted(self.models)[pick % len(self.models)]
        to = self.within(to, self.group(name).seek)
        cursor = self.topic_model.floors(self.place(to))
        come, _ = self.group(name).preview_seek(self.when(to))
        assert come == self.topic_model.stored_from(cursor)
        self.group(name).seek(self.when(to))
        self.models[name].seek(cursor)
        self.topic_model.trim()

    @seldom
    @rule(pick=PICK, stay=st.sampled_from([False, False, True]))
    def pause_and_resume(self, pick, stay):
        """A paused group delivers nothing; sometimes it stays so for a while."""
        name = sorted(self.models)[pick % len(self.models)]
        model = self.models[name]
        if not model.paused:
            self.group(name).pause()
            model.paused = True
            for member in [member for member in self.members if member.group == name]:
                if not member.fetched:
                    with pytest.raises(diskq.Empty):
                        member.handle.get_nowait()
        if not stay:
            self.group(name).resume()
            model.paused = False

    @seldom
    @rule(pick=PICK, most=st.none() | st.integers(1, 4))
    def update_group(self, pick, most):
        name = sorted(self.models)[pick % len(self.models)]
        self.models[name].max_in_flight = most
        assert self.group(name).update(max_in_flight=most).max_in_flight == most

    @seldom
    @precondition(lambda self: len(self.models) > 1)
    @rule(pick=PICK)
    def delete_group(self, pick):
        name = sorted(self.models)[pick % len(self.models)]
        self.group(name).delete()
        del self.models[name]
        self.topic_model.trim()
        for member in [member for member in self.members if member.group == name]:
            with pytest.raises(diskq.NotFound):
                member.handle.get_nowait()
            for delivery in member.held:
                with pytest.raises(diskq.NotFound):
                    delivery.message.ack()
            member.handle.close()
            self.members.remove(member)

    @precondition(lambda self: len(self.members) < 6)
    @rule(pick=PICK, prefetch=st.sampled_from([1, 4]))
    def join(self, pick, prefetch):
        name = sorted(self.models)[pick % len(self.models)]
        self.made += 1
        handle = self.group(name).consumer(f"c{self.made}", prefetch=prefetch)
        self.members.append(Member(self.made, name, handle, prefetch))

    @precondition(lambda self: self.members)
    @rule(pick=PICK, crash=st.booleans(), handling=st.booleans())
    def leave(self, pick, crash, handling):
        """A consumer is closed, or dies, maybe while handling one of its messages."""
        member = self.member(pick)
        if crash:
            self.forget(member, pick if handling else None)
            return
        member.handle.close()
        self.closed(member)
        self.members.remove(member)
        self.topic_model.trim()
        for delivery in member.held:
            with pytest.raises(diskq.Closed):
                delivery.message.ack()

    def closed(self, member):
        model = self.model_of(member)
        for lease in [lease for lease in model.leases if lease.consumer == member.number]:
            model.give_back(lease)

    # Taking

    @rule(pick=PICK)
    def get(self, pick):
        member = self.member(pick)
        granted = self.granted(member, 1)
        if granted:
            self.received(member, [member.handle.get_nowait()], granted)
        else:
            with pytest.raises(diskq.Empty):
                member.handle.get_nowait()

    @rule(pick=PICK, n=st.integers(1, 8))
    def get_many(self, pick, n):
        member = self.member(pick)
        granted = self.granted(member, n)
        self.received(member, member.handle.get_many(n, timeout=0), granted)

    def granted(self, member, limit):
        """What the model gives: of a prefetching consumer, first what it has."""
        found = self.handed(member, limit)
        if found:
            return found
        model = self.model_of(member)
        while granted := model.take(member.number, limit, self.crashed, member.prefetch):
            if member.prefetch == 1:
                return granted
            member.fetched = granted
            if found := self.handed(member, limit):
                return found
        return []

    def handed(self, member, limit):
        model, found = self.model_of(member), []
        while member.fetched and len(found) < limit:
            offset, lease = member.fetched.pop(0)
            lease.handed.add(offset)
            if offset in lease.offsets:
                model.renew(lease)
                member.named.add((lease, offset))
                found.append((offset, lease))
        return found

    @rule(pick=PICK)
    def iterate(self, pick):
        """Go on to the next message, which acks the one before in the same commit."""
        member = self.member(pick)
        if member.prefetch > 1:
            return
        model = self.model_of(member)
        current = member.current if member.current in member.held else None
        if current is not None and current.message.failed:
            current = None  # who has it knows that a settle of it failed
        lost = current is not None and current.lost
        trial, lease = copy.deepcopy((model, current.lease if current else None))
        if current is not None and not lost:
            trial.ack(lease, current.offset)
        if not trial.take(member.number, 1, self.crashed):
            return  # it would wait
        member.current = None
        if current is not None and not lost:
            model.ack(current.lease, current.offset)
            member.held.remove(current)
        granted = model.take(member.number, 1, self.crashed)
        before = self.store.stats().commit_id
        watchdog = threading.Timer(30, member.handle.close)
        watchdog.start()
        message = next(member.loop)
        watchdog.cancel()
        watchdog.join()  # it knows the consumer, which is to die when it is forgotten
        assert self.store.stats().commit_id == before + 1
        self.received(member, [message], granted)
        member.current = member.held[-1]

    @rule(where=WHERE)
    def follow(self, where):
        """What is there is seen without waiting, and watching a topic changes nothing else."""
        where = self.within(where, self.topic.follow)
        floors = self.topic_model.floors(self.place(where))
        self.topic_model.promote()
        found = [each for each in self.topic_model.readable() if each[0] >= floors[each[0] // LANE]]
        messages = self.topic.follow(self.when(where), timeout=0)
        assert [(each.offset, each.body) for each in messages] == found

    @rule(low=st.integers(0, 20), limit=st.none() | st.integers(0, 9), reverse=st.booleans())
    def read(self, low, limit, reverse):
        found = [each for each in self.topic_model.readable() if low <= each[0] < LANE + 5]
        found = found[::-1] if reverse else found
        read = self.topic.read(low, LANE + 5, limit=limit, reverse=reverse)
        assert [(each.offset, each.body) for each in read] == found[:limit]
        assert (
            self.topic.offset_at(self.when("time"))
            == self.topic_model.floors(self.place("time"))[0]
        )

    # Settling

    @precondition(holds_something)
    @rule(pick=PICK, stale=st.booleans())
    def ack(self, pick, stale):
        self.settle(pick, stale, "ack")

    @precondition(holds_something)
    @rule(pick=PICK, stale=st.booleans())
    def nack(self, pick, stale):
        self.settle(pick, stale, "nack")

    @precondition(holds_something)
    @rule(pick=PICK, stale=st.booleans())
    def nack_with_delay(self, pick, stale):
        self.settle(pick, stale, "later")

    @precondition(holds_something)
    @rule(pick=PICK, stale=st.booleans())
    def reject(self, pick, stale):
        self.settle(pick, stale, "reject")

    @precondition(holds_something)
    @rule(pick=PICK, stale=st.booleans())
    def release(self, pick, stale):
        self.settle(pick, stale, "release")

    @precondition(holds_something)
    @rule(pick=PICK, stale=st.booleans())
    def release_with_delay(self, pick, stale):
        self.settle(pick, stale, "put off")

    @precondition(holds_something)
    @rule(pick=PICK, stale=st.booleans())
    def extend(self, pick, stale):
        self.settle(pick, stale, "extend")

    @precondition(holds_something)
    @rule(pick=PICK, stale=st.booleans())
    def fail_while_handling(self, pick, stale):
        self.settle(pick, stale, "with")

    def settle(self, pick, stale, verb):
        """Settle some delivery; if `stale`, one that was taken back, if there is one."""
        held = [(member, delivery) for member in self.members for delivery in member.held]
        if stale:
            held = [pair for pair in held if pair[1].lost] or held
        self.settle_one(*held[pick % len(held)], verb)

    def settle_one(self, member, delivery, verb):
        message = delivery.message
        verbs = {
            "ack": message.ack,
            "nack": lambda: message.nack(error="why"),
            "later": lambda: message.nack(delay_seconds=3),
            "release": message.release,
            "put off": lambda: message.release(3),
            "reject": lambda: message.reject("because"),
            "extend": lambda: message.extend(5),
            "with": lambda: self.fail_inside(message),
        }
        if delivery.lost:
            before = dump(self.store)
            with pytest.raises(diskq.LeaseLost) as lost:
                verbs[verb]()
            assert dump(self.store) == before
            assert (lost.value.offset, lost.value.token) == (message.offset, message.token)
            member.named.discard(name_of(delivery))
            return
        verbs[verb]()
        if verb == "extend":
            delivery.lease.deadline = self.clock.monotonic + 5 * NS
            delivery.lease.lasts = 5 * NS
        else:
            with pytest.raises(diskq.AlreadySettled):
                message.ack()
            self.settled(member, delivery, verb)

    def settled(self, member, delivery, verb):
        """The model does the same."""
        member.held.remove(delivery)
        member.named.discard(name_of(delivery))
        self.do(self.model_of(member), delivery.lease, delivery.offset, verb)

    @staticmethod
    def do(model, lease, offset, verb):
        if verb == "ack":
            model.ack(lease, offset)
        elif verb == "nack":
            model.fail(lease, offset, "nack", "why")
        elif verb == "later":
            model.fail(lease, offset, "nack", delay_ns=3 * NS)
        elif verb == "release":
            model.release(lease, offset)
        elif verb == "put off":
            model.release(lease, offset, 3 * NS)
        elif verb == "reject":
            model.fail(lease, offset, "reject", "because")
        else:
            model.fail(lease, offset, "nack", "ZeroDivisionError: division by zero")
        model.renew(lease)

    @rule(
        picks=st.lists(
            st.tuples(PICK, st.sampled_from(["ack", "nack", "reject", "release"])), max_size=3
        ),
        many=st.lists(st.one_of(PLAIN, OPTIONS), max_size=3),
        others=st.integers(0, 2),
    )
    def transaction(self, picks, many, others):
        """Settles of any consumers and puts into two topics: all of it, or nothing."""
        there = [(member, each) for member in self.members for each in member.held]
        chosen = {}
        for pick, verb in picks if there else ():
            member, delivery = there[pick % len(there)]
            chosen[id(delivery)] = member, delivery, verb
        real, puts = self.outgoing(many)
        plan = [
            (self.model_of(m).topic, m.group, d.lease, d.offset, v) for m, d, v in chosen.values()
        ]

        def work(topic, plan, puts):
            for _, group, lease, offset, verb in plan:
                self.do(topic.groups[group], lease, offset, verb)
            return topic.put(puts) if puts else []

        expected = diskq.LeaseLost
        if not any(delivery.lost for _, delivery, _ in chosen.values()):
            expected = self.expect(lambda topic, load: work(topic, *load), (plan, puts))
        before = dump(self.store)
        tx = self.store.transaction()
        for _, delivery, verb in chosen.values():
            options = {"nack": {"error": "why"}, "reject": {"reason": "because"}}.get(verb, {})
            getattr(tx, verb)(delivery.message, **options)
        if real:
            tx.put_many(self.topic, real)
        for _ in range(others):
            tx.put(self.other, b"other")
        if expected is not None:
            with pytest.raises(expected):
                tx.commit()
            assert dump(self.store) == before
            assert not any(delivery.message.settled for _, delivery, _ in chosen.values())
            return
        tx.commit()
        receipts = work(self.topic_model, plan, puts)
        self.check_receipts(tx.receipts[: len(real)], receipts)
        for member, delivery, _ in chosen.values():
            member.held.remove(delivery)
            member.named.discard(name_of(delivery))
        self.other_count += others

    @staticmethod
    def fail_inside(message):
        try:
            with message:
                1 / 0  # noqa: B018 - what fails is the point
        except ZeroDivisionError as error:
            # LeaseLost, from the nack, comes out instead of what failed.
            assert error.__context__ is None  # noqa: PT017 - see above

    @precondition(lambda self: any(len(member.held) > 1 for member in self.members))
    @rule(pick=PICK, count=st.integers(2, 4))
    def ack_many(self, pick, count):
        several = [member for member in self.members if len(member.held) > 1]
        member = several[pick % len(several)]
        chosen = member.held[-count:]
        messages = [delivery.message for delivery in chosen]
        if any(delivery.lost for delivery in chosen):
            before = dump(self.store)
            with pytest.raises(diskq.LeaseLost):
                member.handle.ack_many(messages)
            assert dump(self.store) == before
            member.named -= set(map(name_of, chosen))
            return
        member.handle.ack_many(messages)
        for delivery in chosen:
            self.model_of(member).ack(delivery.lease, delivery.offset)
            self.model_of(member).renew(delivery.lease)
            member.held.remove(delivery)
            member.named.discard(name_of(delivery))

    @rule(
        many=st.lists(PLAIN, min_size=2, max_size=5), pick=PICK, settle=st.lists(PICK, max_size=8)
    )
    def leave_gaps(self, many, pick, settle):
        """Messages in a segment each are taken, some are settled, and the topic is trimmed; then a
        group begins at the oldest, or goes back to it."""
        self.put(many, True)
        member = self.member(pick)
        self.get_many(self.members.index(member), 8)
        for choice in settle:
            there = [delivery for delivery in member.held if not delivery.lost]
            if there:
                verb = "reject" if choice % 8 == 0 else "ack"
                self.settle_one(member, there[choice % len(there)], verb)
        self.trim()
        if pick % 3 == 0:
            self.seek(pick // 3, "earliest")
        elif pick % 3 == 1 and len(self.models) < len(GROUPS):
            self.new_group({"max_deliveries": 2, "backoff": diskq.Backoff(0)}, "earliest")

    @precondition(lambda self: any(model.dead for model in self.models.values()))
    @rule(pick=PICK, how=st.sampled_from(["all", "first", "last", "unknown", "forget"]))
    def redrive(self, pick, how):
        names = sorted(name for name, model in self.models.items() if model.dead)
        name = names[pick % len(names)]
        group, model = self.group(name), self.models[name]
        dead = sorted(model.dead)
        if how == "unknown":
            before = dump(self.store)
            with pytest.raises(diskq.NotFound):
                group.redrive(offsets=[*dead, 10**6])
            assert dump(self.store) == before
            return
        if how == "forget":
            group.forget_dead(dead[:1])
            model.forget_dead(dead[:1])
            return
        chosen = {"all": dead, "first": dead[:1], "last": dead[-1:]}[how]
        options = {"all": {}, "first": {"limit": 1}, "last": {"offsets": chosen}}[how]
        assert group.redrive(**options) == len(chosen)
        model.redrive(chosen)

    # Time and boots

    @precondition(holds_something)
    @rule(pick=PICK)
    def stall(self, pick):
        """Deadlines pass, and another consumer gets what was leased."""
        self.clock.advance(11.3)
        self.get_many(pick, 3)

    @rule(seconds=st.sampled_from([0.7, 3.7, 11.3, 11.3, 600.1]))
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    @precondition(lambda self: self.steps > 5)
    @rule(how=st.sampled_from(["close", "crash", "reboot"]))
    def start_anew(self, how):
        """The store is opened anew after its consumers were closed with it, or died, or the whole
        machine did, for which nobody is charged."""
        for member in list(self.members):
            if how == "close":
                self.closed(member)
            else:
                self.forget(member)
        if self.members:
            self.topic_model.trim()
        self.store.close()
        self.members.clear()
        for model in self.models.values():
            model.looked = 0
        if how == "reboot":
            over = [each for each in self.topic_model.known if not self.topic_model.find(each)]
            self.clock.reboot()
            self.clock.opened = self.clock.monotonic
            # An id that was put under a clock ahead of this one, and was over before the boot, is
            # young again if the store has not forgotten it yet: it may be either.
            for each in filter(self.topic_model.find, over):
                self.ids[each[0]] = f"{each[0]}{self.clock.boot}"
            for model in self.models.values():
                for lease in list(model.leases):
                    model.give_back(lease)
        self.open()

    # After each step

    @invariant()
    def the_store_is_sound(self):
        self.steps += 1
        assert list(self.store.verify()) == []

    @invariant()
    def numbers_are_the_models(self):
        found = self.topic.stats()
        model = self.topic_model
        assert found.put == model.put_count
        assert found.stored == model.stored
        assert found.segments == len(model.segments)
        assert found.bytes == sum(segment.size for segment in model.segments)
        assert found.scheduled == len(model.scheduled)
        assert found.dropped == model.dropped
        assert (
            self.store.handle.engine.read(lambda tx: list(gaps.rows(tx, self.topic.id)))
            == model.gaps
        )
        assert self.other.stats().put == self.other_count
        expected = [self.models[name].stats("t", name) for name in sorted(self.models)]
        assert list(found.groups) == expected

    @invariant()
    def what_can_be_read_is_the_models(self):
        found = [(message.offset, message.body) for message in self.topic.read()]
        assert found == self.topic_model.readable()
        planned = [(each.due_ns, each.body) for each in self.topic.scheduled()]
        assert planned == [
            (due, put.body)
            for due, _, put in sorted(self.topic_model.scheduled, key=lambda each: each[:2])
        ]
        for group in self.topic.groups():
            model = self.models[group.name]
            leased = [
                (offset, model.attempt(offset)) for each in model.leases for offset in each.offsets
            ]
            assert sorted((each.offset, each.attempt) for each in group.pending()) == sorted(leased)

    @invariant()
    def the_dead_are_the_models(self):
        for group in self.topic.groups():
            model = self.models[group.name]
            if not model.dead:
                continue
            letters = list(group.dead())
            assert [letter.offset for letter in letters] == sorted(model.dead)
            for letter in letters:
                message = model.failed[letter.offset]
                last = [entry for entry in message.history if entry[0] != "redriven"][-1]
                reasons = {"reject": "rejected", "ttl": "expired"}
                assert letter.body == self.topic_model.messages[letter.offset].body
                assert letter.failures == message.failures
                assert letter.reason == reasons.get(last[0], "max_deliveries")
                assert letter.error == last[1]
                history = [(entry.cause, entry.error) for entry in letter.history]
                assert history == message.history[-32:]


RUN = settings(
    max_examples=int(os.environ.get("MODEL_EXAMPLES", "600")),
    stateful_step_count=30,
    deadline=None,
    print_blob=True,
    derandomize="MODEL_EXAMPLES" not in os.environ,  # the same every time, unless one hunts
    suppress_health_check=list(HealthCheck),
)
HUNT = settings(RUN, phases=[Phase.generate], database=None, print_blob=False)


@pytest.mark.timeout(600)
def test_any_sequence_of_verbs_leaves_the_store_as_the_model():
    run_state_machine_as_test(QueueMachine, settings=RUN)


def find_fault():
    """Run the model until it finds something; returns what it found, None if it found nothing."""
    try:
        run_state_machine_as_test(QueueMachine, settings=HUNT)
    except (Exception, pytest.fail.Exception) as error:
        return error
    return None


def test_the_model_finds_an_ack_that_does_not_check_its_token(monkeypatch):
    find = leases.find

    def find_any(tx, group_id, lease):
        run = range(lease.first, lease.first + lease.count)
        others = (row for row in leases.rows(tx, group_id, 1) if any(map(row.holds, run)))
        return find(tx, group_id, lease) or next(others, None)

    monkeypatch.setattr(leases, "find", find_any)
    fault = find_fault()
    assert isinstance(fault, (AssertionError, pytest.fail.Exception))


def test_the_model_finds_a_take_that_does_not_advance_the_cursor(monkeypatch):
    stored = group_tx.store

    def store(tx, group_id, group):
        before = type(group)(group.data)
        group.next = before.next
        stored(tx, group_id, group)

    monkeypatch.setattr(group_tx, "store", store)
    assert isinstance(find_fault(), AssertionError)


def test_the_model_finds_a_retry_that_is_never_due(monkeypatch):
    waited = held.wait

    def wait(group, offset, row, due_ns):
        waited(group, offset, row, due_ns + 10**15)

    monkeypatch.setattr(held, "wait", wait)
    assert find_fault() is not None


def test_the_model_finds_a_key_that_two_messages_have(monkeypatch):
    monkeypatch.setattr(key_owners, "holder", lambda tx, group_id, key: None)
    assert find_fault() is not None


def test_the_model_finds_a_duplicate_that_is_stored(monkeypatch):
    monkeypatch.setattr(dedup.Ids, "find", lambda self, digest: None)
    assert isinstance(find_fault(), AssertionError)


def test_the_model_finds_a_gap_that_counts_as_unread(monkeypatch):
    monkeypatch.setattr(gaps, "ahead", lambda tx, topic_id, topic, cursor: 0)
    assert isinstance(find_fault(), AssertionError)


def test_the_model_finds_ages_that_go_by_a_clock_that_was_wrong(monkeypatch):
    def age_ns(self, put):
        return max(self._wall_ns - put.put_at_ns, 0)

    monkeypatch.setattr(ages.Now, "age_ns", age_ns)
    assert find_fault() is not None


def test_the_model_finds_a_dropped_message_that_stays_leased(monkeypatch):
    def withdraw(group, floors, counter):
        rows = leases.rows
        with monkeypatch.context() as patch:
            patch.setattr(leases, "rows", lambda *at: (r for r in rows(*at) if not r.deadline_ns))
            withdrawn(group, floors, counter)

    withdrawn = cursor.withdraw
    monkeypatch.setattr(cursor, "withdraw", withdraw)
    assert isinstance(find_fault(), (AssertionError, diskq.Corrupt))
