"""Settings of topics, trim, purge, dead rm and consumer ls."""

from __future__ import annotations

from typing import Any

import pytest

from diskq.base import limits

PURGE = ["purge", "mail"]
RM = ["dead", "rm", "mail", "-g", "workers"]


def give_up(shell: Any, *bodies: bytes) -> None:
    """Make dead letters of messages."""
    shell.fill(*bodies)
    with shell.open() as store, store.topic("mail").group("workers").consumer() as consumer:
        for message in consumer.get_many(len(bodies)):
            message.reject("no")


def dead(shell: Any) -> list[int]:
    """The offsets of the dead letters."""
    return [letter["offset"] for letter in shell.json("dead", "ls", "mail", "-g", "workers")]


# settings of a topic


def test_a_topic_has_the_settings_it_was_created_with(shell: Any) -> None:
    settings = ["--retention", "limits", "--max-age", "7d", "--max-bytes", "1.5GiB"]
    settings += ["--max-messages", "1000", "--discard", "old", "--dedup", "1h", "--priorities", "3"]
    create = ["topic", "create", "mail"]
    assert shell.out(*create, *settings) == "created topic mail\n"
    [topic] = shell.json("topic", "info", "mail")
    assert (topic["retention"], topic["discard"], topic["priorities"]) == ("limits", "old", 3)
    assert (topic["max_age_seconds"], topic["dedup_seconds"]) == (604_800, 3600)
    assert (topic["max_bytes"], topic["max_messages"]) == (3 * 2**29, 1000)
    assert shell.out(*create, *settings) == "topic mail exists already\n"
    assert shell.out(*create) == "topic mail exists already\n"
    assert "priorities=3" in shell.error(*create, "--priorities", "2", code=1)


def test_a_topic_is_shown_with_settings_and_counters(shell: Any) -> None:
    shell.run("topic", "create", "mail", "--max-age", "7d", "--max-bytes", "1GiB")
    shell.run("put", "mail", "x", "--delay", "1h")
    lines = shell.out("topic", "info", "mail").splitlines()
    shown = {line[:14].rstrip(): line[14:] for line in lines}
    assert (shown["topic"], shown["scheduled"], shown["dropped"]) == ("mail", "1", "0")
    assert (shown["max age"], shown["max size"], shown["max messages"]) == ("7d", "1.0 GiB", "-")
    assert (shown["retention"], shown["dedup"]) == ("interest", "2m")


def test_settings_of_a_topic_can_be_changed_and_bounds_taken_away(shell: Any) -> None:
    shell.run("topic", "create", "mail", "--max-age", "1h", "--max-bytes", "1MiB")
    change = ["topic", "set", "mail"]
    said = shell.out(*change, "--max-age", "none", "--max-bytes", "2MiB", "--max-messages", "9")
    assert said == "changed topic mail\n"
    [topic] = shell.json("topic", "info", "mail")
    assert (topic["max_age_seconds"], topic["max_bytes"], topic["max_messages"]) == (
        *(None, 2**21, 9),
    )
    shell.run(*change, "--retention", "limits", "--discard", "old", "--priorities", "2")
    shell.run(*change, "--max-bytes", "none", "--max-messages", "none")
    [topic] = shell.json("topic", "info", "mail")
    assert (topic["retention"], topic["discard"], topic["priorities"]) == ("limits", "old", 2)
    assert (topic["max_bytes"], topic["max_messages"]) == (None, None)


def test_what_cannot_change_is_an_error(shell: Any) -> None:
    shell.run("topic", "create", "mail", "--priorities", "2")
    shell.run("topic", "set", "mail", "--dedup", "1h")
    assert "only grow" in shell.error("topic", "set", "mail", "--priorities", "1", code=1)
    assert "no topic 'post'" in shell.error("topic", "set", "post", "--priorities", "1", code=1)


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("--retention", "work", "'work' is not one of"),
        ("--max-age", "0", "Invalid value for '--max-age': 0 is below 1ms, the least"),
        ("--max-age", "old", "'old' is not a duration"),
        (
            "--max-bytes",
            "1KiB",
            "Invalid value for '--max-bytes': 1KiB is below 4.0 KiB, the least",
        ),
        ("--max-bytes", "5MB", "'5MB' is not a size"),
        ("--max-bytes", "9" * 400, "is not a size"),
        ("--max-messages", "0", "Invalid value for '--max-messages': 0 is below 1, the least"),
        ("--max-messages", "1.5", "'1.5' is not a whole number"),
        ("--discard", "all", "'all' is not one of"),
        ("--dedup", "31d", "Invalid value for '--dedup': 31d is over 30d, the most"),
        ("--dedup", "none", "'none' is not a duration"),
        ("--priorities", "0", "is not in the range 1<=x<=10"),
        ("--priorities", "11", "is not in the range 1<=x<=10"),
    ],
)
def test_bad_settings_of_a_topic_are_usage_errors(
    shell: Any, option: str, value: str, hint: str
) -> None:
    assert hint in shell.error("topic", "create", "mail", option, value, code=2)
    assert not shell.store.exists()
    shell.run("topic", "create", "mail")
    before = shell.json("topic", "info", "mail")
    assert hint in shell.error("topic", "set", "mail", option, value, code=2)
    assert shell.json("topic", "info", "mail") == before


