"""put: store one message, or many."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click

from diskq import MessageTooLarge, NotFound, Outgoing, Receipt, Topic
from diskq.base import check, limits

from . import output, units
from .common import (
    check_priority,
    find_topic,
    json_option,
    mode_option,
    open_store,
    parsed,
    plural,
    with_options,
)
from .jsonl import MAX_LINE_BYTES, JsonLines
from .receipts import Tally, place, show
from .stopping import Stopped, signals

if TYPE_CHECKING:
    from diskq.base.options import PutOptions

_BATCH_MESSAGES = 1000  # in one commit
_READ_BYTES = 2**20

Messages = Sequence[bytes | Outgoing]

_message_options = with_options(
    click.option(
        "--key",
        callback=parsed(units.parse_text),
        help="A key for the message, or for all messages.",
    ),
    click.option("--header", "headers", metavar="K=V", multiple=True, help="A header; repeatable."),
    click.option(
        "--priority",
        type=click.IntRange(0, limits.MAX_PRIORITIES - 1),
        default=0,
        help="Messages of a higher priority are delivered first.",
    ),
    click.option(
        "--delay",
        "delay_seconds",
        metavar="DURATION",
        callback=parsed(units.duration(0, limits.MAX_DELAY_SECONDS)),
        help="Put the message this much later: 10m, 1h30m.",
    ),
    click.option(
        "--at",
        metavar="TIME",
        callback=parsed(units.parse_time),
        help="Put the message at this time: 2026-01-31T08:00, local unless it names a zone.",
    ),
    click.option(
        "--ttl",
        "ttl_seconds",
        metavar="DURATION",
        callback=parsed(units.duration(limits.MIN_AGE_SECONDS, limits.MAX_DELAY_SECONDS)),
        help="Do not deliver the message when it is older than this.",
    ),
    click.option(
        "--dedup-id",
        metavar="ID",
        callback=parsed(units.parse_text),
        help="Store nothing if a message with the same ID was put within the topic's --dedup time.",
    ),
)


@click.command()
@click.argument("topic")
@click.argument("body", required=False)
@click.option("--lines", is_flag=True, help="Each line of stdin is a message.")
@click.option("--null", is_flag=True, help="Messages of stdin end with a NUL.")
@click.option("--jsonl", is_flag=True, help="Each line of stdin is a JSON object, see above.")
@_message_options
@click.option(
    "--wait",
    metavar="DURATION",
    default="0",
    callback=parsed(units.parse_duration),
    help="Wait this long for room in a full topic, and for other writers of the store: 5s, 10m."
    "  [default: 0]",
)
@click.option("--no-create", is_flag=True, help="Fail if the store or topic does not exist.")
@mode_option
@json_option
def put(
    *,
    topic: str,
    body: str | None,
    lines: bool,
    null: bool,
    jsonl: bool,
    headers: tuple[str, ...],
    wait: float,
    no_create: bool,
    mode: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Store one message, or many. They are safe on the disk when the command ends, or before.

    Without BODY, or if BODY is -, the message is all of stdin; an empty stdin gives an empty
    message. A shell runs both sides of a pipe, so `false | diskq put mail` stores an empty message;
    `out=$(command) && diskq put mail "$out"` stores none if the command fails.

    The output is the topic and the offset, or the first and the last offset; for a scheduled
    message, its schedule id and when it is due. If the topic is full, the exit code is 75. If an
    error or a signal ends the command early, the line on stderr tells what was stored before.

    With --jsonl a line has "body" or "body_base64", and may have "key", "headers", "priority",
    "delay_seconds", "at", "ttl_seconds" and "dedup_id"; the options apply where a line has none.
    The output of get --json and peek --json can be put again.

    \b
    diskq put mail hello
    diskq put reports --header kind=csv < report.csv
    diskq put mail --lines < addresses.txt
    find . -print0 | diskq put files --null --json
    diskq put mail 'good morning' --at 2026-01-31T08:00 --dedup-id greeting-31
    diskq peek mail -n 100 --json | diskq put copy --jsonl
    """
    separator = _separator(body, lines=lines, null=null, jsonl=jsonl)
    given = _check_options(options, headers, many=separator is not None)
    check.name("topic", topic)  # fail before anything is created
    with _destination(topic, given["priority"], no_create, mode, wait) as to:
        if separator is None:
            _put_one(to, _read_body(body), given, wait, as_json)
        else:
            _put_all(to, separator, _maker(to, given, jsonl), wait, as_json)


def _separator(body: str | None, *, lines: bool, null: bool, jsonl: bool) -> bytes | None:
    """The byte that ends each message of stdin; None if there is only one message."""
    if lines + null + jsonl + (body not in (None, "-")) > 1:
        raise click.UsageError("give only one of BODY, --lines, --null and --jsonl")
    if body is None and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("no body was given; write it after the topic, or - to type it")
    if not (lines or null or jsonl):
        return None
    return b"\0" if null else b"\n"


