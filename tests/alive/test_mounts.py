"""A store on a read-only mount, beside a writer who has it mounted writable: LMDB cannot protect a
reader there. It is refused, in words, and never called damaged or missing."""

from __future__ import annotations

import os
import sys

import pytest
from support import users

import diskq
from diskq.repair import salvage

READ_ONLY = """
mkdir "$1/ro" && mount --bind "$1/store" "$1/ro" && mount -o remount,bind,ro "$1/ro"
"$2" -c "$3" "$1"
for verb in info verify 'peek t' 'get t' 'put t x' "backup $1/copy"; do
    "$2" -m diskq -s "$1/ro" $verb; echo "rc $?"
done 2>&1
"$2" -m diskq -s "$1/ro" salvage "$1/salvaged"
"$2" -m diskq -s "$1/salvaged" peek t
umount "$1/ro" && rmdir "$1/ro"
"""
OPEN = """
import sys, diskq
for options in ({}, {"readonly": True}, {"create": False}):
    try:
        diskq.open(sys.argv[1] + "/ro", **options)
    except diskq.Unsupported as error:
        print(error)
with diskq.open(sys.argv[1] + "/store") as store:  # this process may write
    store.queue("t").put(b"second")
    try:
        diskq.open(sys.argv[1] + "/ro", readonly=True)
    except diskq.Unsupported as error:
        print(error)
"""
SAID = "is mounted read-only, where LMDB cannot protect a reader from writers; mount it writable"


@pytest.fixture
def path(tmp_path):
    with diskq.open(tmp_path / "store") as store:
        store.queue("t").put(b"first")
    return tmp_path / "store"


def test_a_store_on_a_read_only_mount_is_refused_in_words_and_can_be_salvaged(path):
    done = users.run_mounted(READ_ONLY, path.parent, sys.executable, OPEN)
    if done is None:
        pytest.skip("needs mounts of its own: unshare")
    lines = done.stdout.splitlines()
    assert sum(SAID in line for line in lines[:4]) == 4
    verbs, salvaged = lines[4:16], lines[16:]
    assert [SAID in line for line in verbs] == [True, False] * 6
    assert verbs[1::2] == ["rc 1"] * 6
    assert not any(word in done.stdout for word in ("damage", "restore", "no store", "salvage'"))
    assert salvaged[-2:] == ["first", "second"]
    assert sorted(os.listdir(path.parent)) == ["salvaged", "store"]


def test_what_changes_while_it_is_salvaged_is_not_taken_for_salvaged(path, tmp_path, monkeypatch):
    """On a read-only mount the locks of those who write cannot be seen."""
    copy_sound = salvage.copy_sound

    def run_beside_a_writer(remains, place):
        outcome = copy_sound(remains, place)
        with diskq.open(path) as store:
            store.queue("t").put(b"second")
        return outcome

    monkeypatch.setattr(salvage, "copy_sound", run_beside_a_writer)
    with pytest.raises(diskq.Unsupported, match="was changed while it was read"):
        diskq.salvage(path, tmp_path / "new")
    assert os.listdir(tmp_path) == ["store"]
