"""The engines of this process: one for each store, whoever opens it how often.

LMDB breaks if a process opens an environment twice or takes one through a fork, so this module
keeps the one state that a process of diskq has, and handles forks.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from importlib import import_module

from . import errors, files
from .clock import Clock
from .engine import Engine
from .environment import translate

_engines: dict[tuple[int, int], Engine] = {}  # by the identity of their data file
_registry = threading.RLock()
ON_DEMAND = (  # modules of diskq that are imported when they are used, by whatever thread
    *("dedup", "drafts", "apart", "creation", "backup", "pages", "readers", "stats", "options"),
    *("changes", "verify", "restart", "salvage", "purging", "planned", "letters", "following"),
    *("heartbeat", "transaction", "stealing", "upcoming"),
)
_LATE = "ctypes", "datetime", "hashlib", "resource", *(f"diskq.{name}" for name in ON_DEMAND)


def open_engine(
    path: str, *, durability: str, create: bool, readonly: bool, max_bytes: int, clock: Clock
) -> Engine:
    """The engine of the store at `path`; give it back with `close_engine`. Durability and size are
    those of a store that is created."""
    with _registry:
        try:
            if not files.is_store(path):
                if not create or readonly:
                    raise errors.NotFound(f"there is no store at {path}; check the path, or put")
                from .creation import create_store

                create_store(path, durability, max_bytes, clock)
            status = os.stat(os.path.join(path, files.DATA))
            identity = status.st_dev, status.st_ino
            engine = _engines.get(identity)
            if engine is None:
                engine = _engines[identity] = Engine(path, readonly=readonly, clock=clock)
        except OSError as error:
            raise translate(error, path) from error
        if engine.readonly and not readonly:
            raise errors.Unsupported(f"{path} is open read-only in this process; close that first")
        engine.users += 1
        return engine


def close_engine(engine: Engine) -> None:
    """Give an engine back; the last user closes it."""
    with _registry:
        engine.users -= 1
        if engine.users == 0:
            for identity in [key for key, value in _engines.items() if value is engine]:
                del _engines[identity]
            engine.close()


def is_open(path: str) -> bool:
    """Whether this process has the store at `path` open."""
    status = os.stat(os.path.join(path, files.DATA))
    with _registry:
        return (status.st_dev, status.st_ino) in _engines


def _before_fork() -> None:
    for name in _LATE if _engines else ():
        # In the middle of an import by another thread, the child would inherit CPython's lock of
        # that module, which nobody frees there.
        with suppress(ImportError):  # some Pythons have no ctypes
            import_module(name)
    _registry.acquire()
    for engine in _engines.values():
        engine.before_fork()


def _after_fork_in_parent() -> None:
    for engine in _engines.values():
        engine.after_fork_in_parent()
    _registry.release()


def _after_fork_in_child() -> None:
    for engine in _engines.values():
        engine.after_fork_in_child()
    _registry.release()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
