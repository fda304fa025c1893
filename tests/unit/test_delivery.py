"""One delivery: leased, then acked, failed, given back, extended, or lost."""

from __future__ import annotations

from contextlib import suppress

import pytest
from support.clock import NS
from support.stores import bodies, commits, dump, nothing_changes, offsets

import diskq

VERBS = {
    "ack": lambda message: message.ack(),
    "nack": lambda message: message.nack(),
    "reject": lambda message: message.reject(),
    "release": lambda message: message.release(),
    "extend": lambda message: message.extend(),
    "ack_many": lambda message: message.member.ack_many([message]),
}
every_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
SETTLING = {name: verb for name, verb in VERBS.items() if name != "extend"}
every_settling = pytest.mark.parametrize("verb", SETTLING.values(), ids=SETTLING.keys())


def test_a_message_goes_to_one_consumer_of_a_group_and_to_every_group(topic, group):
    topic.put(b"a")
    first, second = group.consumer(), group.consumer()
    other = topic.group("others").consumer()
    assert first.get_nowait().body == b"a"
    with pytest.raises(diskq.Empty):
        second.get_nowait()
    assert other.get_nowait().body == b"a"


def test_a_message_knows_where_it_comes_from(topic, consumer, clock):
    topic.put(b"body", key="key", headers={"a": "b"})
    message = consumer.get_nowait()
    assert (message.topic, message.group, message.offset) == ("mail", "workers", 0)
    assert (message.body, message.key, message.headers) == (b"body", "key", {"a": "b"})
    assert message.put_at_ns == clock.wall
    assert message.attempt == 1
    assert message.deadline == pytest.approx(clock.monotonic / NS + 10)
    assert repr(message) == "<Message mail/0 attempt 1 4 bytes>"


def test_an_acked_message_is_gone(topic, group, consumer):
    topic.put(b"a")
    consumer.get_nowait().ack()
    with pytest.raises(diskq.Empty):
        consumer.get_nowait()
    stats = group.stats()
    assert (stats.lag, stats.acked, stats.delivered, stats.failed) == (0, 1, 1, 0)


def test_a_nacked_message_waits_for_the_backoff_and_is_charged(topic, clock):
    group = topic.group("g", backoff=diskq.Backoff(2, 3, 10), max_deliveries=9)
    consumer = group.consumer()
    topic.put(b"a")
    for attempt, seconds in enumerate((2, 6, 10, 10), 1):
        message = consumer.get_nowait()
        assert message.attempt == attempt
        message.nack()
        clock.advance(seconds - 0.001)
        assert consumer.get_many(1, timeout=0) == []
        assert group.stats().waiting == 1
        clock.advance(0.001)


def test_a_nack_can_say_how_long_to_wait(topic, consumer, clock):
    topic.put(b"a")
    consumer.get_nowait().nack(delay_seconds=7.5)
    clock.advance(7.4)
    assert consumer.get_many(1, timeout=0) == []
    clock.advance(0.1)
    assert consumer.get_nowait().attempt == 2


def test_a_waiting_message_lets_those_behind_it_pass(topic, consumer, clock):
    topic.put_many([b"a", b"b"])
    consumer.get_nowait().nack(delay_seconds=5)
    message = consumer.get_nowait()
    assert message.body == b"b"
    message.ack()
    clock.advance(5)
    assert consumer.get_nowait().body == b"a"


def test_retries_that_are_due_come_before_what_was_never_delivered(topic, consumer):
    topic.put_many([b"a", b"b", b"c"])
    first, second = consumer.get_many(2, timeout=0)
    second.nack()
    first.nack()
    assert bodies(consumer.get_many(3, timeout=0)) == [b"a", b"b", b"c"]


def test_retries_come_in_the_order_of_their_time(topic, consumer, clock):
    topic.put_many([b"a", b"b", b"c"])
    first, second, third = consumer.get_many(3, timeout=0)
    first.nack(delay_seconds=3)
    second.nack(delay_seconds=1)
    third.nack(delay_seconds=2)
    clock.advance(4)
    assert bodies(consumer.get_many(3, timeout=0)) == [b"b", b"c", b"a"]


