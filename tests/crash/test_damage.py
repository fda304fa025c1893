"""A damaged file: checking never kills, what was salvaged is sound, no wrong message is delivered.

Each damage is done to a copy of the same store, see support/damaging.py. LMDB trusts its pages, so
a process that uses a damaged store unchecked may be ended by it: that is counted, not forbidden.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter

import pytest
from support.programs import child_environment

DAMAGES = int(os.environ.get("DAMAGES", "200"))


pytestmark = pytest.mark.timeout(600)


def damaged(count: int, *plant: str):
    """What became of so many damages, without those that changed nothing."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as place:
        command = [sys.executable, "-m", "support.damaging", place, str(count), "7", *plant]
        run = subprocess.run(
            command,
            env=child_environment(),
            stdout=subprocess.PIPE,
            text=True,
            timeout=600,
            check=True,
        )
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(found) == count
    return [each for each in found if each["changed"]]


@pytest.fixture(scope="module")
def outcomes():
    found = damaged(DAMAGES)
    figures = Counter(
        (verb, each["kind"], each[verb]) for each in found for verb in ("check", "use", "salvage")
    )
    print(*(f"{number:5} {' / '.join(key)}" for key, number in sorted(figures.items())), sep="\n")
    return found


def test_checking_a_damaged_store_never_ends_its_process(outcomes):
    assert {each["check"] for each in outcomes} == {"ok", "refused"}
    assert {each["salvage"] for each in outcomes} <= {"ok", "refused"}


def test_no_damage_makes_a_store_deliver_other_messages(outcomes):
    ended = {each["use"] for each in outcomes if each["use"].startswith("signal")}
    known = {"ok", "refused", "others of its messages"}
    assert {each["use"] for each in outcomes} - ended <= known


def test_what_a_check_calls_sound_can_be_used(outcomes):
    assert {each["use"] for each in outcomes if each["check"] == "ok"} == {"ok"}


def test_what_was_salvaged_is_sound_and_can_be_consumed(outcomes):
    saved = Counter(each["saved"] for each in outcomes if "saved" in each)
    assert set(saved) == {"ok"}
    assert saved["ok"] > len(outcomes) * 3 // 4


def test_without_checksums_a_damaged_store_delivers_other_messages():
    """The harness finds the fault that the checksums are there for."""
    assert "wrong data" in {each["use"] for each in damaged(60, "no checksums")}
