"""A store that is not flushed is read as a whole before it is used after a boot."""

from __future__ import annotations

from itertools import pairwise

import pytest
from support.stores import digest, dump

import diskq
from diskq.host import child, files
from diskq.repair import fitness


@pytest.fixture
def place(tmp_path):
    return tmp_path / "unflushed"


@pytest.fixture
def checks(monkeypatch):
    """The paths that were checked."""
    found = []
    check = fitness.check_in_child

    def note(path):
        found.append(path)
        return check(path)

    monkeypatch.setattr(fitness, "check_in_child", note)
    return found


def fill(place, clock, durability="process"):
    with diskq.open(place, durability=durability, clock=clock) as store:
        store.topic("mail").put_many([b"x" * 2_000] * 100)


def damage(place):
    """Overwrite the last message."""
    data = bytearray((place / files.DATA).read_bytes())
    at = data.rindex(b"x" * 2_000) // 4096 * 4096
    data[at : at + 4096] = bytes(4096)
    (place / files.DATA).write_bytes(data)


def test_within_one_boot_nothing_is_checked(place, clock, checks):
    fill(place, clock)
    diskq.open(place, clock=clock).close()
    assert checks == []


def test_after_a_boot_the_first_to_open_it_checks_it(place, clock, checks):
    fill(place, clock)
    clock.reboot()
    for _ in range(3):
        diskq.open(place, clock=clock).close()
    assert checks == [str(place)]


@pytest.mark.parametrize("durability", ["commit", "relaxed"])
def test_a_store_that_is_flushed_is_not_checked(place, clock, checks, durability):
    fill(place, clock, durability)
    clock.reboot()
    diskq.open(place, clock=clock).close()
    assert checks == []


def test_damage_is_told_with_the_way_out_each_time_and_changes_nothing(place, clock):
    fill(place, clock)
    damage(place)
    clock.reboot()
    before = digest(place / files.DATA)
    for readonly in (False, True, False):
        with pytest.raises(diskq.Corrupt, match=f"diskq -s {place} salvage"):
            diskq.open(place, clock=clock, readonly=readonly)
    assert digest(place / files.DATA) == before


def test_a_cut_in_the_note_of_the_boot_means_another_check(place, clock, checks):
    fill(place, clock)
    (place / files.BOOT).write_bytes(b"\xff\x00 half")
    diskq.open(place, clock=clock).close()
    diskq.open(place, clock=clock).close()
    assert checks == [str(place)]


def test_without_the_note_of_the_boot_it_is_not_opened_and_an_empty_one_means_a_check(
    place, clock, checks
):
    fill(place, clock)
    (place / files.BOOT).unlink()
    with pytest.raises(diskq.Corrupt, match="make an empty file"):
        diskq.open(place, clock=clock)
    (place / files.BOOT).touch()
    diskq.open(place, clock=clock).close()
    assert checks == [str(place)]


def test_a_store_that_cannot_be_checked_is_not_called_damaged(place, clock, monkeypatch):
    fill(place, clock)
    clock.reboot()
    monkeypatch.setattr(child, "_interpreters", lambda: iter(["/bin/false"]))
    with pytest.raises(diskq.DiskqError, match="could not be checked") as error:
        diskq.open(place, clock=clock)
    assert not isinstance(error.value, diskq.Corrupt)
    monkeypatch.undo()
    diskq.open(place, clock=clock).close()


def test_other_files_of_the_directory_do_not_disturb_the_check(place, clock, tmp_path, monkeypatch):
    """Whatever is in the current directory is not imported by the process that checks."""
    fill(place, clock)
    clock.reboot()
    (tmp_path / "queue.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    diskq.open(place, clock=clock).close()


def test_tokens_rise_over_a_boot(place, clock):
    """Nothing is flushed: those of the latest commits may be forgotten."""
    tokens = []
    for _ in range(3):
        with diskq.open(place, durability="process", clock=clock) as store:
            queue = store.queue("q")
            queue.put(b"")
            consumer = queue.consumer()
            tokens.append(consumer.get_nowait().token)
        clock.reboot()
    assert [second > first + (2**24 << 24) // 2 for first, second in pairwise(tokens)] == [True] * 2


def test_a_read_only_opening_checks_too(place, clock, checks):
    fill(place, clock)
    clock.reboot()
    with diskq.open(place, clock=clock, readonly=True) as store:
        assert dump(store)["log of mail"]
    assert checks == [str(place)]
