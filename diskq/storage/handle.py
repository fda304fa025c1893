"""A handle: one opened use of a store, through which the objects that users hold work on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..base.errors import Closed, ReadOnly
from .engine import Engine
from .registry import close_engine
from .tx import Tx

T = TypeVar("T")


class Handle:
    """An engine with the options of one `diskq.open`. Safe across threads, and after a fork."""

    def __init__(
        self, engine: Engine, user: object, *, readonly: bool, busy_seconds: float
    ) -> None:
        self._engine = engine
        self._user = user  # of the engine
        self._closed = False
        self.readonly = readonly
        self.busy_seconds = busy_seconds

    @property
    def engine(self) -> Engine:
        """The engine. Raises: Closed."""
        if self._closed:
            raise Closed("the store is closed; open it again")
        return self._engine

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def commit(self, operation: Callable[[Tx], T], until: float | None = None) -> T:
        """Run an operation in a write transaction, see engine.py. Waits for other writers until a
        time of `time.monotonic()`, by default for `busy_seconds`.

        Raises: ReadOnly, Closed, Busy, and what the operation raises.
        """
        self.check_writable()
        return self._engine.commit(operation, until, self.busy_seconds)

    def read(self, operation: Callable[[Tx], T]) -> T:
        """Run an operation in a read transaction, see engine.py. Raises: Closed, and what the
        operation raises."""
        return self.engine.read(operation)

    def check_writable(self) -> None:
        """Raises: ReadOnly, Closed."""
        path = self.engine.path
        if self.readonly:
            raise ReadOnly(f"store {path} is open read-only; open it for writing")

    def mark_closed(self) -> None:
        """Let every later use raise Closed."""
        self._closed = True

    def close(self) -> None:
        """Give the engine back; the last one to do so closes it. May be called twice."""
        self._closed = True
        close_engine(self._user)