def test_changing_nothing_is_a_usage_error_and_none_is_for_changes(shell: Any) -> None:
    shell.run("topic", "create", "mail")
    assert "no setting was given to change" in shell.error("topic", "set", "mail", code=2)
    assert "leave it out" in shell.error("topic", "create", "mail", "--max-age", "none", code=2)


# trim


def test_trim_deletes_what_is_over_the_bounds(shell: Any) -> None:
    shell.run("topic", "create", "mail", "--retention", "limits")
    for body in "abc":
        shell.run("put", "mail", body)
    assert shell.out("trim", "mail") == "trimmed 0 messages of topic mail\n"
    shell.run("topic", "set", "mail", "--max-messages", "1")
    assert shell.out("trim", "mail") == "trimmed 2 messages of topic mail\n"
    assert shell.out("peek", "mail") == "c\n"
    assert shell.json("topic", "info", "mail")[0]["dropped"] == 2
    assert "no topic 'post'" in shell.error("trim", "post", code=1)


def test_messages_of_a_group_that_are_dropped_are_counted(shell: Any) -> None:
    shell.fill(b"a")
    shell.run("put", "mail", "b")
    shell.run("topic", "set", "mail", "--retention", "limits", "--max-messages", "1")
    shell.run("trim", "mail")
    assert shell.json("group", "ls", "mail")[0]["dropped"] == 1
    assert "DROPPED" in shell.out("group", "ls", "mail")


# purge


def test_purge_says_what_is_lost_and_needs_yes(shell: Any) -> None:
    shell.fill(b"a", b"b")
    shell.run("put", "mail", "later", "--delay", "1h")
    loss = "2 stored messages and 1 scheduled message"
    assert f"topic mail was not purged: {loss} would be lost" in shell.error(*PURGE, code=2)
    assert shell.out(*PURGE, "--dry-run") == f"would purge topic mail and lose {loss}\n"
    assert loss in shell.out(*PURGE, "--dry-run", "--yes")
    assert shell.stats().lag == 2
    assert shell.out(*PURGE, "--yes") == "purged 3 messages of topic mail\n"
    assert (shell.stats().lag, shell.stats().purged) == (0, 2)
    assert shell.json("schedule", "ls", "mail") == []


def test_an_empty_topic_is_purged_without_asking(shell: Any) -> None:
    shell.run("topic", "create", "mail")
    assert shell.out(*PURGE) == "purged 0 messages of topic mail\n"


def test_what_waits_is_purged_too_and_dead_letters_stay(shell: Any) -> None:
    give_up(shell, b"dead")
    shell.run("put", "mail", "failed")
    with shell.open() as store, store.topic("mail").group("workers").consumer() as consumer:
        consumer.get().nack(delay_seconds=3600)
    shell.run("trim", "mail")
    assert "lose 1 waiting message" in shell.out(*PURGE, "--dry-run")
    for some in (["--key", "k"], ["--before", "2"]):
        assert "up to 1 waiting message would be lost" in shell.error(*PURGE, *some, code=2)
    shell.run(*PURGE, "--yes")
    assert shell.stats().waiting == 0
    assert dead(shell) == [0]


@pytest.mark.parametrize(
    ("before", "purged", "left"),
    [
        ("2", 2, ["c", "d"]),
        ("0", 0, ["a", "b", "c", "d"]),
        ("99", 4, []),
        ("2000-01-01", 0, ["a", "b", "c", "d"]),
        ("2100-01-01T00:00Z", 4, []),
    ],
)
def test_purge_before_an_offset_or_a_time(
    shell: Any, before: str, purged: int, left: list[str]
) -> None:
    shell.run("put", "mail", "--lines", input=b"a\nb\nc\nd\n")
    shell.run("put", "mail", "later", "--delay", "1h")
    said = shell.out(*PURGE, "--before", before, "--dry-run")
    assert f"lose {f'{purged} stored messages' if purged else 'nothing'}" in said
    said = shell.out(*PURGE, "--before", before, "--yes")
    assert said == f"purged {purged} messages of topic mail\n"
    found = shell.run("tail", "mail", code=0 if left else 3).stdout.decode()
    assert found.split() == left
    assert len(shell.json("schedule", "ls", "mail")) == 1


