"""A store that is not flushed is read as a whole before it is used after a boot."""

from __future__ import annotations

import pytest
from helpers import dump

import diskq
from diskq import files, verify


@pytest.fixture
def place(tmp_path):
    return tmp_path / "unflushed"


@pytest.fixture
def checks(monkeypatch):
    """The paths that were checked."""
    found = []
    check = verify.check_in_child

    def note(path):
        found.append(path)
        return check(path)

    monkeypatch.setattr(verify, "check_in_child", note)
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
    before = (place / files.DATA).read_bytes()
    for readonly in (False, True, False):
        with pytest.raises(diskq.Corrupt, match=f"diskq -s {place} salvage"):
            diskq.open(place, clock=clock, readonly=readonly)
    assert (place / files.DATA).read_bytes() == before


def test_a_cut_in_the_note_of_the_boot_means_another_check(place, clock, checks):
    fill(place, clock)
    (place / files.BOOT).write_bytes(b"\xff\x00 half")
    diskq.open(place, clock=clock).close()
    diskq.open(place, clock=clock).close()
    assert checks == [str(place)]


def test_a_read_only_opening_checks_too(place, clock, checks):
    fill(place, clock)
    clock.reboot()
    with diskq.open(place, clock=clock, readonly=True) as store:
        assert dump(store)["log of mail"]
    assert checks == [str(place)]
