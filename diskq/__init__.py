"""diskq: a queue on disk, without a server.

    import diskq

    with diskq.open("queue") as store:
        queue = store.queue("mail")
        queue.put(b"hello")
        with queue.get() as message:
            print(message.body)

Start at `open`. `docs/explanation/architecture.md` shows how the modules build on each other.
"""

from .clock import Clock
from .consumer import Consumer
from .errors import (
    AlreadySettled,
    Closed,
    ConfigConflict,
    Corrupt,
    DiskFailed,
    DiskqError,
    Empty,
    Full,
    LeaseLost,
    MessageTooLarge,
    NotAStore,
    NotFound,
    ReadOnly,
    Unsupported,
    WrongFormat,
    WrongProcess,
)
from .group import Group
from .message import Message
from .model import (
    Backoff,
    ConsumerInfo,
    DeadLetter,
    Failure,
    Finding,
    GroupSettings,
    GroupStats,
    LogMessage,
    Outgoing,
    Receipt,
    Receipts,
    StoreStats,
    TopicStats,
)
from .queue import Queue
from .store import Store, open
from .topic import Topic

__version__ = "0.1.0"

__all__ = [
    "AlreadySettled",
    "Backoff",
    "Clock",
    "Closed",
    "ConfigConflict",
    "Consumer",
    "ConsumerInfo",
    "Corrupt",
    "DeadLetter",
    "DiskFailed",
    "DiskqError",
    "Empty",
    "Failure",
    "Finding",
    "Full",
    "Group",
    "GroupSettings",
    "GroupStats",
    "LeaseLost",
    "LogMessage",
    "Message",
    "MessageTooLarge",
    "NotAStore",
    "NotFound",
    "Outgoing",
    "Queue",
    "ReadOnly",
    "Receipt",
    "Receipts",
    "Store",
    "StoreStats",
    "Topic",
    "TopicStats",
    "Unsupported",
    "WrongFormat",
    "WrongProcess",
    "open",
]
