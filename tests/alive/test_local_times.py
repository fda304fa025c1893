"""Local times that do not exist, or exist twice: `at`, `--at`, seek, offset_at and --from agree."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from support.programs import child_environment

from diskq.base import check

BERLIN = ZoneInfo("Europe/Berlin")
# As asked for in Berlin, and what it is.
TIMES = {
    "2027-03-28T01:59:59": "2027-03-28T00:59:59+00:00",
    "2027-03-28T02:00": "2027-03-28T01:00:00+00:00",  # 03:00
    "2027-03-28T02:30": "2027-03-28T01:30:00+00:00",  # 03:30
    "2027-03-28T03:00": "2027-03-28T01:00:00+00:00",
    "2027-10-31T02:30": "2027-10-31T00:30:00+00:00",  # the first of two
    "2027-10-31T03:00": "2027-10-31T02:00:00+00:00",
    "2027-06-01T12:00:00.123456": "2027-06-01T10:00:00.123456+00:00",
}
CODE = """
import sys
from datetime import datetime
from diskq.base import check
from diskq.cli import units
for text in sys.argv[1:]:
    when = datetime.fromisoformat(text)
    parsed = units.parse_time(text), units.parse_place(text), units.parse_start(text)
    print(*(check.wall_ns("at", each) for each in (when, *parsed)))
"""


def run(*command, **options):
    """Run a command in Berlin; returns what it prints."""
    environment = child_environment(TZ="Europe/Berlin")
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        **options,
    )
    return done.stdout


def wall_ns(text):
    """Nanoseconds since 1970 of a time that names its zone."""
    since = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1) * 1000


def test_a_local_time_in_a_gap_is_later_and_of_two_it_is_the_first():
    for line, expected in zip(run("-c", CODE, *TIMES).splitlines(), TIMES.values(), strict=True):
        assert [int(each) for each in line.split()] == [wall_ns(expected)] * 4


@pytest.mark.parametrize("text", TIMES)
def test_a_datetime_that_has_its_zone_means_the_same(text):
    when = datetime.fromisoformat(text).replace(tzinfo=BERLIN)
    assert check.wall_ns("at", when) == wall_ns(TIMES[text])


def test_the_second_of_two_can_be_asked_for():
    when = datetime(2027, 10, 31, 2, 30, fold=1, tzinfo=BERLIN)
    assert check.wall_ns("at", when) == wall_ns("2027-10-31T01:30:00+00:00")


def test_the_command_line_schedules_for_the_later_time(tmp_path):
    store = str(tmp_path / "store")
    shown = run("-m", "diskq", "-s", store, "put", "t", "x", "--at", "2027-03-28T02:30")
    assert shown.endswith("due 2027-03-28 03:30:00\n")
    assert f"{wall_ns('2027-03-28T01:30:00+00:00')}-0" in shown