def test_a_released_message_returns_to_its_place_and_is_not_charged(topic, group, consumer):
    topic.put_many([b"a", b"b", b"c", b"d"])
    _, second, third = consumer.get_many(3, timeout=0)
    third.release()
    second.release()
    assert group.stats().ready == 2
    again = consumer.get_many(1, timeout=0) + consumer.get_many(9, timeout=0)
    assert bodies(again) == [b"b", b"c", b"d"]
    assert {message.attempt for message in again} == {1}
    assert group.stats().failed == 0
    assert group.stats().redelivered == 2


def test_a_released_retry_keeps_its_attempts(topic, consumer):
    topic.put(b"a")
    consumer.get_nowait().nack(error="one")
    consumer.get_nowait().release()
    message = consumer.get_nowait()
    assert message.attempt == 2
    message.nack(error="two")
    assert consumer.get_nowait().attempt == 3


def test_a_rejected_message_is_dead_at_once(topic, group, consumer, clock):
    topic.put(b"a", key="k", headers={"h": "v"})
    put_at = clock.wall
    clock.advance(1)
    consumer.get_nowait().reject("cannot be read")
    (letter,) = group.dead()
    assert letter == diskq.DeadLetter(
        offset=0,
        body=b"a",
        key="k",
        headers={"h": "v"},
        put_at_ns=put_at,
        dead_at_ns=clock.wall,
        reason="rejected",
        error="cannot be read",
        failures=1,
        history=(diskq.Failure(clock.wall, "reject", "ca", "cannot be read"),),
    )
    assert consumer.get_many(1, timeout=0) == []
    assert (group.stats().dead, group.stats().lag) == (1, 0)


def test_the_last_delivery_that_fails_makes_a_dead_letter_in_the_same_commit(
    store, topic, group, consumer
):
    topic.put(b"a")
    for attempt in range(2):
        consumer.get_nowait().nack(error=f"error {attempt}")
    last = consumer.get_nowait()
    before = commits(store)
    last.nack(error="error 2")
    assert commits(store) == before + 1
    (letter,) = group.dead()
    assert (letter.reason, letter.error, letter.failures) == ("max_deliveries", "error 2", 3)
    assert [entry.error for entry in letter.history] == ["error 0", "error 1", "error 2"]
    assert {entry.cause for entry in letter.history} == {"nack"}
    assert {entry.consumer for entry in letter.history} == {"ca"}


def test_what_one_group_gave_up_another_still_gets(topic, consumer):
    topic.put(b"a")
    consumer.get_nowait().reject()
    assert topic.group("other").consumer().get_nowait().attempt == 1


def test_history_keeps_the_latest_32_entries(topic):
    group = topic.group("g", max_deliveries=40, backoff=diskq.Backoff(0))
    consumer = group.consumer()
    topic.put(b"a")
    for number in range(40):
        consumer.get_nowait().nack(error=f"error {number}")
    (letter,) = group.dead()
    assert letter.failures == 40
    assert [entry.error for entry in letter.history] == [f"error {n}" for n in range(8, 40)]


def test_error_texts_are_cut_at_2000_characters(topic, group, consumer):
    topic.put_many([b"a", b"b"])
    consumer.get_nowait().reject("\xe4" * 1800 + "x" * 201)
    consumer.get_nowait().reject("\xe4" * 1800 + "x" * 199)
    errors = ["\xe4" * 1800 + "x" * 200, "\xe4" * 1800 + "x" * 199]
    assert [letter.error for letter in group.dead()] == errors


def test_any_text_can_be_an_error(topic, group, consumer):
    topic.put(b"a")
    consumer.get_nowait().reject("zero \0 and\nlines")
    assert next(group.dead()).error == "zero \0 and\nlines"


def test_an_exception_that_names_an_odd_file_is_kept_too(topic, group, consumer):
    topic.put(b"a")
    with suppress(OSError, UnicodeError), consumer.get_nowait():
        raise OSError("no such file: \udcff.txt")  # as Python reads a name that is not UTF-8
    assert group.stats().failed == 1


# Batches


