"""A message that kills its process ends dead, and no other one does, whatever else was in hand."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading

import pytest
from support.programs import child_environment
from support.stores import offsets

import diskq
from diskq import Backoff, Outgoing
from diskq.api import waiting as waits
from diskq.base import limits
from diskq.host.slots import SEVERAL

POISON = b"POISON"
DEADLINE_SECONDS = 60
MOST_LIVES = 8  # three charges, one clean life, and what it takes to know whom to suspect


@pytest.fixture
def store(real_store):
    return real_store


@pytest.fixture
def group(topic, monkeypatch):
    """A group of which each get looks who died."""
    monkeypatch.setattr(limits, "LOOK_SECONDS", -1)
    return topic.group("workers", backoff=Backoff(0), max_deliveries=3)


def live(group, way, members="shared", prefetch=1):
    """Start the program again and again until it ends by itself."""
    options = {"path": group.topic.store.path, "group": group.name, "way": way}
    options |= {"members": members, "prefetch": prefetch}
    for _ in range(MOST_LIVES):
        run = [sys.executable, "-m", "support.roles", "blame.live", json.dumps(options)]
        if not subprocess.run(
            run, env=child_environment(), timeout=DEADLINE_SECONDS, check=False
        ).returncode:
            return
    raise AssertionError(f"still killed after {MOST_LIVES} lives")


def put(topic, first, count, key=None):
    topic.put_many([Outgoing(b"%d" % number, key=key) for number in range(first, first + count)])


def dead(group):
    """The dead letters, and what happened to each since the last redrive."""
    found = {}
    for letter in group.dead():
        causes = [entry.cause for entry in letter.history]
        last = len(causes) - causes[::-1].index("redriven") if "redriven" in causes else 0
        found[letter.body] = causes[last:]
    return found


@pytest.mark.parametrize("prefetch", [1, 4])
@pytest.mark.parametrize("members", ["shared", "own"])
@pytest.mark.parametrize("way", ["with", "plain", "batches", "with in batches"])
def test_only_the_killer_dies_and_again_when_it_was_redriven(topic, group, way, members, prefetch):
    put(topic, 0, 3)
    topic.put(POISON)
    put(topic, 3, 9)
    for acked in (12, 18):
        live(group, way, members, prefetch)
        assert dead(group) == {POISON: ["crashed"] * 3}
        assert (group.stats().acked, group.stats().lag) == (acked, 0)
        put(topic, acked, 6)
        group.redrive()


@pytest.mark.parametrize("way", ["with", "plain", "batches"])
def test_only_the_killer_of_a_group_with_key_order_dies(topic, way):
    group = topic.group("keyed", ordering="key", backoff=Backoff(0), max_deliveries=3)
    put(topic, 0, 3, "a")
    topic.put(POISON, key="b")
    put(topic, 3, 3, "b")
    put(topic, 6, 6)
    live(group, way)
    assert dead(group) == {POISON: ["crashed"] * 3}
    assert (group.stats().acked, group.stats().lag) == (12, 0)


@pytest.fixture
def at_once(monkeypatch):
    """A thread may collect suspects one right after the other."""
    monkeypatch.setattr(limits, "HAND_OVER_SECONDS", 0)


def forget(consumer):
    """The process of a consumer dies, as far as others can tell."""
    gone = consumer.pop()
    del gone
    gc.collect()


def suspects(group, count):
    """Make suspects of the next messages: somebody dies with them in hand."""
    holder = [group.consumer("victim")]
    holder[0].get_many(count, timeout=0)
    forget(holder)
    group.topic.store.handle.engine.looked_ns.clear()  # the next get looks for who died


def in_thread(call):
    """What a call returns in another thread."""
    found = []

    def run():
        try:
            found.append(call())
        except BaseException as error:
            found.append(type(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(DEADLINE_SECONDS)
    return found[0]


def test_a_suspect_is_charged_until_a_handler_lives_on(topic, group):
    group.update(max_deliveries=9)
    put(topic, 0, 3)
    suspects(group, 3)
    for attempt in (1, 2):
        holder = [group.consumer()]
        assert [(m.offset, m.attempt) for m in holder[0].get_many(3, timeout=0)] == [(0, attempt)]
        forget(holder)
        topic.store.handle.engine.looked_ns.clear()  # whatever the last look took
    consumer = group.consumer()
    message = consumer.get_nowait()
    message.nack()
    assert offsets(consumer.get_many(9, timeout=0)) == [0]  # in order, and next to a suspect
    assert offsets(consumer.get_many(9, timeout=0)) == [1]


def test_a_suspect_that_was_given_back_stays_one(topic, group):
    put(topic, 0, 3)
    suspects(group, 2)
    with group.consumer() as consumer:
        consumer.get_nowait().release()
        consumer.get_nowait()
    heir = group.consumer()
    assert [offsets(heir.get_many(9, timeout=0)) for _ in range(3)] == [[0], [1], [2]]


def test_while_a_thread_has_a_suspect_other_threads_of_its_process_get_nothing(
    topic, group, at_once
):
    put(topic, 0, 4)
    suspects(group, 2)
    consumer, other = group.consumer(), group.consumer()
    suspect = consumer.get_nowait()
    for each in consumer, other:
        assert in_thread(each.get_nowait) is diskq.Empty
        assert in_thread(lambda: each.get_many(5, timeout=0.05)) == []  # noqa: B023
    assert consumer.get_nowait().offset == 1  # the same thread gets the next in order
    suspect.ack()


def test_a_thread_that_got_a_suspect_gets_nothing_more_until_that_can_have_been_handed_over(
    topic, group, monkeypatch
):
    monkeypatch.setattr(limits, "HAND_OVER_SECONDS", 60)
    put(topic, 0, 4)
    suspects(group, 2)
    consumer = group.consumer()
    suspect = consumer.get_nowait()
    assert consumer.get_many(9, timeout=0) == consumer.get_many(9, timeout=0.05) == []
    monkeypatch.setattr(limits, "HAND_OVER_SECONDS", 0.5)
    assert offsets(consumer.get_many(9, timeout=DEADLINE_SECONDS)) == [1]
    suspect.ack()


def test_a_suspect_is_in_the_hand_of_the_thread_that_names_it(topic, group, at_once):
    """One thread gets, others handle: with two at once, innocents died with the killer."""
    put(topic, 0, 4)
    suspects(group, 2)
    consumer = group.consumer()
    suspect = consumer.get_nowait()
    in_thread(suspect.__enter__)
    assert consumer.get_many(9, timeout=0) == []
    suspect.ack()
    assert offsets(consumer.get_many(9, timeout=0)) == [1]


def test_a_batch_that_other_threads_handle_is_no_company_for_a_suspect(topic, group, at_once):
    put(topic, 0, 6)
    consumer = group.consumer()
    batch = consumer.get_many(2, timeout=0)
    suspects(group, 2)
    for message in batch:
        in_thread(message.__enter__)
    assert consumer.get_many(9, timeout=0) == []
    consumer.ack_many(batch)
    assert offsets(consumer.get_many(9, timeout=0)) == [2]


@pytest.mark.parametrize("handler", ["pool", "itself"])
def test_of_messages_that_one_thread_gets_only_the_killer_dies(tmp_path, handler):
    """In the hands of a pool, or one right after the other in its own."""
    for _ in range(MOST_LIVES):
        done = subprocess.run(
            [sys.executable, "-c", POOL, tmp_path / "store", handler],
            env=child_environment(),
            check=False,
            timeout=DEADLINE_SECONDS,
        )
        if not done.returncode:
            break
    with diskq.open(tmp_path / "store") as store:
        [letter] = store.queue("q").group.dead()
        assert (letter.body, store.queue("q").group.stats().acked) == (b"killer", 11)


POOL = """
import os, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
import diskq
queue = diskq.open(sys.argv[1]).topic("q").group("default", max_deliveries=3).consumer()
topic = queue.group.topic
if not topic.stats().stored:
    topic.put_many([b"%d" % n for n in range(5)] + [b"killer"] + [b"%d" % n for n in range(6, 12)])

