"""get and peek: what comes out, and when it counts as done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

BIG = b"x" * 2**20  # more than a pipe holds


def test_get_prints_the_oldest_message_and_has_it_done(shell: Any) -> None:
    shell.fill(b"one", b"two")
    assert shell.out("get", "mail", "-g", "workers") == "one\n"
    assert shell.out("get", "mail", "-g", "workers") == "two\n"
    assert shell.stats().acked == 2


def test_the_group_is_named_default_if_none_is_named(shell: Any) -> None:
    shell.run("put", "mail", "x")
    assert "group create mail default" in shell.error("get", "mail", code=1)
    shell.run("group", "create", "mail", "default")
    assert shell.out("get", "mail") == "x\n"


def test_a_group_with_nothing_ready_is_exit_code_3(shell: Any) -> None:
    shell.fill()
    assert "--wait 5s" in shell.error("get", "mail", "-g", "workers", code=3)
    assert shell.error("get", "mail", "-g", "workers", "--wait", "50ms", code=3)


def test_get_n_takes_what_is_there_at_most_n(shell: Any) -> None:
    shell.fill(*[b"%d" % number for number in range(250)])
    assert len(shell.out("get", "mail", "-g", "workers", "-n", "240").split()) == 240
    assert shell.out("get", "mail", "-g", "workers", "-n", "240").split()[-1] == "249"


def test_get_waits_for_a_message_to_come(shell: Any, eventually: Any) -> None:
    shell.fill()
    get = shell.start("get", "mail", "-g", "workers", "--wait", "1m")
    with shell.open() as store:
        eventually(lambda: any(consumer.waiting for consumer in store.stats().consumers))
        store.topic("mail").put(b"at last")
    assert get.communicate()[0] == b"at last\n"
    assert get.returncode == 0


def test_no_ack_gives_all_back_uncharged(shell: Any) -> None:
    shell.fill(b"one", b"two")
    assert shell.out("get", "mail", "-g", "workers", "--no-ack", "-n", "5") == "one\ntwo\n"
    [again] = shell.json("get", "mail", "-g", "workers")
    assert (again["body"], again["attempt"]) == ("one", 1)


def test_json_has_all_of_a_message_and_base64_only_for_what_is_not_text(shell: Any) -> None:
    shell.fill("grüße".encode(), b"\xff\x00")
    text, binary = shell.json("get", "mail", "-g", "workers", "-n", "2")
    assert text["body"] == "grüße"
    assert binary["body_base64"] == "/wA="
    assert "body" not in binary
    names = "topic group offset key headers priority put_at_ns attempt token body"
    assert list(text) == names.split()


def test_bodies_may_end_with_a_nul(shell: Any) -> None:
    shell.fill(b"a\nb", b"c")
    assert shell.out("get", "mail", "-g", "workers", "-n", "2", "--null") == "a\nb\0c\0"


def test_a_message_nobody_could_read_is_not_acked(shell: Any) -> None:
    shell.fill(b"one")
    reading, writing = os.pipe()
    os.close(reading)
    get = shell.start("get", "mail", "-g", "workers", stdout=writing)
    os.close(writing)
    assert get.communicate()[1] == b""
    assert get.returncode == -signal.SIGPIPE
    with open("/dev/full", "wb") as full:
        get = shell.start("get", "mail", "-g", "workers", stdout=full)
        assert get.communicate()[1] == b"diskq: standard output: No space left on device\n"
    assert get.returncode == 1
    assert (shell.stats().acked, shell.stats().ready) == (0, 1)


@pytest.mark.parametrize("body", [b"x", BIG])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_closed_standard_file_is_no_way_into_the_store(
    shell: Any, body: bytes, number: int
) -> None:
    shell.fill(body)
    close = f'exec {number}<&-; exec "$@"'
    command = ["sh", "-c", close, "sh", sys.executable, "-m", "diskq", "get", "mail"]
    done = subprocess.run(
        [*command, "-g", "workers"], env=shell.environment, capture_output=True, check=False
    )
    if number == 1:
        assert done.returncode == 1
        assert done.stderr == b"diskq: standard output: it is closed\n"
        assert shell.stats().acked == 0
    else:
        assert (done.returncode, done.stdout, done.stderr) == (0, body + b"\n", b"")


def test_a_message_taken_over_while_it_was_printed_is_exit_code_4(
    shell: Any, eventually: Any
) -> None:
    shell.fill(BIG, lease_seconds=0.001)
    get = shell.start("get", "mail", "-g", "workers")  # which hangs: nobody reads
    with shell.open() as store:
        group = store.topic("mail").group("workers")
        eventually(lambda: group.stats().delivered)
        eventually(lambda: get.stdout.read1(1))
        with group.consumer() as consumer:
            assert consumer.get(timeout=30).attempt == 2
            said = get.communicate()[1]
    assert get.returncode == 4
    assert said.startswith(b"diskq: ")
    assert said.count(b"\n") == 1


def test_ctrl_c_is_exit_code_130_and_leaves_nothing_leased(shell: Any, eventually: Any) -> None:
    shell.fill()
    get = shell.start("get", "mail", "-g", "workers", "--wait", "1h")
    with shell.open() as store:
        eventually(lambda: any(consumer.waiting for consumer in store.stats().consumers))
    get.send_signal(signal.SIGINT)
    assert get.communicate()[1] == b"diskq: interrupted\n"
    assert get.returncode == 130


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["mail", "--wait", "soon"], "'soon' is not a duration"),
        (["mail", "--wait", "-1s"], "'-1s' is not a duration"),
        (["mail", "--wait", "5 s"], "is not a duration"),
        (["mail", "-n", "0"], "0 is not in the range"),
        (["mail", "-n", "many"], "'many' is not a valid integer"),
        ([], "Missing argument 'TOPIC'"),
    ],
)
def test_bad_arguments_of_get_are_usage_errors(shell: Any, arguments: list[str], hint: str) -> None:
    shell.fill(b"x")
    assert hint in shell.error("get", *arguments, code=2)


def test_get_creates_nothing_and_says_what_would(shell: Any) -> None:
    assert "put TOPIC BODY" in shell.error("get", "mail", code=1)
    assert not shell.store.exists()
    shell.run("put", "mail", "x")
    assert "diskq group create mail workers" in shell.error("get", "mail", "-g", "workers", code=1)
    assert "diskq topic create post" in shell.error("get", "post", code=1)
    assert "'a b'" in shell.error("get", "a b", code=1)


# peek


def test_peek_takes_nothing(shell: Any) -> None:
    shell.fill(b"one", b"two", b"three")
    assert shell.out("peek", "mail", "-n", "2") == "one\ntwo\n"
    assert shell.out("peek", "mail", "--from", "2") == "three\n"
    assert [record["offset"] for record in shell.json("peek", "mail")] == [0, 1, 2]
    assert shell.stats().unread == 3


def test_peek_with_nothing_there_is_exit_code_3(shell: Any) -> None:
    shell.fill(b"one")
    assert "offset 7" in shell.error("peek", "mail", "--from", "7", code=3)
    shell.run("get", "mail", "-g", "workers")
    assert "no stored message" in shell.error("peek", "mail", code=3)


def test_a_reader_who_has_seen_enough_ends_it_silently(shell: Any) -> None:
    shell.fill(*[b"x" * 1000] * 1000)
    peek = shell.start("peek", "mail", "-n", "1000")
    peek.stdout.read(1)
    peek.stdout.close()
    assert peek.stderr.read() == b""
    assert peek.wait() == -signal.SIGPIPE
