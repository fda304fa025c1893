"""put: when and whether a message is stored, of one message and of many."""

from __future__ import annotations

import json
import signal
import subprocess
from base64 import b64encode
from datetime import datetime
from typing import Any

import pytest

from diskq.base import limits


def lines(*records: Any) -> bytes:
    """Records as JSON, one a line."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def stored(shell: Any, topic: str = "mail") -> list[Any]:
    """The messages of a topic's log."""
    with shell.open() as store:
        return list(store.topic(topic).read())


# one message


def test_a_delayed_put_prints_its_schedule_id_and_when_it_is_due(shell: Any) -> None:
    topic, schedule_id, due, day, clock = shell.out("put", "mail", "x", "--delay", "10m").split()
    [record] = shell.json("schedule", "ls", "mail")
    assert (topic, schedule_id, due) == ("mail", record["schedule_id"], "due")
    shown = datetime.fromisoformat(f"{day} {clock}").timestamp()
    assert shown == record["due_ns"] // 10**9
    assert stored(shell) == []


def test_a_put_at_a_time_is_due_then(shell: Any) -> None:
    [receipt] = shell.json("put", "mail", "x", "--at", "2100-01-31T08:00Z")
    assert (receipt["offset"], receipt["due_ns"]) == (None, 4_105_065_600 * 10**9)
    assert "2100-01-31" in shell.out("put", "mail", "x", "--at", "2100-01-31T12:00")


def test_a_time_that_is_over_is_now(shell: Any) -> None:
    assert shell.out("put", "mail", "x", "--at", "2000-01-01") == "mail 0\n"


def test_a_second_put_with_the_same_id_says_that_it_was_one(shell: Any) -> None:
    assert shell.out("put", "mail", "x", "--dedup-id", "a") == "mail 0\n"
    assert shell.out("put", "mail", "y", "--dedup-id", "a") == "mail 0 duplicate\n"
    [receipt] = shell.json("put", "mail", "z", "--dedup-id", "a")
    assert (receipt["offset"], receipt["duplicate"]) == (0, True)
    assert [message.body for message in stored(shell)] == [b"x"]


def test_a_duplicate_of_a_scheduled_put_says_when_that_is_due(shell: Any) -> None:
    first = shell.out("put", "mail", "x", "--dedup-id", "a", "--delay", "1h")
    assert shell.out("put", "mail", "x", "--dedup-id", "a") == f"{first.rstrip()} duplicate\n"


def test_what_outlived_its_ttl_is_not_delivered(shell: Any) -> None:
    shell.fill()
    shell.run("put", "mail", "short", "--ttl", "1ms")
    shell.run("put", "mail", "long", "--ttl", "1d")
    assert shell.out("get", "mail", "-g", "workers", "-n", "5") == "long\n"
    assert shell.stats().expired == 1


def test_a_higher_priority_is_delivered_first(shell: Any) -> None:
    shell.run("topic", "create", "mail", "--priorities", "3")
    shell.run("group", "create", "mail", "workers")
    for priority in "021":
        shell.run("put", "mail", priority, "--priority", priority)
    assert shell.out("get", "mail", "-g", "workers", "-n", "5") == "2\n1\n0\n"


