"""The engines of this process: one for each store, whoever opens it how often.

LMDB breaks if a process opens an environment twice or takes one through a fork, so this module
keeps the one state that a process of diskq has, and handles forks.
"""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..base import errors, guard, limits, ondemand
from ..base.clock import Clock
from ..base.ondemand import lazy
from ..host import files
from ..host.process import ONE_INTERPRETER, is_second_interpreter
from .engine import Engine
from .environment import translate
from .opened import Fitness

if TYPE_CHECKING:
    from . import creation
else:
    creation = lazy("storage.creation")


_engines: dict[tuple[int, int], Engine] = {}  # by the identity of their data file
_registry = guard.new_lock()
_pid = os.getpid()
_forking: list[Callable[[], object]] = []  # give back the locks that are held during a fork


def open_engine(
    path: str,
    user: object,
    *,
    durability: str,
    create: bool,
    readonly: bool,
    max_bytes: int,
    mode: int,
    clock: Clock,
    busy_seconds: float,
    fitness: Fitness,
) -> Engine:
    """The engine of the store at `path`, open; `close_engine(user)` gives it back, also if this
    raised. Durability, size and permissions are those of a store that is created; `fitness` checks
    an existing one."""
    if is_second_interpreter():
        raise errors.Unsupported(f"store {path} cannot be opened here; {ONE_INTERPRETER}")

    def find() -> Engine:
        if not files.is_store(path):
            if not create or readonly:
                raise errors.NotFound(f"there is no store at {path}; check the path, or put")
            creation.create_store(path, durability, max_bytes, mode, clock)
        elif create and not readonly and files.has_leftovers(path):
            creation.tidy(path)
        files.check_mount(path)
        identity = files.identity_of(path)
        engine = _engines.get(identity)
        if engine is not None and engine.closing:  # an interrupt came while it was closed
            if not engine.close():  # its last call is one that this one interrupted
                raise guard.reentered()
            engine = None
        if engine is None:
            engine = _engines[identity] = Engine(
                path, identity, readonly=readonly, clock=clock, fitness=fitness
            )
        if engine.readonly and not readonly:
            raise errors.Unsupported(f"{path} is open read-only in this process; close that first")
        engine.users.add(user)
        engine.location.paths[path] = True
        if not engine.is_open:
            engine.open(time.monotonic() + max(busy_seconds, limits.NOWAIT_SECONDS))
        engine.check_place()
        return engine

    try:
        return guard.run_alone(_lock(), find)
    except OSError as error:
        raise translate(error, path) from error


def close_engine(user: object) -> None:
    """Give an engine back; the last user closes it. May be called twice, and by a signal
    handler."""

    def close() -> None:
        for identity, engine in list(_engines.items()):
            engine.users.discard(user)
            if not engine.users and engine.close():
                _engines.pop(identity, None)

    lock = _lock()
    if lock._is_owned():  # by a frame that a handler interrupted
        close()
    else:
        guard.run_alone(lock, close)


def is_open(path: str) -> bool:
    """Whether this process has the store at `path` open."""
    return files.identity_of(path) in _engines


def _lock() -> Any:
    """The lock of this process: one that was forked in C ran none of the functions below."""
    if os.getpid() != _pid:
        _forget_parent()
    return _registry


def _before_fork() -> None:
    if _engines:
        ondemand.load_all()
    _forking.clear()
    until = time.monotonic() + limits.FORK_SECONDS
    for lock in [_lock(), *(lock for engine in _engines.values() for lock in engine.locks())]:
        if not lock._is_owned():  # a fork inside of a call of this thread: the child sees that
            acquire = partial(lock.acquire, timeout=max(until - time.monotonic(), 0))
            give_back = partial(any, map(operator.call, (lock.release,)))  # once, then nothing
            all(map(operator.call, (acquire, partial(_forking.append, give_back))))


def _after_fork_in_child() -> None:
    guard.surely(_forget_parent, _forget_parent)


def _forget_parent() -> None:
    global _registry, _pid
    _registry, _pid = guard.new_lock(), os.getpid()
    _forking.clear()
    for engine in _engines.values():
        engine.after_fork_in_child()
    _end_closing()


def _end_closing() -> None:
    """Close what a signal handler wanted to be closed during a fork."""
    for engine in list(_engines.values()):
        if engine.closing and engine.close():
            _engines.pop(engine.identity, None)


# CPython swallows what a handler raises in one of these, so locks are given back by a call of C.
os.register_at_fork(
    before=_before_fork,
    after_in_parent=partial(sorted, _forking, key=operator.call),
    after_in_child=_after_fork_in_child,
)
os.register_at_fork(after_in_parent=_end_closing)
