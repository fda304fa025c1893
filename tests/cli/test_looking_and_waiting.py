"""Verbs that look take no lock and change nothing; verbs that write wait as long as they are told;
and each error has its exit code."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import diskq
from diskq.cli import cli

LOOKS = [
    ["info"],
    ["consumer", "ls"],
    ["topic", "ls"],
    ["topic", "info", "mail"],
    ["group", "ls", "mail"],
    ["group", "info", "mail", "workers"],
    ["group", "pending", "mail", "workers"],
    ["dead", "ls", "mail", "-g", "workers"],
    ["schedule", "ls", "mail"],
    ["peek", "mail"],
    ["tail", "mail"],
    ["backup", "copy"],
    ["purge", "mail", "--dry-run"],
    ["group", "seek", "mail", "workers", "latest", "--dry-run"],
    ["group", "rm", "mail", "workers", "--dry-run"],
    ["topic", "rm", "mail", "--dry-run"],
    ["dead", "rm", "mail", "--all", "-g", "workers", "--dry-run"],
]
WRITES = [
    ["put", "mail", "x"],
    ["get", "mail", "-g", "workers"],
    ["run", "mail", "-g", "workers", "--once", "--", "true"],
    ["tail", "mail", "-f"],
    ["topic", "create", "mail"],
    ["topic", "set", "mail", "--max-messages", "9"],
    ["topic", "rm", "mail", "--yes"],
    ["group", "create", "mail", "other"],
    ["group", "set", "mail", "workers", "--lease", "1m"],
    ["group", "seek", "mail", "workers", "latest", "--yes"],
    ["group", "fork", "mail", "workers", "other"],
    ["group", "pause", "mail", "workers"],
    ["group", "resume", "mail", "workers"],
    ["group", "rm", "mail", "workers", "--yes"],
    ["dead", "redrive", "mail", "--all", "-g", "workers"],
    ["dead", "rm", "mail", "--all", "-g", "workers", "--yes"],
    ["schedule", "cancel", "mail", "1-0"],
    ["trim", "mail"],
    ["purge", "mail", "--yes"],
]


class Opened(Exception):
    """Raised in the place of opening a store."""


def opened_with(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """What a verb asks `diskq.open` for."""
    found: dict[str, Any] = {}

    def pretend(path: str, **options: Any) -> None:
        found.update(options, path=path)
        raise Opened

    monkeypatch.setattr(diskq, "open", pretend)
    result = CliRunner().invoke(cli, ["-s", "store", *arguments], prog_name="diskq")
    assert isinstance(result.exception, Opened), result.output
    return found


@pytest.mark.parametrize("verb", LOOKS, ids=" ".join)
def test_a_look_opens_the_store_to_read(monkeypatch: pytest.MonkeyPatch, verb: list[str]) -> None:
    found = opened_with(monkeypatch, *verb)
    assert found["readonly"]
    assert not found["create"]


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, None), ("2s", 2.0), ("0", 0.0), ("none", math.inf)]
)
@pytest.mark.parametrize("verb", WRITES[:1] + WRITES[4:], ids=" ".join)
def test_a_verb_that_writes_waits_as_long_as_it_is_told(
    monkeypatch: pytest.MonkeyPatch, verb: list[str], text: str | None, seconds: float | None
) -> None:
    before = ["--busy", text] if text else []
    found = opened_with(monkeypatch, *before, *verb)
    assert found["busy_seconds"] == seconds
    assert not found["readonly"]


@pytest.mark.parametrize("verb", WRITES[:2], ids=" ".join)
def test_a_wait_for_messages_or_room_includes_the_opening(
    monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    """`get --wait 1s` waited 30 seconds beside a stopped writer."""
    assert opened_with(monkeypatch, *verb, "--wait", "2s")["busy_seconds"] == 2
    assert opened_with(monkeypatch, "--busy", "9s", *verb, "--wait", "2s")["busy_seconds"] == 9


@pytest.mark.parametrize("verb", [["put", "mail", "x"], ["topic", "create", "mail"]], ids=" ".join)
def test_the_mode_of_a_new_store_can_be_given(
    monkeypatch: pytest.MonkeyPatch, verb: list[str]
) -> None:
    assert opened_with(monkeypatch, *verb, "--mode", "0660")["mode"] == 0o660
    assert opened_with(monkeypatch, *verb, "--mode", "640")["mode"] == 0o640
    assert opened_with(monkeypatch, *verb)["mode"] is None


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--busy", "soon"], "'soon' is not a duration"),
        (["--busy", "-1"], "'-1' is not a duration"),
        (["put", "mail", "x", "--mode", "rw"], "'rw' is not a mode; write 0600, 0660"),
        (["put", "mail", "x", "--mode", "0888"], "'0888' is not a mode"),
        (["put", "mail", "x", "--mode", "2770"], "'2770' is not a mode"),
        (["put", "mail", "x", "--mode", "0770"], "without any x"),
        (["put", "mail", "x", "--mode", "0060"], "lets the owner read and write"),
    ],
)
def test_bad_values_are_usage_errors(shell: Any, options: list[str], hint: str) -> None:
    assert hint in shell.error(*options, *(["info"] if len(options) == 2 else []), code=2)
    assert not shell.store.exists()


@pytest.mark.parametrize(
    ("seconds", "error"), [(-1, ValueError), (math.nan, ValueError), ("1", TypeError)]
)
def test_the_library_checks_how_long_it_may_wait(
    shell: Any, seconds: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="busy_seconds"):
        diskq.open(shell.store, busy_seconds=seconds)
    assert not shell.store.exists()
    for value in (None, 0, 0.5, math.inf):
        diskq.open(shell.store, busy_seconds=value).close()


ERRORS = {
    "diskq.Busy('told')": 75,
    "diskq.Full('told')": 75,
    "diskq.Reentered('told')": 1,
    "diskq.StoreMoved('told')": 1,
    "diskq.DiskFailed('told')": 74,
    "diskq.LeaseLost('told')": 4,
    "diskq.Empty('told')": 3,
    "diskq.Corrupt('told')": 1,
    "diskq.ReadOnly('told')": 1,
    "PermissionError(13, 'told')": 77,
    "OSError(5, 'told')": 1,
    "ValueError('told')": 2,
    "diskq.NoPermission('told')": 77,
}


@pytest.mark.parametrize(("error", "code"), ERRORS.items(), ids=list(ERRORS))
def test_each_error_is_one_line_with_its_exit_code(shell: Any, error: str, code: int) -> None:
    script = f"""if True:
        import sys, diskq, diskq.cli
        def fail(*_, **__):
            raise {error}
        diskq.open = fail
        sys.argv = ["diskq", "put", "mail", "x"]
        diskq.cli.main()
    """
    done = subprocess.run(
        [sys.executable, "-c", script], env=shell.environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, b"diskq: told\n")


def test_looking_answers_beside_a_writer_that_was_stopped(shell: Any, eventually: Any) -> None:
    shell.fill(b"one")
    script = f"""if True:
        import diskq, os, signal
        with diskq.open({str(shell.store)!r}) as store:
            store.handle.commit(lambda tx: os.kill(os.getpid(), signal.SIGSTOP))
    """
    writer = subprocess.Popen([sys.executable, "-c", script])
    shell.processes.append(writer)
    eventually(lambda: "(stopped)" in Path(f"/proc/{writer.pid}/status").read_text())
    put = shell.start("put", "mail", "two")  # the control
    for verb in (*LOOKS, ["verify"]):
        shell.run(*verb)
    assert put.poll() is None
    writer.send_signal(signal.SIGCONT)
    assert writer.wait() == 0
    assert put.wait() == 0
    assert shell.stats().lag == 2


def test_every_verb_is_known_to_look_or_to_write() -> None:
    def verbs(command: click.Command, *path: str) -> set[str]:
        if not isinstance(command, click.Group):
            return {" ".join(path)}
        ctx = click.Context(command)
        found = ((name, command.get_command(ctx, name)) for name in command.list_commands(ctx))
        return set().union(*(verbs(each, *path, name) for name, each in found if each))

    named = {" ".join(words) for verb in LOOKS + WRITES for words in (verb[:1], verb[:2])}
    assert verbs(cli) - named == {"dead show", "verify", "salvage", "demo"}
