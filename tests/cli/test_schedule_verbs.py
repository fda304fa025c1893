"""schedule: what is to be put later, listed and cancelled."""

from __future__ import annotations

from typing import Any

import pytest

LATER = ["--at", "2100-01-31T08:00"]


def test_scheduled_messages_are_listed_in_order_of_time(shell: Any) -> None:
    shell.run("topic", "create", "mail", "--priorities", "2")
    shell.run("put", "mail", "second", *LATER, "--key", "k", "--priority", "1")
    shell.run("put", "mail", "first", "--delay", "1h")
    head, one, two = shell.out("schedule", "ls", "mail").splitlines()
    assert head.split() == ["SCHEDULE", "ID", "DUE", "PRIORITY", "KEY"]
    assert one.split()[-2:] == ["0", "-"]
    assert two.split()[1:] == ["2100-01-31", "08:00:00", "1", "k"]
    first, second = shell.json("schedule", "ls", "mail")
    assert (first["body"], second["body"], second["priority"]) == ("first", "second", 1)
    assert shell.json("topic", "info", "mail")[0]["scheduled"] == 2


def test_nothing_scheduled_is_an_empty_table(shell: Any) -> None:
    shell.run("put", "mail", "x")
    assert shell.out("schedule", "ls", "mail").count("\n") == 1
    assert shell.json("schedule", "ls", "mail") == []


def test_what_was_cancelled_is_not_put(shell: Any) -> None:
    put = ["put", "mail", *LATER]
    ids = [shell.json(*put, body)[0]["schedule_id"] for body in "abc"]
    assert shell.out("schedule", "cancel", "mail", ids[0]) == "cancelled 1 message of topic mail\n"
    said = shell.out("schedule", "cancel", "mail", ids[2], ids[1], ids[2])
    assert said == "cancelled 2 messages of topic mail\n"
    assert shell.json("schedule", "ls", "mail") == []


def test_cancelling_stops_at_what_is_not_there_and_says_what_was_done(shell: Any) -> None:
    one, two = (shell.json("put", "mail", *LATER, body)[0]["schedule_id"] for body in "ab")
    said = shell.error("schedule", "cancel", "mail", one, "1-1", two, code=1)
    assert "'1-1'" in said
    assert "cancelled before: 1 message" in said
    assert [each["schedule_id"] for each in shell.json("schedule", "ls", "mail")] == [two]


@pytest.mark.parametrize("name", ["", "x", "1", "1-", "-", "1-2-3", "9" * 30 + "-0", "٣-٣"])
def test_what_is_no_schedule_id_is_not_scheduled(shell: Any, name: str) -> None:
    shell.run("put", "mail", "x", *LATER)
    assert "no message is scheduled as" in shell.error(
        "schedule", "cancel", "mail", "--", name, code=1
    )


def test_it_needs_a_topic_and_an_id(shell: Any) -> None:
    shell.run("put", "mail", "x")
    assert "no topic 'post'" in shell.error("schedule", "ls", "post", code=1)
    assert "no topic 'post'" in shell.error("schedule", "cancel", "post", "1-0", code=1)
    assert "Missing argument 'ID...'" in shell.error("schedule", "cancel", "mail", code=2)


def test_a_scheduled_message_is_taken_when_it_is_due(shell: Any) -> None:
    shell.fill()
    shell.run("put", "mail", "x", "--delay", "200ms")
    assert shell.out("get", "mail", "-g", "workers", "--wait", "20s") == "x\n"
    assert shell.json("schedule", "ls", "mail") == []


def test_removing_a_topic_says_that_scheduled_messages_are_lost(shell: Any) -> None:
    shell.run("put", "mail", "x", *LATER)
    assert "1 scheduled message, 0 stored messages" in shell.error("topic", "rm", "mail", code=2)
    shell.run("topic", "rm", "mail", "--yes")
    assert "no topic" in shell.error("schedule", "ls", "mail", code=1)
