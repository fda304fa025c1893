"""A look at data.mdb with plain reads, before LMDB maps it: a truncated file would end the process
with SIGBUS instead of an error."""

from __future__ import annotations

import os

from ..base.errors import WAY_OUT, Corrupt, NotAStore
from ..format.meta_page import MAX_PAGES, META_BYTES, meta_pages
from ..host.files import DATA, open_regular


def sizes(path: str) -> tuple[int, int]:
    """The bytes of a store's data file, and those of all pages that its latest commit counts.

    Raises: Corrupt, NotAStore if LMDB could not map the file; OSError.
    """
    name = os.path.join(path, DATA)
    file = open_regular(name, os.O_RDONLY)
    try:
        found = meta_pages(os.pread(file, META_BYTES, 0))
        size = os.fstat(file).st_size
    finally:
        os.close(file)
    if not size:
        raise Corrupt(f"{name} is empty, it was damaged; {WAY_OUT}")
    if not found:
        raise NotAStore(f"{name} is not an LMDB file, or its first pages are damaged")
    latest = max(found)
    if latest.last_page >= MAX_PAGES:
        raise Corrupt(f"{name} cannot have {latest.last_page} pages, it was damaged; {WAY_OUT}")
    return size, (latest.last_page + 1) * latest.page_bytes
