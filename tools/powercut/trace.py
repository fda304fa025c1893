"""What a traced process did to the files below one directory, as a list of events.

It reads the output of `strace -f -xx -y`, in which all strings are hexadecimal and descriptors come
with their paths. Part of the power cuts.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

CALLS = (
    "write", "pwrite64", "writev", "pwritev", "pwritev2", "fdatasync", "fsync", "msync", "sync",
    "syncfs", "sync_file_range", "ftruncate", "truncate", "fallocate", "openat", "lseek", "rename",
    "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir",
    "sendfile", "copy_file_range", "clone", "clone3", "fork", "vfork",
)  # fmt: skip
MAX_BYTES = 1 << 20  # of one string that strace prints; no write of the workload has more
HARMLESS = {"msync"}  # what is mapped need not last: see MAPPED in disk.py

STARTS = {"clone", "clone3", "fork", "vfork"}  # a thread or process

WRITE, FLUSH, RESIZE, EXTEND, CREATE = "write", "flush", "resize", "extend", "create"
MKDIR, RENAME, LINK, REMOVE, TOLD = "mkdir", "rename", "link", "remove", "told"

_LINE = re.compile(r"(\d+) +(.*)", re.DOTALL)
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+)(.*)", re.DOTALL)
_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>(.*)", re.DOTALL)
_FD = re.compile(r"(\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


class Event(NamedTuple):
    """One change, or flush, of a file or directory; or a line of the ledger (TOLD)."""

    kind: str
    path: str
    at: int = 0  # where a write begins; a size
    data: bytes = b""
    other: str = ""  # the new name
    flushed: bool = False  # the write reached the disk before it returned (O_DSYNC)


class Call(NamedTuple):
    """One line of the trace."""

    thread: str
    name: str
    arguments: str
    result: int
    rest: str


def read_trace(trace: Path, root: str, ledger: str) -> list[Event]:
    """The events of a trace that concern what is below `root`, and the lines of the ledger.

    Raises: ValueError for a call that the power cuts do not know how to replay.
    """
    with open(trace, encoding="ascii", errors="replace") as file:
        calls = list(_calls(file))
    threads = {
        str(call.result): call.thread
        for call in calls
        if call.name in STARTS and "CLONE_THREAD" in call.arguments
    }
    return list(_Reader(root, ledger, threads).events(calls))


class _Descriptors:
    """What has to be remembered of a process's descriptors."""

    def __init__(self) -> None:
        self.place: dict[int, int] = {}  # where the next plain write goes
        self.dsync: dict[int, bool] = {}  # whether writes are flushed at once


