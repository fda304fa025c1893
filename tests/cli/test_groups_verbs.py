"""group: settings, seek, fork, pause and pending."""

from __future__ import annotations

import os
import pty
import time
from typing import Any

import pytest

SEEK = ["group", "seek", "mail", "workers"]
SET = ["group", "set", "mail", "workers"]


def get(shell: Any, *options: str, group: str = "workers") -> list[str]:
    """The bodies of what is taken and done."""
    return shell.out("get", "mail", "-g", group, *options).split()


# settings


def test_a_group_is_created_with_all_its_settings(shell: Any) -> None:
    shell.run("topic", "create", "mail")
    create = ["group", "create", "mail", "workers"]
    shell.run(*create, "--ordering", "key", "--keep-expired")
    [group] = shell.json("group", "info", "mail", "workers")
    assert (group["ordering"], group["keep_expired"]) == ("key", True)
    assert "exists already" in shell.out(*create, "--ordering", "key", "--keep-expired")
    assert "exists already" in shell.out(*create)
    assert "ordering='key'" in shell.error(*create, "--ordering", "none", code=1)
    assert "keep_expired=True" in shell.error(*create, "--no-keep-expired", code=1)
    assert "leave it out" in shell.error(*create, "--max-in-flight", "none", code=2)
    assert "'fifo' is not one of" in shell.error(*create, "--ordering", "fifo", code=2)


def test_messages_of_a_key_come_one_after_the_other(shell: Any) -> None:
    shell.run("topic", "create", "mail")
    shell.run("group", "create", "mail", "workers", "--ordering", "key")
    for body in "ab":
        shell.run("put", "mail", body, "--key", "k")
    with shell.open() as store, store.topic("mail").group("workers").consumer() as consumer:
        first = consumer.get_nowait()
        assert consumer.get_many(5, timeout=0) == []
        [group] = shell.json("group", "ls", "mail")
        assert (group["leased"], group["parked"]) == (1, 1)
        head, row = (line.split() for line in shell.out("group", "ls", "mail").splitlines())
        assert dict(zip(head, row, strict=True))["PARKED"] == "1"
        first.ack()
        assert consumer.get_nowait().body == b"b"


def test_what_outlived_its_ttl_is_dead_if_the_group_keeps_it(shell: Any) -> None:
    shell.fill(keep_expired=True)
    shell.run("put", "mail", "late", "--ttl", "1ms")
    assert "no message is ready" in shell.error("get", "mail", "-g", "workers", code=3)
    assert shell.json("dead", "ls", "mail", "-g", "workers")[0]["reason"] == "expired"
    assert "expired" in shell.out("dead", "ls", "mail", "-g", "workers")


def test_settings_can_be_changed(shell: Any) -> None:
    shell.fill(max_in_flight=1)
    changes = ["--lease", "2m", "--max-deliveries", "9", "--backoff", "2s,3,1m", "--keep-expired"]
    said = shell.out(*SET, *changes, "--max-in-flight", "none")
    assert said == "changed group workers of topic mail\n"
    [group] = shell.json("group", "info", "mail", "workers")
    assert (group["lease_seconds"], group["max_deliveries"], group["keep_expired"]) == (
        *(120, 9, True),
    )
    assert group["backoff"] == {"base_seconds": 2, "factor": 3, "max_seconds": 60}
    assert group["max_in_flight"] is None
    shell.run(*SET, "--no-keep-expired", "--max-in-flight", "5")
    [group] = shell.json("group", "info", "mail", "workers")
    assert (group["lease_seconds"], group["keep_expired"], group["max_in_flight"]) == (
        *(120, False, 5),
    )


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ([], "no setting was given"),
        (["--lease", "0"], "'--lease': 0 is below 1ms, the least"),
        (["--lease", "none"], "'none' is not a duration"),
        (["--max-deliveries", "none"], "'none' is not a valid integer"),
        (["--max-in-flight", "0"], "'--max-in-flight': 0 is below 1, the least"),
        (["--max-in-flight", "-1"], "'-1' is not a whole number"),
        (["--max-in-flight", "9" * 30], "is not a whole number"),
    ],
)
def test_bad_changes_are_usage_errors_and_change_nothing(
    shell: Any, options: list[str], hint: str
) -> None:
    shell.fill()
    before = shell.json("group", "info", "mail", "workers")
    assert hint in shell.error(*SET, *options, code=2)
    assert shell.json("group", "info", "mail", "workers") == before


