"""The two pages at the start of LMDB's data file, each of which tells of one commit.

The layout is that of LMDB 0.9 (mdb.c: MDB_page and MDB_meta), in the byte order of the machine:
magic, version, address, map size, the tree of free pages (which begins with the page size), the
main tree, last page, transaction id.
"""

from __future__ import annotations

import sys
from struct import Struct
from typing import NamedTuple

META_BYTES = 2 * 65536  # of the file's start: both pages are inside, whatever the page size is
MAX_PAGES = 1 << 35  # no address space has room for more

_PAGE = Struct("=10xH4xIIQQ48s48sQQ")
_FLAG, _MAGIC = 0x08, 0xBEEFC0DE
_PAGE_BYTES = [512 << power for power in range(8)]  # what LMDB allows


class MetaPage(NamedTuple):
    """A commit, as its meta page describes it."""

    txn_id: int
    last_page: int
    page_bytes: int
    free: bytes
    main: bytes


def meta_pages(start: bytes) -> list[MetaPage]:
    """The meta pages in the first META_BYTES of a data file, without those that are damaged."""
    first = _meta_page(start, 0)
    second = _meta_page(start, first.page_bytes if first else 4096)
    return [page for page in (first, second) if page is not None]


def _meta_page(data: bytes, at: int) -> MetaPage | None:
    if len(data) < at + _PAGE.size:
        return None
    flags, magic, _, _, _, free, main, last_page, txn_id = _PAGE.unpack_from(data, at)
    if not flags & _FLAG or magic != _MAGIC:
        return None
    page_bytes = int.from_bytes(free[:4], sys.byteorder)
    if page_bytes not in _PAGE_BYTES:
        return None
    return MetaPage(txn_id, last_page, page_bytes, free, main)
