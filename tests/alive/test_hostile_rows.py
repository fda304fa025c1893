"""A store from somebody else, whose checksums are right and one row is wrong: what it says is
Corrupt, it takes no lease, and an operator gets past it."""

from __future__ import annotations

import shutil
from contextlib import suppress

import pytest
from support.clock import ManualClock
from support.stores import bodies, nothing_changes

import diskq
from diskq.format import segment
from diskq.format.layout import DEAD, ID_KEY, LIVE, SCHEDULE_KEY, U32, checked
from diskq.repair.salvage import salvage
from diskq.tables import held
from diskq.tables.group_tx import GroupTx

HEAD = segment._RECORD
RECORDS = {  # that claim to be RICH
    "headers that end early": HEAD.pack(2, 9, 0) + b"k" + b"\0\1a\0\0\0\1b\0\0",
    "a name without a value": HEAD.pack(0, 3, 0) + b"\0\1a",
    "a header that is no text": HEAD.pack(0, 8, 0) + b"\0\1\xff\0\0\0\1b",
    "a key that is no text": HEAD.pack(2, 0, 0) + b"\xff" + b"body",
    "no head": b"\0\1",
    "nothing": b"",
    "a key longer than it": HEAD.pack(65535, 0, 0) + b"k",
    "headers longer than it": HEAD.pack(0, 2**32 - 1, 0) + b"k",
}


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def store(tmp_path, clock):
    """A store that need not be sound when the test ends."""
    store = diskq.open(tmp_path / "store", clock=clock, durability="process")
    yield store
    with suppress(diskq.Corrupt):  # its consumers give back what they hold
        store.close()


@pytest.fixture(params=RECORDS)
def record(request):
    """A record that cannot be decoded."""
    return RECORDS[request.param]


def plant(topic, offset, record):
    """Put a record in the place of a message, in a segment whose checksum is right."""
    log = topic.store.handle.engine.log(topic.id)
    key = segment.LOG_KEY.pack(topic.id, offset)

    def operation(tx):
        _, put = segment.head_of(tx.lmdb.get(key, db=log))
        value = segment.encode_segment(key, segment.pack_run([record], segment.RICH), *put)
        tx.lmdb.put(key, value, db=log)

    topic.store.handle.engine.commit(operation)


def plant_held(group, kind, offset, record):
    """The same in a row of the messages that left the log."""

    def operation(tx):
        row = held.get(tx, group.id, kind, offset)
        row.record, row.flags = record, segment.RICH
        held.put(GroupTx(tx, group.place), kind, offset, row)

    group.topic.store.handle.engine.commit(operation)


def raises_corrupt(store, call):
    """The verb raises Corrupt, and changes not one byte."""
    with nothing_changes(store), pytest.raises(diskq.Corrupt):
        call()


def problems(store):
    """What verify finds, as one text."""
    return "\n".join(finding.problem for finding in store.verify())


@pytest.mark.parametrize("ordering", ["none", "key"])
@pytest.mark.parametrize("prefetch", [1, 5])
def test_a_get_of_it_takes_no_lease_and_a_seek_or_a_purge_gets_past_it(
    store, record, ordering, prefetch
):
    topic = store.topic("t")
    group = topic.group("g", ordering=ordering)
    other = topic.group("other", ordering=ordering)
    for body in (b"bad", b"good", b"last"):
        topic.put(body, key="k" + body.decode())
    plant(topic, 0, record)
    with group.consumer(prefetch=prefetch) as consumer:
        for call in (
            consumer.get_nowait,
            lambda: consumer.get_many(5, timeout=0),
            lambda: consumer.get(timeout=5),
            lambda: next(iter(consumer)),
        ):
            raises_corrupt(store, call)
        assert (group.stats().leased, group.stats().delivered) == (0, 0)
        group.seek(1)
        assert bodies(consumer.get_many(5, timeout=0)) == [b"good", b"last"][: max(prefetch, 2)]
    topic.purge(before=1)
    with other.consumer() as consumer:
        assert bodies(consumer.get_many(5, timeout=0)) == [b"good", b"last"]


def test_what_is_before_it_is_delivered(store, record):
    topic = store.topic("t")
    consumer = topic.group("g").consumer()
    for body in (b"good", b"bad"):
        topic.put(body)
    plant(topic, 1, record)
    raises_corrupt(store, lambda: consumer.get_many(2, timeout=0))
    message = consumer.get_nowait()
    assert message.body == b"good"
    message.ack()
    raises_corrupt(store, consumer.get_nowait)


def test_reading_and_following_it_is_corrupt(store, record):
    topic = store.topic("t")
    for body in (b"bad", b"good"):
        topic.put(body)
    plant(topic, 0, record)
    raises_corrupt(store, lambda: list(topic.read()))
    raises_corrupt(store, lambda: list(topic.follow("earliest", timeout=0)))
    assert bodies(topic.read(1)) == [b"good"]


