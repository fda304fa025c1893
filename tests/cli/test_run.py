"""run: a command for each message, whatever the command or the user does."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import diskq

ONCE = ["run", "mail", "-g", "workers", "--once", "--"]


def runs(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def started(
    shell: Any, eventually: Any, script: str, *options: str, trap: str = ":"
) -> tuple[Any, int]:
    """A `run` whose command sets a trap, writes its process id to a file, and runs the script."""
    script = f"{trap}; echo $$ > pid.new; mv pid.new pid; {script}"
    process = shell.start("run", "mail", "-g", "workers", *options, "--", "sh", "-c", script)
    eventually((shell.directory / "pid").exists)
    return process, int((shell.directory / "pid").read_text())


def test_a_command_gets_the_body_and_exit_0_acks(shell: Any) -> None:
    shell.fill(b"one", b"caf\xe9\0", b"")
    done = shell.run(*ONCE, "sh", "-c", "cat; echo .")
    assert done.stdout == b"one.\ncaf\xe9\0.\n.\n"
    assert shell.stats().acked == 3


def test_the_environment_says_which_message_it_is(shell: Any) -> None:
    shell.fill(lease_seconds=5.0)
    shell.run("put", "mail", "x", "--key", "k y")
    shell.run("put", "mail", "y")
    shell.environment["DISKQ_KEY"] = "of somebody else"
    said = shell.out(*ONCE, "sh", "-c", "env | grep ^DISKQ_ | sort; echo")
    with_key, without = said.strip().split("\n\n")
    values = dict(line.split("=", 1) for line in with_key.split("\n"))
    assert values.pop("DISKQ_TOKEN").isdecimal()
    assert values == {
        "DISKQ_STORE": str(shell.store),
        "DISKQ_TOPIC": "mail",
        "DISKQ_GROUP": "workers",
        "DISKQ_OFFSET": "0",
        "DISKQ_ATTEMPT": "1",
        "DISKQ_KEY": "k y",
    }
    assert "DISKQ_KEY" not in without


def test_a_command_may_put_into_the_same_store(shell: Any) -> None:
    shell.fill(b"one")
    command = f"exec {sys.executable} -m diskq put next -"
    shell.run("-s", "store", *ONCE, "sh", "-c", f"cd /; {command}")
    assert shell.out("peek", "next") == "one\n"


def test_a_failure_comes_again_with_status_and_stderr_in_its_history(shell: Any) -> None:
    shell.fill(b"one", max_deliveries=1)
    done = shell.run(*ONCE, "sh", "-c", "echo first >&2; echo why >&2; exit 3", code=1)
    assert done.stderr.startswith(b"first\nwhy\ndiskq: ")
    [letter] = shell.json("dead", "ls", "mail", "-g", "workers")
    assert letter["error"] == "exit status 3: first\nwhy"
    assert letter["reason"] == "max_deliveries"


def test_a_failed_message_waits_for_its_backoff(shell: Any) -> None:
    shell.fill(b"one", b"two")
    shell.run(*ONCE, "false", code=1)
    assert shell.stats().waiting == 2


def test_a_command_killed_by_a_signal_failed(shell: Any) -> None:
    shell.fill(b"one", max_deliveries=1)
    shell.run(*ONCE, "sh", "-c", "kill -9 $$", code=1)
    assert shell.json("dead", "ls", "mail", "-g", "workers")[0]["error"] == "killed by signal 9"


def test_only_the_tail_of_much_stderr_is_kept_and_all_is_passed_on(shell: Any) -> None:
    shell.fill(b"one", max_deliveries=1)
    done = shell.run(*ONCE, "sh", "-c", "seq 100000 >&2; exit 1", code=1)
    assert done.stderr.count(b"\n") == 100_002
    error = shell.json("dead", "ls", "mail", "-g", "workers")[0]["error"]
    assert error.endswith("\n99999\n100000")
    assert len(error) < 2000


def test_exit_65_is_a_dead_letter_at_once(shell: Any) -> None:
    shell.fill(b"one")
    shell.run(*ONCE, "sh", "-c", "exit 65", code=1)
    assert shell.json("dead", "ls", "mail", "-g", "workers")[0]["reason"] == "rejected"


def test_once_says_how_many_failed_and_ends_with_1(shell: Any) -> None:
    shell.fill(*[b"%d" % code for code in (0, 65, 0, 3, 0)])
    said = shell.run(*ONCE, "sh", "-c", "exit $(cat)", code=1).stderr.decode().splitlines()
    assert said == [
        "diskq: attempt 1 of message 3 failed: exit status 3",
        "diskq: 2 of 5 messages failed or were rejected",
    ]
    assert (shell.stats().acked, shell.stats().dead, shell.stats().waiting) == (3, 1, 1)


def test_once_counts_a_message_that_failed_and_then_was_done_as_done(shell: Any) -> None:
    shell.fill(b"one", b"two", backoff=diskq.Backoff(0))
    said = shell.error(*ONCE, "sh", "-c", '[ "$DISKQ_OFFSET$DISKQ_ATTEMPT" != 01 ]', code=0)
    assert said == "diskq: attempt 1 of message 0 failed: exit status 1\n"
    assert (shell.stats().acked, shell.stats().failed) == (2, 1)


def test_once_ends_with_75_if_a_command_said_later_after_others_failed(shell: Any) -> None:
    shell.fill(b"65", b"75")
    said = shell.error(*ONCE, "sh", "-c", "exit $(cat)", code=75)
    assert said == "diskq: 1 of 2 messages failed or were rejected\n"


def test_exit_75_gives_back_uncharged_and_ends_once_with_75(shell: Any) -> None:
    shell.fill(b"one", b"two")
    shell.run(*ONCE, "sh", "-c", "exit 75", code=75)
    assert (shell.stats().failed, shell.stats().lag) == (0, 2)


def test_exit_75_does_not_spin(shell: Any, eventually: Any) -> None:
    shell.fill(b"one")
    script = "echo >> tries; [ $(wc -l < tries) = 3 ] || exit 75"
    run = shell.start("run", "mail", "-g", "workers", "--", "sh", "-c", script)
    eventually(lambda: shell.stats().acked)
    run.send_signal(signal.SIGTERM)
    assert run.wait() == -signal.SIGTERM
    assert (shell.directory / "tries").read_text() == "\n\n\n"


def test_once_with_nothing_there_is_exit_code_3(shell: Any) -> None:
    shell.fill()
    assert "no message" in shell.error(*ONCE, "true", code=3)


def test_without_once_it_waits_for_messages_to_come(shell: Any, eventually: Any) -> None:
    shell.fill()
    run = shell.start("run", "mail", "-g", "workers", "--", "cat")
    with shell.open() as store:
        eventually(lambda: any(consumer.waiting for consumer in store.stats().consumers))
        store.topic("mail").put(b"one")
        eventually(lambda: store.topic("mail").group("workers").stats().acked)
    run.send_signal(signal.SIGINT)
    assert run.communicate() == (b"one", b"diskq: interrupted\n")
    assert run.returncode == 130


def test_jobs_run_at_once(shell: Any) -> None:
    shell.fill(*[b"x"] * 4)
    script = "touch here.$DISKQ_OFFSET; until [ $(ls here.* | wc -l) = 4 ]; do sleep 0.02; done"
    shell.run("run", "mail", "-g", "workers", "-j", "4", "--once", "--", "sh", "-c", script)
    assert shell.stats().acked == 4


@pytest.mark.parametrize("quiet", ["", "exec 2>&-;"])
def test_the_lease_is_extended_while_the_command_runs(
    shell: Any, eventually: Any, quiet: str
) -> None:
    shell.fill(b"one", lease_seconds=0.3)
    wait = f"{quiet} until [ -e go ]; do sleep 0.02; done"
    run, _ = started(shell, eventually, wait, "--once")
    with shell.open() as store, store.topic("mail").group("workers").consumer() as other:
        assert other.get_many(1, timeout=1.2) == []
    (shell.directory / "go").touch()
    assert run.wait() == 0
    assert (shell.stats().acked, shell.stats().redelivered) == (1, 0)


def test_a_command_whose_message_was_taken_over_is_ended(shell: Any, eventually: Any) -> None:
    shell.fill(b"one", lease_seconds=0.3)
    run, command = started(shell, eventually, "exec sleep 1000", "--once")
    run.send_signal(signal.SIGSTOP)
    with shell.open() as store, store.topic("mail").group("workers").consumer() as other:
        message = other.get(timeout=30)
        run.send_signal(signal.SIGCONT)
        said = run.communicate()[1]
        message.ack()
    assert said.count(b"diskq: ") == 1
    assert run.returncode == 0
    assert not runs(command)


def test_ctrl_c_ends_the_command_and_gives_its_message_back(shell: Any, eventually: Any) -> None:
    shell.fill(b"one")
    run, command = started(shell, eventually, "exec sleep 1000", "-j", "3")
    run.send_signal(signal.SIGINT)
    assert run.communicate()[1] == b"diskq: interrupted\n"
    assert run.returncode == 130
    assert not runs(command)
    assert (shell.stats().lag, shell.stats().leased, shell.stats().failed) == (1, 0, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_supervisor_can_stop_it_too(shell: Any, eventually: Any, number: int) -> None:
    shell.fill(b"one")
    run, command = started(shell, eventually, "exec sleep 1000")
    run.send_signal(number)
    assert run.communicate()[1] == b""
    assert run.returncode == -number
    assert not runs(command)
    assert (shell.stats().lag, shell.stats().leased, shell.stats().failed) == (1, 0, 0)


def test_a_command_that_finishes_when_told_to_end_is_done(shell: Any, eventually: Any) -> None:
    shell.fill(b"one")
    forever = "while :; do sleep 0.02; done"
    run, _ = started(shell, eventually, forever, trap="trap 'exit 0' TERM")
    run.send_signal(signal.SIGTERM)
    run.wait()
    assert shell.stats().acked == 1


def test_what_does_not_want_to_end_is_killed_when_its_time_is_over(
    shell: Any, eventually: Any
) -> None:
    shell.fill(b"one")
    forever = "while :; do sleep 0.02; done"
    run, command = started(shell, eventually, forever, trap="trap 'touch trapped' TERM")
    run.send_signal(signal.SIGINT)
    eventually((shell.directory / "trapped").exists)
    run.send_signal(signal.SIGINT)
    assert run.communicate()[1].endswith(b"diskq: interrupted\n")
    assert run.returncode == 130
    assert not runs(command)
    assert (shell.stats().lag, shell.stats().failed) == (1, 0)


def test_what_a_command_leaves_running_does_not_hold_it_up(shell: Any) -> None:
    shell.fill(b"one")
    shell.run(*ONCE, "sh", "-c", "sleep 1000 > /dev/null & echo $! > left")
    os.kill(int((shell.directory / "left").read_text()), signal.SIGKILL)
    assert shell.stats().acked == 1


def test_a_group_removed_meanwhile_ends_it_with_an_error(shell: Any, eventually: Any) -> None:
    shell.fill()
    run = shell.start("run", "mail", "-g", "workers", "-j", "2", "--", "true")
    with shell.open() as store:
        eventually(lambda: sum(consumer.waiting for consumer in store.stats().consumers) == 2)
        store.topic("mail").group("workers").delete()
    assert b"workers" in run.communicate()[1]
    assert run.returncode == 1


def test_a_command_that_cannot_start_costs_the_message_nothing(shell: Any) -> None:
    shell.fill(b"one")
    script = shell.directory / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert "cannot start" in shell.error(*ONCE, "./script", code=1)
    assert (shell.stats().ready, shell.stats().failed) == (1, 0)


def test_a_key_no_environment_can_hold_is_a_dead_letter_that_says_so(shell: Any) -> None:
    shell.fill()
    with shell.open() as store:
        store.topic("mail").put(b"one", key="a\0b")
    shell.run(*ONCE, "true", code=1)
    assert "NUL" in shell.json("dead", "ls", "mail", "-g", "workers")[0]["error"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["mail", "-g", "workers"], "Missing argument 'COMMAND...'"),
        (["mail", "-g", "workers", "--", "no-such-command"], "no command 'no-such-command'"),
        (["mail", "-g", "workers", "--", "/etc/passwd"], "no command '/etc/passwd'"),
        (["mail", "-g", "workers", "-j", "0", "--", "true"], "0 is not in the range"),
    ],
)
def test_bad_arguments_of_run_are_usage_errors(shell: Any, arguments: list[str], hint: str) -> None:
    shell.fill(b"x")
    assert hint in shell.error("run", *arguments, code=2)
