"""Messages from lines of JSON, such as `get --json` and `peek --json` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from diskq import MessageTooLarge, Outgoing, Topic
from diskq.base import check, limits

from . import units
from .common import check_priority

if TYPE_CHECKING:
    from diskq.base.options import PutOptions

MAX_LINE_BYTES = 7 * limits.MAX_BODY_BYTES  # JSON may write a byte as \u0000
_BODIES = "body", "body_base64"
_OPTIONS = "key", "headers", "priority", "delay_seconds", "at", "ttl_seconds", "dedup_id"
_SHOWN = "topic", "group", "offset", "put_at_ns", "attempt", "token"  # by get and peek, not options


class JsonLines:
    """Makes a message from each line of JSON, and counts the lines, so that an error can name
    one."""

    def __init__(self, topic: Topic, given: PutOptions) -> None:
        self._topic = topic
        self._given = given
        self._number = 0

    def __call__(self, lines: list[bytes]) -> Sequence[bytes | Outgoing]:
        """The messages of these lines; a blank line has none.

        Raises: ValueError, MessageTooLarge. Both name the line.
        """
        messages = []
        for line in lines:
            self._number += 1
            try:
                if line.strip():
                    messages.append(self._message(line))
            except MessageTooLarge as error:
                raise MessageTooLarge(f"line {self._number}: {error}") from None
            except (TypeError, ValueError) as error:
                raise ValueError(f"line {self._number}: {error}") from None
        return messages

    def _message(self, line: bytes) -> bytes | Outgoing:
        record = _object_of(line)
        unknown = set(record) - {*_BODIES, *_OPTIONS, *_SHOWN}
        if unknown:
            known = ", ".join((*_BODIES, *_OPTIONS))
            raise ValueError(f"there is no {min(unknown)!r} in a message; there are {known}")
        own = {name: record[name] for name in _OPTIONS if record.get(name) is not None}
        if "at" in own:
            own["at"] = units.parse_time(check.text("at", own["at"]))
        given = dict(self._given)
        if {"at", "delay_seconds"} & set(own):
            given.update(at=None, delay_seconds=None)
        message = Outgoing(_body_of(record), **cast("PutOptions", {**given, **own}))
        checked = check.message(message)
        check_priority(self._topic, message.priority)
        return checked


def _object_of(line: bytes) -> dict[str, Any]:
    import json  # 5 ms that only `--jsonl` pays

    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg}, at character {error.pos}") from None
    except RecursionError:
        raise ValueError("it is not a message: it nests too deep") from None
    if not isinstance(record, dict):
        raise ValueError(f"it is not a JSON object, {{...}}, but a {type(record).__name__}")
    return record


def _body_of(record: dict[str, Any]) -> bytes:
    names = [name for name in _BODIES if name in record]
    if len(names) != 1:
        raise ValueError("a message must have either 'body' or 'body_base64'")
    text = check.text(names[0], record[names[0]])
    if names[0] == "body":
        return check.utf8("body", text)
    from base64 import b64decode

    try:
        return b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"'body_base64' is not in Base64: {error}") from None
