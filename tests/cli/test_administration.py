"""topic, group, dead, info and verify: looking after a store."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import Any

import click
import pytest
from click.testing import CliRunner

import diskq
from diskq.cli import VERBS, cli

GROUP = ["group", "create", "mail", "workers"]


def give_up(shell: Any, *bodies: bytes) -> None:
    """Make dead letters of messages."""
    shell.fill(*bodies)
    with shell.open() as store, store.topic("mail").group("workers").consumer() as consumer:
        for message in consumer.get_many(len(bodies)):
            message.reject(f"no\x1b[31m use\nfor {message.offset}")


# topic


def test_a_topic_is_created_once_with_its_store(shell: Any) -> None:
    assert shell.out("topic", "create", "mail") == "created topic mail\n"
    assert shell.out("topic", "create", "mail") == "topic mail exists already\n"
    assert [topic["topic"] for topic in shell.json("topic", "ls")] == ["mail"]


def test_topics_are_listed_for_people_and_for_programs(shell: Any) -> None:
    shell.fill(b"one", b"two")
    shell.run("topic", "create", "a-much-longer-name")
    head, first, second = shell.out("topic", "ls").splitlines()
    assert head.split()[:2] == ["TOPIC", "STORED"]
    assert first.split()[:2] == ["a-much-longer-name", "0"]
    assert second.split()[:2] == ["mail", "2"]
    assert head.index("STORED") + len("STORED") - 1 == second.index("2")
    assert shell.json("topic", "ls")[1]["groups"][0]["unread"] == 2


def test_a_topic_is_shown_with_its_groups(shell: Any) -> None:
    shell.fill(b"one")
    assert "workers" in shell.out("topic", "info", "mail")
    [record] = shell.json("topic", "info", "mail")
    assert (record["put"], record["groups"][0]["group"]) == (1, "workers")


def test_removing_a_topic_needs_yes_and_says_what_is_lost(shell: Any) -> None:
    give_up(shell, b"dead")
    shell.run("put", "mail", "--lines", input=b"a\nb\n")
    loss = "2 stored messages, 0 waiting messages and 1 dead letter"
    assert loss in shell.error("topic", "rm", "mail", code=2)
    assert loss in shell.out("topic", "rm", "mail", "--dry-run")
    assert loss in shell.out("topic", "rm", "mail", "--dry-run", "--yes")
    assert len(shell.json("topic", "ls")) == 1
    assert shell.out("topic", "rm", "mail", "--yes").startswith("removed topic mail")
    assert shell.json("topic", "ls") == []
    assert "no topic 'mail'" in shell.error("topic", "rm", "mail", "--yes", code=1)


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 1), (b"\n", 1), (b"\x04", 1)])
def test_on_a_terminal_it_asks(shell: Any, answer: bytes, code: int) -> None:
    shell.fill(b"one")
    terminal, its_end = pty.openpty()
    rm = shell.start("group", "rm", "mail", "workers", stdin=its_end, stderr=its_end)
    os.close(its_end)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(terminal, 1000)
    assert b"lose 1 unsettled message and 0 dead letters" in said
    os.write(terminal, answer)
    assert rm.wait() == code
    os.close(terminal)
    assert len(shell.json("group", "ls", "mail")) == bool(code)


# group


def test_a_group_has_the_settings_it_was_created_with(shell: Any) -> None:
    shell.run("topic", "create", "mail")
    settings = ["--lease", "1m30s", "--max-deliveries", "3", "--backoff", "500ms,3,1h"]
    said = shell.out(*GROUP, *settings, "--max-in-flight", "7")
    assert said == "created group workers of topic mail\n"
    assert shell.out(*GROUP) == "group workers of topic mail exists already\n"
    [group] = shell.json("group", "info", "mail", "workers")
    assert group["lease_seconds"] == 90
    assert group["backoff"] == {"base_seconds": 0.5, "factor": 3, "max_seconds": 3600}
    assert (group["max_deliveries"], group["max_in_flight"]) == (3, 7)
    text = shell.out("group", "info", "mail", "workers")
    assert "1m30s" in text
    assert "500ms,3,1h" in text
    assert "lease_seconds=90.0" in shell.error(*GROUP, "--lease", "5", code=1)


@pytest.mark.parametrize(
    ("start", "unread"),
    [("earliest", 3), ("latest", 0), ("2", 1), ("2000-01-01", 3), ("2000-01-01T08:00Z", 3)],
)
def test_a_group_starts_where_it_is_told(shell: Any, start: str, unread: int) -> None:
    shell.run("put", "mail", "--lines", input=b"a\nb\nc\n")
    shell.run(*GROUP, "--start", start)
    assert shell.json("group", "ls", "mail")[0]["unread"] == unread


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("--start", "tomorrow", "'tomorrow' is not a start"),
        ("--lease", "long", "'long' is not a duration"),
        ("--lease", "0", "Invalid value for '--lease': 0 is below 1ms, the least"),
        ("--lease", "8d", "Invalid value for '--lease': 8d is over 7d, the most"),
        ("--max-deliveries", "0", "'--max-deliveries': 0 is not in the range 1<=x<=10000"),
        ("--backoff", "1s,2", "BASE,FACTOR,MAX"),
        ("--backoff", "1s,fast,1h", "BASE,FACTOR,MAX"),
        ("--backoff", "1s,0.5,1h", "may be up to 3650d, FACTOR 1 to 1000"),
        ("--backoff", "1s,2,4000d", "may be up to 3650d, FACTOR 1 to 1000"),
        ("--backoff", "1s,nan,1h", "may be up to 3650d, FACTOR 1 to 1000"),
        ("--max-in-flight", "0", "'--max-in-flight': 0 is below 1, the least"),
        ("--start", "1", "offset 1 is beyond the end of topic 'mail', which is 0"),
    ],
)
def test_bad_settings_are_usage_errors(shell: Any, option: str, value: str, hint: str) -> None:
    shell.run("topic", "create", "mail")
    assert hint in shell.error(*GROUP, option, value, code=2)
    assert shell.json("group", "ls", "mail") == []


def test_a_group_needs_a_topic_and_a_good_name(shell: Any) -> None:
    assert "no store" in shell.error(*GROUP, code=1)
    shell.run("topic", "create", "other")
    assert "'diskq topic create mail'" in shell.error(*GROUP, code=1)
    assert "'a/b'" in shell.error("group", "create", "other", "a/b", code=2)
    assert "no group 'workers'" in shell.error("group", "info", "other", "workers", code=1)


def test_removing_a_group_needs_yes_and_leaves_the_topic(shell: Any) -> None:
    shell.fill(b"one", b"two")
    assert "2 unsettled messages" in shell.error("group", "rm", "mail", "workers", code=2)
    assert "2 unsettled messages" in shell.out("group", "rm", "mail", "workers", "--dry-run")
    shell.run("group", "rm", "mail", "workers", "--yes")
    assert shell.json("topic", "info", "mail")[0]["groups"] == []


# dead


def test_dead_letters_are_listed_one_a_line_whatever_their_error_holds(shell: Any) -> None:
    give_up(shell, b"one", b"two")
    head, first, second = shell.out("dead", "ls", "mail", "-g", "workers").splitlines()
    assert head.split()[0] == "OFFSET"
    assert first.endswith(r"no\x1b[31m use\nfor 0")
    assert second.endswith(r"no\x1b[31m use\nfor 1")
    records = shell.json("dead", "ls", "mail", "-g", "workers")
    assert [record["body"] for record in records] == ["one", "two"]
    assert records[0]["history"][0]["cause"] == "reject"


def test_no_dead_letters_are_an_empty_table(shell: Any) -> None:
    shell.fill()
    assert shell.out("dead", "ls", "mail", "-g", "workers").count("\n") == 1
    assert shell.json("dead", "ls", "mail", "-g", "workers") == []


def test_more_dead_letters_than_a_page_are_all_listed(shell: Any) -> None:
    give_up(shell, *[b"x"] * 1500)
    assert shell.out("dead", "ls", "mail", "-g", "workers").count("\n") == 1501


def test_a_dead_letter_is_shown_with_history_and_body(shell: Any) -> None:
    give_up(shell, b"one", b"\xff")
    done = shell.run("dead", "show", "mail", "1", "-g", "workers")
    assert done.stdout.endswith(b"\n\n\xff\n")
    assert b"rejected" in done.stdout
    assert shell.json("dead", "show", "mail", "1", "-g", "workers")[0]["body_base64"] == "/w=="
    assert "message 2 is not dead" in shell.error(
        "dead", "show", "mail", "2", "-g", "workers", code=1
    )


def test_redrive_gives_back_the_chosen_the_first_or_all(shell: Any) -> None:
    give_up(shell, *[b"%d" % number for number in range(5)])
    redrive = ["dead", "redrive", "mail", "-g", "workers"]
    assert shell.out(*redrive, "1", "3") == "gave back 2 dead letters\n"
    assert shell.out(*redrive, "--limit", "1") == "gave back 1 dead letter\n"
    assert [letter["offset"] for letter in shell.json("dead", "ls", *redrive[2:])] == [2, 4]
    assert shell.out(*redrive, "--all") == "gave back 2 dead letters\n"
    assert shell.out(*redrive, "--all") == "gave back 0 dead letters\n"
    assert len(shell.out("get", "mail", "-g", "workers", "-n", "9").split()) == 5


def test_redrive_wants_to_know_which(shell: Any) -> None:
    give_up(shell, b"one")
    redrive = ["dead", "redrive", "mail", "-g", "workers"]
    for which in ([], ["0", "--all"], ["--limit", "1", "--all"]):
        assert "name the dead letters" in shell.error(*redrive, *which, code=2)
    assert "9" in shell.error(*redrive, "0", "9", code=1)
    assert len(shell.json("dead", "ls", "mail", "-g", "workers")) == 1


# info


def test_info_shows_the_store_its_topics_groups_and_consumers(shell: Any, eventually: Any) -> None:
    shell.fill(b"one")
    with shell.open() as store, store.topic("mail").group("workers").consumer("anybody") as someone:
        message = someone.get()
        text = shell.out("info")
        [record] = shell.json("info")
        message.ack()
    assert str(shell.store) in text
    assert "anybody" in text
    assert record["durability"] == "commit"
    assert record["topics"][0]["groups"][0]["leased"] == 1
    assert record["consumers"][0]["pid"] == os.getpid()


# verify


def test_verify_finds_nothing_in_a_sound_store(shell: Any) -> None:
    give_up(shell, b"one", b"two")
    assert shell.out("verify").startswith("no damage found in ")
    assert shell.json("verify") == []


def damage(shell: Any, before: bytes, after: bytes) -> None:
    """Change bytes of the store's file."""
    shell.damaged = True
    data = shell.store / "data.mdb"
    content = data.read_bytes()
    assert before in content
    data.write_bytes(content.replace(before, after))


