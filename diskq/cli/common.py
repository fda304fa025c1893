"""Helpers that the verbs share: the store, topics and groups by name, options, questions."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import click

import diskq
from diskq import Group, NotFound, Store, Topic
from diskq.base import limits
from diskq.base.model import LANE_BITS

from . import output, units

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., object])

NOTHING = "nothing"
OFFSET = click.IntRange(0, 2**64 - 1)
_NONE = "none"  # removes a bound
_BOUNDS = "max_age_seconds", "max_bytes", "max_messages", "max_in_flight"


class Options(NamedTuple):
    """The options before the verb; None for one that was not given."""

    store: str | None
    busy_seconds: float | None


def parsed(parse: Callable[[str], T]) -> Callable[[click.Context, click.Parameter, object], object]:
    """An option's callback that parses its text; the text of a ValueError becomes the error."""

    def callback(ctx: click.Context, param: click.Parameter, value: object) -> object:
        try:
            return parse(value) if isinstance(value, str) else value
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return callback


def or_none(parse: Callable[[str], T]) -> Callable[[str], T | str]:
    """Parse a setting that `none` removes; see `changed_settings`."""
    return lambda text: text if text == _NONE else parse(text)


def parse_busy(text: str) -> float:
    """How long to wait for other writers of the store; `none` is without end.

    Raises: ValueError.
    """
    return math.inf if text == _NONE else units.parse_duration(text)


def given_settings(options: Mapping[str, object]) -> dict[str, object]:
    """The settings that were given for a new topic or group."""
    for name, value in options.items():
        if value == _NONE and name in _BOUNDS:
            raise click.UsageError(f"{name} is none by default; leave it out")
    return {name: value for name, value in options.items() if value is not None}


def changed_settings(options: Mapping[str, object]) -> dict[str, object]:
    """The changed settings: None for one that was given as `none`."""
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        raise click.UsageError("no setting was given to change")
    return {name: None if value == _NONE else value for name, value in given.items()}


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """A decorator that adds options which several verbs share."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


busy_option = click.option(
    "--busy",
    metavar="DURATION",
    callback=parsed(parse_busy),
    help="How long a verb that writes waits for other writers; then the exit code is 75. 0 is one"
    " attempt, none is without end.  [default: 30s]",
)
mode_option = click.option(
    "--mode",
    metavar="OCTAL",
    callback=parsed(units.parse_mode),
    help="Permissions of a new store's files: 0660 shares the store with its group."
    "  [default: 0600]",
)
topic_argument = click.argument("topic_name", metavar="TOPIC")
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per line, for programs."
)
group_option = click.option(
    "-g", "--group", default="default", show_default=True, help="The group to work with."
)


def removal_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a verb that destroys something; see `may_remove`."""
    yes = click.option("--yes", is_flag=True, help="Do not ask.")
    dry = click.option("--dry-run", is_flag=True, help="Print the loss, and change nothing.")
    return yes(dry(command))


def may_remove(
    what: str,
    loss: str,
    *,
    yes: bool,
    dry_run: bool,
    verb: str = "remove",
    to: str = "",
    then: str = "",
) -> bool:
    """Tell the user the loss if `what` is removed, or whatever the verb is; returns whether the
    user agrees."""
    if dry_run:
        output.line(f"would {verb} {what}{to} and lose {loss}{then}")
        return False
    if yes:
        return True
    if not output.can_ask():
        raise click.UsageError(f"{what} was not {verb}d: {loss} would be lost; --yes {verb}s it")
    if not output.ask(f"{verb.capitalize()} {what}{to} and lose {loss}?"):
        raise click.ClickException(f"{what} was not {verb}d")
    return True


def _options() -> Options:
    options = click.get_current_context().obj
    assert isinstance(options, Options)
    return options


def store_path() -> str:
    """The path of the store that the command line or the environment names."""
    path = _options().store
    if not path:
        raise click.UsageError(
            "no store was named; give -s STORE before the verb, or set DISKQ_STORE"
        )
    try:
        if not os.path.isabs(path):
            os.getcwd()
    except FileNotFoundError:
        raise NotFound(
            f"the working directory is gone, and {path} is relative to it; give an absolute path"
        ) from None
    return path


def open_store(
    *, create: bool = False, readonly: bool = False, mode: int | None = None, wait: float = 0
) -> Store:
    """Open the store that was named. With `readonly` this neither waits for writers nor holds them
    up, and changes nothing. Opening may take the `wait` seconds of a verb that may wait, unless
    --busy is given."""
    path = store_path()
    busy_seconds = _options().busy_seconds
    opening = wait if wait and busy_seconds is None else busy_seconds
    try:
        store = diskq.open(path, create=create, readonly=readonly, mode=mode, busy_seconds=opening)
    except NotFound:
        if create:
            raise
        raise NotFound(
            f"there is no store at {path}; 'diskq -s {shlex.quote(path)} put TOPIC BODY' creates it"
        ) from None
    store.busy_seconds = limits.BUSY_SECONDS if busy_seconds is None else busy_seconds
    return store


def find_topic(store: Store, name: str) -> Topic:
    """An existing topic: only `put` and `topic create` create one."""
    for topic in store.topics():
        if topic.name == name:
            return topic
    raise NotFound(
        f"there is no topic {name!r} in {store.path};"
        f" 'diskq topic create {shlex.quote(name)}' or a put creates it"
    )


def find_group(store: Store, topic_name: str, name: str) -> Group:
    """An existing group: only `group create` creates one."""
    topic = find_topic(store, topic_name)
    for group in topic.groups():
        if group.name == name:
            return group
    raise NotFound(
        f"topic {topic_name!r} has no group {name!r};"
        f" 'diskq group create {topic_name} {shlex.quote(name)}' creates it"
    )


def check_priority(topic: Topic, priority: int) -> None:
    """Raises: ValueError if the topic has no such priority."""
    if priority and priority >= (lanes := topic.settings.priorities):
        raise ValueError(
            f"priority {priority} is over {lanes - 1}, the highest of topic {topic.name!r};"
            f" 'diskq topic set {topic.name} --priorities {priority + 1}' gives it more"
        )


def lane(priority: int) -> range:
    """The offsets that messages of a priority may have."""
    return range(priority << LANE_BITS, (priority + 1) << LANE_BITS)


def plural(count: int, noun: str) -> str:
    """`1 message`, `2 messages`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(counts: Mapping[str, int]) -> str:
    """Counts by noun, without those that are 0: `1 lease, 2 waiting messages and 1 dead letter`."""
    parts = [plural(count, noun) for noun, count in counts.items() if count]
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:]))) or NOTHING
