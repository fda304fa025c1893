"""A backup, and the verify of a large store, run in a child. An application that ignores SIGCHLD or
reaps all children itself got ChildProcessError from them; one that was interrupted left the child.
"""

from __future__ import annotations

import os
import signal

import pytest

import diskq
from diskq.format.layout import ID_KEY
from diskq.host import child as children
from diskq.repair import verify


@pytest.fixture
def sound(tmp_path, monkeypatch):
    """A store with a message, large enough to be verified in a child."""
    monkeypatch.setattr(verify, "_LARGE_BYTES", 0)
    with diskq.open(tmp_path / "sound", durability="process") as store:
        store.topic("mail").put(b"x")
        yield store


@pytest.fixture(params=["SIGCHLD is ignored", "somebody reaps all children"])
def exit_codes_are_lost(request, monkeypatch):
    """An application in which nobody learns how a child ended."""
    if request.param == "SIGCHLD is ignored":
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        yield
        signal.signal(signal.SIGCHLD, before)
        return
    spawn = os.posix_spawn

    def spawn_and_reap(*arguments, **options):
        child = spawn(*arguments, **options)
        os.waitpid(child, 0)
        return child

    monkeypatch.setattr(os, "posix_spawn", spawn_and_reap)
    yield


@pytest.mark.usefixtures("exit_codes_are_lost")
def test_a_store_is_copied_though_the_exit_code_of_a_child_is_lost(sound, tmp_path):
    """ChildProcessError was raised, and no copy made."""
    sound.backup(tmp_path / "copy")
    with diskq.open(tmp_path / "copy") as copy:
        assert [message.body for message in copy.topic("mail").read()] == [b"x"]


@pytest.mark.usefixtures("exit_codes_are_lost")
def test_a_sound_store_has_no_findings_though_the_exit_code_of_a_child_is_lost(sound):
    """ChildProcessError was raised."""
    assert list(sound.verify()) == []


@pytest.mark.usefixtures("exit_codes_are_lost")
def test_damage_is_found_though_the_exit_code_of_a_child_is_lost(sound):
    """Without an exit code, what the child said must tell that there is damage."""
    key = ID_KEY.pack(b"T", sound.topic("mail").id)
    sound.handle.engine.commit(lambda tx: tx.put(key, b"nonsense"))
    assert list(sound.verify())


@pytest.mark.usefixtures("exit_codes_are_lost")
def test_a_copy_that_cannot_be_made_fails_though_the_exit_code_of_a_child_is_lost(
    sound, tmp_path, monkeypatch
):
    """Without an exit code, what the child said must tell that it failed."""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'this Python is broken' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(children, "_interpreters", lambda: iter([str(broken)]))
    with pytest.raises(diskq.DiskqError, match="is broken"):
        sound.backup(tmp_path / "copy")
    assert sorted(os.listdir(tmp_path)) == ["python", "sound"]


def test_a_backup_that_is_interrupted_leaves_no_child(sound, tmp_path, monkeypatch):
    """The child went on, and was a zombie at last."""
    waited = []
    wait = os.waitpid

    def interrupt_the_first(child, options):
        waited.append(child)
        if len(waited) == 1:
            raise KeyboardInterrupt
        return wait(child, options)

    monkeypatch.setattr(os, "waitpid", interrupt_the_first)
    with pytest.raises(KeyboardInterrupt):
        sound.backup(tmp_path / "copy")
    with pytest.raises(ChildProcessError):
        wait(waited[0], os.WNOHANG)
    assert os.listdir(tmp_path) == ["sound"]
