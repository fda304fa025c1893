"""Small things that go wrong in a long life: late handlers, work not ready yet, forks, purges."""

from __future__ import annotations

import os
import threading
import time

import pytest
from support.programs import run_python
from support.stores import bodies, commits, offsets

import diskq
from diskq import Backoff
from diskq.base import limits

DEADLINE_SECONDS = 60


# A loop whose handler took too long


@pytest.mark.parametrize("prefetch", [1, 3])
def test_a_loop_goes_on_when_a_lease_was_lost(topic, group, clock, prefetch):
    topic.put_many([b"%d" % number for number in range(4)])
    other, taken = group.consumer("other"), []
    seen = []
    for message in group.consumer("loop", prefetch=prefetch):
        seen.append(message.body)
        if message.body == b"0" and not taken:
            clock.advance(10)  # too long, and somebody else wants it
            taken = other.get_many(1, timeout=0)
        if len(seen) == 4:
            message.ack()
            break
    assert bodies(taken) == [b"0"]
    assert seen[0] == b"0"
    assert sorted(seen[1:]) == [b"1", b"2", b"3"]
    taken[0].ack()
    assert (group.stats().acked, group.stats().failed, group.stats().dead) == (4, 1, 0)


def test_the_commit_that_finds_a_lease_lost_leases_the_next(store, topic, group, consumer, clock):
    topic.put_many([b"a", b"b"])
    loop = iter(consumer)
    next(loop)
    clock.advance(10)
    group.consumer().get_nowait()
    before = commits(store)
    assert next(loop).body == b"b"
    assert commits(store) == before + 1


# Release with a delay


def test_what_is_not_ready_yet_lets_others_pass(topic, group, consumer, clock):
    topic.put_many([b"not yet", b"a", b"b"])
    seen = []
    for _ in range(3):
        message = consumer.get_nowait()
        seen.append(message.body)
        message.release(5) if message.body == b"not yet" else message.ack()
    assert seen == [b"not yet", b"a", b"b"]
    with pytest.raises(diskq.Empty):
        consumer.get_nowait()
    clock.advance(5)
    message = consumer.get_nowait()
    assert (message.body, message.attempt) == (b"not yet", 1)
    assert (group.stats().failed, group.stats().redelivered) == (0, 1)
    message.release(5)
    clock.advance(5)
    assert consumer.get_nowait().attempt == 1


def test_a_retry_can_be_put_off_too(topic, group, consumer, clock):
    topic.put(b"x")
    consumer.get_nowait().nack(error="one")
    consumer.get_nowait().release(3)
    clock.advance(3)
    message = consumer.get_nowait()
    assert message.attempt == 2
    message.reject()
    [letter] = group.dead()
    assert [entry.cause for entry in letter.history] == ["nack", "reject"]


def test_one_of_a_batch_is_put_off_by_a_transaction(store, topic, group, consumer, clock):
    topic.put_many([b"a", b"b", b"c"])
    a, b, c = consumer.get_many(3, timeout=0)
    with store.transaction() as tx:
        tx.release(b, 2.5)
        tx.ack(a)
        tx.release(c)
    assert (group.stats().waiting, group.stats().ready, group.stats().acked) == (1, 1, 1)
    assert bodies(consumer.get_many(9, timeout=0)) == [b"c"]
    clock.advance(2.5)
    assert bodies(consumer.get_many(9, timeout=0)) == [b"b"]


def test_what_is_put_off_keeps_its_key(topic, clock):
    group = topic.group("keyed", ordering="key")
    topic.put_many([diskq.Outgoing(b"a1", key="a"), diskq.Outgoing(b"a2", key="a")])
    consumer = group.consumer()
    consumer.get_nowait().release(4)
    with pytest.raises(diskq.Empty):
        consumer.get_nowait()
    clock.advance(4)
    message = consumer.get_nowait()
    assert message.body == b"a1"
    message.ack()
    assert consumer.get_nowait().body == b"a2"


def test_a_delay_of_a_release_has_bounds(topic, group, consumer):
    topic.put(b"x")
    message = consumer.get_nowait()
    for odd in -1, float("nan"), limits.MAX_DELAY_SECONDS + 1:
        with pytest.raises(ValueError, match="delay_seconds"):
            message.release(odd)
    with pytest.raises(TypeError, match="delay_seconds"):
        message.release("1")
    message.release(delay_seconds=0)
    assert group.stats().ready == 1


# Prefetched leases


def handle_all(consumer, clock, seconds, others=None):
    """Get and ack one by one, so many seconds each; what became of them."""
    handled, lost = [], 0
    while messages := consumer.get_many(1, timeout=0):
        clock.advance(seconds)
        handled += offsets(messages)
        if others is not None:
            others.get_many(1, timeout=0)
        try:
            messages[0].ack()
        except diskq.LeaseLost:
            lost += 1
    return handled, lost


def test_each_prefetched_message_has_its_time(topic, group, clock):
    topic.put_many([b"x"] * 40)
    idle = group.consumer("idle")
    consumer = group.consumer("slow", prefetch=40)
    consumer.get_nowait().release()  # now all are leased
    topic.trim()
    for message in idle.get_many(1, timeout=0):
        message.ack()
    handled, lost = handle_all(consumer, clock, 3)
    assert (len(handled), lost) == (39, 0)
    assert (group.stats().acked, group.stats().failed) == (40, 0)


