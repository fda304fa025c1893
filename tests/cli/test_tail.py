"""tail, and peek from the end: the last messages, and those that come."""

from __future__ import annotations

import json
import signal
from datetime import datetime
from typing import Any

import pytest


def test_tail_prints_the_last_messages_and_takes_nothing(shell: Any) -> None:
    shell.fill(*[b"%d" % number for number in range(12)])
    assert shell.out("tail", "mail").split() == [str(number) for number in range(2, 12)]
    assert shell.out("tail", "mail", "-n", "2") == "10\n11\n"
    assert shell.out("tail", "mail", "-n", "99").count("\n") == 12
    assert shell.run("tail", "mail", "-n", "2", "--null").stdout == b"10\x0011\0"
    assert [record["offset"] for record in shell.json("tail", "mail", "-n", "2")] == [10, 11]
    assert shell.stats().unread == 12


def test_tail_from_a_place_prints_all_from_there_on(shell: Any) -> None:
    shell.fill(*[b"%d" % number for number in range(12)])
    assert shell.out("tail", "mail", "--from", "11") == "11\n"
    for start in ("earliest", "0", "2000-01-01"):
        assert shell.out("tail", "mail", "--from", start).count("\n") == 12
    for start in ("latest", "12", "2100-01-01"):
        assert "no stored message" in shell.error("tail", "mail", "--from", start, code=3)


def test_tail_is_in_order_of_time_whatever_the_priority(shell: Any) -> None:
    shell.run("topic", "create", "mail", "--priorities", "3")
    for body in "2010212":
        shell.run("put", "mail", body, "--priority", body)
    assert shell.out("tail", "mail").split() == list("2010212")
    assert shell.out("tail", "mail", "-n", "3").split() == list("212")
    assert shell.out("tail", "mail", "--from", "earliest").split() == list("2010212")
    fourth = shell.json("tail", "mail")[3]["put_at_ns"]
    since = datetime.fromtimestamp(fourth // 1000 / 1e6).isoformat()
    assert shell.out("tail", "mail", "--from", since).split() == list("0212")


def test_tail_goes_over_the_segments_of_a_long_log(shell: Any) -> None:
    text = b"".join(b"%d\n" % number for number in range(5000))
    shell.run("put", "mail", "--lines", input=text)
    said = shell.run("tail", "mail", "-n", "4321").stdout
    assert said == text[-len(said) :]
    assert said.count(b"\n") == 4321


def test_tail_of_an_empty_topic_is_exit_code_3(shell: Any) -> None:
    shell.run("topic", "create", "mail")
    assert "no stored message" in shell.error("tail", "mail", code=3)
    assert shell.out("tail", "mail", "-n", "0") == ""


def test_tail_follows_until_interrupted(shell: Any) -> None:
    shell.run("put", "mail", "--lines", input=b"a\nb\nc\n")
    tail = shell.start("tail", "mail", "-f", "-n", "2")
    assert tail.stdout.readline() + tail.stdout.readline() == b"b\nc\n"
    shell.run("put", "mail", "d")
    assert tail.stdout.readline() == b"d\n"
    shell.run("put", "mail", "--lines", input=b"e\nf\n")
    assert tail.stdout.readline() + tail.stdout.readline() == b"e\nf\n"
    tail.send_signal(signal.SIGINT)
    assert tail.communicate() == (b"", b"diskq: interrupted\n")
    assert tail.returncode == 130


@pytest.mark.parametrize(("start", "first"), [("earliest", b"a\n"), ("1", b"b\n")])
def test_tail_follows_from_a_place(shell: Any, start: str, first: bytes) -> None:
    shell.run("put", "mail", "--lines", input=b"a\nb\n")
    tail = shell.start("tail", "mail", "-f", "--from", start)
    assert tail.stdout.readline() == first


def test_what_comes_while_the_last_ones_are_printed_comes_once(shell: Any) -> None:
    shell.run("put", "mail", "--lines", input=b"".join(b"%d\n" % n for n in range(2000)))
    tail = shell.start("tail", "mail", "-f", "-n", "2000", "--json")
    assert json.loads(tail.stdout.readline())["offset"] == 0  # it saw where the end is
    shell.run("put", "mail", "--lines", input=b"".join(b"%d\n" % n for n in range(2000, 3000)))
    assert [json.loads(tail.stdout.readline())["offset"] for _ in range(2999)] == [*range(1, 3000)]


def test_tail_sees_what_falls_due(shell: Any) -> None:
    shell.run("put", "mail", "x")
    tail = shell.start("tail", "mail", "-f", "-n", "1")
    assert tail.stdout.readline() == b"x\n"
    shell.run("put", "mail", "due", "--delay", "200ms")
    assert tail.stdout.readline() == b"due\n"


def test_a_reader_who_has_seen_enough_ends_tail_silently(shell: Any) -> None:
    shell.run("put", "mail", "x")
    tail = shell.start("tail", "mail", "-f")
    assert tail.stdout.readline() == b"x\n"
    tail.stdout.close()
    shell.run("put", "mail", "y")
    assert tail.wait() == -signal.SIGPIPE
    assert tail.stderr.read() == b""


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["-n", "-1"], "not in the range"),
        (["-n", "1", "--from", "0"], "either -n or --from"),
        (["--from", "tomorrow"], "'tomorrow' is not a start"),
        (["-f", "--from", "2"], "offset 2 is beyond the end of topic 'mail', which is 1"),
    ],
)
def test_bad_options_of_tail_are_usage_errors(shell: Any, options: list[str], hint: str) -> None:
    shell.run("put", "mail", "x")
    assert hint in shell.error("tail", "mail", *options, code=2)


def test_peek_goes_backwards_from_the_last_one_or_from_an_offset(shell: Any) -> None:
    shell.run("put", "mail", "--lines", input=b"a\nb\nc\n")
    assert shell.out("peek", "mail", "--reverse") == "c\nb\na\n"
    assert shell.out("peek", "mail", "--reverse", "-n", "1") == "c\n"
    assert shell.out("peek", "mail", "--reverse", "--from", "1") == "b\na\n"
    assert shell.out("peek", "mail", "--reverse", "--from", "0") == "a\n"
    assert shell.out("peek", "mail", "--reverse", "--from", str(2**64 - 1), "-n", "1") == "c\n"
    assert "must be between" in shell.error("peek", "mail", "--from", str(2**65), code=2)


def test_peek_backwards_says_where_there_is_nothing(shell: Any) -> None:
    shell.fill(b"a", b"b")
    shell.run("get", "mail", "-g", "workers", "-n", "2")
    shell.run("trim", "mail")
    shell.run("put", "mail", "c")
    said = shell.error("peek", "mail", "--reverse", "--from", "1", code=3)
    assert "at offset 1 or below" in said
