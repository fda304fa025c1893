"""Who creates a store removes what others left who were killed while they did. What only has such a
name made creation fail, and so did others that remove the same at the same time."""

from __future__ import annotations

import os
import shutil

import pytest

import diskq

NO_PROCESS = 999_999_999
NAME = f".store.{NO_PROCESS}.0123abcd"


@pytest.fixture
def left(tmp_path):
    """What somebody left long ago: a store that is not complete."""
    path = tmp_path / NAME
    path.mkdir()
    for name in ("data.mdb", "lock.mdb"):
        (path / name).touch()
    make_old(path)
    return path


def make_old(path):
    for each in [*path.iterdir(), path]:
        os.utime(each, (1, 1))


def create(path):
    with diskq.open(path) as store:
        assert list(store.verify()) == []


@pytest.mark.parametrize("name", ["store", "another"])
def test_what_was_left_is_removed_by_whoever_creates_a_store_beside_it(left, tmp_path, name):
    """Only one who created a store of the same name did, which may be nobody ever."""
    create(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == [name]


def test_a_file_of_such_a_name_stays_and_is_in_nobodys_way(tmp_path):
    """NotADirectoryError was raised."""
    (tmp_path / NAME).write_text("mine")
    os.utime(tmp_path / NAME, (1, 1))
    create(tmp_path / "store")
    assert (tmp_path / NAME).read_text() == "mine"


def test_a_directory_with_a_file_that_no_store_has_stays_as_it_is(left, tmp_path):
    """What a store may have was deleted from it, and then OSError raised: it is not empty."""
    (left / "note.txt").write_text("mine")
    make_old(left)
    create(tmp_path / "store")
    assert sorted(os.listdir(left)) == ["data.mdb", "lock.mdb", "note.txt"]


@pytest.mark.parametrize("removed_by_others", ["before it is listed", "after it was listed"])
def test_what_others_remove_at_the_same_time_is_in_nobodys_way(
    left, tmp_path, monkeypatch, removed_by_others
):
    """FileNotFoundError was raised."""
    listdir = os.listdir

    def list_it(path):
        if os.fspath(path) != str(left):
            return listdir(path)
        if removed_by_others == "before it is listed":
            shutil.rmtree(left)
        names = listdir(path)
        shutil.rmtree(left)
        return names

    monkeypatch.setattr(os, "listdir", list_it)
    create(tmp_path / "store")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["store"]