def test_a_prefetched_lease_is_renewed_in_the_commit_of_an_ack(store, topic, group, clock):
    topic.put_many([b"x"] * 3)
    consumer = group.consumer(prefetch=3)
    first = consumer.get_nowait()
    clock.advance(4)
    before = commits(store)
    first.ack()
    second = consumer.get_nowait()
    assert commits(store) == before + 1
    assert second.deadline == pytest.approx(clock.monotonic / 1e9 + 10)


def test_a_prefetched_lease_with_time_left_is_not_renewed(store, topic, group, clock):
    topic.put_many([b"x"] * 3)
    consumer = group.consumer(prefetch=3)
    consumer.get_nowait()
    clock.advance(3)
    before = commits(store)
    assert consumer.get_nowait().deadline == pytest.approx(clock.monotonic / 1e9 + 7)
    assert commits(store) == before


def test_a_pause_before_a_hand_out_costs_a_commit_and_nothing_else(store, topic, group, clock):
    topic.put_many([b"x"] * 3)
    consumer, other = group.consumer(prefetch=3), group.consumer()
    consumer.get_nowait().ack()
    clock.advance(1000)
    before = commits(store)
    message = consumer.get_nowait()
    assert commits(store) == before + 1
    clock.advance(9)
    assert offsets(other.get_many(9, timeout=0)) == [2]  # taken over, not expired
    message.ack()
    assert group.stats().failed == 0


# A fork inside of a with block


@pytest.mark.parametrize("how", ["sys.exit", "return", "raise"])
def test_a_child_that_leaves_the_block_does_nothing(topic, group, consumer, how):
    topic.put(b"x")
    code = None
    with consumer.get_nowait() as message:
        child = os.fork()
        if child == 0:
            code = leave(message, how)
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert group.stats().leased == 1
        assert [each.handling for each in topic.store.stats().consumers] == [0]
    assert group.stats().acked == 1


def leave(message, how):
    """0 if a child leaves the block of its parent's message in this way, and only that happens."""
    error = {"sys.exit": SystemExit(0), "raise": ValueError("no"), "return": None}[how]
    try:
        message.__exit__(type(error) if error else None, error, None)
        if error:
            raise error
    except (SystemExit, ValueError) as raised:
        return int(raised is not error)
    except BaseException:
        return 2
    return 0


def test_sys_exit_in_a_forked_handler_ends_the_child_only(tmp_path):
    code = """
import os, sys, diskq
topic = diskq.open(sys.argv[1]).topic("t")
topic.put(b"x")
group = topic.group("g")
with group.consumer().get() as message:
    if os.fork() == 0:
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
print(group.stats().acked)
"""
    done = run_python(code, tmp_path / "q")
    assert (done.stdout, done.stderr) == ("0\n1\n", "")


# What frees a place of max_in_flight


WAYS = ("ack", "purge", "purge all", "seek", "expire", "drop", "release later")


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        (kind, way)
        for kind in ("first", "retry")
        for way in WAYS
        if (kind, way) != ("retry", "drop")
    ],
)
def test_whatever_frees_a_place_wakes_a_blocked_get(real_store, monkeypatch, kind, way):
    monkeypatch.setattr(limits, "WAIT_SECONDS", DEADLINE_SECONDS)  # it only wakes if told
    topic = real_store.topic("mail", max_messages=3, discard="old")
    seconds = 0.5 if way == "expire" else 600
    group = topic.group("g", max_in_flight=1, backoff=Backoff(0), lease_seconds=seconds)
    topic.put(b"a")
    topic.put(b"b")
    holder = group.consumer("ca")
    if kind == "retry":
        holder.get().nack()
    message = holder.get()
    found = []
    blocked = group.consumer("cb")
    thread = threading.Thread(target=lambda: found.append(blocked.get(timeout=DEADLINE_SECONDS)))
    thread.start()
    until = time.monotonic() + DEADLINE_SECONDS
    while not any(each.waiting for each in real_store.stats().consumers):
        assert time.monotonic() < until
    begun = time.monotonic()
    free(topic, group, message, way)
    thread.join(DEADLINE_SECONDS)
    assert len(found) == 1
    assert time.monotonic() - begun < DEADLINE_SECONDS / 3


def free(topic, group, message, way):
    """Free the place of a leased message; that a deadline passes does it, too."""
    if way == "ack":
        message.ack()
    elif way == "purge":
        topic.purge(before=1)
    elif way == "purge all":
        topic.purge()
        topic.put(b"c")
    elif way == "seek":
        group.seek(1)
    elif way == "drop":
        topic.put_many([b"x"] * 3, block=False)
    elif way == "release later":
        message.release(600)


# Errors that told of damage, or of Python


@pytest.mark.parametrize(
    ("start", "error"), [(-1, ValueError), (2**64, ValueError), ("x", TypeError), (1.5, TypeError)]
)
def test_dead_letters_from_no_offset_are_an_error_of_the_caller(group, start, error):
    """The store was called damaged."""
    with pytest.raises(error, match="start"):
        list(group.dead(start))


def test_a_schedule_id_of_thousands_of_digits_is_not_found(topic):
    with pytest.raises(diskq.NotFound):
        topic.cancel("9" * 5000)
    with pytest.raises(diskq.NotFound):
        topic.cancel("9" * 5000 + "-1")


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def test_a_handler_that_fails_with_an_error_without_a_text_is_a_failure(topic, group, consumer):
    topic.put(b"a")
    with pytest.raises(Speechless), consumer.get_nowait():
        raise Speechless
    [waiting] = group.waiting()
    assert [failure.error for failure in waiting.history] == [
        "Speechless, and then RuntimeError from its __str__"
    ]
