"""put, get and peek: messages in, out, and looked at."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from typing import BinaryIO

import click

from diskq import Empty, LogMessage, Message, MessageTooLarge, Outgoing, Topic, limits

from . import output, units
from .common import find_group, find_topic, group_option, json_option, open_store, parsed, plural

_BATCH_MESSAGES = 1000  # of one commit
_READ_BYTES = 2**20
_GET_MESSAGES = 100  # leased, printed and acked together
_RECORD = "topic", "group", "offset", "key", "headers", "put_at_ns", "attempt", "token", "body"


# Putting ----------------------------------------------------------------------------------------


@click.command()
@click.argument("topic")
@click.argument("body", required=False)
@click.option("--lines", is_flag=True, help="Each line of stdin is a message.")
@click.option("--null", is_flag=True, help="Messages of stdin end with a NUL.")
@click.option("--key", help="A key for the message, or for all of them.")
@click.option("--header", "headers", metavar="K=V", multiple=True, help="A header; repeatable.")
@click.option("--no-create", is_flag=True, help="Fail if the store or topic does not exist.")
@json_option
def put(
    *,
    topic: str,
    body: str | None,
    lines: bool,
    null: bool,
    key: str | None,
    headers: tuple[str, ...],
    no_create: bool,
    as_json: bool,
) -> None:
    """Store one message, or many. They are safe on the disk when this ends, or before.

    Without BODY, or if it is -, the message is read from stdin, to its last byte. Prints the topic
    and the offset, or the first and last offset.

    \b
    diskq put mail hello
    pg_dump shop | diskq put backups --header kind=sql
    diskq put mail --lines < addresses.txt
    find . -print0 | diskq put files --null --json
    """
    if lines + null + (body not in (None, "-")) > 1:
        raise click.UsageError("give only one of BODY, --lines and --null")
    if body is None and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("no body was given; write it after the topic, or - to type it")
    for text in (key or "", *headers):
        text.encode()  # or the command line had no text: fail before anything is created
    labels = _parse_headers(headers) if headers else None
    with open_store(create=not no_create) as store:
        to = find_topic(store, topic) if no_create else store.topic(topic)
        if lines or null:
            _put_all(to, b"\n" if lines else b"\0", key, labels, as_json)
            return
        receipt = to.put(_read_body(body), key=key, headers=labels)
        if as_json:
            output.record({"topic": topic, **receipt._asdict()})
        else:
            output.line(f"{topic} {receipt.offset}")


def _parse_headers(pairs: tuple[str, ...]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise click.UsageError(f"{pair!r} is not a header; write NAME=VALUE")
        if name in headers:
            raise click.UsageError(f"header {name!r} was given twice")
        headers[name] = value
    return headers


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise click.UsageError("stdin is closed; there is nothing to read a message from")
    return sys.stdin.buffer


def _read_body(body: str | None) -> bytes:
    if body not in (None, "-"):
        return os.fsencode(body)
    return _stdin().read(limits.MAX_BODY_BYTES + 1)  # one more, and it is refused


def _put_all(
    topic: Topic, separator: bytes, key: str | None, headers: dict[str, str] | None, as_json: bool
) -> None:
    stream = _stdin()
    status = os.fstat(stream.fileno())
    progress = output.Progress(status.st_size if stat.S_ISREG(status.st_mode) else 0)
    count, size, first, last = 0, 0, 0, 0
    try:
        for bodies in _batches(stream, separator):
            plain = key is None and headers is None
            receipts = topic.put_many(
                bodies if plain else [Outgoing(body, key, headers) for body in bodies]
            )
            first, last = first if count else receipts[0].offset or 0, receipts[-1].offset or 0
            count += len(bodies)
            size += sum(map(len, bodies)) + len(bodies)
            progress.show(count, size)
            if as_json:
                for receipt in receipts:
                    output.record({"topic": topic.name, **receipt._asdict()})
    except BaseException as error:
        if count:
            error.add_note(f"stored before: {plural(count, 'message')}, the last at offset {last}")
        raise
    finally:
        progress.close()
    if count and not as_json:
        output.line(f"{topic.name} {first}-{last} ({plural(count, 'message')})")


def _batches(stream: BinaryIO, separator: bytes) -> Iterator[list[bytes]]:
    """The bodies of a stream as they come: a slow writer's line does not wait for others, and what
    a fast one wrote meanwhile shares a commit."""
    rest = b""
    while chunk := stream.read1(_READ_BYTES):  # type: ignore[attr-defined]
        *bodies, rest = (rest + chunk).split(separator)
        for start in range(0, len(bodies), _BATCH_MESSAGES):
            yield bodies[start : start + _BATCH_MESSAGES]
        if len(rest) > limits.MAX_BODY_BYTES:
            raise MessageTooLarge(
                f"a message is over the limit of {limits.MAX_BODY_BYTES} bytes; is the separator"
                f" {separator!r} in the input?"
            )
    if rest:
        yield [rest]


# Taking and looking -----------------------------------------------------------------------------


@click.command()
@click.argument("topic")
@group_option
@click.option("-n", "count", type=click.IntRange(1), default=1, help="At most so many messages.")
@click.option(
    "--wait",
    metavar="DURATION",
    default="0",
    callback=parsed(units.parse_duration),
    help="Wait so long for the first: 5s, 10m.",
)
@click.option(
    "--ack/--no-ack", default=True, help="They are done; or give them back.  [default: ack]"
)
@click.option("--null", is_flag=True, help="End each body with a NUL, not a newline.")
@json_option
def get(
    *, topic: str, group: str, count: int, wait: float, ack: bool, null: bool, as_json: bool
) -> None:
    """Take messages, print them, and have them done; exit code 3 if there is none.

    A message is acked only after it was printed: if this is killed, or nobody reads its output,
    the message comes again. For work that can fail use `diskq run`.

    \b
    diskq get mail -g workers
    diskq get mail -g workers -n 100 --json
    diskq get mail -g workers --wait 5s --no-ack
    """
    with open_store() as store, find_group(store, topic, group).consumer() as consumer:
        left = count
        while left:
            timeout = wait if left == count else 0.0
            messages = consumer.get_many(min(left, _GET_MESSAGES), timeout)
            if not messages:
                break
            for message in messages:
                _print(message, null, as_json)
            output.flush()
            if ack:  # else closing the consumer gives them back
                consumer.ack_many(messages)
            left -= len(messages)
    if left == count:
        raise Empty(f"no message is ready in group {group!r} of {topic!r}; --wait 5s waits for one")


@click.command()
@click.argument("topic")
@click.option("-n", "count", type=click.IntRange(1), default=10, show_default=True, help="At most.")
@click.option("--from", "start", metavar="OFFSET", type=click.IntRange(0), default=0)
@click.option("--null", is_flag=True, help="End each body with a NUL, not a newline.")
@json_option
def peek(topic: str, count: int, start: int, null: bool, as_json: bool) -> None:
    """Print stored messages without taking them, from the oldest or from OFFSET on; exit code 3 if
    there is none.

    \b
    diskq peek mail
    diskq peek mail --from 1000 -n 1 --json
    """
    found = False
    with open_store(readonly=True) as store:
        for message in find_topic(store, topic).read(start, limit=count):
            _print(message, null, as_json)
            found = True
    if not found:
        where = f" at offset {start} or above" if start else ""
        raise Empty(f"topic {topic!r} has no stored message{where}")


def _print(message: Message | LogMessage, null: bool, as_json: bool) -> None:
    if as_json:
        names = [name for name in _RECORD if hasattr(message, name)]
        output.record({name: getattr(message, name) for name in names})
    else:
        output.write(message.body)
        output.write(b"\0" if null else b"\n")
