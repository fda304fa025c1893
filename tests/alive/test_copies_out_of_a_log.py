"""What is copied out of a log obeys max_bytes, and looks at the disk once a commit."""

from __future__ import annotations

import gc
import os
import random
from contextlib import suppress

import pytest
from support.stores import bodies

import diskq
from diskq import Backoff, Outgoing
from diskq.base import limits

MIB = limits.MIB
MOST = {4: 1.5, 64: 1.25}  # how much larger than max_bytes a file may become, by its MiB
LONG = "e" * 2000


def size_of(store):
    return os.stat(os.path.join(store.path, "data.mdb")).st_size


def fill(topic, body, **options):
    """Put until the store is full."""
    with suppress(diskq.Full):
        while True:
            topic.put(body, block=False, **options)


def settle(message, verb, *arguments, **options):
    """Whether a verb worked; else there was no room, and the message can be acked."""
    try:
        getattr(message, verb)(*arguments, **options)
    except diskq.Full:
        message.ack()
        return False
    return True


@pytest.mark.parametrize("error", ["", LONG, "\N{EURO SIGN}" * 2000])
def test_a_thousand_messages_that_fail_with_long_errors_stay_within_bounds(open_store, error):
    store = open_store(durability="process", max_bytes=4 * MIB)
    topic = store.topic("mail")
    group = topic.group("workers", backoff=Backoff(0), max_deliveries=5)
    consumer = group.consumer()
    topic.put_many([bytes(100)] * 2000)
    for _ in range(5):
        for message in consumer.get_many(2000, timeout=0):
            message.nack(error=error)
        assert size_of(store) <= 1.5 * 4 * MIB
    assert group.stats().dead == 2000
    assert {len(letter.history) for letter in group.dead()} == {5}
    assert group.redrive() == 2000
    while messages := consumer.get_many(1000, timeout=0):
        consumer.ack_many(messages)
    topic.put(b"next")
    assert size_of(store) <= 1.5 * 4 * MIB


class Filler:
    """Messages put, failed, parked, put off, expired, forked and redriven at random."""

    def __init__(self, store, clock, seed, largest):
        self.store, self.clock, self.largest = store, clock, largest
        self.chance = random.Random(seed)
        self.topic = store.topic("mail", priorities=2)
        kinds = {
            "plain": {}, "keyed": {"ordering": "key"}, "dead": {"max_deliveries": 1},
            "late": {"keep_expired": True, "max_deliveries": 2},
        }  # fmt: skip
        self.groups = [
            self.topic.group(name, lease_seconds=10, backoff=Backoff(0), **kind)
            for name, kind in kinds.items()
        ]
        self.topic.group("slow")
        self.members = [group.consumer() for group in self.groups]
        self.held = []
        self.done = set()

    def body(self):
        return bytes(self.chance.randrange(self.largest))

    def put(self):
        chance = self.chance
        for _ in range(chance.choice((1, 30))):
            key, ttl = chance.choice((None, "a", "b")), chance.choice((None, 3))
            delay = chance.choice((None, None, 5))
            self.topic.put(self.body(), key=key, ttl_seconds=ttl, delay_seconds=delay, block=False)
        self.topic.put_many([Outgoing(self.body(), key=chance.choice("ab")) for _ in range(20)])

    def get(self):
        self.held += self.chance.choice(self.members).get_many(500, timeout=0)

    def settle(self):
        chance = self.chance
        chance.shuffle(self.held)
        for _ in range(min(len(self.held), chance.choice((20, 300)))):
            message = self.held.pop()
            verb, *arguments = chance.choice(
                (("nack",), ("reject", LONG), ("release", 3), ("release",), ("ack",))
            )
            options = {"error": chance.choice(("", LONG))} if verb == "nack" else {}
            try:
                if settle(message, verb, *arguments, **options):
                    self.done.add(verb)
            except diskq.LeaseLost:
                continue

    def die(self):
        which = self.chance.randrange(len(self.members))
        self.held = [each for each in self.held if each.member is not self.members[which].member]
        self.members[which] = None
        gc.collect()
        self.members[which] = self.groups[which].consumer()

    def redrive(self):
        self.chance.choice(self.groups).redrive(limit=self.chance.choice((1, 50, None)))

    def fork(self):
        for group in self.topic.groups():
            if group.name == "fork":
                group.delete()
        self.chance.choice(self.groups).fork("fork")

    def step(self):
        verbs = (
            *(self.put, self.put, self.get, self.get, self.get, self.settle, self.settle),
            *(self.die, self.redrive, self.fork, lambda: self.clock.advance(6)),
        )
        try:
            self.chance.choice(verbs)()
        except diskq.Full:
            self.done.add("Full")


@pytest.mark.parametrize("largest", [150, 3000, 20_000, 150_000])
@pytest.mark.parametrize("mebibytes", [4, 64])
def test_a_file_stays_within_bounds_whatever_is_copied(open_store, clock, mebibytes, largest):
    store = open_store(durability="process", max_bytes=mebibytes * MIB)
    filler = Filler(store, clock, largest, largest)
    for _ in range(150):
        filler.step()
        assert size_of(store) <= MOST[mebibytes] * mebibytes * MIB
    assert {"nack", "reject", "release", "ack"} <= filler.done
    assert "Full" in filler.done or largest < 20_000 or mebibytes == 64