def test_a_batch_is_leased_in_one_commit_and_settled_one_by_one(store, topic, group, consumer):
    topic.put_many([b"%d" % number for number in range(6)])
    before = commits(store)
    batch = consumer.get_many(6, timeout=0)
    assert commits(store) == before + 1
    batch[0].ack()
    batch[4].reject()
    batch[2].release()
    batch[1].nack(delay_seconds=9)
    stats = group.stats()
    assert (stats.acked, stats.dead, stats.ready, stats.waiting, stats.leased) == (1, 1, 1, 1, 2)
    consumer.ack_many([batch[5], batch[3]])
    assert group.stats().leased == 0
    assert offsets(consumer.get_many(9, timeout=0)) == [2]


def test_get_many_returns_what_there_is(topic, consumer):
    assert consumer.get_many(5, timeout=0) == []
    topic.put_many([b"a", b"b"])
    assert bodies(consumer.get_many(5, timeout=0)) == [b"a", b"b"]


def test_ack_many_is_one_commit(store, topic, group, consumer):
    topic.put_many([b""] * 50)
    messages = [consumer.get_nowait() for _ in range(50)]
    before = commits(store)
    consumer.ack_many(messages)
    assert commits(store) == before + 1
    assert group.stats().acked == 50


def test_ack_many_acks_all_or_none(store, topic, group, consumer, clock):
    topic.put_many([b"a", b"b", b"c"])
    early = consumer.get_nowait()
    clock.advance(6)
    late = consumer.get_nowait()
    clock.advance(6)
    taken = group.consumer().get_nowait()
    assert taken.offset == early.offset
    for order in [late, early], [early, late]:
        with nothing_changes(store), pytest.raises(diskq.LeaseLost) as lost:
            consumer.ack_many(order)
        assert lost.value.offset == early.offset
    late.ack()


def test_ack_many_refuses_what_is_settled_twice_or_not_its_own(store, topic, group, consumer):
    topic.put_many([b"a", b"b", b"c"])
    first, second = consumer.get_many(2, timeout=0)
    others = group.consumer().get_nowait()
    first.ack()
    for messages, error in (
        ([second, first], diskq.AlreadySettled),
        ([second, second], diskq.AlreadySettled),
        ([second, others], ValueError),
        ([second, "message"], TypeError),
        (second, TypeError),
    ):
        with nothing_changes(store), pytest.raises(error):
            consumer.ack_many(messages)
    second.ack()


# Iteration


def test_iterating_acks_a_message_in_the_commit_that_leases_the_next(store, topic, group, consumer):
    topic.put_many([b"%d" % number for number in range(4)])
    seen = []
    before = commits(store)
    for message in consumer:
        assert commits(store) == before + 1
        before += 1
        stats = group.stats()
        assert (stats.leased, stats.acked) == (1, len(seen))
        seen.append(message.body)
        if len(seen) == 4:
            break
    assert seen == [b"0", b"1", b"2", b"3"]
    assert (group.stats().leased, group.stats().acked) == (1, 3)


def test_iterating_does_not_ack_what_the_body_settled(topic, group, consumer):
    topic.put_many([b"a", b"b", b"c"])
    for message in consumer:
        if message.body == b"a":
            message.reject()
        elif message.body == b"b":
            message.nack(delay_seconds=5)
        else:
            break
    stats = group.stats()
    assert (stats.dead, stats.waiting, stats.leased, stats.acked) == (1, 1, 1, 0)


def test_an_exception_in_a_loop_leaves_its_message_unsettled(topic, group, consumer):
    topic.put(b"a")

    def loop():
        for _ in consumer:
            raise ValueError("in the body")

    with pytest.raises(ValueError, match="body"):
        loop()
    assert group.stats().leased == 1


def test_a_loop_whose_lease_was_lost_goes_on_and_acks_nothing(store, topic, group, consumer, clock):
    topic.put_many([b"a", b"b"])
    loop = iter(consumer)
    lost = next(loop)
    clock.advance(11)
    taken = group.consumer().get_nowait()
    before = commits(store)
    assert next(loop).body == b"b"
    assert commits(store) == before + 1
    assert (lost.settled, group.stats().acked) == (False, 0)
    taken.ack()


def test_a_loop_ends_when_its_consumer_is_closed(topic, group, consumer):
    topic.put_many([b"a", b"b"])
    seen = []
    for message in consumer:
        seen.append(message.body)
        consumer.close()
    assert seen == [b"a"]
    assert group.stats().lag == 2


# With


