"""Where a store is: the paths by which it was opened, and the identity of its data file."""

from __future__ import annotations

import os
from contextlib import suppress

from ..base import errors
from ..host import files
from .environment import translate


class Location:
    """The place of an open store. A store that was moved away is never written to; one that is
    still at another path by which it was opened goes on there."""

    def __init__(self, path: str, identity: tuple[int, int]) -> None:
        self.identity = identity  # of the data file
        self.paths = {path: True}  # in order
        self._set(path)

    def check(self) -> int:
        """The size of the data file.

        Raises: StoreMoved unless one of the paths has the data file that is open here.
        """
        try:
            try:
                return files.check_data_file(self._data, self.identity)
            except errors.StoreMoved:
                if not self._find():
                    raise
                return files.check_data_file(self._data, self.identity)
        except OSError as error:
            raise translate(error, self.path) from error

    def _find(self) -> bool:
        for path in self.paths:
            with suppress(OSError):
                if files.identity_of(path) == self.identity:
                    self._set(path)
                    return True
        return False

    def _set(self, path: str) -> None:
        self.path, self._data = path, os.path.join(path, files.DATA)
