"""A disk that forgets: files and directories as the kernel has them, and as they may be found after
the power was cut. Part of the power cuts.

The kernel may write what was not flushed at any time and in any order. So after a cut

- each sector of a file is what was flushed last, or what it was after any later write;
- the size of a file is the one flushed last, or any later one; what is behind it is gone;
- each name in a directory is there as when the directory was flushed, or as after any later change;
- to flush a file does not flush its name: that is done by flushing its directory.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from .trace import (
    CREATE,
    EXTEND,
    FLUSH,
    LINK,
    MKDIR,
    REMOVE,
    RENAME,
    RESIZE,
    WRITE,
    Event,
)

SECTOR, PAGE = 512, 4096  # bytes
MAPPED = ("lock.mdb", "slots")  # memory of the processes: nothing in it must last
KINDS = (  # what survives of that which was not flushed
    "none", "all", "prefix", "late", "few", "half", "most", "pages", "one lost", "one kept",
)  # fmt: skip

# Of the versions of one sector, size or name, each with the number of the event that made it, the
# index of the one that is found; 0 is what was flushed. `where` is a number that pages share.
Choice = Callable[[list[int], int], int]


class File:
    """A file: what a process reads of it, and what the disk may have."""

    def __init__(self) -> None:
        self.cache = bytearray()
        self.flushed = bytearray()
        self.sectors: dict[int, list[tuple[int, bytes]]] = {}  # later versions, by sector
        self.sizes: list[tuple[int, int]] = []  # later sizes

    def write(self, event: int, at: int, data: bytes) -> None:
        end = at + len(data)
        if end > len(self.cache):
            self.resize(event, end)
        self.cache[at:end] = data
        for sector in range(at // SECTOR, (end - 1) // SECTOR + 1):
            version = bytes(self.cache[sector * SECTOR : (sector + 1) * SECTOR])
            self.sectors.setdefault(sector, []).append((event, version))

    def resize(self, event: int, size: int) -> None:
        if size == len(self.cache):
            return
        _set_size(self.cache, size)
        self.sizes.append((event, size))
        for sector in [sector for sector in self.sectors if (sector + 1) * SECTOR > size]:
            version = bytes(self.cache[sector * SECTOR : (sector + 1) * SECTOR])
            self.sectors[sector].append((event, version))

    def flush(self, first: int = 0, last: int = 1 << 60) -> None:
        """Flush the sectors `first` to `last`, and what it takes to find them: the size."""
        if self.sizes:
            self.sizes.clear()
            _set_size(self.flushed, len(self.cache))
        for sector in [sector for sector in self.sectors if first <= sector <= last]:
            _put(self.flushed, sector, self.sectors.pop(sector)[-1][1])

    def found(self, choose: Choice) -> bytes:
        """What is found after a cut."""
        data = bytearray(self.flushed)
        size = len(data)
        if self.sizes:
            index = choose([event for event, _ in self.sizes], 0)
            size = self.sizes[index - 1][1] if index else size
            _set_size(data, max(size for _, size in self.sizes))
        for sector, versions in self.sectors.items():
            index = choose([event for event, _ in versions], sector * SECTOR // PAGE)
            if index:
                _put(data, sector, versions[index - 1][1])
        _set_size(data, size)
        return bytes(data)

    def stamps(self) -> Iterator[int]:
        """The events that are not flushed."""
        for versions in self.sectors.values():
            yield from (event for event, _ in versions)
        yield from (event for event, _ in self.sizes)


class Folder:
    """A directory: names, and changes of names that are not flushed."""

    def __init__(self) -> None:
        self.names: dict[str, File | Folder] = {}
        self.flushed: dict[str, File | Folder] = {}
        self.changes: list[tuple[int, dict[str, File | Folder | None]]] = []

    def set(self, event: int, names: dict[str, File | Folder | None]) -> None:
        """Change some names at once; None: it goes."""
        self.changes.append((event, names))
        _apply(self.names, names)

    def flush(self) -> None:
        self.flushed = dict(self.names)
        self.changes.clear()

    def found(self, choose: Choice) -> dict[str, File | Folder]:
        """The names found after a cut."""
        names = dict(self.flushed)
        for event, change in self.changes:
            if choose([event], -event):
                _apply(names, change)
        return names


class Found(NamedTuple):
    """What is below the root after a cut: content of files by path, and directories."""

    files: dict[str, bytes]
    folders: list[str]

    def checksum(self) -> int:
        """A number that tells states apart."""
        value = zlib.crc32(repr(sorted(self.folders)).encode())
        for name, data in sorted(self.files.items()):
            value = zlib.crc32(data, zlib.crc32(name.encode(), value))
        return value

    def write(self, root: Path) -> None:
        """Make it real."""
        root.mkdir(parents=True)
        for name in sorted(self.folders):
            (root / name).mkdir()
        for name, data in self.files.items():
            (root / name).write_bytes(data)


class Disk:
    """The directory `root` and all below it, while events happen to it one by one."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.folder = Folder()
        self.event = 0

    def replay(self, event: Event) -> None:
        """Let one event happen."""
        self.event += 1
        node = self._find(event.path) if event.kind in (WRITE, RESIZE, EXTEND, FLUSH) else None
        if isinstance(node, File):
            _change_file(node, self.event, event)
        elif isinstance(node, Folder):
            node.flush()
        elif event.kind in (CREATE, MKDIR, REMOVE, RENAME, LINK):
            self._change_names(event)

    def _change_names(self, event: Event) -> None:
        folder, name = self._parent(event.path)
        if event.kind == CREATE:
            if name not in folder.names:
                folder.set(self.event, {name: File()})
        elif event.kind == MKDIR:
            folder.set(self.event, {name: Folder()})
        elif event.kind == REMOVE:
            folder.set(self.event, {name: None})
        elif event.kind == LINK:
            target, new_name = self._parent(event.other)
            target.set(self.event, {new_name: folder.names[name]})
        else:
            target, new_name = self._parent(event.other)
            if target is not folder:
                raise ValueError(f"cannot replay a rename from {event.path} to {event.other}")
            folder.set(self.event, {name: None, new_name: folder.names[name]})

    def pending(self) -> list[int]:
        """The events that are not flushed, in order."""
        stamps: set[int] = set()
        for node in _nodes(self.folder):
            if isinstance(node, File):
                stamps.update(node.stamps())
            else:
                stamps.update(event for event, _ in node.changes)
        return sorted(stamps)

    def open_to_loss(self) -> bool:
        """Whether a cut could lose anything that must last."""
        for node in _nodes(self.folder):
            if isinstance(node, Folder):
                if any(set(names) - set(MAPPED) for _, names in node.changes):
                    return True
            elif node.sectors or node.sizes:
                return True
        return False

    def found(self, choose: Choice, mapped: Callable[[str, int], bytes]) -> Found:
        """What is found after a cut; `mapped` tells what is in a file that processes map."""
        result = Found({}, [])

        def walk(folder: Folder, prefix: str) -> None:
            for name, node in folder.found(choose).items():
                path = os.path.join(prefix, name)
                if isinstance(node, Folder):
                    result.folders.append(path)
                    walk(node, path)
                elif name in MAPPED:
                    result.files[path] = mapped(path, len(node.found(choose)))
                else:
                    result.files[path] = node.found(choose)

        walk(self.folder, "")
        return result

    def file(self, path: str) -> File:
        """The file at a path. Raises: KeyError."""
        node = self._find(path)
        if not isinstance(node, File):
            raise KeyError(path)
        return node

    def _find(self, path: str) -> File | Folder:
        node: File | Folder = self.folder
        for name in path[len(self.root) + 1 :].split(os.sep) if path != self.root else ():
            if isinstance(node, File):
                raise KeyError(path)
            node = node.names[name]
        return node

    def _parent(self, path: str) -> tuple[Folder, str]:
        parent = self._find(os.path.dirname(path))
        assert isinstance(parent, Folder)
        return parent, os.path.basename(path)


