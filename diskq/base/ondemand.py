"""Modules that few programs need, each loaded when it is first used.

A separate thread imports each: an exception that a signal handler or another thread raises in the
middle of an import leaves CPython's lock of that module held, and any later import of it would wait
forever. Nothing raises in the separate thread, and no finalizer that runs there waits for the
thread that waits for the import. Safe from any thread.

A module of diskq is imported for type checkers, and is `lazy` at run time:

    if TYPE_CHECKING:
        from ..repair import verify
    else:
        verify = lazy("repair.verify")

A module of the standard library is an attribute of this one: `ondemand.hashlib`.
"""

from __future__ import annotations

import _thread
import sys
from contextlib import suppress
from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Any

from . import guard
from .errors import Unsupported

if TYPE_CHECKING:
    import ctypes
    import datetime
    import hashlib
    import resource
    import select

__all__ = ["ctypes", "datetime", "hashlib", "resource", "select"]
_PACKAGE = __name__.partition(".")[0]
_begun: set[tuple[int, str]] = set()  # the modules being imported, with the importing thread
_PATIENCE_SECONDS = 1.0  # longer if this thread is in the middle of an import that the other needs


class Lazy:
    """A module of diskq that is loaded when one of its attributes is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loaded: Any = None

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._loaded or self.load(), attribute)

    def load(self) -> Any:
        """Load the module. Raises: Unsupported, Reentered, ImportError."""
        self._loaded = _load(f"{_PACKAGE}.{self._name}")
        return self._loaded


LAZY: dict[str, Lazy] = {}  # by name: "repair.verify"


def lazy(name: str) -> Any:
    """A module by its name in diskq, such as "repair.verify"."""
    return LAZY.setdefault(name, Lazy(name))


def __getattr__(name: str) -> object:
    """Load a module, which becomes an attribute of this one, so that this is not called again."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = globals()[name] = _load(name)
    return module


def _load(name: str) -> Any:
    _import_apart(name)
    try:
        return import_module(name)  # it is loaded, or this raises the reason
    except OSError as error:
        raise Unsupported(
            f"{name} cannot be loaded ({error}); close files or raise the limit (ulimit -n),"
            " or mend the installation"
        ) from error


def load_all() -> None:
    """Load everything, before a fork: a child would wait forever for a module that another thread
    of its parent was importing."""
    for name in __all__:
        with suppress(ImportError, Unsupported):  # some Pythons have no ctypes
            __getattr__(name)
    known = 0
    while known < len(LAZY):  # a module may add more when it is loaded
        known = len(LAZY)
        for module in list(LAZY.values()):
            with suppress(ImportError, Unsupported):
                module.load()


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

    with suppress(RuntimeError):  # no thread can start, as at the end of the interpreter
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
