"""A get in a keyed group blocks while the disk has no room to park messages. It only looked at the
first message, saw that it could not be parked, and slept on, whatever else became ready: for ever.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import contextmanager, suppress

import pytest

import diskq
from diskq.api import waiting
from diskq.base import limits
from diskq.storage.reserve import Room

DEADLINE_SECONDS = 20
HOLD = """
import sys, diskq
message = diskq.open(sys.argv[1]).topic("mail").group("workers").consumer().get()
print("holding", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def store(real_store):
    return real_store


@pytest.fixture
def group(topic):
    """A keyed group with two messages of one key."""
    group = topic.group("workers", ordering="key", backoff=diskq.Backoff(0), lease_seconds=600)
    topic.put_many([diskq.Outgoing(b"first", key="a"), diskq.Outgoing(b"second", key="a")])
    return group


@pytest.fixture
def fill_the_disk(monkeypatch):
    """From now on there is no room for what could wait."""

    def fill():
        monkeypatch.setattr(Room, "low", True)
        monkeypatch.setattr(Room, "_has", lambda room, size: size <= 0)

    return fill


@contextmanager
def blocked_get(group, monkeypatch):
    """A get that sleeps; gives the list to which it adds the body that it got in the end."""
    found, sleeping = [], threading.Event()
    sleep = waiting.sleep

    def tell_and_sleep(*arguments):
        sleeping.set()
        return sleep(*arguments)

    def get():
        with suppress(diskq.Closed):  # it looks again when its time is over, so that is long
            found.extend(group.consumer("blocked").get_many(1, timeout=10 * DEADLINE_SECONDS))

    monkeypatch.setattr(waiting, "sleep", tell_and_sleep)
    thread = threading.Thread(target=get, daemon=True)
    thread.start()
    assert sleeping.wait(DEADLINE_SECONDS)
    yield found
    thread.join(DEADLINE_SECONDS)


def test_a_retry_that_falls_due_is_delivered(group, fill_the_disk):
    """It slept over the time at which the message it waited for was to be delivered again."""
    consumer = group.consumer()
    consumer.get_nowait().nack(0.2)
    fill_the_disk()
    assert consumer.get(timeout=DEADLINE_SECONDS).body == b"first"


def test_the_next_of_a_key_is_delivered_when_its_holder_acks(group, fill_the_disk, monkeypatch):
    """Nothing of the key was parked, so the ack woke nobody."""
    monkeypatch.setattr(limits, "WAIT_SECONDS", 10 * DEADLINE_SECONDS)  # it only wakes if told
    message = group.consumer("holder").get_nowait()
    fill_the_disk()
    with blocked_get(group, monkeypatch) as found:
        message.ack()
    assert [each.body for each in found] == [b"second"]


def test_a_message_whose_lease_ends_is_delivered_again(group, fill_the_disk):
    """It slept over the deadline of the one that held the key."""
    group.update(lease_seconds=0.5)
    held = group.consumer("holder").get_nowait()
    fill_the_disk()
    again = group.consumer("blocked").get(timeout=DEADLINE_SECONDS)
    assert (again.body, again.attempt) == (b"first", 1)  # with no room to note it, uncharged
    assert held.token < again.token


def test_a_message_whose_holder_dies_is_delivered_again(group, fill_the_disk, monkeypatch):
    """It saw the death, and forgot the dead one before it took back what that held."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, group.topic.store.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "holding\n"
        fill_the_disk()
        with blocked_get(group, monkeypatch) as found:
            holder.kill()
    assert [(each.body, each.attempt) for each in found] == [(b"first", 2)]


def test_behind_a_blocked_priority_the_others_are_delivered(store, fill_the_disk):
    """The get looked at the highest priority only, and never ended, whatever its timeout."""
    topic = store.topic("lanes", priorities=2)
    group = topic.group("workers", ordering="key", lease_seconds=600)
    holder, other = group.consumer(), group.consumer()
    topic.put(b"holder", key="a", priority=1)
    assert holder.get(timeout=0).body == b"holder"
    topic.put(b"given back", key="b")
    other.get(timeout=0).release()
    topic.put(b"behind", key="a", priority=1)
    topic.put(b"unread", key="c")
    fill_the_disk()
    found = [message.body for message in other.get_many(9, timeout=0)]
    assert found == [b"given back", b"unread"]
    assert other.get_many(1, timeout=0) == []


def test_a_message_that_failed_is_given_back_where_it_cannot_be_copied(group, fill_the_disk):
    """The handler's error went lost behind the Full of the nack."""
    fill_the_disk()
    with pytest.raises(ZeroDivisionError), group.consumer().get(timeout=0) as message:
        raise ZeroDivisionError
    with pytest.raises(diskq.AlreadySettled):
        message.ack()
    message = group.consumer().get(timeout=0)
    assert message.attempt == 1
    with pytest.raises(diskq.Full, match="kept for acks"):
        message.nack()
    message.ack()
