"""put: what comes in."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from typing import Any

import pytest

import diskq
from diskq.base import limits
from diskq.cli import VERBS

FAMILIES = {place.partition(".")[0] for place, _ in VERBS.values()}


def test_the_first_put_creates_store_and_topic_and_prints_topic_and_offset(shell: Any) -> None:
    assert shell.out("put", "mail", "hello") == "mail 0\n"
    assert shell.out("put", "mail", "again") == "mail 1\n"
    assert shell.out("peek", "mail") == "hello\nagain\n"


def test_no_create_needs_the_store_and_the_topic(shell: Any) -> None:
    assert "no store at" in shell.error("put", "--no-create", "mail", "x", code=1)
    assert not shell.store.exists()
    shell.run("put", "other", "x")
    assert "topic create mail" in shell.error("put", "--no-create", "mail", "x", code=1)
    assert shell.out("put", "--no-create", "other", "x") == "other 1\n"


def test_a_body_from_stdin_is_stored_to_its_last_byte(shell: Any) -> None:
    bodies = [b"", b"\n", b"a\nb\n", bytes(range(256)), b"x" * 100_000]
    for body in bodies:
        shell.run("put", "mail", input=body)
    shell.run("put", "mail", "-", input=b"by a dash")
    with shell.open() as store:
        assert [m.body for m in store.topic("mail").read()] == [*bodies, b"by a dash"]


def test_a_closed_stdin_is_no_empty_message(shell: Any) -> None:
    closed = ["sh", "-c", 'exec <&-; exec "$@"', "sh", sys.executable, "-m", "diskq", "put", "mail"]
    done = subprocess.run(closed, env=shell.environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr[:21]) == (2, b"diskq: no body was gi")
    assert not shell.store.exists()


def test_an_argument_need_not_be_utf8_and_may_be_empty_or_begin_with_a_dash(shell: Any) -> None:
    shell.run("put", "mail", b"caf\xe9")
    shell.run("put", "mail", "")
    shell.run("put", "mail", "--", "--lines")
    assert shell.run("peek", "mail").stdout == b"caf\xe9\n\n--lines\n"


def test_each_line_is_a_message(shell: Any) -> None:
    said = shell.out("put", "mail", "--lines", input=b"one\n\n caf\xe9\r\nthree")
    assert said == "mail 0-3 (4 messages)\n"
    assert shell.run("peek", "mail", "--null").stdout == b"one\0\0 caf\xe9\r\0three\0"


def test_messages_may_end_with_a_nul(shell: Any) -> None:
    shell.run("put", "mail", "--null", input=b"a\nb\0c\0")
    assert shell.run("peek", "mail", "--null").stdout == b"a\nb\0c\0"


def test_no_lines_are_no_messages_and_no_error(shell: Any) -> None:
    assert shell.out("put", "mail", "--lines", input=b"") == ""


def test_more_lines_than_a_batch_are_all_stored_in_order(shell: Any) -> None:
    lines = b"".join(b"%d\n" % number for number in range(12_345))
    assert shell.out("put", "mail", "--lines", input=lines) == "mail 0-12344 (12345 messages)\n"
    assert shell.run("peek", "mail", "-n", "20000").stdout == lines


def test_a_line_is_stored_when_it_comes_not_when_the_input_ends(
    shell: Any, eventually: Any
) -> None:
    put = shell.start("put", "mail", "--lines", "--json", stdin=subprocess.PIPE)
    put.stdin.write(b"first\nsec")
    put.stdin.flush()
    eventually((shell.store / "data.mdb").exists)
    with shell.open() as store:
        assert eventually(lambda: [m.body for m in store.topic("mail").read()]) == [b"first"]
        put.stdin.write(b"ond\n")
        put.stdin.close()
        assert put.wait() == 0
        assert [m.body for m in store.topic("mail").read()] == [b"first", b"second"]


def test_key_and_headers_go_with_one_message_or_with_all(shell: Any) -> None:
    labels = ["--key", "k", "--header", "a=b=c", "--header", "d="]
    shell.run("put", "mail", "x", *labels)
    shell.run("put", "mail", "--lines", *labels, input=b"y\nz\n")
    for record in shell.json("peek", "mail"):
        assert (record["key"], record["headers"]) == ("k", {"a": "b=c", "d": ""})


def test_json_prints_a_receipt_for_each_message(shell: Any) -> None:
    [one] = shell.json("put", "mail", "x")
    assert (one["topic"], one["offset"]) == ("mail", 0)
    two, three = shell.json("put", "mail", "--lines", input=b"y\nz\n")
    assert (two["offset"], three["offset"]) == (1, 2)
    assert one["commit_id"] < two["commit_id"] == three["commit_id"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["mail", "body", "--lines"], "only one of"),
        (["mail", "--lines", "--null"], "only one of"),
        (["mail", "x", "--header", "novalue"], "NAME=VALUE"),
        (["mail", "x", "--header", "=value"], "NAME=VALUE"),
        (["mail", "x", "--header", "a=1", "--header", "a=2"], "twice"),
        (["mail", "x", "--key", b"\xff"], "UTF-8"),
        (["mail", "x", "--header", b"a=\xff"], "UTF-8"),
        (["mail", "x", "y"], "unexpected extra argument"),
        (["mail", "x", "--delai", "1"], "No such option"),
        (["mail", "-5"], "'-5'; write -- before a leading minus: diskq put TOPIC -- -5"),
        ([], "Missing argument"),
        (["a/b", "x"], "'a/b'"),
        (["", "x"], "topic name"),
        ([".hidden", "x"], "'.hidden'"),
        (["n" * 129, "x"], "129"),
    ],
)
def test_bad_arguments_are_one_line_and_change_nothing(
    shell: Any, arguments: list[str | bytes], hint: str
) -> None:
    assert hint in shell.error("put", *arguments, code=2)
    assert not shell.store.exists() or shell.out("topic", "ls").count("\n") == 1


def test_a_body_may_be_as_large_as_the_limit_and_not_one_byte_larger(shell: Any) -> None:
    shell.run("put", "mail", input=bytes(limits.MAX_BODY_BYTES))
    assert "over the limit" in shell.error(
        "put", "mail", input=bytes(limits.MAX_BODY_BYTES + 1), code=1
    )


def test_input_without_a_separator_is_refused_before_it_fills_the_memory(shell: Any) -> None:
    with open("/dev/zero", "rb") as zeros:
        endless = shell.start("put", "mail", "--lines", stdin=zeros)
    assert b"is the separator b'\\n' in the input" in endless.communicate()[1]
    assert endless.returncode == 1


def test_a_full_store_says_how_many_were_stored_before_and_to_try_later(shell: Any) -> None:
    diskq.open(shell.store, max_bytes=limits.MIN_STORE_BYTES).close()
    line = b"x" * 999 + b"\n"
    said = shell.error("put", "mail", "--lines", input=line * 8000, code=75)
    with shell.open() as store:
        stored = store.topic("mail").stats().put
    assert 0 < stored < 8000
    assert f"stored before: {stored} messages, the last at offset {stored - 1}" in said
    said = shell.error("put", "mail", input=bytes(2**20), code=75)
    assert "kept for settling; consume messages, trim or purge" in said


def test_a_put_does_not_import_what_it_does_not_need(shell: Any) -> None:
    code = """if True:
        import sys
        sys.argv = ["diskq", "put", "mail", "x"]
        before = set(sys.modules)
        try:
            from diskq.cli import main
            main()
        except SystemExit:
            print(*set(sys.modules) - before)
    """
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env=shell.environment, capture_output=True, text=True, check=True)
    families = {f"diskq.cli.{name}" for name in FAMILIES - {"putting"}}
    slow = {"json", "rich", "asyncio", "logging", "tempfile", "multiprocessing", "base64"}
    assert (families | slow) & set(done.stdout.split()) == set()


def test_a_long_put_shows_on_a_terminal_how_far_it_is(shell: Any) -> None:
    terminal, its_end = pty.openpty()
    source, sink = os.pipe()
    put = shell.start("put", "mail", "--lines", stdin=source, stderr=its_end)
    os.close(source)
    os.close(its_end)
    seen = b""
    while b"messages" not in seen:
        os.write(sink, b"line\n")
        while select.select([terminal], [], [], 0.01)[0]:
            seen += os.read(terminal, 1000)
    os.close(sink)
    assert put.wait() == 0
    os.close(terminal)