def test_the_ordering_of_a_group_cannot_change_and_set_says_so(shell: Any) -> None:
    shell.fill()
    said = shell.error(*SET, "--ordering", "key", code=1)
    assert said == ("diskq: ordering of group 'workers' cannot change; make a new group for that\n")
    assert "--ordering" not in shell.out(*SET, "--help").split("Options:")[1]


@pytest.mark.parametrize(
    "verb",
    [
        ["set", "mail", "nobody", "--lease", "1m"],
        ["seek", "mail", "nobody", "latest"],
        ["fork", "mail", "nobody", "others"],
        ["pause", "mail", "nobody"],
        ["resume", "mail", "nobody"],
        ["pending", "mail", "nobody"],
    ],
    ids=" ".join,
)
def test_a_group_must_be_there(shell: Any, verb: list[str]) -> None:
    shell.fill()
    assert "no group 'nobody'" in shell.error("group", *verb, code=1)
    assert len(shell.json("group", "ls", "mail")) == 1


# seek


def test_seek_forward_says_what_is_skipped_and_needs_yes(shell: Any) -> None:
    shell.fill(b"a", b"b", b"c", b"d")
    said = shell.error(*SEEK, "3", code=2)
    assert "group workers of topic mail was not moved: 3 unsettled messages would be lost" in said
    said = shell.out(*SEEK, "3", "--dry-run")
    assert said.startswith("would move group workers of topic mail to 3 and lose 3 unsettled")
    assert said.endswith(" messages; 1 message to come\n")
    assert shell.stats().unread == 4
    said = shell.out(*SEEK, "3", "--yes")
    assert said == "moved group workers of topic mail: 1 message to come\n"
    assert get(shell) == ["d"]


@pytest.mark.parametrize(
    ("to", "lost"),
    [("latest", 4), ("4", 4), ("2100-01-01", 4), ("2", 2), ("1", 1)],
)
def test_seek_forward_counts_all_that_is_not_settled_before(shell: Any, to: str, lost: int) -> None:
    shell.fill(b"a", b"b", b"c", b"d")
    assert f"{lost} unsettled message" in shell.out(*SEEK, to, "--dry-run")
    shell.run(*SEEK, to, "--yes")
    assert shell.stats().lag == 4 - lost


def test_seek_back_loses_nothing_if_nothing_was_in_hand(shell: Any) -> None:
    shell.run("topic", "create", "mail", "--retention", "limits")
    shell.fill(b"a", b"b", b"c")
    assert get(shell, "-n", "3") == ["a", "b", "c"]
    assert "lose nothing" in shell.out(*SEEK, "1", "--dry-run")
    assert shell.out(*SEEK, "1") == "moved group workers of topic mail: 2 messages to come\n"
    assert get(shell, "-n", "3") == ["b", "c"]
    shell.run(*SEEK, "2000-01-01T00:00Z")
    assert get(shell, "-n", "3") == ["a", "b", "c"]


def test_seek_back_says_how_many_come_and_that_others_are_gone(shell: Any) -> None:
    shell.fill(b"a", b"b", b"c")
    shell.run("put", "mail", "d")
    assert get(shell, "-n", "3") == ["a", "b", "c"]
    shell.run("trim", "mail")
    gone = (
        "; earlier ones are gone, since topic mail keeps only messages that some group has not"
        " settled: 'diskq topic set mail --retention limits' keeps more from now on\n"
    )
    for to in "earliest", "2", "2000-01-01":
        said = shell.out(*SEEK, to, "--dry-run")
        what = f"would move group workers of topic mail to {to}"
        assert said.startswith(what)
        assert said.endswith(f" and lose nothing; 1 message to come{gone}")
        assert shell.out(*SEEK, to) == (
            f"moved group workers of topic mail: 1 message to come{gone}"
        )
    said = shell.out(*SEEK, "3", "--dry-run")
    assert said.endswith("to 3 and lose nothing; 1 message to come\n")
    assert get(shell, "-n", "3") == ["d"]
    assert "0 messages to come; earlier ones are gone" in shell.out(*SEEK, "earliest")
    assert shell.out(*SEEK, "latest").endswith(": 0 messages to come\n")


