"""Everything of a store that a process has open: LMDB's environment and its databases, its lock
file, `slots`.

The order of opening: `slots`, which tells the live processes and keeps other openings out; the
check after a boot; LMDB; the lock on LMDB's lock file. LMDB initializes that file unless a process
locks its first byte, and LMDB's lock goes with any close of the file in the process: so it is
locked here, too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import lmdb

from ..base import errors, guard
from ..base.clock import Clock
from ..base.limits import WAKE_WORDS
from ..base.model import DURABILITIES
from ..format.layout import FORMAT_VERSION, META_KEY
from ..format.rows import Meta, format_version
from ..host import files, locks
from ..host.process import maps_file
from ..host.slots import Slots
from . import data_file
from .commits import Call
from .environment import (
    FAULTS,
    Database,
    adopting,
    keep_from_others,
    open_databases,
    open_environment,
    read_row,
    translate,
)

_NAP_SECONDS = 0.001
_NAMES = b"state", b"held", b"schedule", b"dedup"


class Fitness(Protocol):
    """Checks of a store that may be damaged, for which it is read in another process."""

    def check_short(self, path: str, size: int, expected: int) -> None:
        """Refuse a data file that ends too early. Raises: Corrupt."""

    def check_boot(self, path: str, boot_id: bytes) -> None:
        """Refuse a store that was damaged when the power failed. Raises: Corrupt."""


class Opened:
    """A store that is open. `close` closes as much of it as is open, at whatever point `open`
    ended."""

    def __init__(self, path: str, *, readonly: bool, fitness: Fitness | None) -> None:
        self.path = path
        self._fitness = fitness
        self.readonly = readonly
        self.env: lmdb.Environment | None = None
        self.members: Slots | None = None  # who is alive, if that can be told
        self.lock_file = -1
        self.meta: Meta
        self.main: Database = None
        self.databases: list[Database] = []

    def open(self, clock: Clock, until: float) -> None:
        """Open the environment as the durability inside of it wants: modes must not be mixed.
        Without a `fitness`, whatever may be wrong with the store.

        Raises: NotAStore, Corrupt, WrongFormat, Unsupported, Busy, Full; then nothing is open, and
        nothing was changed.
        """
        try:
            if self._fitness is not None:
                self._check_size(self._fitness)
            self._open_slots()
            if self._fitness is not None:
                self._check_boot(self._fitness, clock.boot_id())
            guard.surely(lambda: self._open_environment(until), self._end_opening)
        except BaseException as error:
            guard.surely(int, self.close)
            if isinstance(error, (*FAULTS, OSError)):
                raise translate(error, self.path) from error
            raise

    def _open_slots(self) -> None:
        name = os.path.join(self.path, files.SLOTS)
        if self.readonly:
            with suppress(OSError, ValueError):  # nobody wrote yet, or may tell
                self.members = Slots(name, readonly=True)
        else:
            self.members = Slots(name)

    def _check_size(self, fitness: Fitness) -> None:
        size, expected = data_file.sizes(self.path)
        if size < expected:
            fitness.check_short(self.path, size, expected)

    def _check_boot(self, fitness: Fitness, boot_id: bytes) -> None:
        """A store whose commits are not flushed is checked by who opens it first after a boot.
        There was none while somebody lives, and none that is known of without a boot id."""
        name = os.path.join(self.path, files.BOOT)
        if any(boot_id) and os.path.exists(name) and not self.used_elsewhere():
            fitness.check_boot(self.path, boot_id)

    def used_elsewhere(self) -> bool:
        """Whether somebody else has the store open, known to be sound."""
        return self.members is not None and self.members.used_elsewhere()

    def _open_environment(self, until: float) -> None:
        if self.members is not None and not self.readonly:
            self.members.begin_opening(until)
        env = self._open_as("commit", until)
        durability = DURABILITIES[self.meta.durability]
        if durability != "commit" or f" {os.getpid()} " in env.readers():
            env.close()  # with the rows that a dead process of this pid left among readers
            self._open_as(durability, until)
        if durability == "process" and not os.path.exists(os.path.join(self.path, files.BOOT)):
            raise errors.Corrupt(
                f"{self.path}/{files.BOOT} is missing, and nobody knows whether the power failed;"
                " make an empty file of this name, and the store is checked when it is opened"
            )
        many = self.meta.next_group + self.meta.next_topic >= WAKE_WORDS
        if many and self.members is not None and not self.readonly:
            self.members.share_words()

    def open_again(self, until: float) -> None:
        """Open the environment again after its map was lost. Raises: as `open`."""
        try:
            if self.env is not None:
                self.env.close()
            self._open_as(DURABILITIES[self.meta.durability], until, mine=True)
        except (*FAULTS, OSError) as error:
            raise translate(error, self.path) from error

    def _open_as(self, durability: str, until: float, *, mine: bool = False) -> lmdb.Environment:
        """`mine`: the turn to write is this process's already."""
        self._await_lock_file(until)
        env = self.env = open_environment(self.path, durability, readonly=self.readonly)
        keep_from_others(self.path)
        self._hold_lock_file(until)
        self.keep_reading()
        self.drop_dead_readers()
        self._check_meta(adopting(env, lambda: read_row(env, b"state", META_KEY)))
        self.main = adopting(env, lambda: env.open_db(None))
        self.databases = self._open_databases(env, until, mine)
        return env

    def _open_databases(self, env: lmdb.Environment, until: float, mine: bool) -> list[Database]:
        def databases() -> list[Database]:
            return adopting(env, lambda: open_databases(env, *_NAMES, create=not self.readonly))

        if self.members is None or self.readonly or mine:
            return databases()
        turns = self.members.turns
        turns.take(Call(bool, until, 0), bool)
        return guard.surely(databases, turns.leave)

    def _await_lock_file(self, until: float) -> None:
        """Wait while another process, which may be stopped, initializes the lock file: LMDB itself
        would wait without end."""
        if self.lock_file < 0:
            files.prepare_lock(self.path)
            name = os.path.join(self.path, files.LOCK)
            self.lock_file = os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._wait(lambda: not locks.is_locked(self.lock_file, 0, shared=True), until)

    def _hold_lock_file(self, until: float) -> None:
        """Not before LMDB opened it: that would fail."""
        self._wait(lambda: locks.try_lock(self.lock_file, 0, shared=True), until)

    def _wait(self, is_over: Callable[[], bool], until: float) -> None:
        while not is_over():
            if time.monotonic() > until:
                raise errors.Busy(
                    f"store {self.path} is being opened by another process; is one stopped? Try"
                    " again, or end it",
                    pid=0,
                )
            time.sleep(_NAP_SECONDS)

    def keep_reading(self) -> None:
        """Before each read transaction: LMDB takes the lock by which others see that its reader
        lives only once, and any close of the lock file in this process drops it."""
        if self.lock_file >= 0:
            locks.lock_for_process(self.lock_file, os.getpid())

    def drop_dead_readers(self) -> None:
        """Free the rows of readers that died. Not while a living one has lost its lock to a close
        of the lock file: LMDB would take it for dead, and its snapshot would be written over."""
        if self.env is not None:
            pids = {int(row.split()[0]) for row in self.env.readers().splitlines()[1:]}
            living = (pid for pid in pids if not locks.is_locked(self.lock_file, pid))
            if not any(maps_file(pid, self.lock_file) for pid in living if pid != os.getpid()):
                self.env.reader_check()

    def _end_opening(self) -> None:
        if self.members is not None and not self.readonly:
            self.members.end_opening()

    def _check_meta(self, row: bytes | None) -> None:
        if row is None:
            raise errors.NotAStore(f"{self.path} is an LMDB environment, but not a diskq store")
        found = format_version(row)
        if found != FORMAT_VERSION:
            raise errors.WrongFormat(
                f"store {self.path} has format version {found}, this diskq reads version"
                f" {FORMAT_VERSION}; use the version of diskq that wrote it",
                found=found,
                supported=FORMAT_VERSION,
            )
        self.meta = Meta(row)

    def join(self) -> None:
        """Show others that somebody uses the store, once it is known to be sound."""
        if self.members is not None:
            self.members.join()

    def close(self) -> None:
        """Close all that is open; may be called again."""
        if self.env is not None:
            self.env.close()
        self.env = None
        self.drop_files()

    def drop_files(self) -> None:
        """Close all but the environment, as a forked child has to: its locks are the parent's."""
        file, self.lock_file = self.lock_file, -1
        if file >= 0:
            os.close(file)
        if self.members is not None:
            self.members.close()
        self.members = None
