"""Creating a store: an empty directory stays what it is, whoever dies meanwhile leaves nothing in
the way, and two that create at the same time get one store."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import struct
import subprocess
import sys
import threading

import pytest
from support import users
from support.programs import ROOT, run_module, run_python
from support.stores import verified

import diskq
from diskq.host.files import MARKER, UNFINISHED
from diskq.storage import creation

STORE_FILES = {"data.mdb", "lock.mdb", "slots"}
CREATE = """
import sys, diskq
with diskq.open(sys.argv[1]) as store:
    print(store.stats().store_id, store.topic("t").put(b"").offset)
"""


def create(path, **options):
    with diskq.open(path, **options) as store:
        store.queue("q").put(b"a")
    assert verified(path) == []


@pytest.fixture
def empty(tmp_path):
    """A directory that somebody prepared: not even the umask would make it like this."""
    path = tmp_path / "prepared"
    path.mkdir()
    path.chmod(0o2771)
    return path


# What is kept


def test_an_empty_directory_stays_what_it_is(empty):
    before = empty.stat()
    create(empty)
    after = empty.stat()
    assert os.path.samestat(before, after)
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert {*os.listdir(empty)} == STORE_FILES


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_in_a_setgid_directory_belong_to_its_group(empty):
    os.chown(empty, -1, users.TEAM)
    empty.chmod(0o2770)
    create(empty, mode=0o660)
    found = [(empty / name).stat() for name in STORE_FILES]
    assert {(each.st_gid, stat.S_IMODE(each.st_mode)) for each in found} == {(users.TEAM, 0o660)}
    assert stat.S_IMODE(empty.stat().st_mode) == 0o2770


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="needs setfacl")
def test_the_acl_of_an_empty_directory_stays(empty):
    subprocess.run(["setfacl", "-m", "u:65534:rwx", "-m", "d:u:65534:rwx", empty], check=True)
    before = os.getxattr(empty, "system.posix_acl_default")
    create(empty)
    assert os.getxattr(empty, "system.posix_acl_default") == before
    assert stat.S_IMODE((empty / "data.mdb").stat().st_mode) == 0o600


@pytest.mark.parametrize("suffix", ["", "/", "//", "/."])
def test_a_symbolic_link_to_an_empty_directory_stays_one(empty, tmp_path, suffix):
    (tmp_path / "link").symlink_to(empty)
    create(f"{tmp_path}/link{suffix}")
    assert (tmp_path / "link").is_symlink()
    assert {*os.listdir(empty)} == STORE_FILES


def test_the_current_directory_goes_on_being_the_current_one(empty, monkeypatch):
    monkeypatch.chdir(empty)
    create(".")
    assert {*os.listdir(".")} == STORE_FILES
    assert os.path.samefile(".", empty)


def test_a_disk_of_its_own_can_become_a_store(tmp_path):
    """As a container has it, and with what mkfs puts there."""
    script = 'mount -t tmpfs none "$1" && mkdir "$1"/lost+found && exec "$2" -c "$3" "$1"'
    code = CREATE + "import os; print(*sorted(os.listdir(sys.argv[1])))"
    done = users.run_mounted(script, tmp_path, sys.executable, code)
    if done is None:
        pytest.skip("needs mounts of its own: unshare")
    assert done.stdout.splitlines()[1] == "data.mdb lock.mdb lost+found slots"


@pytest.mark.skipif(bool(users.hindrance()), reason=users.hindrance())
def test_a_directory_can_become_a_store_though_its_parent_is_anothers(public):
    """systemd's StateDirectory: /var/lib belongs to root, /var/lib/app to the service."""
    os.mkdir(public / "app")
    os.chown(public / "app", users.OWNER, users.OWNER)
    before = (public / "app").stat()
    run = users.run_as(users.OWNER, CREATE, public / "app")
    assert run.stdout.split()[1] == "0"
    assert os.path.samestat(before, (public / "app").stat())
    assert os.listdir(public) == ["app"]


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("mode", [None, 0o660, 0o640, 0o666])
def test_the_mode_is_what_was_asked_for_whatever_the_umask_is(tmp_path, umask, there, mode):
    path = tmp_path / "store"
    if there:
        path.mkdir(mode=0o711)
    before = os.umask(umask)
    try:
        with diskq.open(path, mode=mode, durability="process"):
            pass
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((path / name).stat().st_mode) for name in (*STORE_FILES, "boot")}
    wanted = {None: 0o700, 0o660: 0o770, 0o640: 0o750, 0o666: 0o777}[mode]
    assert modes == {mode or 0o600}
    assert stat.S_IMODE(path.stat().st_mode) == (0o711 if there else wanted)


