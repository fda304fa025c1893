"""A store is its owner's, or a group's: with real other users."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest
from support import users
from support.programs import child_environment
from support.stores import verified
from support.users import MEMBER, OWNER, STRANGER, TEAM, run_as

import diskq
from diskq.host import child
from diskq.storage import creation

pytestmark = pytest.mark.skipif(bool(users.hindrance()), reason=users.hindrance())
NAMES = "data.mdb", "lock.mdb", "slots"

CREATE = """
import sys, diskq
mode = int(sys.argv[2], 8) if len(sys.argv) > 2 else None
with diskq.open(sys.argv[1], durability="process", mode=mode) as store:
    store.queue("q").put_many([b"secret"] * 20)
"""
USE = """
import sys, diskq
with diskq.open(sys.argv[1], create=False) as store:
    store.queue("q").put(b"another")
    print(store.queue("q").get(timeout=0).body)
    print(list(store.verify()))
"""
LOOK = """
import sys, diskq
for options in ({}, {"readonly": True}):
    try:
        diskq.open(sys.argv[1], create=False, **options).close()
        print("opened")
    except diskq.DiskqError as error:
        print(type(error).__name__, error)
"""
TOUCH = """
import fcntl, os, sys
for name in ("data.mdb", "lock.mdb", "slots", "boot"):
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_PATH):
        try:
            os.open(os.path.join(sys.argv[1], name), flags)
            print("opened", name, flags)
        except PermissionError:
            pass
"""


def owned(path):
    """Owner, group and mode of each file that is there."""
    found = [os.stat(path / name) for name in (*NAMES, "boot") if (path / name).exists()]
    return {(each.st_uid, each.st_gid, stat.S_IMODE(each.st_mode)) for each in found}


@pytest.fixture
def folder(public):
    """A directory of the owner's, in which others may look."""
    path = public / "folder"
    path.mkdir()
    os.chown(path, OWNER, OWNER)
    return path


@pytest.fixture
def team(public):
    """A directory of a team."""
    path = public / "team"
    path.mkdir()
    os.chown(path, OWNER, TEAM)
    path.chmod(0o2770)
    return path


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("umask", [0, 0o022])
def test_another_user_can_neither_read_nor_lock_a_store(folder, there, umask):
    path = folder / "store"
    if there:  # an existing directory stays open to others
        path.mkdir(mode=0o755)
        os.chown(path, OWNER, OWNER)
    run_as(OWNER, CREATE, path, umask=umask)
    assert run_as(STRANGER, TOUCH, path).stdout.count("opened") == (4 if there else 0)
    lines = run_as(STRANGER, LOOK, path).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NoPermission"] * 2
    assert all("open the store to your group" in line for line in lines)


def test_control_another_user_can_open_the_files_of_a_store_that_is_open_to_all(folder):
    run_as(OWNER, CREATE, folder / "store", "0666")
    assert "opened lock.mdb 1" in run_as(STRANGER, TOUCH, folder / "store").stdout
    assert run_as(STRANGER, LOOK, folder / "store").stdout == "opened\nopened\n"


def test_a_member_of_the_group_uses_a_store_that_is_open_to_it(team):
    run_as(OWNER, CREATE, team, "0660", groups=[TEAM])
    assert owned(team) == {(OWNER, TEAM, 0o660)}
    run = run_as(MEMBER, USE, team, groups=[TEAM])
    assert run.stdout == "b'secret'\n[]\n"
    assert run_as(STRANGER, LOOK, team).stdout.startswith("NoPermission")


@pytest.mark.parametrize("user", [0, OWNER, MEMBER])
@pytest.mark.parametrize("umask", [0, 0o077])
def test_side_files_that_are_made_anew_belong_to_those_who_own_the_data(team, user, umask):
    run_as(OWNER, CREATE, team, "0660", groups=[TEAM])
    for name in ("lock.mdb", "slots"):
        (team / name).unlink()
    run_as(user, USE, team, groups=[TEAM], umask=umask)
    made_by = OWNER if user == 0 else user
    assert owned(team) <= {(OWNER, TEAM, 0o660), (made_by, TEAM, 0o660)}
    assert run_as(OWNER, USE, team, groups=[TEAM]).stdout
    assert run_as(MEMBER, USE, team, groups=[TEAM]).stdout


@pytest.mark.parametrize("mode", ["0600", "0660"])
def test_root_that_looks_first_takes_nothing_from_the_owner(folder, mode):
    path = folder / "store"
    run_as(OWNER, CREATE, path, mode)
    for name in ("lock.mdb", "slots"):
        (path / name).unlink()
    with diskq.open(path, readonly=True) as store:
        assert store.queue("q").qsize() == 20
    diskq.open(path).close()
    assert owned(path) == {(OWNER, OWNER, int(mode, 8))}
    assert run_as(OWNER, USE, path).stdout


def test_a_side_file_that_root_was_killed_over_is_mended_by_root(folder):
    path = folder / "store"
    run_as(OWNER, CREATE, path)
    for name in ("lock.mdb", "slots"):
        os.chown(path / name, 0, 0)
    assert run_as(OWNER, LOOK, path).stdout.startswith("NoPermission")
    diskq.open(path).close()
    assert owned(path) == {(OWNER, OWNER, 0o600)}


# Copies


