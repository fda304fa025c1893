"""The page of settings says what the code does: every setting, its default, its limits, its option
on the command line and whether it can change."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import diskq
from diskq import Backoff, ConfigConflict, GroupSettings, MessageTooLarge, Outgoing, TopicSettings
from diskq.base import check, limits
from diskq.base import settings as known_settings
from diskq.base.options import GroupChanges, PutOptions, TopicChanges
from diskq.cli import groups, putting, topics, units

PAGE = (Path(__file__).parents[2] / "docs/reference/settings.md").read_text()


class Row(NamedTuple):
    """A row of a table of the page."""

    name: str
    default: str
    least: str
    most: str
    rest: tuple[str, ...]


def rows(heading: str) -> list[Row]:
    """The rows of the table below a heading."""
    text = PAGE.split(f"\n## {heading}")[1].split("\n## ")[0]
    cells = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    stripped = [[cell.strip().strip("`") for cell in row] for row in cells]
    return [Row(*row[:4], tuple(row[4:])) for row in stripped]


def amount(text: str) -> float:
    """A number of the page, in its base unit."""
    number, _, unit = text.replace(",", "").partition(" ")
    if unit in ("s", "d"):
        return units.parse_duration(number + unit)
    return units.parse_size(number + unit) if unit else int(number)


def value_of(text: str) -> object:
    """A default of the page."""
    return eval(text, {"Backoff": Backoff})  # it is our own page


def choices(text: str) -> list[str]:
    return re.findall(r'"(\w+)"', text)


TOPIC, GROUP = rows("Topics"), rows("Groups")
PUT, CALLS, STORE = rows("One put"), rows("Consumers and calls"), rows("The store")
FIXED = [
    (cells[0].strip("`"), cells[1])
    for line in PAGE.split("\n## Fixed limits")[1].splitlines()
    if line.startswith("| `")
    for cells in [line.strip("| ").split(" | ")]
]


def named(rows: list[Row]) -> list[Any]:
    return [pytest.param(row, id=row.name) for row in rows]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[diskq.Store]:
    with diskq.open(tmp_path / "store", durability="process") as store:
        yield store


# Settings


@pytest.mark.parametrize(
    ("rows", "settings", "changes"),
    [(TOPIC, TopicSettings, TopicChanges), (GROUP, GroupSettings, GroupChanges)],
    ids=["topic", "group"],
)
def test_every_setting_is_there_with_its_default(rows, settings, changes):
    assert {row.name: value_of(row.default) for row in rows} == settings()._asdict()
    assert {row.name for row in rows} == set(changes.__annotations__)


def accepts(settings: Any, name: str, value: object) -> bool:
    try:
        known_settings.checked(settings, {name: value})
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("row", named(TOPIC + GROUP))
def test_a_setting_has_the_limits_that_the_page_says(row):
    settings = TopicSettings() if row in TOPIC else GroupSettings()
    if wanted := choices(row.least):
        assert [choice for choice in wanted if accepts(settings, row.name, choice)] == wanted
        with pytest.raises(ValueError, match=f"one of {', '.join(wanted)}, not"):
            known_settings.checked(settings, {row.name: "neither"})
    elif row.least != "-":
        least, most = amount(row.least), amount(row.most)
        step = 1 if isinstance(least, int) else 0.0005
        values = least - step, least, most, most + 1
        found = [accepts(settings, row.name, value) for value in values]
        assert found == [False, True, True, False]
    else:
        assert row.name in ("backoff", "keep_expired")  # whose limits are in words


def test_the_limits_of_a_backoff_are_those_of_the_page():
    text = " ".join(PAGE.split())
    found = re.search(r"is 0 to (\d+ d), 1 to (\d+), and 0 to (\d+ d)", text)
    assert found
    base, factor, most = map(amount, found.groups())
    settings = GroupSettings()
    assert accepts(settings, "backoff", Backoff(base, factor, most))
    assert accepts(settings, "backoff", Backoff(0, 1, 0))
    beyond = (base + 1, factor, most), (base, factor + 1, most), (base, factor, most + 1)
    below = (-1, 1, 0), (0, 0.9, 0), (0, 1, -1)
    for wrong in (*beyond, *below):
        assert not accepts(settings, "backoff", Backoff(*wrong))


OTHER = {
    "retention": "limits", "max_age_seconds": 60, "max_bytes": 10_000, "max_messages": 7,
    "discard": "old", "dedup_seconds": 60, "priorities": 3, "lease_seconds": 60,
    "max_deliveries": 7, "backoff": Backoff(0), "ordering": "key", "max_in_flight": 7,
    "keep_expired": True,
}  # fmt: skip


@pytest.mark.parametrize("row", named(TOPIC + GROUP))
def test_a_setting_can_change_if_the_page_says_so(row, store):
    topic = store.topic("t")
    target = topic if row in TOPIC else topic.group("g")
    default, other = getattr(target.settings, row.name), OTHER[row.name]
    changes = row.rest[1]
    if changes == "no":
        with pytest.raises(ConfigConflict):
            target.update(**{row.name: other})
        return
    assert getattr(target.update(**{row.name: other}), row.name) == other
    if changes == "yes":
        assert getattr(target.update(**{row.name: default}), row.name) == default
    else:
        assert changes == "only grow"
        with pytest.raises(ConfigConflict):
            target.update(**{row.name: default})


# The command line


@pytest.mark.parametrize(
    ("rows", "command", "others"),
    [
        (TOPIC, topics.topic_create, ("mode",)),
        (GROUP, groups.group_create, ("start",)),
        (PUT, putting.put, ("lines", "null", "jsonl", "wait", "no_create", "mode", "as_json")),
    ],
    ids=["topic create", "group create", "put"],
)
def test_the_command_line_has_an_option_for_each(rows, command, others):
    found = {param.name: param.opts[0] for param in command.params if param.opts[0][0] == "-"}
    for other in others:
        del found[other]
    assert {row.name: row.rest[0] for row in rows} == found


# Puts and calls


def test_every_option_of_a_put_is_there_with_its_default():
    assert {row.name for row in PUT} == set(PutOptions.__annotations__)
    assert {row.name: value_of(row.default) for row in PUT} == Outgoing._field_defaults


@pytest.mark.parametrize("row", named([row for row in PUT if row.least != "-"]))
def test_an_option_of_a_put_has_the_limits_that_the_page_says(row):
    least, most = amount(row.least), amount(row.most)

    texts = "key", "dedup_id"

    def accepted(number: float) -> bool:
        value = "x" * int(number) if row.name in texts else number
        try:
            check.message(Outgoing(b"", **{row.name: value}))
        except (ValueError, MessageTooLarge):
            return False
        return True

    assert [accepted(least), accepted(most), accepted(most + 1)] == [True, True, False]
    step = 1 if isinstance(least, int) else 0.0005
    assert not accepted(least - step)


def called(name: str) -> tuple[Any, str]:
    """The function of a row, and the argument it is about."""
    path, argument = name.rstrip(")").split("(")
    found: Any = diskq
    for part in path.split("."):
        found = getattr(found, part)
    return found, argument


@pytest.mark.parametrize("row", named(STORE + CALLS))
def test_an_argument_has_the_default_that_the_page_says(row):
    function, argument = called(row.name)
    default = inspect.signature(function).parameters[argument].default
    assert default == (inspect.Parameter.empty if row.default == "-" else value_of(row.default))


def test_all_arguments_of_a_call_are_there():
    mentioned: dict[Any, set[str]] = {}
    for row in STORE + CALLS:
        function, argument = called(row.name)
        mentioned.setdefault(function, set()).add(argument)
    for function, arguments in mentioned.items():
        known = {"self", "path", "body", "options", "clock"}  # clock is for tests
        assert arguments == set(inspect.signature(function).parameters) - known


CALL: dict[str, Callable[[diskq.Group, Any], object]] = {
    "Group.consumer(prefetch)": lambda group, value: group.consumer(prefetch=value).close(),
    "Consumer.get_many(n)": lambda group, value: group.consumer().get_many(value, timeout=0),
    "Message.nack(delay_seconds)": lambda group, value: group.consumer().get().nack(value),
    "Message.extend(seconds)": lambda group, value: group.consumer().get().extend(value),
    "Consumer.get(timeout)": lambda group, value: group.consumer().get(timeout=value),
    "Consumer.get_many(timeout)": lambda group, value: group.consumer().get_many(1, value),
    "Topic.put(timeout)": lambda group, value: group.topic.put(b"", timeout=value),
}


@pytest.mark.parametrize("row", named([row for row in CALLS if row.least != "-"]))
def test_an_argument_has_the_limits_that_the_page_says(row, store):
    topic = store.topic("t")
    call, number = CALL[row.name], 0

    def accepted(value: float) -> bool:
        nonlocal number
        number += 1
        group = topic.group(f"g{number}")
        topic.put(b"")
        try:
            call(group, value)
        except ValueError:
            return False
        return True

    least = amount(row.least)
    assert accepted(least)
    assert not accepted(least - (1 if isinstance(least, int) else 0.0005))
    if row.most != "-":
        most = amount(row.most)
        assert [accepted(most), accepted(most + 1)] == [True, False]


def test_a_store_has_the_settings_that_the_page_says(tmp_path):
    by_name = {row.name: row for row in STORE}
    for mode in choices(by_name["open(durability)"].least):
        with diskq.open(tmp_path / mode, durability=mode) as store:
            assert store.stats().durability == mode
    least, most = (amount(by_name["open(max_bytes)"][at]) for at in (2, 3))
    for size in (least, most):
        diskq.open(tmp_path / f"{size}", max_bytes=int(size)).close()
    for size in (least - 1, most + 1):
        with pytest.raises(ValueError, match="max_bytes"):
            diskq.open(tmp_path / f"{size}", max_bytes=int(size))


def test_a_mode_has_the_limits_that_the_page_says(tmp_path):
    [row] = [row for row in STORE if row.name == "open(mode)"]
    least, most = int(row.least, 8), int(row.most, 8)
    for mode in (least, most):
        diskq.open(tmp_path / f"{mode:o}", mode=mode).close()
    for mode in (least - 1, most + 1, least & ~0o200):
        with pytest.raises(ValueError, match="mode"):
            diskq.open(tmp_path / f"{mode:o}", mode=mode)


@pytest.mark.parametrize(("name", "shown"), FIXED, ids=[name for name, _ in FIXED])
def test_a_fixed_limit_is_what_the_page_says(name, shown):
    assert getattr(limits, name) == amount(shown)
