"""Every limit at -1, 0 and +1, and every wrong argument: its own error, and nothing changes."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import queue
import re

import pytest
from support.stores import nothing_changes

import diskq
from diskq.base import errors, limits

NAN, INFINITY = math.nan, math.inf


# Messages


@pytest.mark.parametrize("size", [limits.MAX_BODY_BYTES - 1, limits.MAX_BODY_BYTES])
def test_a_body_may_have_16_mib(topic, consumer, size):
    topic.put(bytes(size))
    topic.put_many([b"", bytes(size)])
    assert [len(m.body) for m in consumer.get_many(3, timeout=0)] == [size, 0, size]


def test_a_larger_body_is_refused(store, topic):
    body = bytes(limits.MAX_BODY_BYTES + 1)
    with nothing_changes(store):
        for call in (
            lambda: topic.put(body),
            lambda: topic.put(bytearray(body)),
            lambda: topic.put(body, key="k"),
            lambda: topic.put_many([b"", body]),
            lambda: topic.put_many([b"", diskq.Outgoing(body, "k")]),
        ):
            with pytest.raises(diskq.MessageTooLarge, match="body") as refused:
                call()
            assert refused.value.size == len(body)
            assert refused.value.limit == limits.MAX_BODY_BYTES


@pytest.mark.parametrize("text", ["k", "\u00e9"])
def test_a_key_may_have_1024_bytes(store, topic, text):
    most = limits.MAX_KEY_BYTES // len(text.encode())
    for count in 1, most - 1, most:
        topic.put(b"", key=text * count)
        assert list(topic.read())[-1].key == text * count
    with nothing_changes(store), pytest.raises(diskq.MessageTooLarge, match="key"):
        topic.put(b"", key=text * (most + 1))
    with nothing_changes(store), pytest.raises(diskq.MessageTooLarge, match="key"):
        topic.put_many([b"", diskq.Outgoing(b"", text * (most + 1))])


def test_an_empty_key_is_refused(store, topic):
    for call in (
        lambda: topic.put(b"", key=""),
        lambda: topic.put_many([diskq.Outgoing(b"", key="")]),
        lambda: store.transaction().put(topic, b"", key=""),
    ):
        with (
            nothing_changes(store),
            pytest.raises(ValueError, match="key must not be empty; leave"),
        ):
            call()


def test_a_message_may_have_64_headers(store, topic):
    for count in limits.MAX_HEADERS - 1, limits.MAX_HEADERS:
        headers = {str(number): "" for number in range(count)}
        topic.put(b"", headers=headers)
        assert list(topic.read())[-1].headers == headers
    headers["one more"] = ""
    with nothing_changes(store), pytest.raises(diskq.MessageTooLarge, match="headers") as refused:
        topic.put(b"", headers=headers)
    assert (refused.value.size, refused.value.limit) == (65, 64)


def test_headers_may_have_64_kib_together(store, topic):
    name = "n" * 100
    for over in -1, 0:
        headers = {name: "v" * (limits.MAX_HEADERS_BYTES - 100 + over)}
        topic.put(b"", headers=headers)
        assert list(topic.read())[-1].headers == headers
    headers = {name: "v" * (limits.MAX_HEADERS_BYTES - 150), "m" * 50: "v"}
    with nothing_changes(store), pytest.raises(diskq.MessageTooLarge, match="headers"):
        topic.put(b"", headers=headers)


def test_the_name_of_a_header_may_be_as_long_as_headers_may_be(topic):
    headers = {"n" * limits.MAX_HEADERS_BYTES: ""}
    topic.put(b"", headers=headers)
    assert next(topic.read()).headers == headers


def test_a_name_of_a_header_that_is_too_long_is_refused(store, topic):
    with nothing_changes(store), pytest.raises(diskq.MessageTooLarge, match="header"):
        topic.put(b"", headers={"n" * (limits.MAX_HEADERS_BYTES + 1): ""})


def test_a_batch_may_have_100_000_messages(store, topic):
    topic.put(b"")
    for count in limits.MAX_PUT_MESSAGES - 1, limits.MAX_PUT_MESSAGES:
        assert len(topic.put_many([b""] * count)) == count
    with nothing_changes(store), pytest.raises(diskq.MessageTooLarge, match="batch"):
        topic.put_many([b""] * (limits.MAX_PUT_MESSAGES + 1))


@pytest.mark.parametrize("key", [None, "k"])
def test_a_batch_may_have_so_many_bytes(store, topic, key, monkeypatch):
    monkeypatch.setattr(limits, "MAX_PUT_BYTES", 1000)
    for size in 999, 1000:
        batch = [bytes(500), bytes(size - 500)]
        topic.put_many([diskq.Outgoing(body, key) if key else body for body in batch])
    with nothing_changes(store), pytest.raises(diskq.MessageTooLarge, match="batch") as refused:
        topic.put_many([diskq.Outgoing(bytes(500), key), bytes(501)])
    assert (refused.value.size, refused.value.limit) == (1001, 1000)


@pytest.mark.parametrize(
    "body", ["text", None, 5, 1.5, ["a"], {"a": 1}, object(), True], ids=lambda body: repr(body)[:9]
)
def test_what_is_not_bytes_is_refused(store, topic, body):
    with nothing_changes(store):
        for call in (
            lambda: topic.put(body),
            lambda: topic.put(body, key="k"),
            lambda: topic.put_many([b"", body]),
            lambda: topic.put_many([diskq.Outgoing(body), b""]),
            lambda: topic.put_many([diskq.Outgoing(body, "k"), b""]),
        ):
            with pytest.raises(TypeError, match="bytes"):
                call()


def test_a_str_is_refused_with_a_hint(topic):
    with pytest.raises(TypeError, match=r"encode\(\)"):
        topic.put("text")


def test_an_outgoing_inside_of_an_outgoing_is_refused(store, topic):
    inner = diskq.Outgoing(b"", "key")
    with nothing_changes(store), pytest.raises(TypeError, match="bytes"):
        topic.put_many([diskq.Outgoing(inner, "key")])


def test_a_subclass_of_bytes_can_be_put(topic):
    class Mine(bytes):
        pass

    topic.put(Mine(b"a"))
    topic.put_many([Mine(b"b"), diskq.Outgoing(Mine(b"c"), "k")])
    assert [message.body for message in topic.read()] == [b"a", b"b", b"c"]


def test_the_body_of_an_outgoing_may_be_a_bytearray(topic):
    topic.put_many([diskq.Outgoing(bytearray(b"a"), "k"), diskq.Outgoing(bytearray(b"b"))])
    assert [message.body for message in topic.read()] == [b"a", b"b"]


def test_an_option_that_a_put_has_not_is_refused_with_those_it_has(store, topic):
    text = (
        "there is no option 'delay'; there are key, headers, priority, delay_seconds, at,"
        " ttl_seconds, dedup_id"
    )
    for call in topic.put, lambda *a, **options: store.transaction().put(topic, *a, **options):
        with nothing_changes(store), pytest.raises(TypeError) as refused:
            call(b"x", key="k", delay=5)
        assert str(refused.value) == text


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (b"bytes", "put_many takes a list of bodies, not bytes"),
        ("text", "put_many takes a list of bodies, not str"),
        (None, "put_many takes a list of bodies, not NoneType"),
        (5, "put_many takes a list of bodies, not int"),
        (diskq.Outgoing(b"a"), "put_many takes a list of bodies, not Outgoing"),
        (bytearray(b"bytes"), "a message body must be bytes, not int"),
    ],
)
def test_a_batch_that_is_no_list_of_bodies_is_refused(store, topic, batch, text):
    with nothing_changes(store), pytest.raises(TypeError) as refused:
        topic.put_many(batch)
    assert str(refused.value) == text


def test_numbers_out_of_range_are_told_in_plain_figures_with_their_units(topic, consumer):
    for call, text in (
        (lambda: consumer.get(timeout=-1), "timeout must be at least 0 seconds, not -1.0"),
        (
            lambda: topic.put(b"", delay_seconds=-1),
            "delay_seconds must be between 0 and 315360000 seconds, not -1.0",
        ),
        (
            lambda: topic.group("g", backoff=diskq.Backoff(1, 0)),
            "backoff factor must be between 1 and 1000, not 0.0",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            call()
    with pytest.raises(TypeError, match="backoff factor must be a number, not str"):
        topic.group("g", backoff=diskq.Backoff(1, "2"))


def test_an_iterable_that_raises_puts_nothing(store, topic):
    def bodies():
        yield b"a"
        raise RuntimeError("no more")

    with nothing_changes(store), pytest.raises(RuntimeError, match="no more"):
        topic.put_many(bodies())


@pytest.mark.parametrize("key", [b"k", 1, 1.5, ["k"]])
def test_a_key_that_is_not_str_is_refused(store, topic, key):
    with nothing_changes(store), pytest.raises(TypeError, match="key"):
        topic.put(b"", key=key)


@pytest.mark.parametrize(
    "headers", [{"a": 1}, {1: "a"}, {"a": b"b"}, [("a", "b")], "a", {"a": None}]
)
def test_headers_that_are_not_str_to_str_are_refused(store, topic, headers):
    with nothing_changes(store), pytest.raises(TypeError, match="header"):
        topic.put(b"", headers=headers)


def test_texts_that_are_not_unicode_are_refused(store, topic):
    odd = "\ud800"
    with nothing_changes(store):
        for options, what in (
            ({"key": odd}, "key"),
            ({"dedup_id": odd}, "dedup_id"),
            ({"headers": {odd: ""}}, "a header's name or value"),
            ({"headers": {"": odd}}, "a header's name or value"),
        ):
            text = re.escape(f"{what} {odd!r} is not text in UTF-8")
            with pytest.raises(ValueError, match=f"^{text}$"):
                topic.put(b"", **options)
        with pytest.raises(ValueError, match=r"key .* is not text"):
            topic.purge(key=odd)


# Names


NAMERS = {
    "topic": lambda store, name: store.topic(name),
    "queue": lambda store, name: store.queue(name),
    "delete": lambda store, name: store.delete_topic(name),
    "group": lambda store, name: store.topic("t").group(name),
    "consumer": lambda store, name: store.topic("t").group("g").consumer(name),
}
every_namer = pytest.mark.parametrize("call", NAMERS.values(), ids=NAMERS.keys())
GOOD_NAMES = ["a", "Z9", "_", "_.-", "a.b", "0", "a-b_c.d", "x" * 127, "x" * 128]
BAD_NAMES = ["", ".", "..", ".a", "-a", "a b", "a/b", "\u00e9", "a\n", "a\0", "a:b", "x" * 129]


@pytest.mark.parametrize("name", GOOD_NAMES, ids=lambda name: name[:9])
def test_good_names_are_taken(store, name):
    store.topic("t").group("g")
    for what, call in NAMERS.items():
        if what != "delete":
            assert (getattr(call(store, name), "name", None) or name) == name
    store.delete_topic(name)


@every_namer
@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name)[:9])
def test_bad_names_are_refused(store, call, name):
    store.topic("t").group("g")
    with nothing_changes(store), pytest.raises(ValueError, match="name"):
        call(store, name)


@every_namer
@pytest.mark.parametrize("name", [None, 5, b"a", ["a"]], ids=repr)
def test_names_that_are_not_str_are_refused(store, call, name):
    store.topic("t").group("g")
    if name is None and call is NAMERS["consumer"]:
        return  # a name is made then
    with nothing_changes(store), pytest.raises(TypeError, match="name"):
        call(store, name)


# Settings of a group


GOOD_SETTINGS = [
    ("lease_seconds", limits.MIN_LEASE_SECONDS),
    ("lease_seconds", 1),
    ("lease_seconds", limits.MAX_LEASE_SECONDS),
    ("max_deliveries", 1),
    ("max_deliveries", limits.MAX_DELIVERIES - 1),
    ("max_deliveries", limits.MAX_DELIVERIES),
    ("max_in_flight", 1),
    ("max_in_flight", limits.MAX_IN_FLIGHT - 1),
    ("max_in_flight", limits.MAX_IN_FLIGHT),
    ("backoff", diskq.Backoff(0, 1, 0)),
    ("backoff", diskq.Backoff(limits.MAX_DELAY_SECONDS, 1000, limits.MAX_DELAY_SECONDS)),
]
BAD_SETTINGS = [
    ("lease_seconds", ValueError, [0, 0.0009, -1, 7 * 86400 + 1, 7 * 86400.01, NAN, INFINITY]),
    ("lease_seconds", TypeError, ["1", True, [1], 1j]),
    ("max_deliveries", ValueError, [0, -1, limits.MAX_DELIVERIES + 1]),
    ("max_deliveries", TypeError, [1.0, "1", True]),
    ("max_in_flight", ValueError, [0, -1, limits.MAX_IN_FLIGHT + 1]),
    ("max_in_flight", TypeError, [1.0, "1", True]),
    ("backoff", TypeError, [1, (1, 2, 3), "1", diskq.Backoff("1"), diskq.Backoff(1, None)]),
    (
        "backoff",
        ValueError,
        [
            diskq.Backoff(-1),
            diskq.Backoff(NAN),
            diskq.Backoff(limits.MAX_DELAY_SECONDS + 1),
            diskq.Backoff(1, 0.9),
            diskq.Backoff(1, 1000.1),
            diskq.Backoff(1, 2, -1),
            diskq.Backoff(1, 2, limits.MAX_DELAY_SECONDS + 1),
            diskq.Backoff(1, 2, INFINITY),
        ],
    ),
    ("start", ValueError, [-1, 2**64]),
    ("start", (TypeError, ValueError), ["", "first", "Earliest"]),
    ("start", TypeError, [None, 1.5, True, b"earliest", [1]]),
]


@pytest.mark.parametrize(("name", "value"), GOOD_SETTINGS)
def test_settings_at_their_limits_are_taken(topic, name, value):
    assert getattr(topic.group("g", **{name: value}).settings, name) == value


@pytest.mark.parametrize(
    ("name", "error", "value"),
    [(name, error, value) for name, error, values in BAD_SETTINGS for value in values],
)
def test_settings_beyond_their_limits_are_refused(store, topic, name, error, value):
    topic.put(b"")
    with nothing_changes(store), pytest.raises(error, match=name):
        topic.group("g", **{name: value})
    if name != "start":
        topic.group("g")
        with nothing_changes(store), pytest.raises(error, match=name):
            topic.group("g", **{name: value})


def test_a_start_may_be_an_offset_up_to_the_end(store, topic):
    topic.put_many([b"", b""])
    for start in 0, 1, 2:
        topic.group(f"g{start}", start=start)
    for start in 3, 2**56 - 1, 2**56, 2**64 - 1:
        text = f"offset {start} is beyond the end of topic 'mail', which is 2"
        with nothing_changes(store), pytest.raises(ValueError, match=text):
            topic.group("g", start=start)


@pytest.mark.parametrize("setting", ["retention", "priority", "prefetch"])
def test_settings_that_do_not_exist_are_refused(topic, setting):
    with pytest.raises(TypeError, match=setting):
        topic.group("g", **{setting: 1})


# Calls on messages and consumers


@pytest.mark.parametrize("seconds", [0, 0.5, limits.MAX_DELAY_SECONDS])
def test_delays_of_a_nack_at_their_limits_are_taken(topic, group, consumer, seconds):
    topic.put(b"")
    consumer.get_nowait().nack(seconds)
    assert group.stats().waiting == 1


@pytest.mark.parametrize("seconds", [-0.001, -1, limits.MAX_DELAY_SECONDS + 1, NAN, INFINITY])
def test_delays_of_a_nack_beyond_their_limits_are_refused(store, topic, consumer, seconds):
    topic.put(b"")
    message = consumer.get_nowait()
    with nothing_changes(store), pytest.raises(ValueError, match="delay_seconds"):
        message.nack(seconds)
    message.ack()


@pytest.mark.parametrize("seconds", [limits.MIN_LEASE_SECONDS, 1, limits.MAX_LEASE_SECONDS])
def test_extensions_at_their_limits_are_taken(topic, consumer, clock, seconds):
    topic.put(b"")
    message = consumer.get_nowait()
    message.extend(seconds)
    assert message.deadline == pytest.approx(clock.monotonic / 1e9 + seconds)


@pytest.mark.parametrize("seconds", [-1, 0, 0.0009, limits.MAX_LEASE_SECONDS + 1, NAN, INFINITY])
def test_extensions_beyond_their_limits_are_refused(store, topic, consumer, seconds):
    topic.put(b"")
    message = consumer.get_nowait()
    with nothing_changes(store), pytest.raises(ValueError, match="seconds"):
        message.extend(seconds)


def test_arguments_of_messages_of_a_wrong_type_are_refused(store, topic, consumer):
    topic.put(b"")
    message = consumer.get_nowait()
    with nothing_changes(store):
        for call in (
            lambda: message.nack("1"),
            lambda: message.nack(True),
            lambda: message.nack(error=5),
            lambda: message.nack(error=ValueError("not a text")),
            lambda: message.reject(5),
            lambda: message.reject(None),
            lambda: message.extend("1"),
            lambda: message.extend(True),
        ):
            with pytest.raises(TypeError):
                call()
    message.ack()


@pytest.mark.parametrize("n", [1, 2, limits.MAX_GET_MESSAGES - 1, limits.MAX_GET_MESSAGES])
def test_get_many_takes_up_to_10_000(topic, consumer, n):
    topic.put_many([b""] * (limits.MAX_GET_MESSAGES + 1))
    assert len(consumer.get_many(n, timeout=0)) == n


@pytest.mark.parametrize(
    ("n", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (limits.MAX_GET_MESSAGES + 1, ValueError),
        (1.0, TypeError),
        ("1", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_get_many_refuses_other_numbers(store, topic, consumer, n, error):
    topic.put(b"")
    with nothing_changes(store), pytest.raises(error, match="n must"):
        consumer.get_many(n)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [(-0.1, ValueError), (NAN, ValueError), ("1", TypeError), (True, TypeError)],
)
def test_wrong_timeouts_are_refused_at_once(store, topic, consumer, timeout, error):
    for _ in range(2):
        with nothing_changes(store), pytest.raises(error, match="timeout"):
            consumer.get(timeout=timeout)
        with nothing_changes(store), pytest.raises(error, match="timeout"):
            consumer.get_many(1, timeout=timeout)
        topic.put(b"")


def test_a_timeout_may_be_without_end(topic, consumer):
    topic.put_many([b"", b""])
    assert consumer.get(timeout=INFINITY).offset == 0
    assert consumer.get(timeout=10**9).offset == 1


def test_a_time_too_large_for_a_float_is_refused(topic, group, consumer):
    topic.put(b"")
    with pytest.raises(ValueError, match="timeout"):
        consumer.get(timeout=10**400)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"limit": -1}, ValueError),
        ({"limit": 1.0}, TypeError),
        ({"limit": "1"}, TypeError),
        ({"offsets": [-1]}, ValueError),
        ({"offsets": ["1"]}, TypeError),
        ({"offsets": [2**64]}, ValueError),
        ({"offsets": 5}, TypeError),
    ],
)
def test_wrong_arguments_of_redrive_are_refused(store, topic, group, consumer, options, error):
    topic.put(b"")
    consumer.get_nowait().reject()
    with nothing_changes(store), pytest.raises(error):
        group.redrive(**options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"start": -1}, ValueError),
        ({"start": "0"}, ValueError),
        ({"stop": -1}, ValueError),
        ({"stop": 1.5}, TypeError),
        ({"limit": -1}, ValueError),
        ({"limit": True}, TypeError),
    ],
)
def test_wrong_arguments_of_read_are_refused(topic, options, error):
    with pytest.raises(error):
        list(topic.read(**options))


# The store


@pytest.mark.parametrize("size", [limits.MIN_STORE_BYTES, limits.MIN_STORE_BYTES + 1, limits.TIB])
def test_max_bytes_at_its_limits_is_taken(tmp_path, size):
    with diskq.open(tmp_path / "s", max_bytes=size) as store:
        assert store.stats().limit_bytes == size
        store.queue("q").put(b"")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_bytes": limits.MIN_STORE_BYTES - 1}, ValueError),
        ({"max_bytes": limits.TIB + 1}, ValueError),
        ({"max_bytes": 0}, ValueError),
        ({"max_bytes": -1}, ValueError),
        ({"max_bytes": 1e9}, TypeError),
        ({"max_bytes": "4 MiB"}, TypeError),
        ({"durability": "fsync"}, ValueError),
        ({"durability": ""}, ValueError),
        ({"durability": 1}, ValueError),
    ],
)
def test_wrong_arguments_of_open_are_refused_and_create_nothing(tmp_path, options, error):
    with pytest.raises(error):
        diskq.open(tmp_path / "s", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [None, 5, ["a"]])
def test_paths_of_a_wrong_type_are_refused(path):
    with pytest.raises(TypeError, match=r"[pP]ath"):
        diskq.open(path)


# Backoff


def test_a_backoff_grows_by_its_factor_up_to_its_maximum():
    backoff = diskq.Backoff(1, 2, 300)
    seconds = [backoff.delay_ns(failures) / 1e9 for failures in range(1, 12)]
    assert seconds == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert diskq.Backoff(0).delay_ns(1) == diskq.Backoff(0).delay_ns(9) == 0
    assert diskq.Backoff(5, 1, 4).delay_ns(1) == 4_000_000_000
    assert diskq.Backoff(0.001, 1).delay_ns(7) == 1_000_000


def test_a_backoff_can_be_asked_about_any_number_of_failures():
    assert diskq.Backoff(1, 2, 300).delay_ns(limits.MAX_DELIVERIES) == 300 * 10**9
    assert diskq.Backoff(1, 1000, 300).delay_ns(limits.MAX_DELIVERIES) == 300 * 10**9


def test_a_backoff_of_0_stays_0_after_any_number_of_failures():
    assert diskq.Backoff(0).delay_ns(limits.MAX_DELIVERIES) == 0


# Errors


ERRORS = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, diskq.DiskqError)
]


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("copier", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_errors_keep_their_text_and_attributes_when_pickled(kind, copier):
    error = kind("what happened", offset=5, topic="t")
    again = copier(error)
    assert type(again) is kind
    assert str(again) == "what happened"
    assert (again.offset, again.topic) == (5, "t")


def test_every_error_is_public():
    assert {kind.__name__ for kind in ERRORS} <= set(diskq.__all__)


def test_empty_and_full_are_those_of_the_standard_library():
    assert issubclass(diskq.Empty, queue.Empty)
    assert issubclass(diskq.Full, queue.Full)


def test_real_errors_pickle_too(store, topic, group, consumer, clock):
    topic.put(b"")
    message = consumer.get_nowait()
    clock.advance(10)
    group.consumer().get_nowait()
    with pytest.raises(diskq.LeaseLost) as lost:
        message.ack()
    again = pickle.loads(pickle.dumps(lost.value))
    assert vars(again) == vars(lost.value)
    assert again.token == message.token