def test_seek_back_in_a_topic_with_bounds_blames_those(shell: Any) -> None:
    shell.run("topic", "create", "mail", "--retention", "limits", "--max-messages", "1")
    shell.fill()
    shell.run("put", "mail", "a")
    shell.run("put", "mail", "b")
    said = shell.out(*SEEK, "0", "--dry-run")
    assert said.endswith(
        "1 message to come; earlier ones are gone, over a bound of topic mail or purged\n"
    )


def test_seek_and_purge_count_no_message_of_a_gap(shell: Any) -> None:
    shell.fill()
    for number in range(6):
        shell.run("put", "mail", str(number))
    with shell.open() as store, store.topic("mail").group("workers").consumer() as consumer:
        messages = consumer.get_many(5)
        consumer.ack_many([messages[1], messages[3]])
        messages[4].reject("its segment goes")
        messages[2].release()
        store.topic("mail").trim()
        assert [message.offset for message in store.topic("mail").read()] == [0, 2, 5]
        said = shell.out(*SEEK, "1", "--dry-run")
        assert "and lose 1 ready message and 1 lease; 2 messages to come; earlier ones" in said
        said = shell.error(*SEEK, "3", code=2)
        assert "1 ready message and 1 lease would be lost" in said
        purge = "purge", "mail", "--before", "4"
        assert "and lose 2 stored messages\n" in shell.out(*purge, "--dry-run")
        assert shell.out(*purge, "--yes") == "purged 2 messages of topic mail\n"
    assert (shell.stats().purged, shell.stats().dead, shell.stats().unread) == (2, 1, 1)


def test_seek_beyond_the_end_is_refused(shell: Any) -> None:
    shell.fill(b"a", b"b")
    for options in [], ["--dry-run"], ["--yes"]:
        said = shell.error(*SEEK, "999", *options, code=2)
        assert said == "diskq: offset 999 is beyond the end of topic 'mail', which is 2\n"
    assert shell.stats().unread == 2


def test_seek_back_names_leased_waiting_and_dead_ones(shell: Any) -> None:
    shell.run("topic", "create", "mail", "--retention", "limits")
    shell.fill(b"a", b"b", b"c", b"d", b"e")
    with shell.open() as store, store.topic("mail").group("workers").consumer() as consumer:
        messages = consumer.get_many(4)
        messages[0].reject("no")
        messages[1].nack(delay_seconds=3600)
        loss = "2 leases, 1 waiting message and 1 dead letter"
        assert loss in shell.error(*SEEK, "earliest", code=2)
        assert "2 leases and 1 waiting message would" in shell.error(*SEEK, "1", code=2)
        assert "5 unsettled" not in shell.out(*SEEK, "4", "--dry-run")
        shell.run(*SEEK, "earliest", "--yes")
    assert get(shell, "-n", "9") == ["a", "b", "c", "d", "e"]


def test_seek_asks_on_a_terminal(shell: Any) -> None:
    shell.fill(b"a")
    terminal, its_end = pty.openpty()
    seek = shell.start(*SEEK, "latest", stdin=its_end, stderr=its_end)
    os.close(its_end)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(terminal, 1000)
    assert b"Move group workers of topic mail to latest and lose 1 unsettled message?" in said
    os.write(terminal, b"y\n")
    assert seek.wait() == 0
    os.close(terminal)
    assert shell.stats().lag == 0


def test_seek_with_priorities_says_at_least_what_is_lost(shell: Any) -> None:
    shell.run("topic", "create", "mail", "--priorities", "2")
    shell.fill()
    for priority in "0101":
        shell.run("put", "mail", priority, "--priority", priority)
    assert "4 unsettled messages" in shell.out(*SEEK, "1", "--dry-run")
    assert "4 unsettled messages" in shell.out(*SEEK, "latest", "--dry-run")
    assert "lose nothing" in shell.out(*SEEK, "earliest", "--dry-run")
    shell.run(*SEEK, "latest", "--yes")
    assert shell.stats().lag == 0