def test_a_new_directory_inherits_the_group_of_a_setgid_parent(tmp_path):
    tmp_path.chmod(0o2700)
    create(tmp_path / "store", mode=0o660)
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o2770


@pytest.mark.parametrize("mode", [0, 0o400, 0o700, 0o060, 0o661, 0o1600, 660, -1, 0o4600])
def test_a_mode_that_is_none_is_refused_before_anything_is_made(tmp_path, mode):
    with pytest.raises(ValueError, match="mode must be 0o600"):
        diskq.open(tmp_path / "store", mode=mode)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", ["0660", 0.5, True])
def test_a_mode_of_another_type_is_refused(tmp_path, mode):
    with pytest.raises(TypeError, match="mode must be an int"):
        diskq.open(tmp_path / "store", mode=mode)


def test_an_existing_store_keeps_its_permissions(tmp_path):
    create(tmp_path / "store")
    create(tmp_path / "store", mode=0o660)
    assert stat.S_IMODE((tmp_path / "store" / "data.mdb").stat().st_mode) == 0o600


# What is in the way


@pytest.mark.parametrize("name", ["note.txt", ".hidden", "lock.mdb", "slots", "boot", "dir"])
def test_a_directory_with_other_files_is_refused_and_stays_as_it_is(empty, name):
    (empty / name).mkdir() if name == "dir" else (empty / name).write_text("mine")
    with pytest.raises(diskq.NotAStore, match="other files"):
        diskq.open(empty)
    assert os.listdir(empty) == [name]


def test_a_file_called_lost_and_found_is_a_file(empty):
    (empty / "lost+found").write_text("mine")
    with pytest.raises(diskq.NotAStore, match="other files"):
        diskq.open(empty)


def foreign(path, kind):
    """Something that has our name, and is not ours."""
    if kind == "a file":
        path.write_text("mine")
    elif kind == "a link":
        (path.parent.parent / "elsewhere").mkdir()
        (path.parent.parent / "elsewhere" / "data.mdb").write_text("mine")
        path.symlink_to(path.parent.parent / "elsewhere")
    else:
        path.mkdir()
        (path / ("data.mdb" if kind == "no marker" else "note.txt")).write_text("mine")
        if kind == "other files":
            (path / MARKER).touch()
        if kind == "another text":
            (path / "note.txt").rename(path / MARKER)


@pytest.mark.parametrize("kind", ["a file", "a link", "no marker", "other files", "another text"])
def test_what_only_has_the_name_of_a_leftover_is_refused_and_stays(empty, kind):
    foreign(empty / UNFINISHED, kind)
    before = sorted((str(path), path.is_file() and path.read_text()) for path in empty.rglob("*"))
    with pytest.raises(diskq.NotAStore):
        diskq.open(empty)
    after = sorted((str(path), path.is_file() and path.read_text()) for path in empty.rglob("*"))
    assert after == before
    if kind == "a link":
        assert (empty.parent / "elsewhere" / "data.mdb").read_text() == "mine"


# Deaths, others, full disks


@pytest.mark.parametrize("shape", ["new", "existing"])
@pytest.mark.parametrize("durability", ["commit", "process"])
def test_after_a_kill_at_any_step_the_next_creation_succeeds_and_nothing_is_left(
    tmp_path, shape, durability
):
    steps = run_module(
        "support.killed_creation", tmp_path / "folder", shape, durability, timeout=110
    ).stdout
    assert int(steps.split()[-1]) > 20


@pytest.mark.parametrize("shape", ["new", "existing"])
def test_control_a_creation_that_removes_nothing_is_found_by_kills(tmp_path, shape):
    run = run_module(
        "support.killed_creation", tmp_path / "folder", shape, "commit", "fault", check=False
    )
    assert "AssertionError" in run.stderr


INTERRUPT = """
import gc, os, shutil, sys
import diskq
from diskq.storage import creation
from diskq.base import options
from diskq.host import sites
from diskq.operate import stats
from diskq.repair import verify
shape, folder = sys.argv[1:]
path = os.path.join(folder, "store")
creation._WAIT_SECONDS = 1
number = 0

def interrupted():
    # Create the store, interrupted before line `number` of it; whether it was.
    left = number
    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename not in (creation.__file__, sites.__file__):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace
    sys.settrace(trace)
    try:
        diskq.open(path).close()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return left <= 0

while True:
    number += 1
    os.mkdir(folder)
    if shape == "existing":
        os.mkdir(path)
    files = len(os.listdir("/proc/self/fd"))
    again = interrupted()
    gc.collect()  # the traceback had the locked marker
    assert len(os.listdir("/proc/self/fd")) <= files + 3, number  # of directories
    with diskq.open(path) as store:
        store.queue("q").put(b"a")
        assert list(store.verify()) == [], number
    names = {*os.listdir(path), *os.listdir(folder)}
    assert names == {"store", "data.mdb", "lock.mdb", "slots"}, (number, names)
    shutil.rmtree(folder)
    if not again:
        break
print(number)
"""


