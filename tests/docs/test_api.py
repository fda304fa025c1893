"""The page of the API has every public name, every public method with its signature, every field
and every error, and nothing that is not there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import diskq

PAGE = (Path(__file__).parents[2] / "docs/reference/api.md").read_text()
CLASSES = [
    *(diskq.Store, diskq.Topic, diskq.Group, diskq.Consumer, diskq.Message),
    *(diskq.Transaction, diskq.Queue),
]
STATS = [diskq.StoreStats, diskq.TopicStats, diskq.GroupStats]
ERRORS = [name for name in diskq.errors.__all__ if name != "DiskqError"]

# For diskq's own use, though no docstring of theirs can say so, or none does.
INTERNAL = {
    *(("Store", "handle"), ("Topic", "handle"), ("Group", "handle"), ("Topic", "ref")),
    *(("Group", "place"), ("Message", "member"), ("Message", "lease"), ("Message", "failed")),
}


def section(heading: str) -> str:
    """What the page says below a heading."""
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def listed(heading: str) -> set[str]:
    """What is in the first column below a heading."""
    rows = re.findall(r"^\| (`.*?`) \|", section(heading), re.MULTILINE)
    return {each for row in rows for each in re.findall(r"`([^`]+)`", row)}


def signature(name: str, function: Any) -> str:
    """A call as the page shows it."""
    parameters = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in inspect.signature(function).parameters.values()
        if each.name != "self"
    ]
    return name + str(inspect.Signature(parameters))


def attributes(kind: type) -> set[str]:
    """What `__init__` sets of its own accord, and the slots."""
    found = set(re.findall(r"^        self\.([a-z]\w*)\b.* = ", inspect.getsource(kind), re.M))
    return found | {name for name in getattr(kind, "__slots__", ()) if name[0] != "_"}


def members(kind: type) -> set[str]:
    """The public methods of a class, as the page shows them, and its public attributes."""
    found = set()
    public = [name for name in {*vars(kind), *attributes(kind)} if not name.startswith("_")]
    for name in public:
        value = vars(kind).get(name)
        own = "for diskq's own use" in (value.__doc__ or "").lower() or (
            (value.__doc__ or "").startswith("For Message")
        )
        if (kind.__name__, name) not in INTERNAL and not (value and own):
            found.add(signature(name, value) if inspect.isfunction(value) else name)
    return found


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_method_and_attribute_of_a_class_is_there(kind):
    assert listed(kind.__name__) == members(kind)


@pytest.mark.parametrize("kind", STATS, ids=lambda kind: kind.__name__)
def test_every_number_is_there(kind):
    assert listed(kind.__name__) == set(kind._fields)


def test_every_value_is_there_with_its_fields():
    values = [getattr(diskq, name) for name in diskq.model.__all__]
    wanted = {signature(kind.__name__, kind) for kind in values if kind not in STATS}
    assert listed("Values") == wanted


def test_every_error_is_there():
    assert listed("Errors") == set(ERRORS)


def test_the_call_that_begins_it_all_is_there():
    call = signature("diskq.open", diskq.open).replace(", clock=None", "")  # is for tests
    assert f"`{call}`" in PAGE


def test_the_call_that_salvages_is_there():
    assert f"`{signature('diskq.salvage', diskq.salvage)}`" in PAGE


def test_every_public_name_is_there():
    assert set(diskq.__all__) - set(re.findall(r"\w+", PAGE)) == set()


def test_a_queue_shows_in_help_what_it_has_of_its_topic_and_group():
    for name, kind in ("put", diskq.Topic), ("put_many", diskq.Topic), ("consumer", diskq.Group):
        assert getattr(diskq.Queue, name) is getattr(kind, name)


def test_a_member_that_is_not_on_the_page_is_found(monkeypatch):
    monkeypatch.setattr(diskq.Topic, "shrink", lambda self, by=1: by, raising=False)
    assert members(diskq.Topic) - listed("Topic") == {"shrink(by=1)"}
