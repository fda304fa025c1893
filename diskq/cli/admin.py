"""topic and group: list, show, create, remove."""

from __future__ import annotations

from datetime import datetime

import click

from diskq import Backoff

from . import output, units
from .common import (
    find_group,
    find_topic,
    json_option,
    may_remove,
    open_store,
    parsed,
    plural,
    removal_options,
)

TOPIC_COLUMNS = "topic", "stored", "bytes", "put", "last_put_ns", "groups"
GROUP_COLUMNS = (
    *("topic", "group", "lag", "unread", "ready", "leased", "waiting"),
    *("dead", "acked", "redelivered"),
)
topic_argument = click.argument("topic_name", metavar="TOPIC")
group_argument = click.argument("group_name", metavar="GROUP")


# Topics -----------------------------------------------------------------------------------------


@click.group()
def topic() -> None:
    """List, show, create and remove topics."""


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
    """Show a topic and its groups in numbers.

    \b
    diskq topic info mail
    """
    with open_store(readonly=True) as store:
        stats = find_topic(store, topic_name).stats()
    output.show([stats], TOPIC_COLUMNS, as_json)
    if stats.groups and not as_json:
        output.line("")
        output.show(stats.groups, GROUP_COLUMNS)


@topic.command("create")
@topic_argument
def topic_create(topic_name: str) -> None:
    """Create a topic, and the store if need be; an existing topic stays as it is.

    \b
    diskq topic create mail
    """
    with open_store(create=True) as store:
        known = any(each.name == topic_name for each in store.topics())
        store.topic(topic_name)
    output.line(f"topic {topic_name} exists already" if known else f"created topic {topic_name}")


@topic.command("rm")
@topic_argument
@removal_options
def topic_rm(topic_name: str, yes: bool, dry_run: bool) -> None:
    """Remove a topic with its groups, messages and dead letters.

    \b
    diskq topic rm mail --dry-run
    diskq topic rm mail --yes
    """
    with open_store() as store:
        stats = find_topic(store, topic_name).stats()
        waiting = sum(group.waiting for group in stats.groups)
        dead = sum(group.dead for group in stats.groups)
        what = f"topic {topic_name} with {plural(len(stats.groups), 'group')}"
        loss = f"{plural(stats.stored, 'stored message')}, {plural(waiting, 'waiting message')}"
        loss += f" and {plural(dead, 'dead letter')}"
        if may_remove(what, loss, yes=yes, dry_run=dry_run):
            store.delete_topic(topic_name)
            output.line(f"removed {what}, {loss}")


# Groups -----------------------------------------------------------------------------------------


@click.group()
def group() -> None:
    """List, show, create and remove groups."""


@group.command("ls")
@topic_argument
@json_option
def group_ls(topic_name: str, as_json: bool) -> None:
    """List the groups of a topic.

    \b
    diskq group ls mail
    """
    with open_store(readonly=True) as store:
        output.show(find_topic(store, topic_name).stats().groups, GROUP_COLUMNS, as_json)


@group.command("info")
@topic_argument
@group_argument
@json_option
def group_info(topic_name: str, group_name: str, as_json: bool) -> None:
    """Show a group in numbers, and its settings.

    \b
    diskq group info mail workers
    """
    with open_store(readonly=True) as store:
        found = find_group(store, topic_name, group_name)
        values = {**found.stats()._asdict(), **found.settings._asdict()}
    if as_json:
        output.record(values)
    else:
        base, factor, most = values["backoff"]
        values["backoff"] = f"{units.show_duration(base)},{factor:g},{units.show_duration(most)}"
        output.fields(values)


def _parse_backoff(text: str) -> Backoff:
    try:
        base, factor, most = text.split(",")
        return Backoff(units.parse_duration(base), float(factor), units.parse_duration(most))
    except ValueError:
        raise ValueError(f"{text!r} is not a backoff; write BASE,FACTOR,MAX: 1s,2,5m") from None


@group.command("create")
@topic_argument
@group_argument
@click.option(
    "--start",
    default="earliest",
    show_default=True,
    callback=parsed(units.parse_start),
    help="earliest, latest, an offset, or a time such as 2026-01-31T08:00.",
)
@click.option(
    "--lease",
    metavar="DURATION",
    callback=parsed(units.parse_duration),
    help="How long a consumer may handle a message.  [default: 30s]",
)
@click.option("--max-deliveries", type=int, help="Failures until a message is dead.  [default: 5]")
@click.option(
    "--backoff",
    metavar="BASE,FACTOR,MAX",
    callback=parsed(_parse_backoff),
    help="How long a failed message waits.  [default: 1s,2,5m]",
)
@click.option("--max-in-flight", type=int, help="Messages leased at once.  [default: no bound]")
def group_create(
    *,
    topic_name: str,
    group_name: str,
    start: int | str | datetime,
    lease: float | None,
    max_deliveries: int | None,
    backoff: Backoff | None,
    max_in_flight: int | None,
) -> None:
    """Create a group of a topic. An existing group stays as it is; other settings than it has are
    an error.

    \b
    diskq group create mail workers
    diskq group create mail audit --start latest --lease 10m --backoff 5s,2,1h
    """
    with open_store() as store:
        topic = find_topic(store, topic_name)
        known = any(each.name == group_name for each in topic.groups())
        topic.group(
            group_name,
            start=start,
            lease_seconds=lease,
            max_deliveries=max_deliveries,
            backoff=backoff,
            max_in_flight=max_in_flight,
        )
    what = f"group {group_name} of topic {topic_name}"
    output.line(f"{what} exists already" if known else f"created {what}")


@group.command("rm")
@topic_argument
@group_argument
@removal_options
def group_rm(topic_name: str, group_name: str, yes: bool, dry_run: bool) -> None:
    """Remove a group with its position, waiting messages and dead letters.

    \b
    diskq group rm mail audit --dry-run
    diskq group rm mail audit --yes
    """
    with open_store() as store:
        found = find_group(store, topic_name, group_name)
        stats = found.stats()
        what = f"group {group_name} of topic {topic_name}"
        loss = f"{plural(stats.lag, 'unsettled message')} and {plural(stats.dead, 'dead letter')}"
        if may_remove(what, loss, yes=yes, dry_run=dry_run):
            found.delete()
            output.line(f"removed {what}, {loss}")