def test_a_put_with_a_priority_creates_nothing_and_says_what_would(shell: Any) -> None:
    said = shell.error("put", "mail", "x", "--priority", "2", code=1)
    assert "'diskq topic create mail --priorities 3'" in said
    assert not shell.store.exists()
    shell.run("topic", "create", "mail")
    for how in [], ["--lines"]:
        said = shell.error("put", "mail", "-", *how, "--priority", "2", input=b"x", code=2)
        assert said == (
            "diskq: priority 2 is over 0, the highest of topic 'mail';"
            " 'diskq topic set mail --priorities 3' gives it more\n"
        )
    shell.run("topic", "set", "mail", "--priorities", "3")
    shell.run("put", "mail", "x", "--priority", "2")


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--delay", "soon"], "'soon' is not a duration"),
        (["--delay", "4000d"], "Invalid value for '--delay': 4000d is over 3650d, the most"),
        (["--delay", "9" * 400], "is over 3650d, the most"),
        (["--at", "tomorrow"], "'tomorrow' is not a time"),
        (["--at", "latest"], "'latest' is not a time"),
        (["--at", "9999-12-31"], "between the years"),
        (["--at", "1960-01-01T00:00Z"], "between the years"),
        (["--delay", "1s", "--at", "2100-01-01"], "either --delay or --at"),
        (["--ttl", "0"], "'--ttl': 0 is below 1ms, the least"),
        (["--ttl", "4000d"], "'--ttl': 4000d is over 3650d, the most"),
        (["--priority", "-1"], "'--priority': -1 is not in the range 0<=x<=9"),
        (["--priority", "10"], "'--priority': 10 is not in the range 0<=x<=9"),
        (["--priority", "high"], "'high' is not a valid integer"),
        (["--dedup-id", b"\xff"], "'--dedup-id': '\\udcff' is not text in UTF-8"),
        (["--key", b"\xff"], "'--key': '\\udcff' is not text in UTF-8"),
        (["--header", b"a=\xff"], "header's name or value '\\udcff' is not text in UTF-8"),
        (["--dedup-id", ""], "'--dedup-id': it must not be empty; leave it out"),
        (["--key", ""], "'--key': it must not be empty; leave it out"),
        (["--wait", "long"], "'long' is not a duration"),
        (["--jsonl"], "only one of"),
    ],
)
def test_bad_options_are_one_line_and_create_nothing(
    shell: Any, options: list[str | bytes], hint: str
) -> None:
    assert hint in shell.error("put", "mail", "x", *options, code=2)
    assert not shell.store.exists()


def test_an_id_may_be_as_long_as_the_limit_and_not_longer(shell: Any) -> None:
    longest = "x" * limits.MAX_DEDUP_BYTES
    assert "over the limit" in shell.error("put", "mail", "x", "--dedup-id", f"{longest}x", code=1)
    assert not shell.store.exists()
    shell.run("put", "mail", "x", "--dedup-id", longest)


@pytest.mark.parametrize("how", ["--lines", "--null", "--jsonl"])
def test_one_id_for_many_messages_is_a_usage_error(shell: Any, how: str) -> None:
    said = shell.error("put", "mail", how, "--dedup-id", "a", input=b"x\ny\n", code=2)
    assert "--dedup-id is for one message" in said
    assert not shell.store.exists()


# a full topic


def test_a_full_topic_is_exit_code_75_at_once(shell: Any) -> None:
    shell.run("topic", "create", "mail", "--max-messages", "1")
    shell.run("put", "mail", "x")
    assert "topic 'mail' is full" in shell.error("put", "mail", "y", code=75)
    said = shell.error("put", "mail", "--lines", input=b"y\n", code=75)
    assert "stored before" not in said
    assert "full" in shell.error("put", "mail", "y", "--wait", "50ms", code=75)
    assert len(stored(shell)) == 1


@pytest.mark.parametrize(("how", "body"), [([], b"y"), (["--lines"], b"y\n")])
def test_with_wait_a_put_goes_on_when_there_is_room(
    shell: Any, how: list[str], body: bytes
) -> None:
    shell.run("topic", "create", "mail", "--max-messages", "1")
    shell.fill(b"x")
    put = shell.start("put", "mail", *how, "--wait", "1h", stdin=subprocess.PIPE)
    put.stdin.write(body)
    put.stdin.close()
    put.stdin = None
    assert shell.out("get", "mail", "-g", "workers") == "x\n"
    assert put.communicate()[0].startswith(b"mail 1")
    assert put.returncode == 0
    assert shell.out("get", "mail", "-g", "workers") == "y\n"


def test_ctrl_c_ends_the_waiting(shell: Any, eventually: Any) -> None:
    shell.run("topic", "create", "mail", "--max-messages", "2")
    put = shell.start("put", "mail", "--lines", "--wait", "1h", stdin=subprocess.PIPE)
    put.stdin.write(b"a\nb\n")
    put.stdin.flush()
    eventually(lambda: len(stored(shell)) == 2)
    put.stdin.write(b"c\n")
    put.stdin.flush()
    put.send_signal(signal.SIGINT)
    said = put.communicate()[1]
    assert said.startswith(b"diskq: interrupted")
    assert put.returncode == 130


