"""LMDB's data file read as plain bytes, page by page: to tell whether it is sound, and to read the
reachable part of a damaged file. Imported on demand.

LMDB trusts its pages: a wrong one ends the process, or gives wrong data. This module maps nothing
and trusts nothing. It walks a tree from a meta page; a page that cannot be what its parent says is
a finding, and the pages below it are lost. The layout is that of LMDB 0.9 (mdb.c: MDB_page,
MDB_node, MDB_db, MDB_meta), in the byte order of the machine:

    page    number u64, u16, flags u16, end of pointers u16, end of free space u16, pointers u16...;
            of an overflow page the last two are one u32, the number of pages in its run
    node    size u32, flags u16, key length u16, key, value; in a branch, the first six bytes are
            the number of the page below
    tree    u32, flags u16, depth u16, branch, leaf and overflow pages, entries, root: u64 each
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from struct import Struct, unpack_from
from typing import Any, NamedTuple

from .meta_page import META_BYTES, MetaPage, meta_pages

_PAGE = Struct("=QHHHH")
_NODE = Struct("=IHH")
_TREE = Struct("=IHHQQQQQ")
_U64 = Struct("=Q")
_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_BIG_VALUE, _IS_TREE = 0x01, 0x02  # flags of a node
_INTEGER_KEYS = 0x08  # a flag of a tree
_NO_PAGE = 2**64 - 1
_MAX_DEPTH = 32  # CURSOR_STACK in mdb.c


class Damage(Exception):
    """A page is not what its parent says it is."""


class Tree(NamedTuple):
    """A B+tree, as the row that roots it describes it."""

    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


class Snapshot:
    """One committed state of a data file: the one that a meta page points to.

    `findings` grows while trees are walked; `used` are the pages of these trees.
    """

    def __init__(self, file: int, meta: MetaPage) -> None:
        self.txn_id = meta.txn_id
        self.findings: list[str] = []
        self.used: set[int] = set()
        self._file = file
        self._size = meta.page_bytes
        self._pages = meta.last_page + 1
        self._free, self._main = _tree(meta.free), _tree(meta.main)

    def databases(self) -> dict[bytes, Tree]:
        """The named databases."""
        nodes = self._walk("the list of databases", self._main)
        return {
            key: _tree(value)
            for key, flags, value in nodes
            if flags & _IS_TREE and len(value) == _TREE.size
        }

    def items(self, name: bytes, tree: Tree) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of a database, in key order, without those on damaged pages."""
        for key, _, value in self._walk(f"database {name.decode(errors='replace')}", tree):
            yield key, value

    def scan(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of all pages that look like a leaf, in no order, whether a tree leads to
        them or not: deleted and replaced rows are among them."""
        # A commit whose meta page is lost may have used pages behind those of this state.
        self._pages = -(-os.fstat(self._file).st_size // self._size)
        for number in range(2, self._pages):
            self.used.clear()
            with suppress(Damage):
                page, nodes = self._nodes(number, _LEAF)
                for at in nodes:
                    with suppress(Damage):
                        key, _, value = self._row(page, at, [0] * 4)
                        yield key, value

    def free_pages(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Transactions, each with the pages that it freed and that were not used again."""
        for key, _, value in self._walk("the list of free pages", self._free):
            if len(key) != _U64.size or len(value) != 8 + 8 * _count(value):
                self.findings.append(f"the list of free pages is wrong at {key.hex()}")
                continue
            yield _U64.unpack(key)[0], unpack_from(f"={len(value) // 8 - 1}Q", value, 8)

    def check(self) -> list[str]:
        """All findings: a sound page is in exactly one place of a tree, or free."""
        for name, tree in self.databases().items():
            for _ in self.items(name, tree):
                pass
        free = [page for _, pages in self.free_pages() for page in pages]
        taken = self.used.intersection(free)
        if taken or len(set(free)) < len(free) or max(free, default=0) >= self._pages:
            self.findings.append(
                f"the list of free pages is wrong, for example {sorted(taken)[:3]}"
            )
        return self.findings

    def _walk(self, where: str, tree: Tree) -> Iterator[tuple[bytes, int, bytes]]:
        """Key, flags and value of each node, rising. Each inconsistency is a finding."""
        if tree.root == _NO_PAGE:
            return
        if tree.depth > _MAX_DEPTH:
            self.findings.append(f"{where}: a depth of {tree.depth} is impossible")
            return
        counts = [0, 0, 0, 0]
        last: Any = None
        for key, flags, value in self._below(where, tree.root, tree.depth, counts):
            if tree.flags & _INTEGER_KEYS and len(key) != _U64.size:
                self.findings.append(f"{where}: {key.hex()} is not a key of it")
                return
            order = _U64.unpack(key)[0] if tree.flags & _INTEGER_KEYS else key
            if last is not None and not last < order:
                self.findings.append(f"{where}: the keys do not rise at {key.hex()}")
            last = order
            yield key, flags, value
        if counts != list(tree[2:6]):
            self.findings.append(f"{where}: {counts} pages and entries, not {list(tree[2:6])}")

    def _below(
        self, where: str, number: int, depth: int, counts: list[int]
    ) -> Iterator[tuple[bytes, int, bytes]]:
        try:
            page, nodes = self._nodes(number, _BRANCH if depth > 1 else _LEAF)
        except Damage as damage:
            self.findings.append(f"{where}: {damage}")
            return
        counts[0 if depth > 1 else 1] += 1
        for at in nodes:
            if depth > 1:
                size, flags, _ = _NODE.unpack_from(page, at)
                yield from self._below(where, size | flags << 32, depth - 1, counts)
                continue
            try:
                row = self._row(page, at, counts)
            except Damage as damage:
                self.findings.append(f"{where}: {damage}")
                continue
            counts[3] += 1
            yield row

    def _row(self, page: bytes, at: int, counts: list[int]) -> tuple[bytes, int, bytes]:
        """Key, flags and value of a node of a leaf. Raises: Damage."""
        size, flags, key_length = _NODE.unpack_from(page, at)
        value_at = at + _NODE.size + key_length
        value = page[value_at : value_at + size]
        if flags & _BIG_VALUE:
            value = self._big_value(_U64.unpack_from(page, value_at)[0], size, counts)
        return page[at + _NODE.size : value_at], flags, value

    def _nodes(self, number: int, kind: int) -> tuple[bytes, list[int]]:
        """A page of this kind, and the positions of its nodes. Raises: Damage."""
        page = self._read(number, 1)
        found, _, flags, lower, upper = _PAGE.unpack_from(page)
        if found != number or flags & (_BRANCH | _LEAF | _OVERFLOW) != kind:
            raise Damage(f"page {number} is not a {'branch' if kind == _BRANCH else 'leaf'}")
        if not _PAGE.size < lower <= upper <= self._size or lower % 2:
            raise Damage(f"page {number} has wrong bounds")
        nodes = list(unpack_from(f"={(lower - _PAGE.size) // 2}H", page, _PAGE.size))
        for at in nodes:
            if not upper <= at <= self._size - _NODE.size:
                raise Damage(f"page {number} has a node outside the page")
            size, node_flags, key_length = _NODE.unpack_from(page, at)
            inside = 0 if kind == _BRANCH else 8 if node_flags & _BIG_VALUE else size
            if at + _NODE.size + key_length + inside > self._size:
                raise Damage(f"page {number} has a node that ends outside the page")
        return page, nodes

    def _big_value(self, number: int, size: int, counts: list[int]) -> bytes:
        """A value that fills a run of overflow pages. Raises: Damage."""
        pages = (_PAGE.size + size + self._size - 1) // self._size
        if 2 <= number < self._pages:  # check first: the pages may belong to another value
            head = os.pread(self._file, _PAGE.size, number * self._size).ljust(_PAGE.size, b"\0")
            found, _, flags, low, high = _PAGE.unpack_from(head)
            if found != number or not flags & _OVERFLOW or low | high << 16 != pages:
                raise Damage(f"page {number} does not begin a value of {size} bytes")
        data = self._read(number, pages)
        found, _, flags, low, high = _PAGE.unpack_from(data)
        if found != number or not flags & _OVERFLOW or low | high << 16 != pages:
            raise Damage(f"page {number} does not begin a value of {size} bytes")
        counts[2] += pages
        return data[_PAGE.size : _PAGE.size + size]

    def _read(self, number: int, pages: int) -> bytes:
        """Read a run of pages, which no other place may have. Raises: Damage."""
        numbers = range(number, number + pages)
        if not 2 <= number <= self._pages - pages:
            raise Damage(f"page {number} is outside the file")
        if not self.used.isdisjoint(numbers):
            raise Damage(f"page {number} is in two places")
        self.used.update(numbers)
        try:
            data = os.pread(self._file, pages * self._size, number * self._size)
        except OSError as error:
            raise Damage(f"page {number} cannot be read: {error.strerror}") from error
        if len(data) < pages * self._size:
            raise Damage(f"page {number} is behind the end of the file")
        return data


def snapshots(file: int) -> list[Snapshot]:
    """The committed states of an open data file, the latest first; none if both are damaged."""
    found = meta_pages(os.pread(file, META_BYTES, 0))
    return [Snapshot(file, meta) for meta in sorted(found, reverse=True)]


def _count(value: bytes) -> int:
    return int(_U64.unpack_from(value)[0]) if len(value) >= _U64.size else -1


def _tree(data: bytes) -> Tree:
    _, *numbers = _TREE.unpack(data)
    return Tree(*numbers)