@pytest.mark.parametrize("way", ["backup", "salvage"])
@pytest.mark.parametrize("there", [True, False])
def test_a_copy_is_private_while_it_is_made_and_then_as_the_store(team, way, there, monkeypatch):
    run_as(OWNER, CREATE, team / "store", "0660", groups=[TEAM])
    copy, seen = team / "copy", []
    if there:
        copy.mkdir()
        copy.chmod(0o755)
    permit = creation._permit

    def look(site, *arguments, **options):
        place = os.readlink(f"/proc/self/fd/{site.directory}")
        seen.append(stat.S_IMODE(os.stat(place).st_mode) & 0o777)
        permit(site, *arguments, **options)

    monkeypatch.setattr(creation, "_permit", look)
    if way == "backup":
        with diskq.open(team / "store") as store:
            store.backup(copy)
    else:
        diskq.salvage(team / "store", copy)
    assert seen == [0o700]
    assert owned(copy) == {(OWNER, TEAM, 0o660)}
    assert stat.S_IMODE(copy.stat().st_mode) == (0o755 if there else 0o2770)
    assert run_as(MEMBER, USE, copy, groups=[TEAM]).stdout if not there else True
    assert verified(copy) == []


@pytest.mark.parametrize("umask", [0, 0o022])
def test_at_no_moment_of_a_backup_can_another_user_enter_it(public, monkeypatch, umask):
    """Its files are open to all in the meantime; but its directory is not."""
    before = os.umask(umask)
    try:
        with diskq.open(public / "store", durability="process") as store:
            store.queue("q").put(b"secret")
            run = child.run

            def run_and_look(call, *arguments):
                lines = run(call, *arguments)
                [place] = public.glob(".diskq-unfinished*")
                seen.append(run_as(STRANGER, TOUCH, place).stdout)
                return lines

            seen = []
            monkeypatch.setattr(child, "run", run_and_look)
            store.backup(public / "copy")
    finally:
        os.umask(before)
    assert seen == [""]
    assert run_as(STRANGER, TOUCH, public / "copy").stdout == ""


def test_a_copy_that_a_member_makes_shows_nothing_to_a_group_of_its_own(public):
    """The copy cannot get the group of the store: then no group gets what that one had."""
    run_as(0, CREATE, public / "store", "0666")
    os.chown(public / "store" / "data.mdb", OWNER, TEAM)
    for name in ("data.mdb", "lock.mdb", "slots"):
        (public / "store" / name).chmod(0o660 if name == "data.mdb" else 0o666)
    code = "import sys, diskq; diskq.open(sys.argv[1]).backup(sys.argv[2])"
    os.mkdir(public / "new")
    os.chown(public / "new", MEMBER, MEMBER)
    run_as(MEMBER, code, public / "store", public / "new" / "copy", groups=[TEAM])
    found = (public / "new" / "copy" / "data.mdb").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (MEMBER, TEAM, 0o660)
    other = (public / "new" / "copy" / "lock.mdb").stat()
    assert stat.S_IMODE(other.st_mode) == 0o666


# What a user without permission is told


@pytest.mark.parametrize("verb", ["open", "create", "backup", "salvage", "salvage to"])
def test_a_user_without_permission_is_told_in_words(public, verb):
    run_as(0, CREATE, public / "store")
    code = f"""
import sys, diskq
place = sys.argv[1]
try:
    if {verb!r} == "open":
        diskq.open(place + "/store")
    elif {verb!r} == "create":
        diskq.open(place + "/new")
    elif {verb!r} == "backup":
        with diskq.open(sys.argv[2] + "/mine") as store:
            store.backup(place + "/new")
    elif {verb!r} == "salvage":
        diskq.salvage(place + "/store", sys.argv[2] + "/new")
    else:
        diskq.open(sys.argv[2] + "/mine").close()
        diskq.salvage(sys.argv[2] + "/mine", place + "/new")
except diskq.NoPermission as error:
    assert isinstance(error, diskq.ReadOnly)
    print(error)
"""
    mine = public / "mine"
    mine.mkdir()
    os.chown(mine, STRANGER, STRANGER)
    said = run_as(STRANGER, code, public, mine).stdout
    assert said.startswith("no permission to ")
    assert "belongs to user 0 and has mode 0" in said or "/store/" in said
    assert sorted(os.listdir(public)) == ["mine", "store"]


@pytest.mark.parametrize(
    "verb",
    ["info", "put t x", "get t -g g", "peek t", "verify", "backup ../new", "salvage new", "trim t"],
)
def test_the_command_line_ends_with_77_for_a_user_without_permission(public, verb):
    run_as(0, CREATE, public / "store")
    command = [sys.executable, "-m", "diskq", "-s", str(public / "store"), *verb.split()]
    run = subprocess.run(
        ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", *command],
        env=child_environment(PYTHONDONTWRITEBYTECODE="1"),
        cwd=public,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (run.returncode, run.stdout) == (77, ""), run.stderr
    assert run.stderr.startswith("diskq: no permission to ")
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", [["put", "mail", "x"], ["topic", "create", "mail"]])
def test_the_command_line_makes_a_store_with_the_mode_that_it_is_given(public, words):
    command = [sys.executable, "-m", "diskq", "-s", str(public / "store"), *words]
    environment = child_environment()
    subprocess.run([*command, "--mode", "0660"], env=environment, check=True, capture_output=True)
    assert owned(public / "store") == {(0, 0, 0o660)}
    assert stat.S_IMODE((public / "store").stat().st_mode) == 0o770
    for wrong in ("0770", "rw", "400"):
        run = subprocess.run(
            [*command, "--mode", wrong], env=environment, check=False, capture_output=True
        )
        assert run.returncode == 2