class _Reader:
    """Makes events of calls."""

    def __init__(self, root: str, ledger: str, process_of: dict[str, str]) -> None:
        self.root = root
        self.ledger = ledger
        self.process_of = process_of
        self.processes: defaultdict[str, _Descriptors] = defaultdict(_Descriptors)
        self.told = b""

    def events(self, calls: Iterable[Call]) -> Iterator[Event]:
        for thread, call, arguments, result, rest in calls:
            process = thread
            while process in self.process_of:
                process = self.process_of[process]
            self.place = self.processes[process].place
            self.dsync = self.processes[process].dsync
            if result >= 0 and call not in STARTS:
                yield from self.replay(call, arguments, result, rest)

    def replay(self, call: str, arguments: str, result: int, rest: str) -> Iterator[Event]:
        if call == "openat":
            yield from self.opened(arguments, result, rest)
        elif found := _FD.match(arguments):
            if found[1] == "AT_FDCWD":
                yield from self.named(call, arguments)
            else:
                yield from self.on_file(call, int(found[1]), _text(found[2]), arguments, result)
        else:
            yield from self.named(call, arguments)

    def opened(self, arguments: str, result: int, rest: str) -> Iterator[Event]:
        found = _FD.match(rest.strip()) or _FD.match(f"{result}{rest.strip()}")
        path = _text(found[2]) if found else ""
        flags = arguments.split(", ")[2].split("|")
        self.place[result] = 0
        self.dsync[result] = bool({"O_DSYNC", "O_SYNC", "O_RSYNC"} & set(flags))
        if self.mine(path):
            if "O_APPEND" in flags or "O_TMPFILE" in flags:
                raise ValueError(f"cannot replay an open of {path} with {'|'.join(flags)}")
            if "O_CREAT" in flags:
                yield Event(CREATE, path)
            if "O_TRUNC" in flags:
                yield Event(RESIZE, path, 0)

    def on_file(
        self, call: str, fd: int, path: str, arguments: str, result: int
    ) -> Iterator[Event]:
        if call == "lseek":
            self.place[fd] = result
            return
        if call in ("write", "writev", "pwrite64", "pwritev", "pwritev2"):
            yield from self.written(call, fd, path, arguments, result)
        elif not self.mine(path):
            return
        elif call in ("fdatasync", "fsync"):
            yield Event(FLUSH, path)
        elif call == "ftruncate":
            yield Event(RESIZE, path, _numbers(arguments)[-1])
        elif call == "fallocate":
            mode, at, length = _numbers(arguments)[-3:]
            if mode:
                raise ValueError(f"cannot replay a fallocate of {path} with mode {mode}")
            yield Event(EXTEND, path, at + length)
        elif call in ("unlinkat", "mkdirat", "renameat", "renameat2", "linkat"):
            yield from self.named(call, arguments)
        elif call not in HARMLESS:
            raise ValueError(f"cannot replay {call} of {path}")

    def written(
        self, call: str, fd: int, path: str, arguments: str, result: int
    ) -> Iterator[Event]:
        positioned = call.startswith("p")
        at = self.place.get(fd, 0)
        if not positioned:
            self.place[fd] = at + result
        if path == self.ledger:
            self.told += _strings(arguments, path)
            *lines, self.told = self.told.split(b"\n")
            for line in lines:
                yield Event(TOLD, path, data=line)
        elif self.mine(path):
            data = _strings(arguments, path)[:result]
            if positioned:
                at = _numbers(arguments.rpartition("]" if "v" in call else '"')[2])[1]
            yield Event(WRITE, path, at, data, flushed=self.dsync.get(fd, False))

    def named(self, call: str, arguments: str) -> Iterator[Event]:
        folders = [_text(found[2]) for found in _FD.finditer(arguments)]
        names = [_text(found[1]) for found in _STRING.finditer(arguments)]
        folders += [os.sep] * (len(names) - len(folders))
        paths = [os.path.join(*each) for each in zip(folders, names, strict=False)]
        if not any(map(self.mine, paths)):
            return
        if call.startswith("rename"):
            yield Event(RENAME, paths[0], other=paths[1])
        elif call.startswith("link"):
            yield Event(LINK, paths[0], other=paths[1])
        elif call.startswith("mkdir"):
            yield Event(MKDIR, paths[0])
        elif call.startswith(("unlink", "rmdir")):
            yield Event(REMOVE, paths[0])
        elif call not in HARMLESS:
            raise ValueError(f"cannot replay {call} of {paths[0]}")

    def mine(self, path: str) -> bool:
        return path == self.root or path.startswith(self.root + os.sep)


def _calls(lines: Iterable[str]) -> Iterator[Call]:
    """The calls in the order in which they returned: so a flush that another thread made while a
    write was on its way comes before that write, and does not help it."""
    begun: dict[str, str] = {}
    for line in lines:
        if not (found := _LINE.match(line.rstrip("\n"))):
            continue
        thread, text = found[1], found[2]
        if text.endswith("<unfinished ...>"):
            begun[thread] = text.removesuffix("<unfinished ...>").rstrip()
            continue
        if resumed := _RESUMED.match(text):
            text = begun.pop(thread, resumed[1] + "(") + resumed[2]
        if call := _CALL.match(text):
            yield Call(thread, call[1], call[2], int(call[3]), call[4])


def _strings(arguments: str, path: str) -> bytes:
    found = list(_STRING.finditer(arguments))
    if any(each[2] for each in found):
        raise ValueError(f"a write to {path} is longer than {MAX_BYTES} bytes")
    return b"".join(_bytes(each[1]) for each in found)


def _numbers(text: str) -> list[int]:
    """The plain numbers among arguments."""
    parts = [part.strip() for part in text.split(",")]
    return [int(part) for part in parts if part.isdigit()]


def _text(hexadecimal: str) -> str:
    return os.fsdecode(_bytes(hexadecimal))


def _bytes(hexadecimal: str) -> bytes:
    return bytes.fromhex(hexadecimal.replace("\\x", ""))