def _check_options(options: dict[str, Any], headers: tuple[str, ...], *, many: bool) -> PutOptions:
    if options["dedup_id"] is not None and many:
        raise click.UsageError("--dedup-id is for one message; lines of --jsonl can have their own")
    if options["delay_seconds"] is not None and options["at"] is not None:
        raise click.UsageError("give either --delay or --at, not both")
    given = cast("PutOptions", {**options, "headers": _parse_headers(headers)})
    check.message(Outgoing(b"", **given))
    return given


@contextmanager
def _destination(
    name: str, priority: int, no_create: bool, mode: int | None, wait: float
) -> Iterator[Topic]:
    """The topic to put to, which is created unless `no_create`, or a priority, forbids that."""
    create = not (no_create or priority)
    try:
        with open_store(create=create, mode=mode, wait=wait) as store:
            topic = store.topic(name) if create else find_topic(store, name)
            check_priority(topic, priority)
            yield topic
    except NotFound as error:
        if priority and not no_create:
            error.add_note(
                "with --priority a put creates nothing;"
                f" 'diskq topic create {name} --priorities {priority + 1}' does"
            )
        raise


def _parse_headers(pairs: tuple[str, ...]) -> dict[str, str] | None:
    headers: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise click.UsageError(f"{pair!r} is not a header; write NAME=VALUE")
        if name in headers:
            raise click.UsageError(f"header {name!r} was given twice")
        headers[name] = value
    return headers or None


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise click.UsageError("stdin is closed; there is nothing to read a message from")
    return sys.stdin.buffer


def _read_body(body: str | None) -> bytes:
    if body not in (None, "-"):
        return os.fsencode(body)
    return _stdin().read(limits.MAX_BODY_BYTES + 1)  # with one byte more it is refused


def _put_one(topic: Topic, body: bytes, given: PutOptions, wait: float, as_json: bool) -> None:
    news = "the message may be stored"
    try:
        with signals.patient():
            receipt = topic.put(body, block=wait > 0, timeout=wait, **given)
            news = f"the message is stored: {topic.name} {place(receipt)}"
        show(topic, receipt, as_json)
        output.flush()
    except (Stopped, OSError) as error:
        error.add_note(news)
        raise


# Many -------------------------------------------------------------------------------------------


def _put_all(
    topic: Topic,
    separator: bytes,
    make: Callable[[list[bytes]], Messages],
    wait: float,
    as_json: bool,
) -> None:
    stream = _stdin()
    status = os.fstat(stream.fileno())
    progress = output.Progress(status.st_size if stat.S_ISREG(status.st_mode) else 0)
    longest = MAX_LINE_BYTES if isinstance(make, JsonLines) else limits.MAX_BODY_BYTES
    tally, count, size = Tally(), 0, 0
    try:
        for texts in _batches(stream, separator, longest):
            for receipts in _store(topic, make(texts), wait, tally):
                for receipt in receipts if as_json else ():
                    show(topic, receipt, as_json)
                output.flush()
            count += len(texts)
            size += sum(map(len, texts)) + len(texts)
            progress.show(count, size)
        if str(tally) and not as_json:
            output.line(f"{topic.name} {tally}")
            output.flush()
    except BaseException as error:
        if done := tally.parts(
            f"{plural(tally.stored, 'message')}, the last at offset {tally.last}"
        ):
            error.add_note(f"stored before: {done}")
        raise
    finally:
        progress.close()


def _batches(stream: BinaryIO, separator: bytes, longest: int) -> Iterator[list[bytes]]:
    """The texts of a stream as they come: a line of a slow writer does not wait for more lines, and
    the lines that a fast writer wrote meanwhile share a commit."""
    rest = b""
    while chunk := stream.read1(_READ_BYTES):  # type: ignore[attr-defined]
        *texts, rest = (rest + chunk).split(separator)
        for start in range(0, len(texts), _BATCH_MESSAGES):
            yield texts[start : start + _BATCH_MESSAGES]
        if len(rest) > longest:
            raise MessageTooLarge(
                f"a message is over the limit of {longest} bytes; is the separator"
                f" {separator!r} in the input?"
            )
    if rest:
        yield [rest]


def _store(
    topic: Topic, messages: Messages, wait: float, tally: Tally
) -> Iterator[Sequence[Receipt]]:
    """Put messages in one commit, or in several if they are more than the topic may hold."""
    if not messages:
        return
    news = f"{plural(len(messages), 'more message')} may be stored"
    try:
        with signals.patient():
            receipts = topic.put_many(messages, block=wait > 0, timeout=wait)
            tally.add(receipts)
            news = ""
    except Stopped as error:
        if news:
            error.add_note(news)
        raise
    except MessageTooLarge:
        half = len(messages) // 2
        if not half:
            raise
        yield from _store(topic, messages[:half], wait, tally)
        yield from _store(topic, messages[half:], wait, tally)
    else:
        yield receipts


def _maker(topic: Topic, given: PutOptions, jsonl: bool) -> Callable[[list[bytes]], Messages]:
    """The function that makes messages of texts from stdin."""
    if jsonl:
        return JsonLines(topic, given)
    if Outgoing(b"", **given) == Outgoing(b""):
        return lambda bodies: bodies
    return lambda bodies: [Outgoing(body, **given) for body in bodies]