def test_with_acks_on_success_and_nacks_with_the_error_on_failure(topic, group, consumer):
    topic.put_many([b"a", b"b"])
    with consumer.get_nowait() as message:
        assert message.body == b"a"
    with pytest.raises(ValueError, match="bad"), consumer.get_nowait():
        raise ValueError("bad body")
    with pytest.raises(ValueError, match="bad"), consumer.get_nowait():
        raise ValueError("bad body")
    with pytest.raises(ValueError, match="bad"), consumer.get_nowait():
        raise ValueError("bad body")
    (letter,) = group.dead()
    assert (letter.offset, letter.error) == (1, "ValueError: bad body")
    assert group.stats().acked == 1


def test_with_leaves_a_message_alone_that_was_settled_inside(topic, group, consumer):
    topic.put(b"a")
    with consumer.get_nowait() as message:
        message.reject("no")
    assert group.stats().dead == 1


def test_an_interrupt_releases_the_message_uncharged(topic, group, consumer):
    topic.put(b"a")
    with pytest.raises(KeyboardInterrupt), consumer.get_nowait():
        raise KeyboardInterrupt
    assert (group.stats().ready, group.stats().failed) == (1, 0)


# Deadlines, fences, tokens


def test_a_lease_past_its_deadline_that_nobody_took_is_still_valid(topic, group, consumer, clock):
    topic.put(b"a")
    message = consumer.get_nowait()
    clock.advance(3600)
    message.extend()
    clock.advance(3600)
    message.ack()
    assert group.stats().acked == 1


@every_verb
def test_who_lost_a_lease_changes_not_one_byte(store, topic, group, consumer, clock, verb):
    topic.put_many([b"a", b"b"])
    message = consumer.get_nowait()
    clock.advance(10)
    taken = group.consumer("cb").get_nowait()
    assert taken.offset == message.offset
    for _ in range(2):
        with nothing_changes(store), pytest.raises(diskq.LeaseLost) as lost:
            verb(message)
        error = lost.value
        assert (error.topic, error.group, error.offset) == ("mail", "workers", 0)
        assert error.token == message.token < taken.token
    taken.ack()
    with nothing_changes(store), pytest.raises(diskq.LeaseLost):
        verb(message)


@every_verb
def test_who_lost_a_lease_over_a_batch_changes_not_one_byte(
    store, topic, group, consumer, clock, verb
):
    topic.put_many([b"a", b"b", b"c"])
    batch = consumer.get_many(3, timeout=0)
    batch[1].ack()
    clock.advance(10)
    group.consumer("cb").get_many(3, timeout=0)
    for message in batch[0], batch[2]:
        with nothing_changes(store), pytest.raises(diskq.LeaseLost):
            verb(message)


def test_a_passed_deadline_is_charged_with_the_name_of_who_missed_it(topic, group, consumer, clock):
    topic.put(b"a")
    for _ in range(3):
        consumer.get_nowait()
        clock.advance(10)
    assert consumer.get_many(1, timeout=0) == []
    (letter,) = group.dead()
    assert (letter.reason, letter.failures) == ("max_deliveries", 3)
    assert [(entry.cause, entry.consumer) for entry in letter.history] == [("expired", "ca")] * 3


def test_extending_moves_the_deadline_of_all_messages_of_a_batch(topic, group, consumer, clock):
    topic.put_many([b"a", b"b"])
    first, second = consumer.get_many(2, timeout=0)
    clock.advance(9)
    first.extend(20)
    assert first.deadline == second.deadline == pytest.approx(clock.monotonic / NS + 20)
    clock.advance(19)
    assert group.consumer().get_many(2, timeout=0) == []
    consumer.ack_many([first, second])
    assert group.stats().acked == 2


def test_extending_without_a_time_takes_that_of_the_group(topic, consumer, clock):
    topic.put(b"a")
    message = consumer.get_nowait()
    clock.advance(3)
    message.extend()
    assert message.deadline == pytest.approx(clock.monotonic / NS + 10)


def check_lease(consumer, clock, *steps):
    """A lease outlives steps of the wall clock by so many seconds, and ends in its own time."""
    consumer.group.topic.put_many([b"a", b"b"])
    message = consumer.get_nowait()
    left = consumer.get_nowait()
    for step in steps:
        clock.step_wall(step)
        assert consumer.group.consumer().get_many(1, timeout=0) == []
    message.ack()
    clock.advance(10)
    assert offsets(consumer.group.consumer().get_many(2, timeout=0)) == [left.offset]