def handle(message):
    with message:
        time.sleep(0.01)
        if message.body == b"killer":
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)

def get(seconds):
    try:
        return queue.get(timeout=seconds)
    except diskq.Empty:
        return None

if sys.argv[2] == "pool":
    with ThreadPoolExecutor(4) as pool:
        while message := get(3):
            pool.submit(handle, message)
else:
    while messages := [each for each in [get(3), get(0), get(0)] if each]:
        for message in messages:
            handle(message)
"""


def test_other_processes_go_on_beside_a_suspect(topic, group):
    put(topic, 0, 4)
    suspects(group, 2)
    suspect = group.consumer().get_nowait()
    code = f"""
import diskq
consumer = diskq.open({topic.store.path!r}).topic("mail").group("workers").consumer()
print([message.offset for _ in range(2) for message in consumer.get_many(9, timeout=30)])
"""
    run = [sys.executable, "-c", code]
    found = subprocess.run(run, env=child_environment(), check=True, capture_output=True, text=True)
    assert found.stdout == "[1, 2, 3]\n"
    suspect.ack()


def test_a_suspect_waits_for_what_other_threads_have_in_hand(topic, group):
    put(topic, 0, 1)
    consumer = group.consumer()
    busy = in_thread(consumer.get_nowait)
    put(topic, 1, 3)
    suspects(group, 2)
    with pytest.raises(diskq.Empty):
        consumer.get_nowait()
    busy.ack()
    assert consumer.get_nowait().offset == 1


def test_two_threads_that_have_something_and_wait_for_more_do_not_wait_for_each_other(topic, group):
    """Leases are extended for ever here: only one of the two can end this."""
    put(topic, 0, 2)
    consumer = group.consumer(heartbeat=True)
    has_one, go_on, found = threading.Barrier(3), threading.Event(), []

    def collect():
        kept = [consumer.get()]
        has_one.wait(DEADLINE_SECONDS)
        go_on.wait(DEADLINE_SECONDS)
        kept.append(consumer.get(timeout=DEADLINE_SECONDS))
        found.append(sorted(offsets(kept)))
        consumer.ack_many(kept)

    threads = [threading.Thread(target=collect) for _ in range(2)]
    for thread in threads:
        thread.start()
    has_one.wait(DEADLINE_SECONDS)
    put(topic, 2, 2)
    suspects(group, 2)
    go_on.set()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert sorted(sum(found, [])) == [0, 1, 2, 3]  # noqa: RUF017 - two of two


@pytest.mark.parametrize("end", ["ack", "nack", "release", "reject", "lost", "dropped", "expired"])
def test_a_thread_that_waits_for_a_suspect_goes_on_when_that_is_over(
    topic, group, monkeypatch, end
):
    group.update(lease_seconds=1.0 if end == "expired" else 600.0, backoff=Backoff(0))
    put(topic, 0, 3)
    suspects(group, 2)
    consumer = group.consumer()
    suspect = in_thread(consumer.get_nowait)
    assert suspect.offset == 0
    found, waiting = [], threading.Event()
    look = waits.look

    def tell_and_look(*arguments):
        waiting.set()
        return look(*arguments)

    monkeypatch.setattr(waits, "look", tell_and_look)
    thread = threading.Thread(target=lambda: found.append(consumer.get(timeout=DEADLINE_SECONDS)))
    thread.start()
    assert waiting.wait(DEADLINE_SECONDS)
    if end == "lost":
        topic.purge(before=1)
    elif end == "dropped":
        suspect = None
    elif end != "expired":
        getattr(suspect, end)()
    thread.join(DEADLINE_SECONDS)
    again = end in ("nack", "release", "expired")
    assert [message.offset for message in found] == [0 if again else 1]
    del suspect


def test_two_threads_in_with_blocks_do_not_clear_each_others_names(topic, group):
    put(topic, 0, 3)
    consumer = group.consumer()

    def handling():
        [told] = [each.handling for each in topic.store.stats().consumers]
        return told

    slots = topic.store.handle.engine.slots
    first, second, third = consumer.get_many(3, timeout=0)
    with first:
        assert handling() == 0
        with second:
            assert handling() is None
            assert slots.read(consumer.member.leaser.slot).handling == SEVERAL
            first.ack()
            assert handling() == 1
        assert handling() is None
    third.ack()


def test_of_two_consumers_of_a_process_that_died_none_is_charged_at_first(topic, group, at_once):
    put(topic, 0, 3)
    holders = [[group.consumer()], [group.consumer()]]
    for holder in holders:
        holder[0].get_nowait().__enter__()
    for holder in holders:
        forget(holder)
    heir = group.consumer()
    found = [heir.get_many(9, timeout=0) for _ in range(3)]
    assert sorted((m.offset, m.attempt) for [m] in found) == [(0, 1), (1, 1), (2, 1)]