def test_purge_of_a_key_leaves_the_others(shell: Any) -> None:
    shell.fill()
    for body, key in ("a1", "b2", "c1", "d2"):
        shell.run("put", "mail", body, "--key", key)
    shell.run("put", "mail", "later", "--key", "1", "--delay", "1h")
    shell.run("put", "mail", "keyless")
    said = shell.out(*PURGE, "--key", "1", "--before", "1", "--dry-run")
    assert "topic mail of key 1 before 1 and lose 1 stored message" in said
    said = shell.out(*PURGE, "--key", "1", "--dry-run")
    assert "lose 2 stored messages and 1 scheduled message" in said
    assert shell.out(*PURGE, "--key", "1", "--yes") == "purged 3 messages of topic mail\n"
    assert shell.out("peek", "mail").split() == ["b", "d", "keyless"]
    assert shell.out("get", "mail", "-g", "workers", "-n", "9").split() == ["b", "d", "keyless"]


def test_with_priorities_purge_says_exactly_what_goes(shell: Any) -> None:
    shell.run("topic", "create", "mail", "--priorities", "2")
    for body in "0101":
        shell.run("put", "mail", body, "--priority", body)
    for before in ("1", "2", str(2**56 + 1), str(2**60)):
        said = shell.out(*PURGE, "--before", before, "--dry-run")
        with shell.open() as store:
            copy = store.topic(f"copy-{before}", priorities=2)
            for message in sorted(store.topic("mail").read(), key=lambda m: m.put_at_ns):
                copy.put(message.body, priority=message.priority)
        done = shell.out("purge", f"copy-{before}", "--before", before, "--yes")
        assert said.split("lose ")[1].split()[0] == done.split()[1]


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--before", "tomorrow"], "'tomorrow' is not a place in a topic"),
        (["--before", "latest"], "'latest' is not a place in a topic"),
        (["--before", "-1"], "'-1' is not a place in a topic"),
        (["--before", "9" * 30], "is not a place in a topic"),
        (["--before", "9999-01-01"], "between the years"),
        (["--key", b"\xff"], "UTF-8"),
        (["--all"], "No such option"),
    ],
)
def test_bad_options_of_purge_are_usage_errors(
    shell: Any, options: list[str | bytes], hint: str
) -> None:
    shell.fill(b"a")
    assert hint in shell.error(*PURGE, *options, "--yes", code=2)
    assert shell.stats().lag == 1


# dead rm


def test_dead_letters_are_removed_for_good(shell: Any) -> None:
    give_up(shell, *[b"x"] * 5)
    assert "2 dead letters would be lost" in shell.error(*RM, "1", "3", code=2)
    assert "lose 2 dead letters" in shell.out(*RM, "1", "3", "1", "--dry-run")
    assert dead(shell) == [0, 1, 2, 3, 4]
    assert shell.out(*RM, "1", "3", "1", "--yes") == "removed 2 dead letters\n"
    assert dead(shell) == [0, 2, 4]
    assert "3 dead letters would be lost" in shell.error(*RM, "--all", code=2)
    assert shell.out(*RM, "--all", "--yes") == "removed 3 dead letters\n"
    assert shell.out(*RM, "--all") == "removed 0 dead letters\n"
    assert shell.stats().purged == 5


def test_one_that_is_not_dead_is_an_error_and_none_is_removed(shell: Any) -> None:
    give_up(shell, b"x", b"y")
    for options in (["--yes"], ["--dry-run"], []):
        assert "message 7 is not dead" in shell.error(*RM, "0", "7", *options, code=1)
    assert dead(shell) == [0, 1]


def test_more_dead_letters_than_one_commit_takes_are_all_removed(shell: Any) -> None:
    count = limits.MAX_REDRIVE_MESSAGES + 1
    give_up(shell, *[b"x"] * count)
    assert shell.out(*RM, "--all", "--yes") == f"removed {count} dead letters\n"
    assert dead(shell) == []


def test_dead_rm_wants_to_know_which(shell: Any) -> None:
    give_up(shell, b"x")
    for which in ([], ["0", "--all"]):
        assert "name the dead letters" in shell.error(*RM, *which, "--yes", code=2)
    assert "'x' is not a valid integer" in shell.error(*RM, "x", "--yes", code=2)
    assert dead(shell) == [0]


# consumer ls


def test_live_consumers_are_listed(shell: Any, eventually: Any) -> None:
    shell.fill(b"a")
    assert shell.out("consumer", "ls").split() == [
        *("NAME", "PID", "TOPIC", "GROUP", "WAITING", "HANDLING")
    ]
    with shell.open() as store, store.topic("mail").group("workers").consumer("ca") as consumer:
        with consumer.get() as message:
            [record] = shell.json("consumer", "ls")
            row = shell.out("consumer", "ls").splitlines()[1].split()
        assert record["handling"] == message.offset
        assert row == ["ca", str(record["pid"]), "mail", "workers", "no", "0"]
        waiting = shell.start("get", "mail", "-g", "workers", "--wait", "1h")
        [record] = eventually(
            lambda: [each for each in shell.json("consumer", "ls") if each["waiting"]]
        )
        assert record["pid"] == waiting.pid
