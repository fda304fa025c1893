"""The ledgers of the torture: what each process tried, and what came of it.

A process has one file for each group it serves, `WHO.GROUP`, and one for what it puts, `WHO.puts`.
Each line is one JSON object, written by one write and stamped with CLOCK_MONOTONIC, so that it
survives kill -9; at most the last line is cut off. There are these kinds:

    {"do": verb, "n": 7, "set": [[verb, offset, token] ...], "msgs": [[topic, id, ...] ...]}
    {"ok": 7, "msgs": [[offset, duplicate, schedule_id] ...]}    it returned
    {"no": 7, "error": "LeaseLost"}                              it was refused
    {"got": [[offset, token, deadline, id, key, bad, lease] ...], "begun": ns, "s": session}
    {"copy": [[offset, id] ...], "fork": 7}                      what a forked group delivered
    {"died": traceback}                                          an error that must not be

An intent (`do`) is one commit: its settles and puts happen together or not at all. Without `ok` or
`no` it was cut off, and may have happened. Each `id` names one message, and is in its body. A lease
is named by the first token that it gave out: messages of one lease are extended together.
"""

from __future__ import annotations

import json
import os
import random
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
PUTS = "puts"
SIZES = (0, 10, 100, 1000, 20_000)
SIZE_WEIGHTS = (10, 40, 30, 10, 1)


class Ledger:
    """An append-only file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.number = 0  # of the latest intent

    def write(self, **entry: Any) -> None:
        """Append an entry, stamped now."""
        line = json.dumps({"at": time.monotonic_ns(), **entry}, separators=(",", ":"))
        os.write(self._file, line.encode() + b"\n")

    def intend(self, verb: str, **more: Any) -> int:
        """Append an intent; returns its number."""
        self.number += 1
        self.write(do=verb, n=self.number, **more)
        return self.number


def read(folder: Path, kind: str) -> Iterator[Entry]:
    """The entries of all ledgers of a group, or of `puts`; each tells `who` wrote it and where to
    find it (`ref`). A last line that a kill cut off is left out."""
    for path in sorted(folder.glob(f"*.{kind}")):
        who = path.name.removesuffix(f".{kind}")
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield {"who": who, "ref": f"{path.name}:{number}", **json.loads(line)}


def line(folder: Path, ref: str) -> str:
    """The line of a ledger that a `ref` names."""
    name, _, number = ref.rpartition(":")
    try:
        with (folder / name).open() as file:
            return next(text for at, text in enumerate(file, 1) if at == int(number)).rstrip()
    except (OSError, StopIteration, ValueError):
        return "(no such line)"


def unfinished(path: Path) -> Entry | None:
    """The last intent of a ledger, if nothing came of it."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        lines = file.read().split(b"\n")[:-1]
    last: Entry = json.loads(lines[-1]) if lines and lines[-1].startswith(b"{") else {}
    return last if "do" in last else None


def make_body(name: str, key: str | None, lane: int, chance: random.Random) -> bytes:
    """A body that tells which message it is, with a checksum over all of it."""
    size = chance.choices(SIZES, SIZE_WEIGHTS)[0]
    content = f"{name}|{key or ''}|{lane}|".encode() + chance.randbytes(size)
    return b"%08x|" % zlib.crc32(content) + content


def read_body(body: bytes, key: str | None, lane: int) -> tuple[str | None, str]:
    """The id of a message as it came, and what is wrong with it, if anything."""
    checksum, _, content = body.partition(b"|")
    if checksum != b"%08x" % zlib.crc32(content):
        return None, f"the body fails its check: {body[:60]!r}"
    name, its_key, its_lane, _ = content.split(b"|", 3)
    if (its_key.decode(), its_lane.decode()) != (key or "", str(lane)):
        return name.decode(), f"put with key {its_key!r}, priority {its_lane!r}: {key!r}, {lane}"
    return name.decode(), ""