def test_steps_of_the_wall_clock_do_not_touch_leases(consumer, clock):
    check_lease(consumer, clock, 10**6, -(10**7))


@pytest.mark.parametrize(
    ("step", "found"),
    [(10**6, r"bytes>\] == \[\]"), (-(10**7), r"\[\] == \[1\]")],
    ids=["forward", "back"],
)
def test_leases_that_go_by_the_wall_clock_are_found_out(consumer, clock, monkeypatch, step, found):
    """Negative control: with a step forward they end early, with one back late."""
    monkeypatch.setattr(clock, "monotonic_ns", clock.wall_ns)
    with pytest.raises(AssertionError, match=found):
        check_lease(consumer, clock, step)


def test_tokens_rise_and_never_repeat_even_after_reopening(open_store, clock):
    tokens = []
    for _ in range(3):
        with open_store() as store:
            topic = store.topic("mail")
            topic.put_many([b""] * 12)
            group = topic.group("g", backoff=diskq.Backoff(0), max_deliveries=100)
            consumer = group.consumer()
            for _ in range(4):
                batch = consumer.get_many(3, timeout=0) + consumer.get_many(1, timeout=0)
                tokens += [message.token for message in batch]
                batch[0].ack()
                batch[1].nack()
                batch[2].release()
                clock.advance(40)
    assert tokens == sorted(tokens)
    assert len(set(tokens)) == len(tokens)


@every_settling
def test_settling_twice_is_refused(store, topic, consumer, verb):
    topic.put_many([b"a", b"b"])
    message = consumer.get_nowait()
    verb(message)
    for again in VERBS.values():
        with nothing_changes(store), pytest.raises(diskq.AlreadySettled):
            again(message)


# max_in_flight


def test_no_more_than_max_in_flight_are_leased_at_once(topic):
    group = topic.group("g", max_in_flight=3, backoff=diskq.Backoff(60))
    topic.put_many([b""] * 9)
    one, two = group.consumer(), group.consumer()
    held = one.get_many(9, timeout=0)
    assert len(held) == 3
    assert two.get_many(9, timeout=0) == []
    held[0].ack()
    assert offsets(two.get_many(9, timeout=0)) == [3]
    held[1].nack()  # waiting messages are not in flight
    assert offsets(two.get_many(9, timeout=0)) == [4]
    assert group.stats().leased == 3


def test_iterating_works_with_one_message_in_flight(topic):
    group = topic.group("g", max_in_flight=1)
    topic.put_many([b"a", b"b", b"c"])
    seen = []
    for message in group.consumer():
        seen.append(message.body)
        if len(seen) == 3:
            break
    assert seen == [b"a", b"b", b"c"]


def test_statistics_equal_what_was_done(store, topic, group, consumer):
    topic.put_many([b""] * 10)
    a, b, c, d, _ = consumer.get_many(5, timeout=0)
    a.ack()
    b.nack(delay_seconds=60)
    c.release()
    d.reject()
    assert group.stats() == diskq.GroupStats(
        topic="mail",
        group="workers",
        lag=8,
        unread=5,
        ready=1,
        leased=1,
        waiting=1,
        parked=0,
        dead=1,
        acked=1,
        delivered=5,
        redelivered=0,
        failed=2,
        expired=0,
        dropped=0,
        purged=0,
        paused=False,
    )
    assert topic.stats().groups == (group.stats(),)
    assert topic.stats().put == 10
    assert store.stats().topics == (topic.stats(),)
    assert dump(store)["held"]


def test_a_message_that_a_consumer_has_twice_is_handled_once(store, topic, clock):
    """It was late with the first delivery, and handles the second beside it: should it die, that
    message is to blame, and nobody has to guess."""
    group = topic.group("late", lease_seconds=1, backoff=diskq.Backoff(0))
    topic.put(b"x")
    with group.consumer() as consumer:
        first = consumer.get_nowait()
        with suppress(diskq.LeaseLost), first:
            clock.advance(2)
            second = consumer.get_nowait()
            with second:
                [told] = [each.handling for each in store.stats().consumers]
        assert (told, second.attempt) == (0, 2)
