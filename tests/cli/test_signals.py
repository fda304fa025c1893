"""Signals and kills, whenever they come: what was leased is given back, and nothing is left behind.

DISKQ_SIGNAL_ROUNDS=200 tries many more timings than are tried otherwise.
"""

from __future__ import annotations

import os
import random
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

ROUNDS = int(os.environ.get("DISKQ_SIGNAL_ROUNDS", "3"))
BIG = b"x" * 2**20  # more than a pipe holds
STOPS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
GET = ["get", "mail", "-g", "workers"]
CODES = {signal.SIGINT: 130, signal.SIGTERM: -signal.SIGTERM, signal.SIGHUP: -signal.SIGHUP}


def runs(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def mark(shell: Any) -> str:
    """Mark what is started from now on, for `marked`."""
    text = f"DISKQ_MARK={shell.directory}.{len(shell.processes)}\0"
    shell.environment["DISKQ_MARK"] = text[len("DISKQ_MARK=") : -1]
    return text


def marked(text: str) -> list[int]:
    """The living processes with this mark, wherever they went."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if text.encode() in path.read_bytes() and runs(int(path.parent.name)):
                found.append(int(path.parent.name))
    return found


def uncharged(shell: Any) -> bool:
    """Whether all messages are there, in nobody's hands, and none was counted as failed."""
    stats = shell.stats()
    with shell.open() as store, store.topic("mail").group("workers").consumer() as consumer:
        attempts = {message.attempt for message in consumer.get_many(1000, timeout=0)}
    return (stats.leased, stats.failed, stats.dead) == (0, 0, 0) and attempts == {1}


@pytest.fixture(autouse=True)
def leave_nothing(shell: Any) -> Iterator[None]:
    """End what a test that failed has left running."""
    text = f"DISKQ_MARK={shell.directory}"
    shell.environment["DISKQ_MARK"] = f"{shell.directory}."
    yield
    for process in shell.processes:
        process.kill()
    for pid in marked(text):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for(eventually: Any, path: Path) -> str:
    """What a file has, once it is there."""
    eventually(lambda: path.exists() and path.read_text().endswith("\n"))
    return path.read_text()


def heeds(process: Any) -> bool:
    """Whether the process handles signals by now: Python itself, as it starts, does not."""
    found = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return process.poll() is not None or bool(found and int(found[1], 16) >> signal.SIGHUP - 1 & 1)


# get, tail, put


@pytest.mark.parametrize("number", STOPS)
def test_get_that_nobody_reads_gives_back_uncharged_at_a_signal(
    shell: Any, eventually: Any, number: int
) -> None:
    shell.fill(BIG, b"two", max_deliveries=1)
    for _ in range(3):  # the second one would be dead, were it charged
        get = shell.start(*GET, "-n", "2")
        assert get.stdout.read1(1) == b"x"
        get.send_signal(number)
        get.send_signal(signal.SIGTERM)
        assert get.wait() == CODES[number]
        get.stdout.close()
    assert uncharged(shell)


def test_the_control_is_charged(shell: Any) -> None:
    shell.fill(BIG, max_deliveries=1)
    get = shell.start(*GET)
    assert get.stdout.read1(1) == b"x"
    get.kill()
    get.wait()
    assert shell.error(*GET, code=3)
    assert shell.stats().dead == 1


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize("verb", [[*GET, "--wait", "1h"], ["tail", "mail", "-f"]], ids=" ".join)
def test_a_wait_ends_at_a_signal(shell: Any, eventually: Any, verb: list[str], number: int) -> None:
    shell.fill()
    process = shell.start(*verb)
    if "tail" in verb:
        shell.run("put", "mail", "x")
        assert process.stdout.readline() == b"x\n"
    else:
        with shell.open() as store:
            eventually(lambda: any(consumer.waiting for consumer in store.stats().consumers))
    process.send_signal(number)
    assert process.wait() == CODES[number]
    assert process.stderr.read() == (b"diskq: interrupted\n" if number == signal.SIGINT else b"")


@pytest.mark.parametrize("number", STOPS)
def test_put_stopped_in_a_slow_input_says_what_it_stored(
    shell: Any, eventually: Any, number: int
) -> None:
    shell.fill()
    put = shell.start("put", "mail", "--lines", stdin=subprocess.PIPE)
    put.stdin.write(b"a\nb\nthe rest of this line is late")
    put.stdin.flush()
    eventually(lambda: shell.stats().lag == 2)
    put.send_signal(number)
    said = put.stderr.read().decode()
    assert put.wait() == CODES[number]
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
    assert said == f"diskq: {word[number]}; stored before: 2 messages, the last at offset 1\n"
    assert shell.stats().lag == 2


def test_put_of_one_message_stopped_before_its_end_stores_nothing(
    shell: Any, eventually: Any
) -> None:
    shell.fill()
    put = shell.start("put", "mail", "-", stdin=subprocess.PIPE)
    put.stdin.write(b"half of it")
    put.stdin.flush()
    eventually(lambda: b"data.mdb" in Path(f"/proc/{put.pid}/maps").read_bytes())
    put.send_signal(signal.SIGTERM)
    assert put.wait() == -signal.SIGTERM
    assert shell.stats().lag == 0


def test_receipts_that_nobody_could_read_are_told_on_stderr(shell: Any) -> None:
    shell.fill()
    with open("/dev/full", "wb") as full:
        said = shell.error(
            "put", "mail", "x", code=1, stdout=full, capture_output=False, stderr=subprocess.PIPE
        )
    assert "the message is stored: mail 0" in said


def test_nohup_keeps_a_hangup_away(shell: Any, eventually: Any) -> None:
    shell.fill()
    command = [sys.executable, "-m", "diskq", *GET, "--wait", "1h"]
    get = subprocess.Popen(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command],
        env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    shell.processes.append(get)
    with shell.open() as store:
        eventually(lambda: any(consumer.waiting for consumer in store.stats().consumers))
        get.send_signal(signal.SIGHUP)
        store.topic("mail").put(b"one")
        assert get.communicate()[0] == b"one\n"
    assert get.returncode == 0


def test_get_at_any_moment_loses_and_charges_nothing(shell: Any, eventually: Any) -> None:
    count = 200
    shell.fill(*[b"%d" % number for number in range(count)], max_deliveries=1)
    random.seed(1)
    printed: list[bytes] = []
    for number in range(10 * ROUNDS):
        get = shell.start(*GET, "-n", "5")
        eventually(lambda get=get: heeds(get))
        for _ in range(random.randrange(1, 5)):
            select.select([get.stdout], [], [], random.random() * 0.05)
            get.send_signal(STOPS[number % 3])
        out, said = get.communicate()
        printed += out.split()
        assert get.returncode in (0, 3, CODES[STOPS[number % 3]]), said
    stats = shell.stats()
    assert (stats.leased, stats.failed, stats.dead) == (0, 0, 0)
    left = shell.out(*GET, "-n", "1000").split() if stats.lag else []
    assert {*map(int, printed), *map(int, left)} == set(range(count))
    assert stats.acked + stats.lag == count


# run


def test_a_killed_run_ends_its_command_and_all_that_it_started(shell: Any, eventually: Any) -> None:
    shell.fill(b"one")
    script = """
        (trap '' TERM HUP; sleep 1000) &
        setsid sleep 1000 &
        (setsid sh -c 'sleep 1000 & sleep 1000' &)
        echo > here; sleep 1000
    """
    text = mark(shell)
    run = shell.start("run", "mail", "-g", "workers", "--", "sh", "-c", script)
    eventually(lambda: len(marked(text)) >= 9)  # run and keeper, 2 shells, 5 times sleep
    run.kill()
    eventually(lambda: not marked(text))


def test_a_killed_run_leaves_alone_what_a_command_before_has_left(
    shell: Any, eventually: Any
) -> None:
    shell.fill(b"one", b"two")
    script = """
        if [ $DISKQ_OFFSET = 0 ]; then setsid sleep 1000 2>&- & echo $! > left; exit; fi
        echo $$ > here; exec sleep 1000
    """
    run = shell.start("run", "mail", "-g", "workers", "--", "sh", "-c", script)
    command = int(wait_for(eventually, shell.directory / "here"))
    run.kill()
    eventually(lambda: not runs(command))
    left = int((shell.directory / "left").read_text())
    assert runs(left)
    os.kill(left, signal.SIGKILL)


def test_a_killed_keeper_takes_its_command_along_and_run_ends(shell: Any, eventually: Any) -> None:
    shell.fill(b"one")
    run = shell.start(
        "run", "mail", "-g", "workers", "--", "sh", "-c", "echo $PPID $$ > ids; exec sleep 1000"
    )
    keeper, command = map(int, wait_for(eventually, shell.directory / "ids").split())
    os.kill(keeper, signal.SIGKILL)
    assert b"the process that starts commands is gone" in run.communicate()[1]
    assert run.returncode == 1
    eventually(lambda: not runs(command))
    assert uncharged(shell)


@pytest.mark.parametrize("ordering", ["key", "none"])
def test_no_two_attempts_of_a_message_run_at_once_whenever_run_is_killed(
    shell: Any, eventually: Any, ordering: str
) -> None:
    """A command that starts looks whether the one before, which left its number, still lives."""
    shell.fill(max_deliveries=10_000, ordering=ordering)
    for body in "ab":
        shell.run("put", "mail", body, "--key", "anna" if ordering == "key" else body)
    name = "running" if ordering == "key" else "running.$DISKQ_OFFSET"
    script = f"""
        read -r before < {name} 2>&-
        if [ -n "$before" ] && [ -d /proc/$before ]; then
            grep -q '^State:.Z' /proc/$before/status || echo overlap >> overlaps
        fi
        echo $$ > {name}; echo >> attempts
        while :; do sleep 0.05; done
    """
    attempts = shell.directory / "attempts"
    first = shell.start("run", "mail", "-g", "workers", "--", "sh", "-c", script)
    random.seed(2)
    for number in range(3 * ROUNDS):
        eventually(lambda n=number: attempts.exists() and attempts.read_text().count("\n") > n)
        second = shell.start("run", "mail", "-g", "workers", "--", "sh", "-c", script)
        select.select([], [], [], 0.3 * random.random())
        first.kill()
        first = second
    eventually(lambda: attempts.read_text().count("\n") > 3 * ROUNDS)
    assert not (shell.directory / "overlaps").exists()


def test_any_number_of_signals_at_any_moment_end_run_its_commands_and_its_leases(
    shell: Any, eventually: Any
) -> None:
    shell.fill(*[b"x"] * 100, max_deliveries=1)
    random.seed(3)
    for number in range(ROUNDS):
        text = mark(shell)
        command = ["sh", "-c", "sleep 1000; true" if number % 2 else "exec sleep 1000"]
        run = shell.start("run", "mail", "-g", "workers", "-j", "4", "--", *command)
        eventually(lambda run=run: heeds(run))
        if number % 3:
            eventually(lambda text=text: len(marked(text)) >= 9)  # run, keepers, commands
        for _ in range(random.randrange(1, 12)):
            select.select([], [], [], random.choice((0, 0.001, 0.01, 0.1)) * random.random())
            run.send_signal(random.choice(STOPS))
        said = run.communicate()[1]
        assert run.returncode in {130, *(-stop for stop in STOPS)}, said
        assert marked(text) == []
        stats = shell.stats()
        assert (stats.leased, stats.failed, stats.dead, stats.lag) == (0, 0, 0, 100)
    assert uncharged(shell)


def test_further_signals_leave_a_command_the_time_it_needs_to_end(
    shell: Any, eventually: Any
) -> None:
    shell.fill(b"one")
    script = """
        trap 'echo > told; while [ ! -e go ]; do sleep 0.02; done; echo > cleaned; exit 0' TERM
        echo > here; while :; do sleep 0.02; done
    """
    run = shell.start("run", "mail", "-g", "workers", "--", "sh", "-c", script)
    wait_for(eventually, shell.directory / "here")
    run.send_signal(signal.SIGTERM)
    wait_for(eventually, shell.directory / "told")
    for number in (*STOPS, *STOPS):
        run.send_signal(number)
    (shell.directory / "go").touch()
    assert run.wait() == -signal.SIGTERM
    assert (shell.directory / "cleaned").exists()
    assert shell.stats().acked == 1


def test_a_child_that_ignores_the_end_of_its_command_is_killed_with_it(
    shell: Any, eventually: Any
) -> None:
    shell.fill(b"one")
    script = "sh -c 'trap \"\" TERM; echo $$ > child; while :; do sleep 0.02; done' & wait"
    run = shell.start("run", "mail", "-g", "workers", "--", "sh", "-c", script)
    child = int(wait_for(eventually, shell.directory / "child"))
    run.send_signal(signal.SIGTERM)
    assert run.wait() == -signal.SIGTERM
    assert not runs(child)
    assert uncharged(shell)


def test_a_command_has_the_default_signals_and_none_of_our_files(shell: Any) -> None:
    shell.fill(b"one")
    script = "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ls /proc/self/fd"
    said = shell.out("run", "mail", "-g", "workers", "--once", "--", "sh", "-c", script).split()
    plain = subprocess.run(
        ["sh", "-c", script], stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    assert said == plain.stdout.decode().split()


def test_run_at_a_moment_when_nothing_can_be_written_ends(shell: Any, eventually: Any) -> None:
    shell.fill(b"one")
    reading, writing = os.pipe()
    os.close(reading)
    run = shell.start(
        "run",
        "mail",
        "-g",
        "workers",
        "--once",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 0",
        stdout=writing,
        stderr=writing,
    )
    os.close(writing)
    assert run.wait() == 1
    assert shell.stats().leased == 0
