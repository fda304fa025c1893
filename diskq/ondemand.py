"""Modules that few programs need, each loaded when it is first used: `ondemand.stats.of_store`.

A thread of its own imports each: an exception that a signal handler or another thread raises in the
middle of an import leaves CPython's lock of that module held, and any later import of it would wait
for ever. Nothing raises in that thread, and no finalizer that runs there waits for the thread that
waits for the import. Safe from any thread.
"""

from __future__ import annotations

import _thread
import sys
from contextlib import suppress
from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING

from . import guard
from .errors import Unsupported

if TYPE_CHECKING:
    import ctypes
    import datetime
    import hashlib
    import resource
    import select

    from . import (
        apart,
        backup,
        changes,
        contents,
        creation,
        dedup,
        drafts,
        following,
        heartbeat,
        holes,
        hollow,
        letters,
        options,
        pages,
        planned,
        purging,
        readers,
        restart,
        salvaging,
        sites,
        stats,
        stealing,
        transaction,
        upcoming,
        verify,
    )

__all__ = ["ctypes", "datetime", "hashlib", "resource", "select"]
STANDARD = frozenset(__all__)
# Of diskq: those of a line import only from the core, from the lines above, and from the left.
__all__ += ["apart", "dedup", "drafts", "pages", "sites"]
__all__ += ["creation", "options", "readers", "stats"]
__all__ += ["backup", "changes", "contents"]
__all__ += ["holes", "hollow", "verify"]
__all__ += ["following", "heartbeat", "letters", "planned", "purging", "restart", "salvaging"]
__all__ += ["stealing", "transaction", "upcoming"]
MODULES = tuple(name for name in __all__ if name not in STANDARD)
_begun: set[tuple[int, str]] = set()  # what is being imported, and by which thread
_PATIENCE_SECONDS = 1.0  # longer if this thread is in the middle of an import that the other needs


def __getattr__(name: str) -> object:
    """Load a module; after that it is an attribute of this one, and nothing calls this again."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    full_name = name if name in STANDARD else f"{__package__}.{name}"
    _import_apart(full_name)
    try:
        module = globals()[name] = import_module(full_name)  # loaded, or this raises why not
    except OSError as error:
        raise Unsupported(
            f"{full_name} cannot be loaded ({error}); close files or raise the limit (ulimit -n),"
            " or mend the installation"
        ) from error
    return module


def load_all() -> None:
    """Load everything, before a fork: a child would wait for ever for what another thread of its
    parent was importing."""
    for name in __all__:
        with suppress(ImportError, Unsupported):  # some Pythons have no ctypes
            __getattr__(name)


def _import_apart(name: str) -> None:
    found = sys.modules.get(name)
    if found is not None and not getattr(found.__spec__, "_initializing", False):
        return
    if _thread.get_ident() in guard.LOADERS:
        _import_here(name)
        return
    done = Lock()
    done.acquire()

    def work() -> None:
        guard.LOADERS.add(_thread.get_ident())
        with suppress(Exception):  # it is raised again in the thread that asked
            _import_here(name)
        done.release()
        guard.LOADERS.discard(_thread.get_ident())

    with suppress(RuntimeError):  # no thread is to be had, as at the end of the interpreter
        _thread.start_new_thread(work, ())
        done.acquire(timeout=_PATIENCE_SECONDS)


def _import_here(name: str) -> None:
    """Import in a thread in which nothing raises.

    Raises: Reentered if a finalizer in the middle of that import wants the same module, of which it
    would get half, or make a second one.
    """
    begun = _thread.get_ident(), name
    if begun in _begun:
        raise guard.reentered()
    _begun.add(begun)
    try:
        import_module(name)
    finally:
        _begun.discard(begun)
