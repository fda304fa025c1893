"""A consumer that was stopped past its lease settles nothing any more, not one byte (G6)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.roles.deliveries import VERBS
from support.workers import Worker

import diskq
from diskq import Backoff

LEASE_SECONDS = 0.2


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A store whose leases are short; not checked at the end, for a test here breaks it."""
    path = str(tmp_path / "store")
    with diskq.open(path, durability="process") as store:
        topic = store.topic("q")
        topic.group("default", lease_seconds=LEASE_SECONDS, backoff=Backoff(0.0))
        topic.put_many([verb.encode() for verb in VERBS])
    return path


@pytest.fixture
def store(path: str) -> Iterator[diskq.Store]:
    """The store, open in the test's process too."""
    with diskq.open(path) as store:
        yield store


def take_over(store: diskq.Store, zombie: Worker) -> list[diskq.Message]:
    """Stop a consumer until another one has all of its messages."""
    zombie.hear("holding")
    zombie.stop()
    consumer = store.queue("q").consumer("successor")
    messages: list[diskq.Message] = []
    while len(messages) < len(VERBS):
        message = consumer.get(timeout=30)
        message.extend(600)
        messages.append(message)
    zombie.wake()
    return messages


def changed_by(store: diskq.Store, zombie: Worker, verb: str) -> tuple[str, bool]:
    """How a zombie's settle ends, and whether a single byte of the file is different then."""
    file = Path(store.path, "data.mdb")
    before = file.read_bytes()
    zombie.tell(verb)
    outcome = zombie.hear("settled")["outcome"]
    return outcome, file.read_bytes() != before


def test_a_zombie_changes_nothing_while_another_holds_its_messages(store, path, start):
    zombie = start("outlive_lease", path=path)
    messages = take_over(store, zombie)
    outcomes = {verb: changed_by(store, zombie, verb) for verb in VERBS}
    assert outcomes == dict.fromkeys(VERBS, ("LeaseLost", False))
    for message in messages:
        message.ack()
    assert list(store.verify()) == []


def test_a_zombie_changes_nothing_after_its_messages_were_acked(store, path, start):
    zombie = start("outlive_lease", path=path)
    for message in take_over(store, zombie):
        message.ack()
    store.topic("q").put(b"ready for the zombie's next step")
    outcomes = {verb: changed_by(store, zombie, verb) for verb in VERBS}
    assert outcomes == dict.fromkeys(VERBS, ("LeaseLost", False))
    assert store.queue("q").group.stats().unread == 1
    assert list(store.verify()) == []


def test_a_zombie_changes_nothing_after_its_messages_went_back(store, path, start):
    zombie = start("outlive_lease", path=path)
    for message in take_over(store, zombie):
        message.nack(delay_seconds=600)
    outcomes = {verb: changed_by(store, zombie, verb) for verb in VERBS}
    assert outcomes == dict.fromkeys(VERBS, ("LeaseLost", False))
    assert list(store.verify()) == []


def test_tokens_rise_from_the_zombie_to_its_successor(store, path, start):
    zombie = start("outlive_lease", path=path)
    messages = take_over(store, zombie)
    tokens = zombie.tellings[-1]["tokens"]
    for message in messages:
        assert message.token > tokens[message.body.decode()]


def test_a_lease_past_its_deadline_that_nobody_took_over_is_still_valid(store, path, start):
    zombie = start("outlive_lease", path=path)
    zombie.hear("holding")
    zombie.stop()
    successor = store.queue("q").consumer()
    deadline_passed = successor.get(timeout=30)  # all of the zombie's leases end at one time
    assert deadline_passed.attempt == 2
    zombie.wake()


def test_an_ack_without_its_token_check_would_be_noticed(store, path, start):
    """Negative control."""
    zombie = start("outlive_lease", path=path)
    take_over(store, zombie)
    assert changed_by(store, zombie, "careless ack") == ("success", True)
    assert list(store.verify())
