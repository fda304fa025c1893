"""group: list, show, create, change, move and remove groups."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, cast

import click

from diskq import Backoff, Clock, Group, GroupStats, Topic
from diskq.base import limits
from diskq.base.model import ORDERINGS

from . import output, units
from .common import (
    NOTHING,
    changed_settings,
    find_group,
    find_topic,
    given_settings,
    json_option,
    listed,
    may_remove,
    open_store,
    or_none,
    parsed,
    plural,
    removal_options,
    topic_argument,
    with_options,
)

if TYPE_CHECKING:
    from diskq.base.options import GroupChanges

_COLUMNS = (
    *("topic", "group", "lag", "unread", "ready", "leased", "waiting", "parked"),
    *("dead", "acked", "redelivered", "expired", "dropped", "purged", "paused"),
)
_SELDOM = {"parked", "expired", "dropped", "purged", "paused"}  # shown only if there are any
group_argument = click.argument("group_name", metavar="GROUP")


class _Lease(NamedTuple):
    """A leased message, as `pending` prints it."""

    offset: int
    consumer: str
    token: int
    attempt: int
    left_seconds: float


def group_columns(groups: Sequence[GroupStats]) -> list[str]:
    """The columns of a table of these groups."""
    return [
        name
        for name in _COLUMNS
        if name not in _SELDOM or any(getattr(group, name) for group in groups)
    ]


@click.group()
def group() -> None:
    """List, show, create, change and remove groups."""


@group.command("ls")
@topic_argument
@json_option
def group_ls(topic_name: str, as_json: bool) -> None:
    """List the groups of a topic.

    \b
    diskq group ls mail
    """
    with open_store(readonly=True) as store:
        groups = find_topic(store, topic_name).stats().groups
    output.show(groups, group_columns(groups), as_json)


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
        found = Backoff(units.parse_duration(base), float(factor), units.parse_duration(most))
    except ValueError:
        raise ValueError(f"{text!r} is not a backoff; write BASE,FACTOR,MAX: 1s,2,5m") from None
    longest = limits.MAX_DELAY_SECONDS
    if max(found.base_seconds, found.max_seconds) > longest or not 1 <= found.factor <= 1000:
        raise ValueError(
            f"BASE and MAX of {text} may be up to {units.show_duration(longest)}, FACTOR 1 to 1000"
        )
    return found


_settings = with_options(
    click.option(
        "--lease",
        "lease_seconds",
        metavar="DURATION",
        callback=parsed(units.duration(limits.MIN_LEASE_SECONDS, limits.MAX_LEASE_SECONDS)),
        help="How long a consumer may handle a message.",
    ),
    click.option(
        "--max-deliveries",
        type=click.IntRange(1, limits.MAX_DELIVERIES),
        help="How many failures make a message a dead letter.",
    ),
    click.option(
        "--backoff",
        metavar="BASE,FACTOR,MAX",
        callback=parsed(_parse_backoff),
        help="How long a failed message waits: BASE, then FACTOR times longer each time, to MAX.",
    ),
    click.option(
        "--max-in-flight",
        metavar="N",
        callback=parsed(or_none(units.within(units.parse_count, 1, limits.MAX_IN_FLIGHT))),
        help="The most messages leased at once; with set, none removes the bound.",
    ),
    click.option(
        "--keep-expired/--no-keep-expired",
        default=None,
        help="Keep a message that outlives its TTL as a dead letter, or drop it.",
    ),
)


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
@_settings
@click.option(
    "--ordering",
    type=click.Choice(ORDERINGS),
    help="With key, messages of one key are delivered one after the other, in order.",
)
def group_create(
    topic_name: str, group_name: str, start: int | str | datetime, **settings: object
) -> None:
    """Create a group of a topic. An existing group stays as it is; giving settings that differ from
    the stored ones is an error.

    The defaults are --lease 30s --max-deliveries 5 --backoff 1s,2,5m --no-keep-expired
    --ordering none, and no bound for messages in flight.

    \b
    diskq group create mail workers
    diskq group create mail audit --start latest --lease 10m --backoff 5s,2,1h
    diskq group create orders packing --ordering key
    """
    given = cast("GroupChanges", given_settings(settings))
    with open_store() as store:
        topic = find_topic(store, topic_name)
        known = any(group.name == group_name for group in topic.groups())
        topic.group(group_name, start=start, **given)
    what = f"group {group_name} of topic {topic_name}"
    output.line(f"{what} exists already" if known else f"created {what}")


@group.command("set")
@topic_argument
@group_argument
@_settings
@click.option("--ordering", type=click.Choice(ORDERINGS), hidden=True)  # to say that it cannot
def group_set(topic_name: str, group_name: str, **settings: object) -> None:
    """Change settings of a group, for messages delivered from now on. The ordering of a group
    cannot change: create another group for that.

    \b
    diskq group set mail workers --lease 2m --max-deliveries 10
    diskq group set mail workers --max-in-flight none
    """
    given = cast("GroupChanges", changed_settings(settings))
    with open_store() as store:
        find_group(store, topic_name, group_name).update(**given)
    output.line(f"changed group {group_name} of topic {topic_name}")


@group.command("seek")
@topic_argument
@group_argument
@click.argument("to", callback=parsed(units.parse_start))
@removal_options
def group_seek(
    *, topic_name: str, group_name: str, to: int | str | datetime, yes: bool, dry_run: bool
) -> None:
    """Let a group go on at TO: earliest, latest, an offset, or a time such as 2026-01-31T08:00.

    A consumer that has a message leased loses it. Waiting messages are forgotten, and so are dead
    letters from TO on; those that the topic still stores come again.

    Only stored messages can come again. A topic with --retention interest, the default, keeps the
    messages that some group has not settled; with --retention limits it keeps more. The output, of
    --dry-run too, tells how many messages will come.

    \b
    diskq group seek mail workers earliest --dry-run
    diskq group seek mail workers 2026-01-31T08:00 --yes
    """
    with open_store(readonly=dry_run) as store:
        found = find_group(store, topic_name, group_name)
        what = f"group {group_name} of topic {topic_name}"
        then = _to_come(found, to)
        loss = _lost_by_seek(found, to)
        if may_remove(
            what,
            loss,
            yes=yes or loss == NOTHING,
            dry_run=dry_run,
            verb="move",
            to=f" to {to}",
            then=f"; {then}",
        ):
            found.seek(to)
            output.line(f"moved {what}: {then}")


def _to_come(group: Group, to: int | str | datetime) -> str:
    """How many messages a seek would bring, and why not more if it asked for more."""
    count, less = group.preview_seek(to)
    text = f"{plural(count, 'message')} to come"
    if not less:
        return text
    name = group.topic.name
    if group.topic.settings.retention == "limits":
        return f"{text}; earlier ones are gone, over a bound of topic {name} or purged"
    return (
        f"{text}; earlier ones are gone, since topic {name} keeps only messages that some group has"
        f" not settled: 'diskq topic set {name} --retention limits' keeps more from now on"
    )


def _lost_by_seek(group: Group, to: int | str | datetime) -> str:
    """The messages that a group would not deliver any more, or only without their history.

    With several priorities only the topic knows where a time or an offset is, so the loss may be
    smaller.
    """
    topic = group.topic
    whole = topic.stats()
    put = whole.put
    stats = next((found for found in whole.groups if found.group == group.name), group.stats())
    lanes = topic.settings.priorities
    match to:
        case "earliest":
            target = 0
        case "latest":
            target = put
        case _ if lanes > 1:
            return listed({"unsettled message": stats.lag, "dead letter": stats.dead})
        case int():
            target = to
        case _:
            target = topic.offset_at(cast("datetime", to))
    unread, _ = group.preview_seek(to)
    if unread < stats.unread:  # it goes forward, over all that is not settled before
        return listed({"unsettled message": stats.lag - unread})
    return listed(
        {
            "ready message": stats.ready if target else 0,
            "lease": stats.leased,
            "waiting message": stats.waiting,
            "parked message": stats.parked,
            "dead letter": sum(_is_stored(topic, letter.offset) for letter in group.dead(target)),
        }
    )


def _is_stored(topic: Topic, offset: int) -> bool:
    """Whether the log still has the message of a dead letter, so that it comes again."""
    return any(topic.read(offset, offset + 1))


@group.command("fork")
@topic_argument
@group_argument
@click.argument("new_name", metavar="NEW")
def group_fork(topic_name: str, group_name: str, new_name: str) -> None:
    """Create a group NEW at the position of another group, with the same settings and a copy of its
    waiting and dead messages. Messages leased in that group are ready in NEW.

    \b
    diskq group fork mail workers replay
    """
    with open_store() as store:
        find_group(store, topic_name, group_name).fork(new_name)
    output.line(f"created group {new_name} of topic {topic_name}, where {group_name} is")


@group.command("pause")
@topic_argument
@group_argument
def group_pause(topic_name: str, group_name: str) -> None:
    """Deliver no messages to a group until it is resumed; leased messages can be settled.

    \b
    diskq group pause mail workers
    """
    with open_store() as store:
        find_group(store, topic_name, group_name).pause()
    output.line(f"paused group {group_name} of topic {topic_name}")


@group.command("resume")
@topic_argument
@group_argument
def group_resume(topic_name: str, group_name: str) -> None:
    """Deliver messages to a paused group again.

    \b
    diskq group resume mail workers
    """
    with open_store() as store:
        find_group(store, topic_name, group_name).resume()
    output.line(f"resumed group {group_name} of topic {topic_name}")


@group.command("pending")
@topic_argument
@group_argument
@json_option
def group_pending(topic_name: str, group_name: str, as_json: bool) -> None:
    """List the leased messages of a group: which consumer has each, and for how long. A lease that
    is over has a minus; it holds until another consumer takes the message.

    \b
    diskq group pending mail workers
    diskq group pending mail workers --json | jq -r .consumer | sort | uniq -c
    """
    with open_store(readonly=True) as store:
        pending = find_group(store, topic_name, group_name).pending()
    found = []
    for lease in pending:
        left = (lease.deadline_ns - Clock.monotonic_ns()) / 1e9
        digits = 3 if as_json or abs(left) < 1 else 0
        found.append(
            _Lease(lease.offset, lease.consumer, lease.token, lease.attempt, round(left, digits))
        )
    output.show(found, _Lease._fields, as_json)


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
    with open_store(readonly=dry_run) as store:
        found = find_group(store, topic_name, group_name)
        stats = found.stats()
        what = f"group {group_name} of topic {topic_name}"
        loss = f"{plural(stats.lag, 'unsettled message')} and {plural(stats.dead, 'dead letter')}"
        if may_remove(what, loss, yes=yes, dry_run=dry_run):
            found.delete()
            output.line(f"removed {what}, {loss}")
