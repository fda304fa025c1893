"""The store against the model: any sequence of verbs leaves both in the same state.

After each step `verify` finds nothing and all numbers equal the model's. Two tests plant a fault
and show that this harness finds it.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import threading
import weakref
from pathlib import Path

import hypothesis.strategies as st
import pytest
from clock import NS, ManualClock
from helpers import dump
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from reference import ModelGroup, ModelTopic

import diskq
from diskq import held, leases

MEMORY = Path("/dev/shm")
PLACE = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None

GROUPS = ("ga", "gb", "gc")
LEASE_SECONDS = 10
CONFIGS = st.sampled_from(
    [
        {"max_deliveries": 2, "backoff": diskq.Backoff(0)},
        {"max_deliveries": 3, "backoff": diskq.Backoff(1, 2, 300)},
        {"max_deliveries": 1, "backoff": diskq.Backoff(1)},
        {"max_deliveries": 3, "backoff": diskq.Backoff(0), "max_in_flight": 3},
    ]
)
PICK = st.integers(0, 1000)  # which of those there are, modulo how many there are


class Delivery:
    """A message the test holds, and the lease the model gave it."""

    def __init__(self, message, lease):
        self.message = message
        self.offset = message.offset
        self.lease = lease

    @property
    def lost(self):
        return self.offset not in self.lease.offsets


class Member:
    """A consumer the test holds."""

    def __init__(self, number, group, handle):
        self.number = number
        self.group = group  # name
        self.handle = handle
        self.held = []  # deliveries not settled by this consumer
        self.loop = iter(handle)
        self.current = None  # the delivery its loop is at


def holds_something(machine):
    return any(member.held for member in machine.members)


class QueueMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.path = tempfile.mkdtemp(dir=PLACE, prefix="diskq-model-")
        self.clock = ManualClock()
        self.topic_model = ModelTopic()
        self.models = self.topic_model.groups
        self.members = []
        self.crashed = {}  # number of a dead consumer -> the offset it was handling, or None
        self.made = 0
        self.last_token = 0
        self.tokens = {}  # (group, offset) -> the latest
        self.open()

    def open(self):
        self.steps = 0  # since then
        self.store = diskq.open(self.path, durability="process", clock=self.clock)
        self.topic = self.store.topic("t")

    def teardown(self):
        self.members.clear()
        self.store.close()
        shutil.rmtree(self.path)

    @initialize(config=CONFIGS, count=st.integers(0, 12))
    def begin(self, config, count):
        self.make_group("ga", "earliest", config)
        self.join(0)
        self.put(count, False)

    # Helpers

    def group(self, name):
        return next(group for group in self.topic.groups() if group.name == name)

    def make_group(self, name, start, config):
        first = self.topic_model.first
        begin = {"earliest": first, "latest": self.topic_model.end}.get(start, start)
        begin = min(max(begin, first), self.topic_model.end)
        self.topic.group(name, start=start, lease_seconds=LEASE_SECONDS, **config)
        self.models[name] = ModelGroup(
            self.topic_model,
            begin,
            LEASE_SECONDS,
            config["max_deliveries"],
            config["backoff"],
            config.get("max_in_flight"),
        )

    def member(self, pick):
        if not self.members:
            self.join(pick)
        return self.members[pick % len(self.members)]

    def model_of(self, member):
        return self.models[member.group]

    def received(self, member, messages, granted):
        """The messages are what the model granted, and each is a new delivery."""
        assert [message.offset for message in messages] == [offset for offset, _ in granted]
        model = self.model_of(member)
        for message, (offset, lease) in zip(messages, granted, strict=True):
            assert message.body == self.topic_model.bodies[offset]
            assert message.key == ("k" if offset % 2 else None)
            assert message.attempt == model.attempt(offset)
            assert message.token > self.tokens.get((member.group, offset), 0)
            assert message.token > self.last_token
            self.last_token = self.tokens[member.group, offset] = message.token
            member.held.append(Delivery(message, lease))

    def forget(self, member, handling=None):
        """The consumer dies, maybe while handling one of its messages: nothing of it is left in
        this process."""
        self.members.remove(member)
        self.crashed[member.number] = None
        if handling is not None and member.held:
            chosen = handling % len(member.held)
            member.held[chosen].message.__enter__()
            self.crashed[member.number] = member.held[chosen].offset
        member.held.clear()
        member.current = None
        gone = weakref.ref(member.handle)
        member.handle = member.loop = None
        if gone() is not None:
            gc.collect()
        assert gone() is None

    # Putting

    @rule(count=st.integers(1, 6), many=st.booleans())
    def put(self, count, many):
        first = self.topic_model.end
        bodies = [b"body %d" % offset for offset in range(first, first + count)]
        outgoing = [
            diskq.Outgoing(body, key="k") if offset % 2 else body
            for offset, body in enumerate(bodies, first)
        ]
        if many:
            receipts = self.topic.put_many(outgoing)
            self.topic_model.put(bodies)
        else:
            receipts = [
                self.topic.put(body, key="k" if offset % 2 else None)
                for offset, body in enumerate(bodies, first)
            ]
            for body in bodies:
                self.topic_model.put([body])
        assert [receipt.offset for receipt in receipts] == list(range(first, first + count))

    # Groups and consumers

    @precondition(lambda self: len(self.models) < len(GROUPS))
    @rule(
        config=CONFIGS, start=st.one_of(st.sampled_from(["earliest", "latest"]), st.integers(0, 20))
    )
    def new_group(self, config, start):
        name = next(name for name in GROUPS if name not in self.models)
        self.make_group(name, start, config)

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
    @rule(pick=PICK)
    def join(self, pick):
        name = sorted(self.models)[pick % len(self.models)]
        self.made += 1
        handle = self.group(name).consumer(f"c{self.made}")
        self.members.append(Member(self.made, name, handle))

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
            model.give_back(lease, self.clock)

    # Taking

    @rule(pick=PICK)
    def get(self, pick):
        member = self.member(pick)
        granted = self.model_of(member).take(member.number, 1, self.clock, self.crashed)
        if granted:
            self.received(member, [member.handle.get_nowait()], granted)
        else:
            with pytest.raises(diskq.Empty):
                member.handle.get_nowait()

    @rule(pick=PICK, n=st.integers(1, 8))
    def get_many(self, pick, n):
        member = self.member(pick)
        granted = self.model_of(member).take(member.number, n, self.clock, self.crashed)
        self.received(member, member.handle.get_many(n, timeout=0), granted)

    @rule(pick=PICK)
    def iterate(self, pick):
        """Go on to the next message, which acks the one before in the same commit."""
        member = self.member(pick)
        model = self.model_of(member)
        current = member.current if member.current in member.held else None
        if not model.has_something(self.clock, leaving=current is not None and not current.lost):
            return  # it would wait
        member.current = None
        if current is not None and current.lost:
            before = dump(self.store)
            with pytest.raises(diskq.LeaseLost):
                next(member.loop)
            member.loop = iter(member.handle)
            assert dump(self.store) == before
            return
        if current is not None:
            model.ack(current.lease, current.offset)
            member.held.remove(current)
        granted = model.take(member.number, 1, self.clock, self.crashed)
        before = self.store.stats().commit_id
        watchdog = threading.Timer(30, member.handle.close)
        watchdog.start()
        message = next(member.loop)
        watchdog.cancel()
        watchdog.join()  # it knows the consumer, which is to die when it is forgotten
        assert self.store.stats().commit_id == before + 1
        self.received(member, [message], granted)
        member.current = member.held[-1]

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
            return
        verbs[verb]()
        model, lease, offset = self.model_of(member), delivery.lease, delivery.offset
        if verb == "extend":
            lease.deadline = self.clock.monotonic + 5 * NS
            return
        member.held.remove(delivery)
        with pytest.raises(diskq.AlreadySettled):
            message.ack()
        if verb == "ack":
            model.ack(lease, offset)
        elif verb == "nack":
            model.fail(lease, offset, self.clock, "nack", "why")
        elif verb == "later":
            model.fail(lease, offset, self.clock, "nack", delay_ns=3 * NS)
        elif verb == "release":
            model.release(lease, offset, self.clock)
        elif verb == "reject":
            model.fail(lease, offset, self.clock, "reject", "because")
        else:
            model.fail(lease, offset, self.clock, "nack", "ZeroDivisionError: division by zero")

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
            return
        member.handle.ack_many(messages)
        for delivery in chosen:
            self.model_of(member).ack(delivery.lease, delivery.offset)
            member.held.remove(delivery)

    @precondition(lambda self: any(model.dead for model in self.models.values()))
    @rule(pick=PICK, how=st.sampled_from(["all", "first", "last", "unknown"]))
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
        chosen = {"all": dead, "first": dead[:1], "last": dead[-1:]}[how]
        options = {"all": {}, "first": {"limit": 1}, "last": {"offsets": chosen}}[how]
        assert group.redrive(**options) == len(chosen)
        model.redrive(chosen, self.clock)

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
            self.clock.reboot()
            for model in self.models.values():
                for lease in list(model.leases):
                    model.give_back(lease, self.clock)
        self.open()

    # After each step

    @invariant()
    def the_store_is_sound(self):
        self.steps += 1
        assert list(self.store.verify()) == []

    @invariant()
    def numbers_are_the_models(self):
        found = self.topic.stats()
        assert found.put == self.topic_model.end
        assert found.stored == self.topic_model.end - self.topic_model.first
        assert found.segments == len(self.topic_model.segments)
        expected = [self.models[name].stats("t", name) for name in sorted(self.models)]
        assert list(found.groups) == expected

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
                assert letter.body == self.topic_model.bodies[letter.offset]
                assert letter.failures == message.failures
                assert letter.reason == ("rejected" if last[0] == "reject" else "max_deliveries")
                assert letter.error == last[1]
                history = [(entry.cause, entry.error) for entry in letter.history]
                assert history == message.history[-32:]


RUN = settings(
    max_examples=600,
    stateful_step_count=30,
    deadline=None,
    print_blob=True,
    derandomize=False,
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
    assert isinstance(fault, pytest.fail.Exception)
    assert "LeaseLost" in str(fault)


def test_the_model_finds_a_take_that_does_not_advance_the_cursor(monkeypatch):
    stored = leases.store

    def store(tx, group_id, group):
        before = type(group)(group.data)
        group.next = before.next
        stored(tx, group_id, group)

    monkeypatch.setattr(leases, "store", store)
    assert isinstance(find_fault(), AssertionError)


def test_the_model_finds_a_retry_that_is_never_due(monkeypatch):
    waited = held.wait

    def wait(tx, group_id, group, offset, row, due_ns):
        waited(tx, group_id, group, offset, row, due_ns + 10**15)

    monkeypatch.setattr(held, "wait", wait)
    assert find_fault() is not None
