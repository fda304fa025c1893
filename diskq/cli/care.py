"""trim and purge: delete messages from a log that no group needs, or that the user names."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import click

from diskq import LogMessage, Topic
from diskq.base import check

from . import output, units
from .common import (
    NOTHING,
    find_topic,
    lane,
    listed,
    may_remove,
    open_store,
    parsed,
    plural,
    removal_options,
    topic_argument,
)


@click.command()
@topic_argument
def trim(topic_name: str) -> None:
    """Delete messages that no group of a topic needs any more, and those over its bounds. Puts and
    acks do the same now and then.

    \b
    diskq trim mail
    """
    with open_store() as store:
        count = find_topic(store, topic_name).trim()
    output.line(f"trimmed {plural(count, 'message')} of topic {topic_name}")


@click.command()
@topic_argument
@click.option(
    "--before",
    metavar="OFFSET|TIME",
    callback=parsed(units.parse_place),
    help="Only messages below an offset, or put before a time such as 2026-01-31T08:00.",
)
@click.option(
    "--key",
    callback=parsed(units.parse_text),
    help="Only messages of this key, including scheduled ones.",
)
@removal_options
def purge(
    *, topic_name: str, before: int | datetime | None, key: str | None, yes: bool, dry_run: bool
) -> None:
    """Delete messages of a topic, whether groups are done with them or not: all, including
    scheduled ones, or those that the options name. Waiting messages are deleted too; dead letters
    stay.

    \b
    diskq purge mail --dry-run
    diskq purge mail --before 2026-01-31T08:00 --yes
    diskq purge mail --key customer-17 --yes
    """
    with open_store(readonly=dry_run) as store:
        topic = find_topic(store, topic_name)
        some = [f"of key {key}"] if key is not None else []
        some += [f"before {before}"] if before is not None else []
        what = " ".join((f"topic {topic_name}", *some))
        loss = "" if yes and not dry_run else _lost_by_purge(topic, before, key)
        if may_remove(what, loss, yes=yes or loss == NOTHING, dry_run=dry_run, verb="purge"):
            count = topic.purge(before=before, key=key)
            output.line(f"purged {plural(count, 'message')} of topic {topic_name}")


def _lost_by_purge(topic: Topic, before: int | datetime | None, key: str | None) -> str:
    stats = topic.stats()
    waiting = sum(group.waiting + group.parked for group in stats.groups)
    if before is None and key is None:
        counts = (stats.stored, "stored"), (stats.scheduled, "scheduled"), (waiting, "waiting")
        return listed({f"{kind} message": count for count, kind in counts})
    stored = sum(key in (None, message.key) for message in _before(topic, before))
    scheduled = 0 if key is None else sum(message.key == key for message in topic.scheduled())
    loss = listed({"stored message": stored, "scheduled message": scheduled})
    if waiting:  # it is unknown how many of them are deleted
        loss = f"{loss} of the log, and up to {plural(waiting, 'waiting message')}"
    return loss


def _before(topic: Topic, before: int | datetime | None) -> Iterator[LogMessage]:
    """The stored messages before an offset or time. With several priorities, an offset stands for
    the time of its message in the other priorities."""
    if before is None:
        yield from topic.read()
        return
    mine, offset, until_ns = -1, 0, 0
    if isinstance(before, datetime):
        until_ns = check.wall_ns("--before", before)
    else:
        lanes = range(topic.settings.priorities)
        mine, offset = next((p for p in lanes if before in lane(p)), lanes[-1]), before
        there = next(topic.read(offset, lane(mine).stop, limit=1), None)
        until_ns = there.put_at_ns if there else 2**63
    for message in topic.read():
        if message.offset < offset if message.priority == mine else message.put_at_ns < until_ns:
            yield message
