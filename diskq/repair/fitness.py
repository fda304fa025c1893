"""Is a store fit to be opened? Imported on demand.

A doubtful store is read in a child process, so that damage cannot end this one.
"""

from __future__ import annotations

import fcntl
import os
from signal import Signals

from ..base.errors import WAY_OUT, Corrupt, DiskqError
from ..host import child, files
from ..storage import data_file


def check_data(path: str) -> None:
    """Refuse a data file that LMDB could not map: empty, cut short, or of another kind.

    Raises: Corrupt, NotAStore.
    """
    size, expected = data_file.sizes(path)
    if size < expected:
        check_short(path, size, expected)


def check_short(path: str, size: int, expected: int) -> None:
    """Refuse a data file that was cut short, and complete one that was not.

    A sound file may end before the last page that LMDB counts, because a page that is freed in the
    transaction that took it is never written. The pages in use are checked in a child process; then
    the file grows to its full size, so that no page lies behind its end.

    Raises: Corrupt.
    """
    name = os.path.join(path, files.DATA)
    if check_in_child(path):
        raise Corrupt(
            f"{name} is cut short: {size} bytes of {expected}; {WAY_OUT}",
            size=size,
            expected=expected,
        )
    file = files.open_regular(name, os.O_RDWR)
    try:
        os.posix_fallocate(file, expected - 1, 1)  # never overwrites, never shortens
    finally:
        os.close(file)


def check_boot(path: str, boot_id: bytes) -> None:
    """Check a store whose commits are not flushed, which a power failure may have damaged: the
    first process that opens it after a boot reads all of it.

    Raises: Corrupt.
    """
    name = os.path.join(path, files.BOOT)
    boot = boot_id.hex()
    with open(files.open_regular(name, os.O_RDONLY), encoding="ascii", errors="replace") as file:
        if file.read() == boot:
            return
    with open(
        files.open_regular(name, os.O_RDWR), "r+", encoding="ascii", errors="replace"
    ) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # nobody writes to the store while it is read
        if file.read() != boot:
            if found := check_in_child(path):
                raise Corrupt(
                    f"store {path} was in use when the power failed, its commits are not flushed,"
                    f" and it is damaged ({found[0]}); 'diskq -s {path} salvage NEW' copies what is"
                    " sound to a new store"
                )
            file.seek(0)
            file.truncate()
            file.write(boot)


def check_in_child(path: str, identity: tuple[int, ...] = ()) -> list[str]:
    """The findings of `verify`, run in a child process.

    Raises: StoreMoved; DiskqError if the store could not be checked.
    """
    try:
        lines = child.run("repair.verify:main", path, *map(str, identity))
    except child.Died as error:
        if error.code is None or -error.code not in child.OF_DAMAGE:
            raise DiskqError(f"store {path} could not be checked: {error}") from error
        return [f"store: checking it ended with {Signals(-error.code).name}"]
    except DiskqError as error:
        error.args = (f"store {path} could not be checked: {error}",)
        raise
    return [line.replace("\t", ": ") for line in lines]