@pytest.mark.parametrize("shape", ["new", "existing"])
def test_after_an_interrupt_at_any_line_the_next_creation_succeeds_and_nothing_is_left(
    tmp_path, shape
):
    """In the same process, which goes on: no lock is left."""
    lines = run_python(INTERRUPT, shape, tmp_path / "folder", timeout=110).stdout
    assert int(lines) > 50


def lock(file):
    query = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, query)


def test_a_second_creator_waits_for_the_first_and_takes_over_when_that_one_dies(empty, monkeypatch):
    (empty / UNFINISHED).mkdir()
    with open(empty / UNFINISHED / MARKER, "wb") as marker:
        lock(marker)
        monkeypatch.setattr(creation.time, "sleep", lambda seconds: marker.close())
        create(empty)
    assert {*os.listdir(empty)} == STORE_FILES


def test_a_second_creator_gets_the_store_that_the_first_one_made(empty, monkeypatch):
    first = threading.Event()
    make = creation.create_in

    def make_slowly(place, row):
        first.set()
        made.append(place)
        if len(made) == 1:
            assert waited.wait(30)
        make(place, row)

    made, waited = [], threading.Event()
    monkeypatch.setattr(creation, "create_in", make_slowly)
    monkeypatch.setattr(creation.time, "sleep", lambda seconds: waited.set())
    clock = diskq.Clock()
    arguments = str(empty), "commit", 0, 0o600, clock
    threads = [threading.Thread(target=creation.create_store, args=arguments) for _ in range(2)]
    threads[0].start()
    assert first.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 1
    assert verified(empty) == []
    assert os.listdir(empty).count(UNFINISHED) == 0


def test_a_creator_that_never_ends_is_waited_for_until_a_deadline(empty, monkeypatch):
    monkeypatch.setattr(creation, "_WAIT_SECONDS", 0.05)
    (empty / UNFINISHED).mkdir()
    with open(empty / UNFINISHED / MARKER, "wb") as marker:
        lock(marker)
        with pytest.raises(diskq.Busy, match="another process has been making a store"):
            diskq.open(empty)
    assert os.listdir(empty) == [UNFINISHED]


def test_many_processes_that_make_one_store_in_an_empty_directory_all_get_it(empty):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, empty], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(4)
    ]
    said = [run.communicate(timeout=60)[0].split() for run in runs]
    assert len({store_id for store_id, _ in said}) == 1
    assert sorted(offset for _, offset in said) == ["0", "1", "2", "3"]
    assert {*os.listdir(empty)} == STORE_FILES


def test_a_directory_that_is_made_meanwhile_is_kept(tmp_path, monkeypatch):
    """A rename would have replaced it."""
    path = tmp_path / "store"
    make = creation.create_in

    def make_both(place, row):
        make(place, row)
        if not path.exists():
            path.mkdir(mode=0o750)

    monkeypatch.setattr(creation, "create_in", make_both)
    create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert os.listdir(tmp_path) == ["store"]


FILL = """
import os, sys, diskq
disk, path = sys.argv[1], os.path.join(sys.argv[1], "store")
for there in (False, True):
    if there:
        os.mkdir(path)
    room = os.statvfs(disk)
    for left in range(0, 700_000, 50_000):
        with open(os.path.join(disk, "filler"), "wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - left)
        try:
            diskq.open(path).close()
            print("made", sorted(os.listdir(path)))
        except diskq.Full as error:
            assert "no room" in str(error), error
            assert sorted(os.listdir(disk)) == ["filler", "store"][: 1 + there], os.listdir(disk)
            assert not there or os.listdir(path) == []
        os.remove(os.path.join(disk, "filler"))
        if os.path.exists(os.path.join(path, "data.mdb")):
            for name in os.listdir(path):
                os.remove(os.path.join(path, name))
            there or os.rmdir(path)
"""


def test_a_full_disk_leaves_nothing(tmp_path):
    script = f'{users.SMALL_DISK} && exec "$2" -c "$3" "$1"'
    done = users.run_mounted(script, tmp_path, sys.executable, FILL)
    if done is None:
        pytest.skip("needs mounts of its own: unshare")
    made = "made ['data.mdb', 'lock.mdb', 'slots']"
    assert {*done.stdout.splitlines()} == {made}
