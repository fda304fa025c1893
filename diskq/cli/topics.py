"""topic: list, show, create, change and remove topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from diskq import TopicSettings
from diskq.base import check, limits
from diskq.base import settings as known_settings
from diskq.base.model import DISCARDS, RETENTIONS

from . import output, units
from .common import (
    changed_settings,
    find_topic,
    given_settings,
    json_option,
    may_remove,
    mode_option,
    open_store,
    or_none,
    parsed,
    plural,
    removal_options,
    topic_argument,
    with_options,
)
from .groups import group_columns

if TYPE_CHECKING:
    from diskq.base.options import TopicChanges

TOPIC_COLUMNS = (
    *("topic", "stored", "scheduled", "bytes", "put", "dropped"),
    *("last_put_ns", "groups"),
)


@click.group()
def topic() -> None:
    """List, show, create, change and remove topics."""


@topic.command("ls")
@json_option
def topic_ls(as_json: bool) -> None:
    """List the topics of the store.

    \b
    diskq topic ls
    """
    with open_store(readonly=True) as store:
        output.show(store.stats().topics, TOPIC_COLUMNS, as_json)


@topic.command("info")
@topic_argument
@json_option
def topic_info(topic_name: str, as_json: bool) -> None:
    """Show a topic in numbers, its settings, and its groups.

    \b
    diskq topic info mail
    diskq topic info mail --json | jq .scheduled
    """
    with open_store(readonly=True) as store:
        found = find_topic(store, topic_name)
        stats, settings = found.stats(), found.settings
    if as_json:
        output.record({**stats._asdict(), **settings._asdict()})
        return
    heads = {"max_bytes": "max_size_bytes"}  # otherwise a line would be named "max"
    values = {**stats._asdict(), **settings._asdict()}
    output.fields({heads.get(name, name): values[name] for name in values if name != "groups"})
    if stats.groups:
        output.line("")
        output.show(stats.groups, group_columns(stats.groups))


_settings = with_options(
    click.option(
        "--retention",
        type=click.Choice(RETENTIONS),
        help="Delete messages when all groups are done with them, or only when over a bound.",
    ),
    click.option(
        "--max-age",
        "max_age_seconds",
        metavar="DURATION",
        callback=parsed(or_none(units.duration(limits.MIN_AGE_SECONDS, limits.MAX_DELAY_SECONDS))),
        help="Delete messages older than this; with set, none removes the bound.",
    ),
    click.option(
        "--max-bytes",
        metavar="SIZE",
        callback=parsed(
            or_none(units.within(units.parse_size, limits.PAGE_BYTES, limits.TIB, units.show_size))
        ),
        help="The most bytes of stored messages, such as 64MiB; with set, none removes the bound.",
    ),
    click.option(
        "--max-messages",
        metavar="N",
        callback=parsed(or_none(units.within(units.parse_count, 1, limits.MAX_TOPIC_MESSAGES))),
        help="The most stored messages; with set, none removes the bound.",
    ),
    click.option(
        "--discard",
        type=click.Choice(DISCARDS),
        help="In a full topic, refuse new messages or drop the oldest.",
    ),
    click.option(
        "--dedup",
        "dedup_seconds",
        metavar="DURATION",
        callback=parsed(units.duration(limits.MIN_AGE_SECONDS, limits.MAX_DEDUP_SECONDS)),
        help="How long the topic remembers the --dedup-id of a put.",
    ),
    click.option(
        "--priorities",
        type=click.IntRange(1, limits.MAX_PRIORITIES),
        help="The number of priorities: 3 gives 0, 1 and 2; it can only grow.",
    ),
)


@topic.command("create")
@topic_argument
@_settings
@mode_option
def topic_create(topic_name: str, mode: int | None, **settings: object) -> None:
    """Create a topic, and the store if it does not exist. An existing topic stays as it is; giving
    settings that differ from the stored ones is an error.

    The defaults are --retention interest --discard new --dedup 2m --priorities 1, and no bounds.

    \b
    diskq topic create mail
    diskq topic create clicks --retention limits --max-age 7d --max-bytes 1GiB --discard old
    diskq topic create orders --priorities 3
    """
    given = cast("TopicChanges", given_settings(settings))
    check.name("topic", topic_name)  # fail before the store is created
    known_settings.checked(TopicSettings(), given)
    with open_store(create=True, mode=mode) as store:
        known = any(topic.name == topic_name for topic in store.topics())
        store.topic(topic_name, **given)
    output.line(f"topic {topic_name} exists already" if known else f"created topic {topic_name}")


@topic.command("set")
@topic_argument
@_settings
def topic_set(topic_name: str, **settings: object) -> None:
    """Change settings of a topic, for messages put from now on. A lower bound deletes messages that
    are over it with the next put, or with `diskq trim`.

    \b
    diskq topic set mail --max-messages 100000
    diskq topic set mail --max-age none --priorities 3
    """
    changes = cast("TopicChanges", changed_settings(settings))
    with open_store() as store:
        find_topic(store, topic_name).update(**changes)
    output.line(f"changed topic {topic_name}")


@topic.command("rm")
@topic_argument
@removal_options
def topic_rm(topic_name: str, yes: bool, dry_run: bool) -> None:
    """Remove a topic with its groups, messages and dead letters.

    \b
    diskq topic rm mail --dry-run
    diskq topic rm mail --yes
    """
    with open_store(readonly=dry_run) as store:
        stats = find_topic(store, topic_name).stats()
        waiting = sum(group.waiting + group.parked for group in stats.groups)
        dead = sum(group.dead for group in stats.groups)
        what = f"topic {topic_name} with {plural(len(stats.groups), 'group')}"
        loss = f"{plural(stats.stored, 'stored message')}, {plural(waiting, 'waiting message')}"
        if stats.scheduled:
            loss = f"{plural(stats.scheduled, 'scheduled message')}, {loss}"
        loss += f" and {plural(dead, 'dead letter')}"
        if may_remove(what, loss, yes=yes, dry_run=dry_run):
            store.delete_topic(topic_name)
            output.line(f"removed {what}, {loss}")