def test_more_lines_than_a_topic_may_hold_are_stored_in_parts_as_there_is_room(
    shell: Any,
) -> None:
    settings = ["--retention", "limits", "--max-messages", "3", "--discard", "old"]
    shell.run("topic", "create", "mail", *settings)
    text = b"".join(b"%d\n" % number for number in range(100))
    assert shell.out("put", "mail", "--lines", input=text) == "mail 0-99 (100 messages)\n"
    assert shell.out("tail", "mail", "-n", "1") == "99\n"
    shell.run("topic", "create", "small", "--max-bytes", "4KiB")
    said = shell.error("put", "small", "--lines", input=b"x" * 5000 + b"\n", code=1)
    assert "raise the bound" in said


# many messages


@pytest.mark.parametrize(("how", "end"), [("--lines", b"\n"), ("--null", b"\0")])
def test_options_apply_to_each_of_many(shell: Any, how: str, end: bytes) -> None:
    said = shell.out("put", "mail", how, "--delay", "1h", "--key", "k", input=b"a" + end + b"b")
    assert said.startswith("mail 2 messages scheduled, the last due ")
    records = shell.json("schedule", "ls", "mail")
    assert [(record["body"], record["key"]) for record in records] == [("a", "k"), ("b", "k")]


def test_each_json_line_is_a_message_with_options_of_its_own(shell: Any) -> None:
    shell.run("topic", "create", "mail", "--priorities", "2")
    records = [
        {"body": "grüße", "key": "k", "headers": {"a": "b"}},
        {"body_base64": b64encode(b"\xff\0").decode(), "priority": 1},
        {"body": "", "key": None, "ttl_seconds": 60.5},
        {"body": "later", "delay_seconds": 3600},
        {"body": "then", "at": "2100-01-01T00:00Z"},
        {"body": "once", "dedup_id": "a"},
        {"body": "again", "dedup_id": "a"},
    ]
    receipts = shell.json("put", "mail", "--jsonl", input=lines(*records))
    assert [receipt["duplicate"] for receipt in receipts] == [False] * 6 + [True]
    assert [receipt["schedule_id"] is not None for receipt in receipts] == [
        *(False, False, False, True, True, False, False)
    ]
    assert receipts[4]["due_ns"] == 4_102_444_800 * 10**9
    first, second, third, fourth = stored(shell)
    assert (first.body, first.key, first.headers) == ("grüße".encode(), "k", {"a": "b"})
    assert (second.body, third.body, fourth.body) == (b"", b"once", b"\xff\0")
    assert fourth.priority == 1


def test_many_puts_are_summed_up_by_what_became_of_them(shell: Any) -> None:
    records = [{"body": "x", "dedup_id": name} for name in "abab"]
    said = shell.out(
        "put", "mail", "--jsonl", input=lines(*records, {"body": "y", "delay_seconds": 60})
    )
    assert said.startswith("mail 0-1 (2 messages), 1 message scheduled, the last due ")
    assert said.endswith(", 2 duplicates\n")


def test_options_are_what_a_json_line_does_not_have(shell: Any) -> None:
    text = lines({"body": "a"}, {"body": "b", "key": "own", "at": "2100-01-01T00:00Z"})
    shell.run("put", "mail", "--jsonl", "--key", "k", "--delay", "1h", input=text)
    first, second = shell.json("schedule", "ls", "mail")
    assert (first["body"], first["key"]) == ("a", "k")
    assert (second["body"], second["key"]) == ("b", "own")
    assert second["due_ns"] == 4_102_444_800 * 10**9


def test_empty_lines_are_no_messages(shell: Any) -> None:
    text = b"\n" + lines({"body": "a"}) + b" \r\n" + lines({"body": "b"})
    assert shell.out("put", "mail", "--jsonl", input=text) == "mail 0-1 (2 messages)\n"
    assert shell.out("put", "mail", "--jsonl", input=b"\n\n") == ""


