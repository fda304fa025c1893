"""A copy of a store that is in use. Imported on demand."""

from __future__ import annotations

import os

from ..base import errors
from ..format.layout import COPY, META_KEY
from ..format.rows import Meta
from ..host import child, files
from ..storage.creation import COPIED, building, later, write_meta
from ..storage.environment import adopting, open_environment, read_row, translating
from . import fitness


def copy_store(source: str, identity: tuple[int, int], target: str | os.PathLike[str]) -> None:
    """Make a compact copy of a store at `target`, as of one commit: all of it, flushed, or nothing.

    A child process copies: its read transaction is open all the while, and in a process that lets
    the map grow no other transaction may be open. `identity` is that of the store's data file.

    Raises: NotAStore if something is at `target`; StoreMoved, Full, DiskFailed, NoPermission,
    ReadOnly, NotFound.
    """
    path = files.absolute(target)
    with translating(path):
        if files.is_store(path):
            raise errors.NotAStore(f"{path} exists; choose a new path for the copy")
        inside = os.path.realpath(os.path.dirname(path)).split(os.sep)
        store = os.path.realpath(source).split(os.sep)
        if inside[: len(store)] == store:
            raise errors.NotAStore(
                f"{path} is inside the store, and would be deleted with it; choose a place outside"
            )
    files.check_identity(source, identity)
    with building(path, source=source) as place:
        child.run("repair.backup:main", source, *map(str, identity), place, path)
        try:
            fitness.check_data(place)
        except (errors.DiskqError, OSError) as error:
            raise errors.DiskqError(f"the copy for {path} cannot be read ({error})") from error
        files.check_identity(source, identity)


def main(source: str, device: str, inode: str, place: str, path: str) -> list[str]:
    """Copy into a directory that is being built, and becomes `path`."""
    identity = int(device), int(inode)
    with translating(source), open_environment(source, "commit", readonly=True) as env:
        files.check_identity(source, identity)
        with translating(path):
            adopting(env, lambda: env.copy(os.fsencode(place), compact=True))  # type: ignore[arg-type]
        last = env.info()["last_txnid"]
    with translating(path), open_environment(place, "process", readonly=False) as env:
        row = adopting(env, lambda: read_row(env, b"state", META_KEY))
        meta = Meta(row or b"")
        meta.boot_id, meta.commit_base = COPY, later(meta.commit_base + last, COPIED)
        write_meta(env, place, meta.pack())
    return []
