"""Rows of gaps that are wrong: verify finds them, and salvage loses nothing to them."""

from __future__ import annotations

import struct
from contextlib import contextmanager

import pytest
from support.clock import ManualClock
from support.gaps import STORED, gaps_of, make_gaps, put_each, ready
from support.stores import offsets

import diskq
from diskq.format.layout import GAP_KEY, ID_KEY
from diskq.format.lease_row import LeaseRow
from diskq.format.rows import GroupRow
from diskq.format.segment import LOG_KEY
from diskq.repair.salvage import salvage
from diskq.tables import log


@pytest.fixture
def gappy(topic):
    """Lets the topic have gaps; the messages that are left, which a group still has."""
    return make_gaps(topic, topic.group("workers", lease_seconds=3600))


# What verify finds


@contextmanager
def changed(topic, *rows, **counts):
    """Write gap rows and numbers of the topic's row for a while; what verify then finds."""
    before = topic.store.handle.engine.read(lambda tx: dict(tx.scan(b"")))

    def change(tx):
        for first, stop in rows:
            key = GAP_KEY.pack(b"O", topic.id, first)
            tx.put(key, struct.pack(">Q", stop)) if stop is not None else tx.delete(key)
        topic_row = log.load(tx, topic.id, topic.name)
        for name, value in counts.items():
            setattr(topic_row, name, value)
        log.store(tx, topic.id, topic_row)

    topic.store.handle.commit(change)
    try:
        yield [finding.problem for finding in topic.store.verify()]
    finally:
        topic.store.handle.commit(lambda tx: restore(tx, before))


def restore(tx, rows):
    """Let `state` have these rows again."""
    for key, _ in list(tx.scan(b"")):
        tx.delete(key)
    for key, value in rows.items():
        tx.put(key, value)


DAMAGES = {
    "a lost gap": ([(9, None)], {"gaps": 2}, "offset 9 is missing"),
    "a lost gap at the end": ([(14, None)], {"gaps": 2}, "ends at 14"),
    "a gap over a segment": ([(1, 8)], {}, "offset 8 is missing, the next segment has 7"),
    "a gap in the place of a segment": ([(8, 9)], {"gaps": 4}, "offset 9 is missing, the next seg"),
    "a gap that is too short": ([(9, 12)], {}, "offset 12 is missing"),
    "gaps that touch": ([(9, 11), (11, 13)], {"gaps": 4}, "gap from 11 to 13 is not where"),
    "gaps that overlap": ([(10, 13)], {"gaps": 4}, "gap from 10 to 13 is not where"),
    "a gap behind the end": ([(14, 21)], {}, "ends at 21"),
    "an empty gap": ([(9, 9)], {}, "is damaged"),
    "a counter": ([], {"gaps": 2}, "gaps counted 2, found 3"),
    "the other counter": ([], {"stored": 5}, "stored counted 5, found 4"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_finds_wrong_rows_of_gaps(topic, gappy, damage):
    rows, counts, problem = DAMAGES[damage]
    with changed(topic, *rows, **counts) as found:
        assert any(problem in each for each in found), found
    assert list(topic.store.verify()) == []


def test_verify_finds_a_gap_before_the_front(topic, gappy):
    gappy[0].ack()
    topic.trim()
    assert gaps_of(topic) == [(9, 13), (14, 20)]
    with changed(topic, (1, 7), gaps=3) as found:
        assert found == ["the gap from 1 to 7 is not where segments are missing"]


@pytest.mark.parametrize("offset", [0, 7, 8, 13])
def test_verify_finds_a_lost_segment_beside_gaps(topic, gappy, offset):
    engine = topic.store.handle.engine
    database, key = engine.log(topic.id), LOG_KEY.pack(topic.id, offset)
    value = engine.read(lambda tx: tx.lmdb.get(key, db=database))
    engine.commit(lambda tx: tx.lmdb.delete(key, db=database))
    assert list(topic.store.verify())
    engine.commit(lambda tx: tx.lmdb.put(key, value, db=database))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("ahead", 3, "ahead counted 3, found 16"),
        ("ahead", 0, "ahead counted 0, found 16"),
        ("next", [3], "needs offset 3, which is in a gap"),
        ("next", [1], "needs offset 1, which is in a gap"),
    ],
)
def test_verify_finds_a_group_that_does_not_fit_the_gaps(topic, gappy, name, value, problem):
    late = topic.group("late")
    key = ID_KEY.pack(b"G", late.id)
    right = topic.store.handle.engine.read(lambda tx: tx.get(key))
    row = GroupRow(right)
    setattr(row, name, value)
    topic.store.handle.commit(lambda tx: tx.put(key, row.encode()))
    found = [finding.problem for finding in topic.store.verify()]
    assert any(problem in each for each in found), found
    topic.store.handle.commit(lambda tx: tx.put(key, right))


def test_verify_finds_the_gap_of_a_topic_that_is_not_there(topic):
    key = GAP_KEY.pack(b"O", 99, 1)
    topic.store.handle.commit(lambda tx: tx.put(key, struct.pack(">Q", 2)))
    assert any("belongs to nothing" in finding.problem for finding in topic.store.verify())
    topic.store.handle.commit(lambda tx: tx.delete(key))