@pytest.mark.parametrize("to", ["tomorrow", "1.5", "", "9" * 30, "٣"])
def test_a_bad_place_is_a_usage_error(shell: Any, to: str) -> None:
    shell.fill(b"a")
    assert "is not a start" in shell.error(*SEEK, to, "--yes", code=2)
    assert "Missing argument 'TO'" in shell.error(*SEEK, code=2)


# fork, pause, resume


def test_a_fork_is_where_its_group_is_and_goes_its_own_way(shell: Any) -> None:
    shell.fill(b"a", b"b", b"c", max_deliveries=7)
    get(shell)
    said = shell.out("group", "fork", "mail", "workers", "replay")
    assert said == "created group replay of topic mail, where workers is\n"
    assert get(shell, "-n", "9", group="replay") == ["b", "c"]
    assert get(shell, "-n", "9") == ["b", "c"]
    assert shell.json("group", "info", "mail", "replay")[0]["max_deliveries"] == 7
    assert "replay" in shell.error("group", "fork", "mail", "workers", "replay", code=1)
    assert "'a/b'" in shell.error("group", "fork", "mail", "workers", "a/b", code=2)


def test_a_paused_group_gets_nothing_until_it_is_resumed(shell: Any) -> None:
    shell.fill(b"a")
    for _ in range(2):
        said = shell.out("group", "pause", "mail", "workers")
        assert said == "paused group workers of topic mail\n"
    assert "is paused" in shell.error("get", "mail", "-g", "workers", code=3)
    assert shell.out("group", "ls", "mail").splitlines()[1].endswith(" yes")
    assert shell.json("group", "ls", "mail")[0]["paused"] is True
    said = shell.out("group", "resume", "mail", "workers")
    assert said == "resumed group workers of topic mail\n"
    assert "PAUSED" not in shell.out("group", "ls", "mail")
    assert get(shell) == ["a"]


# pending


def test_leased_messages_are_listed_with_their_holders(shell: Any) -> None:
    shell.fill(b"a", b"b", lease_seconds=3600.0)
    with shell.open() as store, store.topic("mail").group("workers").consumer("ca") as consumer:
        first, second = consumer.get_many(2)
        head, row, _ = shell.out("group", "pending", "mail", "workers").splitlines()
        one, two = shell.json("group", "pending", "mail", "workers")
        assert (one["token"], two["token"]) == (first.token, second.token)
    assert head.split() == ["OFFSET", "CONSUMER", "TOKEN", "ATTEMPT", "LEFT"]
    assert row.split()[:2] == ["0", "ca"]
    assert "59m" in row or "1h" in row
    assert (one["offset"], one["consumer"], one["attempt"]) == (0, "ca", 1)
    assert 0 < one["left_seconds"] <= 3600
    assert shell.out("group", "pending", "mail", "workers").count("\n") == 1
    assert shell.json("group", "pending", "mail", "workers") == []


def test_a_lease_that_is_over_has_less_than_no_time_left(shell: Any) -> None:
    shell.fill(b"a", lease_seconds=0.001)
    with shell.open() as store, store.topic("mail").group("workers").consumer("ca") as consumer:
        message = consumer.get_nowait()
        time.sleep(0.002)  # the deadline is on the clock of this machine
        assert shell.json("group", "pending", "mail", "workers")[0]["left_seconds"] < 0
        assert " -" in shell.out("group", "pending", "mail", "workers").splitlines()[1]
        message.ack()


def test_a_table_of_groups_shows_what_is_seldom_only_if_there_is_any(shell: Any) -> None:
    shell.fill(b"a")
    plain = shell.out("group", "ls", "mail").split("\n")[0]
    assert not {"PARKED", "EXPIRED", "DROPPED", "PURGED", "PAUSED"} & set(plain.split())
    assert len(plain) < 100
    shell.run("purge", "mail", "--yes")
    assert "PURGED" in shell.out("group", "ls", "mail")
    assert "PURGED" in shell.out("topic", "info", "mail")
    assert "PURGED" in shell.out("info")
