"""All printing: bodies, lines, tables and JSON on stdout, everything else on stderr.

Text is always UTF-8. No text of a message can break a line or a table, or control the terminal;
only requested bodies are printed as they are. There is no colour, with or without NO_COLOR.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any, cast

from . import units

_PAGE_ROWS = 1000
_UNIT = re.compile("_(ns|bytes|seconds)$")
_SHOW_AFTER_SECONDS, _SHOW_EVERY_SECONDS = 0.5, 0.1


def write(data: bytes) -> None:
    """Print bytes as they are.

    Raises: OSError, of "standard output".
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, "it is closed", "standard output")
    _name_errors(lambda: sys.stdout.buffer.write(data))


def flush() -> None:
    """Write all output to the system. A verb calls this before it settles the printed messages.

    Raises: OSError, of "standard output".
    """
    if sys.stdout is not None:
        _name_errors(sys.stdout.flush)


def _name_errors(action: Callable[[], object]) -> None:
    try:
        action()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the exit does not fail again
        raise OSError(error.errno, error.strerror, "standard output") from error


def line(text: str) -> None:
    """Print a line."""
    write(_clean(text).encode("utf-8", "backslashreplace") + b"\n")


def record(values: object) -> None:
    """Print one JSON object. Bytes that are not text go under their name with `_base64`."""
    import json  # 5 ms that only `--json` pays

    text = json.dumps(_tree(values), ensure_ascii=False, separators=(",", ":"))
    write(text.encode("utf-8", "backslashreplace") + b"\n")  # JSON reads \udc80 as the same text


def _tree(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return dict(_field(name, item) for name, item in value.items())
    if isinstance(value, (tuple, list)):
        return [_tree(item) for item in value]
    return value


def _field(name: str, value: object) -> tuple[str, object]:
    if not isinstance(value, bytes):
        return name, _tree(value)
    try:
        return name, value.decode()
    except UnicodeDecodeError:
        from base64 import b64encode

        return f"{name}_base64", b64encode(value).decode()


def show(items: Iterable[Any], names: Sequence[str], as_json: bool = False) -> None:
    """Print these attributes of the items as a table, or all of them as JSON objects. Rows are
    printed page by page, so their number does not matter. A name ends in its unit, which decides
    how its value is printed."""
    if as_json:
        for item in items:
            record(item)
        return
    heads = [_UNIT.sub("", name).replace("_", " ").upper() for name in names]
    rows = chain([heads], ([_cell(name, getattr(item, name)) for name in names] for item in items))
    widths = [0] * len(names)
    while page := list(islice(rows, _PAGE_ROWS)):
        columns = zip(widths, zip(*page, strict=True), strict=True)
        widths = [max(width, *map(len, column)) for width, column in columns]
        right = [cell.isdecimal() for cell in page[-1]]
        for row in page:
            cells = zip(row, widths, right, strict=True)
            line("  ".join(c.rjust(w) if number else c.ljust(w) for c, w, number in cells).rstrip())


def fields(values: Mapping[str, object]) -> None:
    """Print names and values, one pair per line."""
    heads = {name: _UNIT.sub("", name).replace("_", " ") for name in values}
    width = max(map(len, heads.values()))
    for name, head in heads.items():
        line(f"{head:{width}}  {_cell(name, values[name])}")


def _cell(name: str, value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        value = "yes" if value else "no"
    if isinstance(value, tuple):
        return str(len(value))
    if name.endswith("_ns"):
        return units.show_time(cast(int, value))
    if name.endswith("bytes"):
        return units.show_size(cast(int, value))
    if name.endswith("_seconds"):
        return units.show_duration(cast(float, value))
    return _clean(str(value))


def _clean(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def error(text: str) -> None:
    """Print one line on stderr."""
    errors(f"diskq: {_clean(' '.join(text.split()))}\n".encode())


def errors(data: bytes) -> None:
    """Print bytes on stderr as they are; a failure is ignored, since it could not be reported."""
    with suppress(OSError):
        os.write(2, data)


def can_ask() -> bool:
    """Whether a terminal is there on which the user can answer a question."""
    return sys.stdin is not None and sys.stdin.isatty() and os.isatty(2)


def ask(question: str) -> bool:
    """Ask a yes-or-no question on the terminal; any answer but yes is no."""
    errors(f"{_clean(question)} [y/N] ".encode())
    return sys.stdin.readline().strip().lower() in ("y", "yes")


class Progress:
    """A progress line on stderr, if that is a terminal; it disappears when the work is over."""

    def __init__(self, total_bytes: int) -> None:
        """`total_bytes` is 0 if it is unknown."""
        self._total = total_bytes
        self._next = time.monotonic() + _SHOW_AFTER_SECONDS
        self._wanted = os.isatty(2)
        self._width = 0

    def show(self, messages: int, done_bytes: int) -> None:
        """Show how much is done; cheap to call often."""
        if not self._wanted or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _SHOW_EVERY_SECONDS
        text = f"{messages:,} messages"
        if self._total:
            part = min(done_bytes / self._total, 1.0)
            text = f"[{'#' * int(30 * part):30}] {part:4.0%}  {text}"
        self._width = max(self._width, len(text))
        errors(f"\r{text:{self._width}}".encode())

    def close(self) -> None:
        """Remove the line from the screen."""
        if self._width:
            errors(f"\r{'':{self._width}}\r".encode())
