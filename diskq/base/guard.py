"""Locks of a process that survive interrupts, and know their thread.

A signal handler, a time limit or a finalizer may raise, or call diskq again, between any two steps
of a thread. CPython runs them between bytecodes, never inside a call that runs no Python:

- `with lock:` around a lock written in C releases it whatever CPython raises; a tracer can raise
  where CPython would not, so the owner releases it a second time in a `finally`;
- steps that must happen together, or not at all, are one call: `any(map(call, steps))`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from .errors import Busy, Reentered
from .limits import BUSY_SECONDS

T = TypeVar("T")

# Threads that load a module for another thread, which may have any lock. A finalizer that runs in
# one of them must not wait for a lock: its call raises Reentered, as it would in the other thread.
LOADERS: set[int] = set()


def new_lock() -> Any:
    """A lock that knows its owner: `_is_owned` tells whether the calling thread has it."""
    return threading.RLock()


def run_alone(lock: Any, action: Callable[[], T]) -> T:
    """Run an action while no other thread has the lock.

    Raises: Reentered if this thread has it; Busy.
    """
    if lock._is_owned():
        raise reentered()
    try:
        wait_for(lock)
        with lock:
            return action()
    finally:
        if lock._is_owned():
            lock.release()


def run_alone_or(lock: Any, action: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """Run an action if the lock is free, else `otherwise`: for locks that are held outside a commit
    and wanted inside one. Waiting could be a deadlock, if a handler that interrupted the thread
    with the lock wants to commit."""
    if lock._is_owned():
        return otherwise()
    try:
        return action() if lock.acquire(False) else otherwise()
    finally:
        if lock._is_owned():
            lock.release()


def wait_for(lock: Any) -> None:
    """Wait until no other thread has the lock, which a signal handler may hold up.

    Raises: Busy after BUSY_SECONDS; Reentered in one of LOADERS.
    """
    if not lock.acquire(False):
        check_may_wait()
        if not lock.acquire(True, BUSY_SECONDS):
            raise Busy(
                f"another thread of this process has been using the store for {BUSY_SECONDS:g} s,"
                " or a signal handler that interrupted it is waiting; nothing was changed, let the"
                " handler end",
                pid=os.getpid(),
            )
    lock.release()


def check_may_wait() -> None:
    """Check that this thread may wait for another one of its process.

    Raises: Reentered in one of LOADERS.
    """
    if threading.get_ident() in LOADERS:
        raise reentered()


def surely(action: Callable[[], T], end: Callable[[], object]) -> T:
    """Run an action, then `end`, and `end` again if the first call was interrupted."""
    try:
        try:
            return action()
        finally:
            end()
    except BaseException:
        end()
        raise


def reentered() -> Reentered:
    """The error of a call inside another call of the same thread."""
    return Reentered(
        "this thread is using the store already, and a signal handler, finalizer or logging handler"
        " called it again; nothing was changed: only close() may be called there, let the handler"
        " set a flag instead, or use another thread"
    )
