"""get, peek and tail: take messages, or print them without taking them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from heapq import merge, nlargest

import click

from diskq import Empty, LogMessage, Message, Topic
from diskq.base import check

from . import output, units
from .common import find_group, find_topic, group_option, json_option, lane, open_store, parsed
from .stopping import at_the_end

_GET_MESSAGES = 100  # leased, printed and acked together
_RECORD = (
    *("topic", "group", "offset", "key", "headers", "priority"),
    *("put_at_ns", "attempt", "token", "body"),
)
_TAIL_MESSAGES = 10
_MOST = "Print at most this many messages."
null_option = click.option("--null", is_flag=True, help="End each body with a NUL, not a newline.")


@click.command()
@click.argument("topic")
@group_option
@click.option(
    "-n",
    "count",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Take at most this many messages.",
)
@click.option(
    "--wait",
    metavar="DURATION",
    default="0",
    callback=parsed(units.parse_duration),
    help="Wait this long for the first message, and for other writers of the store: 5s, 10m."
    "  [default: 0]",
)
@click.option(
    "--ack/--no-ack",
    default=True,
    help="Ack the messages, or give them back without counting an attempt.  [default: ack]",
)
@null_option
@json_option
def get(
    *, topic: str, group: str, count: int, wait: float, ack: bool, null: bool, as_json: bool
) -> None:
    """Take messages, print them and ack them; exit code 3 if there is none.

    A message is acked only after it was printed. If the output cannot be written, or a signal stops
    the command, the message is given back, and no attempt is counted. For work that can fail, use
    `diskq run`.

    \b
    diskq get mail -g workers
    diskq get mail -g workers -n 100 --json
    diskq get mail -g workers --wait 5s --no-ack
    """
    store = open_store(wait=wait)
    at_the_end(store.close)
    source = find_group(store, topic, group)
    consumer = source.consumer()
    at_the_end(consumer.close)  # which gives back messages that are not acked
    left = count
    while left:
        messages = consumer.get_many(min(left, _GET_MESSAGES), wait if left == count else 0.0)
        if not messages:
            break
        for message in messages:
            _print(message, null, as_json)
        output.flush()
        if ack:
            consumer.ack_many(messages)
        left -= len(messages)
    paused = left == count and source.stats().paused
    if paused:
        raise Empty(f"group {group!r} of {topic!r} is paused; 'diskq group resume' lets it go on")
    if left == count:
        raise Empty(f"no message is ready in group {group!r} of {topic!r}; --wait 5s waits for one")


@click.command()
@click.argument("topic")
@click.option("-n", "count", type=click.IntRange(1), default=10, show_default=True, help=_MOST)
@click.option(
    "--from", "start", metavar="OFFSET", type=click.IntRange(0), help="Begin at this offset."
)
@click.option("--reverse", is_flag=True, help="Go backwards, from the last message or OFFSET.")
@null_option
@json_option
def peek(
    *, topic: str, count: int, start: int | None, reverse: bool, null: bool, as_json: bool
) -> None:
    """Print stored messages without taking them, from the oldest or from OFFSET on; exit code 3 if
    there is none.

    \b
    diskq peek mail
    diskq peek mail --from 1000 -n 1 --json
    diskq peek mail --reverse -n 1
    """
    found = False
    with open_store(readonly=True) as store:
        low, stop = (start or 0, None) if not reverse or start is None else (0, start + 1)
        for message in find_topic(store, topic).read(low, stop, limit=count, reverse=reverse):
            _print(message, null, as_json)
            found = True
    if not found:
        where = f" at offset {start} or {'below' if reverse else 'above'}" if start else ""
        raise Empty(f"topic {topic!r} has no stored message{where}")


@click.command()
@click.argument("topic")
@click.option("-f", "--follow", is_flag=True, help="Go on with new messages, until interrupted.")
@click.option(
    "-n",
    "count",
    type=click.IntRange(0),
    help=f"Print this many of the last messages.  [default: {_TAIL_MESSAGES}]",
)
@click.option(
    "--from",
    "start",
    metavar="START",
    callback=parsed(units.parse_start),
    help="Instead, print all messages from earliest, latest, an offset, or a time on.",
)
@null_option
@json_option
def tail(
    *,
    topic: str,
    follow: bool,
    count: int | None,
    start: int | str | datetime | None,
    null: bool,
    as_json: bool,
) -> None:
    """Print the last messages without taking them, in order of time, and with -f new ones as they
    come. Without -f the exit code is 3 if there is none.

    \b
    diskq tail mail
    diskq tail mail -n 100 --json
    diskq tail mail -f --from 2026-01-31T08:00
    """
    if count is not None and start is not None:
        raise click.UsageError("give either -n or --from, not both")
    wanted = _TAIL_MESSAGES if count is None else count
    printed = set()
    with open_store(readonly=not follow) as store:
        found = find_topic(store, topic)
        # This iterator gets all messages from now on, even those put before the last are printed.
        coming = found.follow("latest" if start is None else start) if follow else iter(())
        if start is None:
            stored = _last(found, wanted)
        else:
            stored = iter(()) if follow else _since(found, start)
        for message in stored:
            printed.add(message.offset)
            _print(message, null, as_json)
        output.flush()
        for message in coming:
            if message.offset not in printed:
                _print(message, null, as_json)
                output.flush()
    if not printed and not follow and wanted:
        raise Empty(f"topic {topic!r} has no stored message{' from there on' if start else ''}")


def _lanes(topic: Topic) -> list[range]:
    """The offsets of each priority."""
    return [lane(priority) for priority in range(topic.settings.priorities)]


def _by_time(topic: Topic, parts: list[range]) -> Iterator[LogMessage]:
    """The messages at these offsets, a range of each priority, in the order of their puts."""
    runs = [topic.read(part.start, part.stop) for part in parts if part]
    return merge(*runs, key=lambda message: message.put_at_ns)


def _last(topic: Topic, count: int) -> Iterator[LogMessage]:
    """The last messages put, of all priorities."""
    newest = (
        (message.put_at_ns, message.offset)
        for offsets in _lanes(topic)
        for message in topic.read(offsets.start, offsets.stop, limit=count, reverse=True)
    )
    chosen = [offset for _, offset in nlargest(count, newest)]
    parts = []
    for offsets in _lanes(topic):
        mine = [offset for offset in chosen if offset in offsets]
        parts += [range(min(mine), max(mine) + 1)] if mine else []
    return _by_time(topic, parts)


def _since(topic: Topic, start: int | str | datetime) -> Iterator[LogMessage]:
    """The messages from a place on."""
    if start == "latest":
        return iter(())
    if isinstance(start, int):
        return topic.read(start)
    low, since_ns = 0, 0
    if isinstance(start, datetime):
        low, since_ns = topic.offset_at(start), check.wall_ns("--from", start)
    parts = [range(max(low, offsets.start), offsets.stop) for offsets in _lanes(topic)]
    return (message for message in _by_time(topic, parts) if message.put_at_ns >= since_ns)


def _print(message: Message | LogMessage, null: bool, as_json: bool) -> None:
    if as_json:
        names = [name for name in _RECORD if hasattr(message, name)]
        output.record({name: getattr(message, name) for name in names})
    else:
        output.write(message.body)
        output.write(b"\0" if null else b"\n")