def test_a_purge_of_a_key_passes_over_it(store, record):
    topic = store.topic("t")
    for key in "a", "b", "a":
        topic.put(b"", key=key)
    plant(topic, 1, record)
    assert topic.purge(key="a") == 2


def test_a_retry_of_it_takes_no_lease_and_a_purge_gets_past_it(store, record, clock):
    topic = store.topic("t")
    group = topic.group("g", backoff=diskq.Backoff(0), ordering="key")
    consumer = group.consumer()
    topic.put(b"bad", key="k")
    topic.put(b"good")
    consumer.get_nowait().nack()
    plant_held(group, LIVE, 0, record)
    raises_corrupt(store, consumer.get_nowait)
    assert group.stats().waiting == 1
    assert "cannot be decoded" in problems(store)
    topic.purge(before=1)
    assert consumer.get_nowait().body == b"good"


def test_a_dead_letter_of_it_is_corrupt_and_can_be_forgotten(store, record):
    topic = store.topic("t")
    group = topic.group("g")
    for _ in range(2):
        topic.put(b"")
        group.consumer().get_nowait().reject()
    plant_held(group, DEAD, 0, record)
    raises_corrupt(store, lambda: list(group.dead()))
    assert "cannot be decoded" in problems(store)
    group.forget_dead([0])
    assert [letter.offset for letter in group.dead()] == [1]
    assert list(store.verify()) == []


def test_a_dead_letter_without_a_history_is_corrupt(store):
    topic = store.topic("t")
    group = topic.group("g")
    topic.put(b"")
    group.consumer().get_nowait().reject()

    def operation(tx):
        row = held.get(tx, group.id, DEAD, 0)
        row.history = ()
        held.put(GroupTx(tx, group.place), DEAD, 0, row)

    store.handle.engine.commit(operation)
    raises_corrupt(store, lambda: list(group.dead()))


def test_a_scheduled_one_is_corrupt_and_can_be_cancelled(store, record, clock):
    topic = store.topic("t")
    receipt = topic.put(b"", delay_seconds=10)
    due_ns, number = map(int, receipt.schedule_id.split("-"))
    key = SCHEDULE_KEY.pack(topic.id, due_ns, number)
    value = checked(bytes((0, segment.RICH)) + record)
    store.handle.engine.commit(lambda tx: tx.lmdb.put(key, value, db=store.handle.engine.schedule))
    raises_corrupt(store, lambda: list(topic.scheduled()))
    assert "cannot be decoded" in problems(store)
    topic.cancel(receipt.schedule_id)
    assert list(store.verify()) == []


def test_a_scheduled_one_that_falls_due_takes_no_lease(store, record, clock):
    topic = store.topic("t")
    group = topic.group("g")
    receipt = topic.put(b"", delay_seconds=10)
    topic.put(b"good", delay_seconds=20)
    due_ns, number = map(int, receipt.schedule_id.split("-"))
    key = SCHEDULE_KEY.pack(topic.id, due_ns, number)
    value = checked(bytes((0, segment.RICH)) + record)
    store.handle.engine.commit(lambda tx: tx.lmdb.put(key, value, db=store.handle.engine.schedule))
    clock.advance(30)
    raises_corrupt(store, group.consumer().get_nowait)
    topic.put(b"notes what is due")
    group.seek(1)
    assert bodies(group.consumer().get_many(9, timeout=0)) == [b"good", b"notes what is due"]


def test_a_lane_that_the_topic_has_not_is_corrupt(store, clock):
    topic = store.topic("t")
    receipt = topic.put(b"", delay_seconds=10)
    due_ns, number = map(int, receipt.schedule_id.split("-"))
    key = SCHEDULE_KEY.pack(topic.id, due_ns, number)
    value = checked(bytes((9, segment.RICH)) + HEAD.pack(0, 0, 0))
    store.handle.engine.commit(lambda tx: tx.lmdb.put(key, value, db=store.handle.engine.schedule))
    clock.advance(10)
    raises_corrupt(store, topic.group("g").consumer().get_nowait)
    topic.cancel(receipt.schedule_id)


def everything(store, clock):
    """A store with every kind of row."""
    topic = store.topic("t", priorities=2)
    group = topic.group("g", ordering="key", backoff=diskq.Backoff(100))
    for number in range(8):
        topic.put(b"%d" % number, key=f"k{number % 3}", headers={"a": "b"}, dedup_id=f"{number}")
    topic.put(b"", delay_seconds=1000)
    consumer = group.consumer()
    first, second, _ = consumer.get_many(3, timeout=0)
    first.nack()
    second.reject()
    return topic, group, consumer


