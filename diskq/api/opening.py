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

    A process may open a path more than once, in its main interpreter. `clock` is for tests.
    Raises: NotFound, NotAStore, ConfigConflict, WrongFormat, Corrupt, NoPermission, ReadOnly,
    Unsupported, Full, Busy, StoreMoved, Reentered.
    """
    busy = _check_options(durability, max_bytes, mode, busy_seconds)
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
        _check_stored(engine, durability, max_bytes)
        return _begin(engine, Handle(engine, user, readonly=readonly, busy_seconds=busy))
    except BaseException:
        close_engine(user)
        raise


def _check_options(
    durability: str | None, max_bytes: int | None, mode: int | None, busy_seconds: float | None
) -> float:
    """How long to wait for other processes. Raises: TypeError, ValueError."""
    if durability not in (None, *DURABILITIES):
        raise ValueError(f"durability must be one of {', '.join(DURABILITIES)}, not {durability!r}")
    if max_bytes is not None:
        check.count("max_bytes", max_bytes, limits.MIN_STORE_BYTES, limits.TIB)
    if mode is not None:
        check.mode(mode)
    if busy_seconds is None:
        return limits.BUSY_SECONDS
    return check.seconds("busy_seconds", busy_seconds, 0, math.inf)


def _begin(engine: Engine, handle: Handle) -> Store:
    """The store, once it has caught up with what happened while it was closed."""
    if not engine.readonly:
        _catch_up(engine, time.monotonic() + handle.busy_seconds)
    engine.join()
    return Store(handle)


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


def _check_stored(engine: Engine, durability: str | None, max_bytes: int | None) -> None:
    """Raises: ConfigConflict unless the options are those that the store has."""
    stored = DURABILITIES[engine.meta.durability], engine.meta.max_bytes
    names = "durability", "max_bytes"
    for name, wanted, found in zip(names, (durability, max_bytes), stored, strict=True):
        if wanted is not None and wanted != found:
            raise ConfigConflict(
                f"store {engine.path} has {name}={found!r}, not {wanted!r}; leave it out to take"
                " what is stored"
            )
