"""Every error of diskq, each with a way out.

Operating errors derive from DiskqError and have the values in their text as attributes, which
survive pickling. Mistakes in a call (a wrong type, a value out of range) are TypeError and
ValueError.
"""

from __future__ import annotations

import queue

__all__ = [
    "AlreadySettled", "Busy", "Closed", "ConfigConflict", "Corrupt", "DiskFailed", "DiskqError",
    "Empty", "Full", "LeaseLost", "MessageTooLarge", "NoPermission", "NotAStore", "NotFound",
    "ReadOnly", "Reentered", "StoreMoved", "Unsupported", "WrongFormat", "WrongProcess",
]  # fmt: skip


class DiskqError(Exception):
    """Base of all operating errors; `str(error)` says what happened and what to do."""

    def __init__(self, message: str, **fields: object) -> None:
        super().__init__(message)
        self.__dict__.update(fields)


class Empty(DiskqError, queue.Empty):
    """Raised when no message became ready in time. Try again later, or wait longer."""


class Full(DiskqError, queue.Full):
    """Raised when a put would touch the room kept for settling. Consume, trim, or add disk."""


class LeaseLost(DiskqError):
    """Raised when a settle comes with an old token; nothing was changed. Drop the work on the
    message: another consumer has it now."""

    topic: str
    group: str
    offset: int
    token: int


class AlreadySettled(DiskqError):
    """Raised when a message is settled twice in one process, or after it was given to a
    transaction. Settle each delivery once."""

    offset: int


class Busy(DiskqError):
    """Raised when other processes kept the store's write lock for as long as the call may wait;
    nothing was changed, and the call's messages stay leased. Call again, or end the process with
    the id `pid`."""

    pid: int


class Reentered(DiskqError):
    """Raised when a signal handler, a finalizer or a logging handler uses a store that its thread
    is already using; nothing was changed. Only `close` may be called there."""


class StoreMoved(DiskqError):
    """Raised when the store's path holds another store, or none, because the store was removed,
    moved or restored; nothing was changed. Open the path again."""


class Closed(DiskqError):
    """Raised when a closed store or consumer is used, or a transaction that is over. Open or create
    another one."""


class WrongProcess(DiskqError):
    """Raised when a consumer or message is used in a forked child. Make a consumer in the child."""


class ConfigConflict(DiskqError):
    """Raised when settings differ from the stored ones. Leave them out, or use the stored ones."""


class NotFound(DiskqError):
    """Raised when a store, topic, group, dead letter or scheduled message does not exist. Check
    the name."""


class NotAStore(DiskqError):
    """Raised when the path holds something other than a diskq store. Choose another path."""


class WrongFormat(DiskqError):
    """Raised when another version of diskq wrote the store. Use that version."""

    found: int
    supported: int


class Corrupt(DiskqError):
    """Raised when stored bytes fail their check. Run `diskq verify`; restore a backup, or run
    `diskq salvage`."""


WAY_OUT = "restore it from a backup, or copy the sound part with 'diskq salvage'"


class MessageTooLarge(DiskqError):
    """Raised when a body, key, headers or batch is over its limit. Store a reference instead."""

    size: int
    limit: int


class ReadOnly(DiskqError):
    """Raised when a call would change a store that is open read-only or cannot be written to. Open
    it writable."""


class NoPermission(ReadOnly):
    """Raised when the store, or the place for a new one, belongs to another user. Use it as that
    user, or let the owner open it to a group: see `mode` of `diskq.open`."""


class Unsupported(DiskqError):
    """Raised when the file system or platform cannot keep diskq's promises, or a limit of the store
    is reached. Use a local disk."""


class DiskFailed(DiskqError):
    """Raised when the disk refused a write; the last commit may be lost, nothing more is written.
    Check the disk, reopen the store, run `diskq verify`."""