def test_where_nothing_can_be_copied_the_rest_goes_on(open_store, clock):
    """Messages whose key is busy stay where they are, deadlines charge nobody, and acks work."""
    store = open_store(durability="process", max_bytes=4 * MIB)
    topic = store.topic("mail")
    topic.group("slow")
    group = topic.group("workers", backoff=Backoff(0), max_deliveries=99, lease_seconds=10)
    keyed = topic.group("keyed", ordering="key")
    fill(topic, bytes(3000), key="busy")
    consumer = group.consumer()
    messages = consumer.get_many(10_000, timeout=0)
    failed = sum(settle(message, "nack") for message in messages)
    assert 0 < failed < len(messages)
    one, other = keyed.consumer(), keyed.consumer()
    first = one.get_nowait()
    assert other.get_many(9, timeout=0) == []
    first.ack()
    assert one.get_nowait().offset == 1
    retries = consumer.get_many(10_000, timeout=0)
    assert len(retries) == failed
    clock.advance(11)
    again = []
    while messages := consumer.get_many(10_000, timeout=0):
        again += messages
    assert len(again) == failed
    consumer.ack_many(again)
    assert size_of(store) <= 1.5 * 4 * MIB


def test_of_a_message_that_cannot_be_copied_nothing_changes(open_store):
    store = open_store(durability="process", max_bytes=4 * MIB)
    topic = store.topic("mail")
    group = topic.group("workers")
    topic.group("slow")
    topic.put(bytes(2 * MIB))
    topic.put(bytes(MIB))
    consumer = group.consumer()
    large, small = consumer.get_many(2, timeout=0)
    large.nack()
    with pytest.raises(diskq.Full, match="kept for acks"):
        small.reject()
    small.release(0)
    assert (group.stats().waiting, group.stats().ready, group.stats().failed) == (1, 1, 1)


def test_a_history_has_a_bound_and_the_oldest_texts_are_shortened_first(topic):
    group = topic.group("workers", backoff=Backoff(0), max_deliveries=40)
    consumer = group.consumer("c" * 20)
    topic.put(b"x")
    for number in range(40):
        consumer.get_nowait().nack(error=f"{number:02}" + LONG)
    [letter] = group.dead()
    assert len(letter.history) == 32
    assert {(each.cause, each.consumer) for each in letter.history} == {("nack", "c" * 20)}
    lengths = [len(each.error) for each in letter.history]
    assert lengths == sorted(lengths)
    assert lengths[-1] == limits.MAX_ERROR_CHARS
    assert letter.error.startswith("39")
    assert 2000 < sum(lengths) + 32 * (13 + 20) <= 4096


def test_names_and_texts_of_any_length_and_kind_fit(topic):
    group = topic.group("workers", backoff=Backoff(0), max_deliveries=33)
    consumer = group.consumer("n" * limits.MAX_NAME_BYTES)
    topic.put(b"x")
    for _ in range(33):
        consumer.get_nowait().nack(error="\N{EURO SIGN}" * 2000)
    [letter] = group.dead()
    size = sum(13 + len(each.error.encode()) + len(each.consumer) for each in letter.history)
    assert size <= 4096
    assert set(letter.error) <= {"\N{EURO SIGN}"}


@pytest.fixture
def looks(monkeypatch):
    """Counts looks at the disk and at the file, by commit."""
    counts = []

    def count(name, look):
        def counted(path, *arguments, **options):
            if counts and (name == "statvfs" or str(path).endswith("data.mdb")):
                counts[-1][name] += 1
            return look(path, *arguments, **options)

        monkeypatch.setattr(os, name, counted)

    def watch(store):
        commit = store.handle.engine.commit

        def counted(operation, *waits):
            def run(tx):
                counts.append({"statvfs": 0, "stat": 0})
                try:
                    return operation(tx)
                finally:
                    counts.append({"statvfs": 0, "stat": 0})

            return commit(run, *waits)

        monkeypatch.setattr(store.handle.engine, "commit", counted)

    count("statvfs", os.statvfs)
    count("stat", os.stat)
    return watch, counts


@pytest.mark.parametrize("low", [False, True])
def test_a_commit_looks_at_the_disk_at_most_once(open_store, clock, looks, monkeypatch, low):
    watch, counts = looks
    store = open_store(durability="process", max_bytes=8 * MIB)
    topic = store.topic("mail")
    group = topic.group("keyed", ordering="key", lease_seconds=10, backoff=Backoff(0))
    one, other = group.consumer(), group.consumer()
    for number in range(1200):
        topic.put(b"x", key="hot", delay_seconds=number % 2 or None)
    if low:
        disk = os.statvfs

        def scarce(path):
            found = disk(path)
            return os.statvfs_result((found[0], found[1], found[2], 0, 0, *found[5:]))

        monkeypatch.setattr(os, "statvfs", scarce)
    watch(store)
    clock.advance(2)
    first = one.get_nowait()
    assert other.get_many(9, timeout=0) == []  # all the others are parked
    assert group.stats().parked > 500
    first.nack(error="no")
    messages = other.get_many(500, timeout=0)
    with store.transaction() as tx:
        for message in messages:
            tx.reject(message)
        tx.put(topic, b"x")
    clock.advance(11)
    other.get_many(500, timeout=0)
    group.redrive()
    inside = counts[::2]  # and before each, the commit looks whether the file is still in its place
    assert max(each["statvfs"] for each in inside) == 1
    assert max(each["stat"] for each in inside) <= 1


def test_a_scheduled_message_of_half_a_store_is_delivered(open_store, clock):
    store = open_store(durability="process", max_bytes=4 * MIB)
    topic = store.topic("mail")
    consumer = topic.group("workers").consumer()
    topic.put(bytes(1_700_000), delay_seconds=1)
    fill(topic, bytes(10_000))
    clock.advance(1)
    sizes = [len(body) for body in bodies(consumer.get_many(1000, timeout=0))]
    assert max(sizes) == 1_700_000
    assert size_of(store) <= 1.5 * 4 * MIB
