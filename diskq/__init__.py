"""diskq: a queue on disk, without a server.

    import diskq

    with diskq.open("queue") as store:
        queue = store.queue("mail")
        queue.put(b"hello")
        with queue.get() as message:
            print(message.body)

Start at `open`. `docs/explanation/architecture.md` shows how the modules build on each other.
"""

from typing import TYPE_CHECKING

try:
    import lmdb  # noqa: F401 - what else uses it says less if it cannot be had
except ImportError as error:
    from .host.process import ONE_INTERPRETER, is_second_interpreter

    if is_second_interpreter():
        raise ImportError(ONE_INTERPRETER) from error
    raise

from .api.consumer import Consumer
from .api.group import Group
from .api.message import Message
from .api.opening import open  # noqa: A004 - diskq.open is to diskq what open is to files
from .api.queue import Queue
from .api.store import Store
from .api.topic import Topic
from .base import errors, limits, model, ondemand  # noqa: F401 - limits are public
from .base.clock import Clock
from .base.errors import *  # noqa: F403 - every error is public
from .base.model import *  # noqa: F403 - every value is public

if TYPE_CHECKING:
    from .api.transaction import Transaction
    from .repair.salvage import salvage

__version__ = "0.1.0"

__all__ = [
    "Clock",
    "Consumer",
    "Group",
    "Message",
    "Queue",
    "Store",
    "Topic",
    "Transaction",  # see __getattr__
    "open",
    "salvage",  # likewise
]
__all__ += errors.__all__ + model.__all__


def __getattr__(name: str) -> object:
    """Load what few need when it is asked for."""
    if name == "Transaction":
        return ondemand.lazy("api.transaction").Transaction
    if name == "salvage":
        return ondemand.lazy("repair.salvage").salvage
    raise AttributeError(f"module 'diskq' has no attribute {name!r}")