ROWS = ("state M", "state T", "state N", "state G", "state H", "state L", "state D", "state K")
CHANGES = {
    "cut": lambda data: data[:-1],
    "nothing": lambda data: b"",
    "ones": lambda data: b"\xff" * len(data),
    "longer": lambda data: data + b"\xff" * 7,
}


SOUND = {  # a body may be shorter or longer, numbers may be any, and there is nothing in D
    *(("held", change) for change in ("cut", "longer")),
    *(("state D", change) for change in ("cut", "nothing", "ones")),
    *(("schedule", "longer"), ("dedup", "ones"), ("state M", "longer")),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("row", [*ROWS, "held", "schedule", "dedup"])
def test_no_verb_raises_anything_but_errors_of_diskq(store, clock, row, change):
    topic, group, consumer = everything(store, clock)
    place, _, kind = row.partition(" ")
    engine = store.handle.engine

    def operation(tx):
        database = None if place == "state" else getattr(engine, place)
        for key, value in list(tx.scan(kind.encode(), database=database)):
            changed = CHANGES[change](value)
            if place in ("held", "schedule"):
                changed = checked(CHANGES[change](value[4:]))
            tx.lmdb.put(key, changed, db=database or engine.state)

    engine.commit(operation)
    found = list(store.verify())
    assert found or (row, change) in SOUND
    calls = (
        consumer.get_nowait,
        lambda: consumer.get_many(3, timeout=0),
        lambda: topic.put(b"", key="k0", dedup_id="1"),
        lambda: topic.put(b""),
        lambda: list(topic.read()),
        lambda: list(group.dead()),
        lambda: list(topic.scheduled()),
        group.pending,
        lambda: list(topic.follow("earliest", timeout=0)),
        store.stats,
        store.topics,
        topic.groups,
        topic.trim,
        group.redrive,
        lambda: topic.purge(key="k1"),
        lambda: topic.purge(before=2),
        lambda: group.fork("another"),
        lambda: group.seek("latest"),
        topic.purge,
        lambda: store.topic("t"),
        lambda: topic.group("g"),
    )
    for call in calls:
        with suppress(diskq.DiskqError):
            call()


def test_verify_reports_each_and_goes_on(store, clock):
    topic, group, _ = everything(store, clock)
    plant(topic, 4, RECORDS["no head"])
    plant(topic, 6, RECORDS["headers that end early"])
    plant_held(group, LIVE, 0, RECORDS["a key that is no text"])
    plant_held(group, DEAD, 1, RECORDS["nothing"])
    store.handle.engine.commit(lambda tx: tx.put(ID_KEY.pack(b"G", 99), b"short"))
    store.handle.engine.commit(lambda tx: tx.put(b"N\xff", U32.pack(7)))
    found = problems(store)
    assert found.count("cannot be decoded") >= 6
    for wanted in ("offset 4: a message", "offset 6: a message", "of held: a message", "of state"):
        assert wanted in found


def test_salvage_makes_purged_messages_of_those_that_cannot_be_decoded(
    store, clock, record, tmp_path
):
    topic, group, consumer = everything(store, clock)
    plant(topic, 4, record)
    plant_held(group, LIVE, 0, record)
    plant_held(group, DEAD, 1, record)
    consumer.close()
    store.close()
    outcome = salvage(tmp_path / "store", tmp_path / "saved")
    assert outcome.topics[0].lost == 1
    assert sum("cannot be decoded, and is lost" in each for each in outcome.findings) == 3
    with diskq.open(tmp_path / "saved", clock=clock) as saved:
        assert list(saved.verify()) == []
        clock.advance(200)
        group = saved.topic("t").group("g")
        with group.consumer() as consumer:
            found = []
            while messages := consumer.get_many(9, timeout=0):
                found += bodies(messages)
                consumer.ack_many(messages)
        assert sorted(found) == [b"2", b"3", b"5", b"6", b"7"]
        assert list(saved.verify()) == []
    shutil.rmtree(tmp_path / "saved")


def test_a_segment_whose_ends_lie_is_corrupt(store):
    topic = store.topic("t")
    group = topic.group("g")
    topic.put_many([b"a", b"bc"])
    log = store.handle.engine.log(topic.id)
    key = segment.LOG_KEY.pack(topic.id, 0)
    for ends in (3, 3), (2, 1), (9, 3), (1, 2), (0, 4):
        content = U32.pack(ends[0]) + U32.pack(ends[1]) + b"abc"
        run = segment.Packed(2, 0, content, segment.crc32(content))
        value = segment.encode_segment(key, run, 1)
        store.handle.engine.commit(lambda tx: tx.lmdb.put(key, value, db=log))  # noqa: B023
        if ends != (3, 3):
            raises_corrupt(store, group.consumer().get_nowait)
            assert "cannot be decoded" in problems(store)
