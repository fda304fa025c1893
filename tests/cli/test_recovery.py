"""backup and salvage on the command line."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from support.stores import bodies, digest

import diskq

PAGE = 4096


def overwrite(shell, wanted: bytes) -> None:
    """Zero each page of the store that has these bytes in it."""
    file = shell.store / "data.mdb"
    data = bytearray(file.read_bytes())
    for start in range(2 * PAGE, len(data), PAGE):
        if wanted in data[start : start + PAGE]:
            data[start : start + PAGE] = bytes(PAGE)
    file.write_bytes(data)
    shell.damaged = True


def consumed(path: Path) -> list[bytes]:
    with diskq.open(path) as store, store.topic("mail").group("workers").consumer() as consumer:
        assert list(store.verify()) == []
        return bodies(consumer.get_many(1_000, timeout=0))


def test_a_backup_is_a_store(shell):
    shell.fill(b"a", b"b")
    assert shell.out("backup", "copy") == f"copied {shell.store} to copy\n"
    assert consumed(shell.directory / "copy") == [b"a", b"b"]


def test_a_backup_never_replaces_anything(shell):
    shell.fill(b"a")
    said = shell.error("backup", str(shell.store), code=1)
    assert "exists; choose a new path" in said


def test_a_backup_of_no_store_says_so(shell):
    assert "there is no store" in shell.error("backup", "copy", code=1)


def test_a_sound_store_is_salvaged_whole(shell):
    shell.fill(b"a", b"b", b"c")
    shell.out("get", "mail", "-g", "workers", "-n", "1")
    said = shell.out("salvage", "new")
    assert said.splitlines()[-1] == "copied 3 messages to new, 0 lost"
    assert consumed(shell.directory / "new") == [b"b", b"c"]


def test_what_is_sound_of_a_damaged_store_is_salvaged_and_the_rest_counted(shell):
    texts = [b"message %03d " % number * 100 for number in range(60)]
    shell.fill(*texts)
    shell.out("get", "mail", "-g", "workers", "-n", "10")
    overwrite(shell, texts[20])
    said = shell.run("salvage", "new", code=5).stdout.decode().splitlines()
    found = consumed(shell.directory / "new")
    lost = 50 - len(found)
    assert said[-1] == f"copied {60 - lost} messages to new, {lost} lost"
    assert any(line.startswith("found: ") for line in said)
    assert 1 <= lost <= 15  # those of a segment
    assert found == [text for text in texts[10:] if text in found]
    assert texts[20] not in found


def test_a_damaged_store_is_not_changed_by_salvage(shell):
    shell.fill(b"a" * 1_000, b"b" * 1_000)
    overwrite(shell, b"a" * 1_000)
    before = {file.name: digest(file) for file in shell.store.iterdir()}
    shell.run("salvage", "new", code=5)
    assert {file.name: digest(file) for file in shell.store.iterdir()} == before


def test_a_store_in_use_is_not_salvaged(shell):
    shell.fill(b"a")
    reader = shell.start("tail", "mail", "-f")
    assert reader.stdout.readline() == b"a\n"
    assert "is in use" in shell.error("salvage", "new", code=1)
    assert not (shell.directory / "new").exists()


def test_salvage_never_replaces_anything(shell):
    shell.fill(b"a")
    assert "choose a new path" in shell.error("salvage", str(shell.store), code=1)


@pytest.mark.parametrize("size", [0, 100, PAGE])
def test_of_a_file_that_is_hardly_there_nothing_can_be_salvaged(shell, size):
    shell.fill(b"a")
    data = (shell.store / "data.mdb").read_bytes()
    (shell.store / "data.mdb").write_bytes(data[:size])
    shell.damaged = True
    shell.error("salvage", "new", code=1)
    assert not (shell.directory / "new").exists()


def test_a_store_of_which_only_a_start_is_left_gives_its_first_messages(shell):
    texts = [b"message %03d " % number * 100 for number in range(60)]
    shell.fill(*texts)
    data = (shell.store / "data.mdb").read_bytes().rstrip(b"\0")  # without the room behind it
    (shell.store / "data.mdb").write_bytes(data[: len(data) // 2])
    shell.damaged = True
    said = shell.run("salvage", "new", code=5).stdout.decode()
    assert "how many more there were is not known" in said
    found = consumed(shell.directory / "new")
    assert len(found) > 10
    assert found == [text for text in texts if text in found]


def test_a_backup_that_is_terminated_leaves_nothing(shell):
    """cron's `timeout` sends SIGTERM."""
    shell.fill(*[os.urandom(100_000) for _ in range(300)])
    for _ in range(10):
        process = shell.start("backup", "copy")
        while process.poll() is None and not any(shell.directory.glob(".diskq*")):
            time.sleep(0.001)
        process.terminate()
        process.wait(60)
        left = [entry.name for entry in shell.directory.glob("*copy*")]
        left += [entry.name for entry in shell.directory.glob(".diskq*")]
        if process.returncode:
            assert process.returncode == -signal.SIGTERM
            assert left == []
            return
        shutil.rmtree(shell.directory / "copy")
    pytest.skip("it was always faster than the signal")


def test_what_one_that_was_killed_left_is_removed_by_the_next(shell):
    shell.fill(b"a")
    shell.out("backup", "copy")
    left = shell.directory / ".diskq-unfinished-0123456789abcdef"
    (shell.directory / "copy").rename(left)
    (left / ".diskq-marker").touch()
    shell.out("backup", "copy")
    assert not left.exists()