def test_a_trim_that_overlooks_a_lease_is_found_out(topic, gappy, monkeypatch):
    """Negative control."""
    database = topic.store.handle.engine.log(topic.id)
    before = topic.store.handle.engine.read(lambda tx: dict(tx.scan(b"")))
    segments = topic.store.handle.engine.read(lambda tx: dict(tx.scan(b"", database=database)))
    monkeypatch.setattr(LeaseRow, "runs", lambda lease: [(0, 1)])
    topic.trim()
    monkeypatch.undo()
    found = [finding.problem for finding in topic.store.verify()]
    assert "needs offset 8, which is in a gap of the log" in found

    def undo(tx):
        restore(tx, before)
        for key, value in segments.items():
            tx.lmdb.put(key, value, db=database)

    topic.store.handle.commit(undo)


# Salvage


@pytest.fixture
def damaged(tmp_path):
    """A store of its own whose one topic has gaps and a late group that took one message; and how
    to salvage it, with a look at the new one."""
    with diskq.open(tmp_path / "damaged", clock=ManualClock()) as store:
        topic = store.topic("mail")
        slow = make_gaps(topic, topic.group("g", lease_seconds=3600))
        topic.group("late").consumer().get_nowait().ack()
        yield topic
        assert len(slow) == 4


def saved(topic, tmp_path):
    """Salvage a topic's store; what was lost, and the gaps and messages of the new one."""
    topic.store.close()
    outcome = salvage(tmp_path / "damaged", tmp_path / "saved")
    with diskq.open(tmp_path / "saved") as store:
        assert list(store.verify()) == []
        topic = store.topic("mail")
        taken = ready(topic.group("late").consumer())
        return outcome.topics[0], gaps_of(topic), offsets(topic.read()), taken


def test_salvage_keeps_gaps(damaged, tmp_path):
    outcome, found, stored, taken = saved(damaged, tmp_path)
    assert (outcome.lost, outcome.stored, outcome.restarted) == (0, 4, ())
    assert found == [(1, 7), (9, 13), (14, 20)]
    assert (stored, taken) == ([*STORED], [7, 8, 13])


def break_rows(topic, rows):
    """Write gap rows, for good."""

    def change(tx):
        for first, stop in rows:
            key = GAP_KEY.pack(b"O", topic.id, first)
            tx.put(key, struct.pack(">Q", stop)) if stop is not None else tx.delete(key)

    topic.store.handle.commit(change)


def test_salvage_takes_a_hole_without_a_row_for_loss(damaged, tmp_path):
    break_rows(damaged, [(9, None)])
    outcome, found, stored, taken = saved(damaged, tmp_path)
    assert (outcome.lost, outcome.stored, outcome.restarted) == (4, 4, ())
    assert found == [(1, 7), (14, 20)]
    assert (stored, taken) == ([*STORED], [7, 8, 13])


@pytest.mark.parametrize("damage", DAMAGES)
def test_salvage_loses_no_message_to_a_wrong_gap(damaged, tmp_path, damage):
    break_rows(damaged, DAMAGES[damage][0])
    _, _, stored, taken = saved(damaged, tmp_path)
    assert (stored, taken) == ([*STORED], [7, 8, 13])


def test_salvage_counts_a_lost_segment_beside_gaps(damaged, tmp_path):
    engine = damaged.store.handle.engine
    database = engine.log(damaged.id)
    key = LOG_KEY.pack(damaged.id, 8)
    engine.commit(lambda tx: tx.lmdb.delete(key, db=database))
    outcome, found, stored, taken = saved(damaged, tmp_path)
    assert (outcome.lost, outcome.restarted) == (1, ())
    assert found == [(1, 7), (9, 13), (14, 20)]
    assert (stored, taken) == ([0, 7, 13], [7, 13])


def test_salvage_of_a_hole_too_large_to_fill_makes_a_gap_and_counts_it(damaged, tmp_path):
    consumer = damaged.group("g").consumer()
    for _ in range(11):
        damaged.put_many([b""] * 100_000)
        for _ in range(10):
            consumer.ack_many(consumer.get_many(10_000))
    damaged.put(b"last")
    late = damaged.group("late")
    late.seek("latest")
    damaged.trim()
    break_rows(damaged, [(14, None)])
    outcome, found, stored, _ = saved(damaged, tmp_path)
    assert outcome.lost == 1_100_006
    assert found == [(1, 7), (9, 13), (14, 1_100_020)]
    assert stored == [*STORED, 1_100_020]


def test_a_group_that_starts_again_keeps_what_waits_though_its_segment_is_gone(damaged, tmp_path):
    damaged.group("late").delete()
    group = damaged.group("g")
    put_each(damaged, 3)
    consumer = group.consumer()
    for message, verb in zip(consumer.get_many(3), ("nack", "reject", "ack"), strict=True):
        getattr(message, verb)()
    damaged.trim()
    key = ID_KEY.pack(b"G", group.id)
    row = GroupRow(damaged.store.handle.engine.read(lambda tx: tx.get(key)))
    row.acked += 1
    damaged.store.handle.commit(lambda tx: tx.put(key, row.encode()))
    outcome, found, _, _ = saved(damaged, tmp_path)
    assert outcome.restarted == ("g",)
    assert found[-1] == (14, 23)
    with diskq.open(tmp_path / "saved") as store:
        stats = store.topic("mail").group("g").stats()
        assert (stats.unread, stats.waiting, stats.dead) == (4, 1, 1)
