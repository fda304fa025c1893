"""`diskq.open`, where everything begins."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ..base import check, limits
from ..base.clock import Clock
from ..base.errors import Busy, ConfigConflict
from ..base.model import DURABILITIES
from ..base.ondemand import lazy
from ..format.layout import COPY
from ..host import files
from ..storage.engine import Engine
from ..storage.handle import Handle
from ..storage.registry import close_engine, open_engine
from .store import Store

if TYPE_CHECKING:
    from ..operate import boots, deletion
    from ..repair import fitness
else:
    boots = lazy("operate.boots")
    deletion = lazy("operate.deletion")
    fitness = lazy("repair.fitness")


def open(  # noqa: A001 - diskq.open is to diskq what open is to files
    path: str | os.PathLike[str],
    *,
    durability: str | None = None,
    create: bool = True,
    readonly: bool = False,
    max_bytes: int | None = None,
    mode: int | None = None,
    busy_seconds: float | None = None,
    clock: Clock | None = None,
) -> Store:
    """Open the store in directory `path`; make it, complete or not at all, unless `create=False`.

    `durability` says what a power cut can undo: "commit" (a new store's) nothing that returned,
    "relaxed" at most the last commit, "process" anything, even damage it; kill -9 undoes nothing in
    any. `max_bytes` (at least 4 MiB, None: the disk) bounds a new store's file: puts raise Full
    before it is reached, settling goes on, copies of what fails may exceed it by half, from 64 MiB
    on by a quarter. Both are kept in the store; None takes what is stored.

    `mode` (None: 0o600) is the permissions of a new store's files, whatever the umask is, and its
    directory's with an x beside each r: 0o660 lets a group use the store. An existing store keeps
    its permissions; so does an empty directory that becomes a store.

    `busy_seconds` (30; 0: one attempt of at most 0.1 s; math.inf: without end): how long a call
    that changes something waits for other processes and threads that do; then it raises Busy.

    The same path may be opened more than once in a process, by its main interpreter. `clock` is for
    tests.

    Raises: NotFound, NotAStore, ConfigConflict, WrongFormat, Corrupt, NoPermission, ReadOnly,
    Unsupported, Full, Busy, StoreMoved, Reentered.
    """
    if durability not in (None, *DURABILITIES):
        raise ValueError(f"durability must be one of {', '.join(DURABILITIES)}, not {durability!r}")
    if max_bytes is not None:
        check.count("max_bytes", max_bytes, limits.MIN_STORE_BYTES, limits.TIB)
    busy = limits.BUSY_SECONDS
    if busy_seconds is not None:
        busy = check.seconds("busy_seconds", busy_seconds, 0, math.inf)
    if mode is not None:
        check.mode(mode)
    user = object()  # of the engine that all stores at this path share
    try:
        engine = open_engine(
            files.absolute(path),
            user,
            durability=durability or "commit",
            create=create,
            readonly=readonly,
            max_bytes=max_bytes or 0,
            mode=mode or files.PRIVATE,
            clock=clock or Clock(),
            busy_seconds=busy,
            fitness=fitness,
        )
        _check_equal(engine, "durability", durability, DURABILITIES[engine.meta.durability])
        _check_equal(engine, "max_bytes", max_bytes, engine.meta.max_bytes)
        if not engine.readonly:
            _catch_up(engine, time.monotonic() + busy)
        engine.join()
        return Store(Handle(engine, user, readonly=readonly, busy_seconds=busy))
    except BaseException:
        close_engine(user)
        raise


def _catch_up(engine: Engine, until: float) -> None:
    """Void the leases of the last boot; go on with a deletion that was cut off."""
    boot_id, noted = engine.clock.boot_id(), engine.meta.boot_id
    # In a container the system may tell another boot, or none. A boot ends all processes, though.
    other = boot_id != noted and (any(boot_id) or noted == COPY) and not engine.used_elsewhere()
    if other or engine.read(lambda tx: any(tx.scan(b"X"))):
        if other:
            engine.commit(lambda tx: boots.note_boot(tx, boot_id), until)
        with suppress(Busy):  # the next opening goes on
            deletion.sweep(engine, max(until - time.monotonic(), 0))


def _check_equal(engine: Engine, what: str, wanted: object, stored: object) -> None:
    if wanted is not None and wanted != stored:
        raise ConfigConflict(
            f"store {engine.path} has {what}={stored!r}, not {wanted!r}; leave it out to take what"
            " is stored"
        )