def test_verify_finds_a_changed_byte(shell: Any) -> None:
    shell.fill(b"something particular", b"other")
    damage(shell, b"something particular", b"Something particular")
    assert shell.run("verify", code=5).stdout.startswith(b"topic mail: ")
    assert b'"where":"topic mail"' in shell.run("verify", "--json", code=5).stdout
    assert shell.error("peek", "mail", code=1)


def test_verify_finds_a_file_cut_short(shell: Any) -> None:
    shell.fill(b"x" * 100_000)
    shell.damaged = True
    os.truncate(shell.store / "data.mdb", 3 * 4096)
    assert b"cut short" in shell.run("verify", code=5).stdout
    assert "cut short" in shell.error("info", code=1)


def test_verify_finds_pages_full_of_nonsense(shell: Any) -> None:
    shell.fill(*[b"x" * 3000] * 100)
    shell.damaged = True
    with open(shell.store / "data.mdb", "r+b") as data:
        size = data.seek(0, os.SEEK_END)
        data.seek(2 * 4096)
        data.write(b"\xa5" * (size - 2 * 4096))
    done = shell.run("verify", code=5)
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b""


def test_verify_survives_damage_that_ends_processes(shell: Any) -> None:
    code = """if True:
        import os, signal, sys
        import diskq.cli.store
        diskq.cli.store.open_store = lambda **_: os.kill(os.getpid(), signal.SIGBUS)
        sys.argv = ["diskq", "verify"]
        diskq.cli.main()
    """
    done = subprocess.run(
        [sys.executable, "-c", code], env=shell.environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (5, b"")
    assert done.stdout == b"store: checking it ended with SIGBUS\n"


# the store itself


def test_a_store_must_be_named(shell: Any) -> None:
    for value in (None, ""):
        if value is None:
            del shell.environment["DISKQ_STORE"]
        else:
            shell.environment["DISKQ_STORE"] = value
        assert "DISKQ_STORE" in shell.error("put", "mail", "x", code=2)
        assert "DISKQ_STORE" in shell.error("info", code=2)
    assert os.listdir(shell.directory) == []


def test_the_option_goes_before_the_environment_and_before_the_verb(shell: Any) -> None:
    shell.run("-s", "elsewhere", "put", "mail", "x")
    assert not shell.store.exists()
    assert shell.out("-s", "elsewhere", "peek", "mail") == "x\n"
    said = shell.error("peek", "-s", "elsewhere", "mail", code=2)
    assert "'-s' here; it goes before the verb: diskq -s STORE put" in said


@pytest.mark.parametrize(
    "verb",
    [
        ["put", "mail", "x"],
        ["get", "mail"],
        ["run", "mail", "--", "true"],
        ["peek", "mail"],
        ["info"],
        ["topic", "ls"],
        ["topic", "info", "mail"],
        ["topic", "create", "mail"],
        ["topic", "set", "mail", "--priorities", "2"],
        ["topic", "rm", "mail", "--yes"],
        ["group", "ls", "mail"],
        ["group", "info", "mail", "workers"],
        ["group", "create", "mail", "workers"],
        ["group", "set", "mail", "workers", "--lease", "1m"],
        ["group", "seek", "mail", "workers", "latest"],
        ["group", "fork", "mail", "workers", "others"],
        ["group", "pause", "mail", "workers"],
        ["group", "resume", "mail", "workers"],
        ["group", "pending", "mail", "workers"],
        ["group", "rm", "mail", "workers", "--yes"],
        ["dead", "ls", "mail"],
        ["dead", "show", "mail", "1"],
        ["dead", "redrive", "mail", "--all"],
        ["dead", "rm", "mail", "--all"],
        ["schedule", "ls", "mail"],
        ["schedule", "cancel", "mail", "1-0"],
        ["consumer", "ls"],
        ["trim", "mail"],
        ["purge", "mail", "--yes"],
        ["tail", "mail"],
        ["tail", "mail", "-f"],
        ["verify"],
    ],
    ids=" ".join,
)
def test_what_is_not_a_store_is_refused_and_left_alone(shell: Any, verb: list[str]) -> None:
    shell.store.mkdir()
    (shell.store / "letter.txt").write_text("dear")
    assert "a directory of other files" in shell.error(*verb, code=1)
    assert os.listdir(shell.store) == ["letter.txt"]


@pytest.mark.parametrize(
    "verb",
    [
        ["info"],
        ["verify"],
        ["topic", "ls"],
        ["dead", "ls", "mail"],
        ["schedule", "ls", "mail"],
        ["consumer", "ls"],
        ["trim", "mail"],
        ["purge", "mail", "--yes"],
        ["tail", "mail", "-f"],
    ],
    ids=" ".join,
)
def test_all_but_put_and_create_create_nothing(shell: Any, verb: list[str]) -> None:
    assert "no store at" in shell.error(*verb, code=1)
    assert os.listdir(shell.directory) == []


def test_a_file_is_not_a_store(shell: Any) -> None:
    shell.store.write_text("dear")
    assert "is a file" in shell.error("put", "mail", "x", code=1)
    assert "is a file" in shell.error("info", code=1)
    assert shell.store.read_text() == "dear"


def test_the_directory_above_a_store_must_be_there(shell: Any) -> None:
    assert "does not exist" in shell.error("-s", "a/b/c", "put", "mail", "x", code=1)


def test_a_path_that_is_not_text_is_no_reason_for_a_traceback(shell: Any) -> None:
    assert r"caf\udce9" in shell.error("-s", b"caf\xe9", "info", code=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_store_of_somebody_else_is_one_line(shell: Any) -> None:
    shell.fill(b"x")
    shell.store.chmod(0)
    try:
        assert shell.error("info", code=1)
    finally:
        shell.store.chmod(0o755)


# help


def all_verbs(command: Any, *path: str) -> list[list[str]]:
    """Every verb, as it is written after `diskq`."""
    if not isinstance(command, click.Group):
        return [list(path)]
    ctx = click.Context(command)
    names = command.list_commands(ctx)
    return [
        verb for name in names for verb in all_verbs(command.get_command(ctx, name), *path, name)
    ]


@pytest.mark.parametrize(
    "verb",
    [" ".join(verb) for verb in all_verbs(cli) if verb != ["demo"]],
)
def test_the_help_of_each_verb_has_an_example(verb: str) -> None:
    text = CliRunner().invoke(cli, [*verb.split(), "--help"], prog_name="diskq").output
    assert f"\n  diskq {verb}" in text or f"| diskq {verb}" in text


def test_the_list_of_verbs_says_what_the_help_of_each_begins_with(shell: Any) -> None:
    said = shell.out("--help")
    for family in set(VERBS) - {"demo"}:
        summary = VERBS[family][1].rstrip(".")
        assert summary in said
        assert summary in " ".join(CliRunner().invoke(cli, [family, "-h"]).output.split())


def test_no_verb_is_help_and_a_usage_error(shell: Any) -> None:
    assert b"Usage:" in shell.run(code=2).stderr
    assert b"Usage:" in shell.run("topic", code=2).stderr
    assert "No such command 'pop'" in shell.error("pop", code=2)


def test_version_and_completion(shell: Any) -> None:
    assert shell.out("--version") == f"diskq {diskq.__version__}\n"
    shell.environment["_DISKQ_COMPLETE"] = "bash_source"
    assert "_diskq_completion" in shell.out()