def choice(kind: str, seed: int, pending: list[int]) -> Choice:
    """Which versions survive a cut, for each of KINDS; `pending` are the events not flushed."""
    rng = random.Random(seed)
    if kind in ("few", "half", "most"):
        share = {"few": 0.1, "half": 0.5, "most": 0.9}[kind]
        return lambda stamps, where: (
            rng.randint(1, len(stamps)) if rng.random() < share else 0  # any of its versions
        )
    event = rng.choice(pending) if pending else 0
    old = rng.choice(pending[-len(pending) // 4 :]) if pending else 0
    choices: dict[str, Choice] = {
        "none": lambda stamps, where: 0,
        "all": lambda stamps, where: len(stamps),
        "prefix": lambda stamps, where: _until(stamps, event),
        # The kernel wrote all up to a while ago, and began with the rest.
        "late": lambda stamps, where: rng.randint(_until(stamps, old), len(stamps)),
        "pages": lambda stamps, where: (
            len(stamps) if random.Random(f"{seed} {where}").random() < 0.5 else 0
        ),
        "one lost": lambda stamps, where: stamps.index(event) if event in stamps else len(stamps),
        "one kept": lambda stamps, where: stamps.index(event) + 1 if event in stamps else 0,
    }
    return choices[kind]


def _until(stamps: list[int], event: int) -> int:
    return sum(stamp <= event for stamp in stamps)


def _change_file(file: File, number: int, event: Event) -> None:
    if event.kind == WRITE and event.data:
        file.write(number, event.at, event.data)
        if event.flushed:
            last = event.at + len(event.data) - 1
            file.flush(event.at // SECTOR, last // SECTOR)
    elif event.kind == RESIZE:
        file.resize(number, event.at)
    elif event.kind == EXTEND:
        file.resize(number, max(event.at, len(file.cache)))
    elif event.kind == FLUSH:
        file.flush()


def _nodes(folder: Folder) -> Iterator[File | Folder]:
    """What is there, but for mapped files."""
    yield folder
    for name, node in folder.names.items():
        if isinstance(node, Folder):
            yield from _nodes(node)
        elif name not in MAPPED:
            yield node


def _apply(names: dict[str, File | Folder], change: dict[str, File | Folder | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _put(data: bytearray, sector: int, version: bytes) -> None:
    at = sector * SECTOR
    if at + len(version) > len(data):
        _set_size(data, at + len(version))
    data[at : at + len(version)] = version


def _set_size(data: bytearray, size: int) -> None:
    if size < len(data):
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))
