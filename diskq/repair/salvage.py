"""Copy what is sound of a damaged store to a new one. Imported on demand.

The damaged file is read as bytes, see lmdb_pages.py. Messages have a checksum: they are copied if
it is right and they can be decoded. Offsets are kept: a message that is missing or lost becomes a
purged one, so that offsets in rows of groups stay true. Rows without a checksum are copied and then
checked by how they add up; a group that does not starts at the oldest message. Gaps of the log are
kept: messages that are missing without such a row are lost.
"""

from __future__ import annotations

import os

from ..base import errors
from ..base.model import Salvaged
from ..host import files
from ..storage.creation import building
from ..storage.environment import translating
from ..storage.readers import is_used
from ..storage.registry import is_open
from .choosing import choose, state_of
from .rebuild import copy_sound
from .remains import Remains


def salvage(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Salvaged:
    """Copy what is sound of the store at `source`, which nobody may use meanwhile, to a new store
    at `target`, complete or not at all. The old one is read as bytes and not changed; no lease is
    valid in the new one, which has the permissions of the old one.

    Raises: NotFound, NotAStore, Corrupt (nothing is left), Unsupported (it is in use), Full (the
    disk of `target`), DiskFailed, NoPermission, ReadOnly.
    """
    old, new = files.absolute(source), files.absolute(target)
    with translating(old):
        if not files.is_store(old):
            raise errors.NotFound(f"there is no store at {old}; check the path")
        if is_open(old):
            raise errors.Unsupported(f"store {old} is open in this process; close it first")
        if is_used(old):
            raise errors.Unsupported(f"store {old} is in use; end its users first")
        file = files.open_regular(os.path.join(old, files.DATA), os.O_RDONLY)
    try:
        with translating(new):
            if files.is_store(new):
                raise errors.NotAStore(f"{new} exists; choose a new path for what is salvaged")
        with building(new, source=old) as place:
            with translating(old):
                before, chosen = state_of(file), choose(file)
            outcome = copy_sound(Remains(*chosen), place)
            with translating(old):
                if state_of(file) != before:  # by a process whose locks do not reach here
                    raise errors.Unsupported(
                        f"store {old} was changed while it was read; end its users first"
                    )
        return outcome
    finally:
        os.close(file)
