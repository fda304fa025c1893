"""Creating a store removes what others left who were killed while they did. What only had such a
name made creation fail or was removed, through symbolic links too, and so did others that remove
the same at the same time."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from contextlib import ExitStack
from pathlib import Path

import pytest

import diskq
from diskq.format.rows import new_meta
from diskq.host import sites
from diskq.host.files import MARKER, UNFINISHED
from diskq.storage import creation

NAME = f"{UNFINISHED}-0123456789abcdef"


def leave(path):
    """What somebody left: a store that is not complete."""
    path.mkdir()
    for name in (MARKER, "data.mdb", "lock.mdb"):
        (path / name).touch()
    return path


@pytest.fixture
def left(tmp_path):
    return leave(tmp_path / NAME)


def create(path):
    with diskq.open(path) as store:
        assert list(store.verify()) == []


@pytest.mark.parametrize("name", ["store", "another"])
def test_what_was_left_is_removed_when_a_store_is_created_beside_it(left, tmp_path, name):
    """Only one who created a store of the same name did, which may be nobody ever."""
    create(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == [name]


@pytest.mark.parametrize("name", [NAME, ".store.999999999.0123abcd"])
def test_a_file_of_such_a_name_stays_and_is_in_nobodys_way(tmp_path, name):
    """NotADirectoryError was raised."""
    (tmp_path / name).write_text("mine")
    create(tmp_path / "store")
    assert (tmp_path / name).read_text() == "mine"


def test_a_directory_with_a_file_that_no_store_has_stays_as_it_is(left, tmp_path):
    """What a store may have was deleted from it, and then OSError raised: it is not empty."""
    (left / "note.txt").write_text("mine")
    create(tmp_path / "store")
    assert sorted(os.listdir(left)) == [MARKER, "data.mdb", "lock.mdb", "note.txt"]


@pytest.mark.parametrize("name", [NAME, ".queue.999999999.20261130"])
def test_a_store_of_such_a_name_stays(tmp_path, name):
    """It was removed: of the right name, and as old as that."""
    create(tmp_path / name)
    for each in [*(tmp_path / name).iterdir(), tmp_path / name]:
        os.utime(each, (1, 1))
    create(tmp_path / "store")
    create(tmp_path / name)


def test_a_directory_whose_marker_says_something_else_stays(left, tmp_path):
    (left / MARKER).write_text("somebody else's")
    create(tmp_path / "store")
    assert sorted(os.listdir(left)) == [MARKER, "data.mdb", "lock.mdb"]


@pytest.mark.parametrize("target", ["a store", "what looks like left"])
def test_a_symbolic_link_of_such_a_name_is_not_followed(tmp_path, target):
    """The store that it led to was removed."""
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    elsewhere.mkdir()
    here.mkdir()
    if target == "a store":
        create(elsewhere / "orders")
    else:
        leave(elsewhere / "orders")
    before = sorted(os.listdir(elsewhere / "orders"))
    (here / NAME).symlink_to(elsewhere / "orders")
    create(here / "store")
    assert sorted(os.listdir(elsewhere / "orders")) == before
    assert sorted(os.listdir(here)) == [NAME, "store"]


def test_a_marker_that_is_a_symbolic_link_makes_a_directory_nobodys(left, tmp_path):
    (tmp_path / "elsewhere").write_text("")
    (left / MARKER).unlink()
    (left / MARKER).symlink_to(tmp_path / "elsewhere")
    create(tmp_path / "store")
    assert sorted(os.listdir(left)) == [MARKER, "data.mdb", "lock.mdb"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_another_user_left_stays(left, tmp_path):
    for each in [*left.iterdir(), left]:
        os.chown(each, 65534, 65534)
    create(tmp_path / "store")
    assert sorted(os.listdir(left)) == [MARKER, "data.mdb", "lock.mdb"]


def test_what_is_being_made_stays_until_its_maker_is_gone(left, tmp_path):
    with open(left / MARKER, "r+b") as marker:
        query = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(marker, fcntl.F_OFD_SETLK, query)
        create(tmp_path / "store")
        assert left.exists()
    create(tmp_path / "another")
    assert not left.exists()


@pytest.mark.parametrize("its_maker", ["finishes", "is killed at the end"])
@pytest.mark.parametrize("seen", ["empty", "full"])
def test_a_store_that_is_complete_before_it_is_looked_at_closely_stays(
    tmp_path, monkeypatch, its_maker, seen
):
    """It was opened as something that was left, and then got its name."""
    maker = ExitStack()
    place = Path(maker.enter_context(creation.building(str(tmp_path / "store"))))
    creation.create_in(str(place), new_meta("commit", 0, bytes(16), bytes(16), 0))
    if its_maker == "is killed at the end":
        monkeypatch.setattr(sites.Site, "remove", sites.Site.close)
    listdir = os.listdir

    def finish_then_list(folder):
        inside = isinstance(folder, int) and os.readlink(f"/proc/self/fd/{folder}") == str(place)
        names = listdir(folder)
        if inside:
            monkeypatch.setattr(os, "listdir", listdir)
            maker.close()
            monkeypatch.undo()
        return names if seen == "full" or not inside else []

    monkeypatch.setattr(os, "listdir", finish_then_list)
    create(tmp_path / "another")
    create(tmp_path / "store")
    assert sorted(os.listdir(tmp_path)) == ["another", "store"]
    assert sorted(os.listdir(tmp_path / "store")) == ["data.mdb", "lock.mdb", "slots"]


@pytest.mark.parametrize("removed_by_others", ["before it is listed", "after it was listed"])
def test_what_others_remove_at_the_same_time_is_in_nobodys_way(
    left, tmp_path, monkeypatch, removed_by_others
):
    """FileNotFoundError was raised."""
    listdir = os.listdir

    def list_it(place):
        inside = isinstance(place, int) and os.readlink(f"/proc/self/fd/{place}") == str(left)
        if not inside:
            return listdir(place)
        if removed_by_others == "before it is listed":
            shutil.rmtree(left)
        names = listdir(place)
        shutil.rmtree(left, ignore_errors=True)
        return names

    monkeypatch.setattr(os, "listdir", list_it)
    create(tmp_path / "store")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["store"]