@pytest.mark.parametrize("verb", [["peek"], ["get", "-g", "workers"]])
def test_what_peek_and_get_print_can_be_put_again(shell: Any, verb: list[str]) -> None:
    shell.fill(b"\xff")
    shell.run("put", "mail", "x", "--key", "k", "--header", "a=b")
    printed = shell.run(*verb, "mail", "-n", "9", "--json").stdout
    shell.run("put", "copy", "--jsonl", input=printed)
    one, two = stored(shell, "copy")
    assert one.body == b"\xff"
    assert (two.body, two.key, two.headers) == (b"x", "k", {"a": "b"})


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (b"hello", "not JSON"),
        (b'{"body":"x"', "not JSON"),
        (b'{"body":"x"}}', "not JSON"),
        (b'{"body":"\xff"}', "UTF-8"),
        (b'["x"]', "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"{}", "either 'body' or 'body_base64'"),
        (b'{"body":"x","body_base64":"eA=="}', "either 'body' or 'body_base64'"),
        (b'{"body":1}', "body must be str, not int"),
        (b'{"body":null}', "body must be str, not NoneType"),
        (b'{"body":"\\udc80"}', "body '\\udc80' is not text in UTF-8"),
        (b'{"body":"x","key":"\\udc80"}', "key '\\udc80' is not text in UTF-8"),
        (b'{"body":"x","key":""}', "key must not be empty"),
        (b'{"body_base64":"%%%"}', "Base64"),
        (b'{"body_base64":"gr\xc3\xbc"}', "Base64"),
        (b'{"body":"x","delay":5}', "there is no 'delay' in a message"),
        (b'{"body":"x","key":1}', "key must be str, not int"),
        (b'{"body":"x","headers":["a"]}', "headers must be a mapping"),
        (b'{"body":"x","headers":{"a":1}}', "must be str, not int"),
        (b'{"body":"x","priority":true}', "priority must be int"),
        (b'{"body":"x","priority":1}', "priority 1 is over 0"),
        (b'{"body":"x","delay_seconds":-1}', "delay_seconds must be between"),
        (b'{"body":"x","delay_seconds":NaN}', "delay_seconds must be between"),
        (b'{"body":"x","delay_seconds":1,"at":"2100-01-01"}', "not both"),
        (b'{"body":"x","at":5}', "at must be str, not int"),
        (b'{"body":"x","at":"soon"}', "'soon' is not a time"),
        (b'{"body":"x","ttl_seconds":"1h"}', "ttl_seconds must be a number"),
        (b'{"body":"x","dedup_id":7}', "dedup_id must be str"),
    ],
)
def test_a_bad_line_is_named_and_nothing_of_its_batch_is_stored(
    shell: Any, line: bytes, hint: str
) -> None:
    text = lines({"body": "good"}) + b"\n" + line + b"\n" + lines({"body": "good"})
    said = shell.error("put", "mail", "--jsonl", input=text, code=2)
    assert said.startswith("diskq: line 3: ")
    assert hint in said
    assert stored(shell) == []


def test_a_line_that_nests_too_deep_is_no_reason_for_a_traceback(shell: Any) -> None:
    said = shell.error("put", "mail", "--jsonl", input=b"[" * 200_000, code=2)
    assert said.startswith("diskq: line 1: it is not ")


def test_a_json_line_over_a_limit_is_named(shell: Any) -> None:
    largest = {"body": "x" * limits.MAX_BODY_BYTES}
    shell.run("put", "mail", "--jsonl", input=lines(largest))
    large = {"body": "x" * (limits.MAX_BODY_BYTES + 1)}
    said = shell.error("put", "mail", "--jsonl", input=lines({"body": "a"}, large), code=1)
    assert "line 2: body of" in said


def test_lines_of_earlier_batches_are_stored_and_their_number_goes_on(
    shell: Any, eventually: Any
) -> None:
    put = shell.start("put", "mail", "--jsonl", stdin=subprocess.PIPE)
    put.stdin.write(lines({"body": "a"}, {"body": "b"}))
    put.stdin.flush()
    eventually((shell.store / "data.mdb").exists)
    eventually(lambda: len(stored(shell)) == 2)
    said = put.communicate(b"nonsense\n")[1].decode()
    assert said.startswith("diskq: line 3: ")
    assert "stored before: 2 messages, the last at offset 1" in said
    assert put.returncode == 2
