"""The pages of the store at a path, checked without LMDB."""

from __future__ import annotations

import os

from ..format.lmdb_pages import snapshots
from ..host import files


def check_pages(path: str) -> list[str]:
    """Everything that is wrong with the pages of a store, as its latest commit has them."""
    file = files.open_regular(os.path.join(path, files.DATA), os.O_RDONLY)
    try:
        found = snapshots(file)
        return found[0].check() if found else ["both of its meta pages are damaged"]
    finally:
        os.close(file)
