"""Work in a process of its own, whose end is not ours. Imported on demand."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from typing import NamedTuple

from .errors import DiskqError

_LOOK_SECONDS = 0.2


class Ended(NamedTuple):
    """How a process ended: its exit code, or minus the number of a signal; and what it wrote."""

    code: int
    out: str
    err: str


def run(call: str, *arguments: str) -> Ended:
    """Call a function of diskq, "module:name", with these arguments in another interpreter that
    imports from the same places; what it returns is the exit code. It ends when this process does.

    Not by a fork of this process, and its output goes to files: whatever another thread forks
    meanwhile has nothing open that is waited for here.

    Raises: DiskqError if there is no interpreter to start.
    """
    module, _, name = call.partition(":")
    script = f"import sys; from diskq import apart, {module}; apart.watch_parent()"
    script = f"{script}; sys.exit({module}.{name}(*sys.argv[1:]))"
    command = [sys.executable or "python", "-P", "-c", script, *map(os.fspath, arguments)]
    path = os.pathsep.join(place or os.getcwd() for place in sys.path)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        files = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, err.fileno(), 2)]
        environment = {**os.environ, "PYTHONPATH": path}
        try:
            child = os.posix_spawn(command[0], command, environment, file_actions=files)
        except (OSError, ValueError) as error:
            raise DiskqError(f"cannot start {sys.executable!r} as Python: {error}") from error
        code = _wait(child)
        out.seek(0)
        err.seek(0)
        said, wrong = (str(file.read(), "utf-8", "replace") for file in (out, err))
        if code is None:  # somebody else has its exit code: what it said tells enough
            code = 1 if wrong else 5 if said else 0
        return Ended(code, said, wrong)


def _wait(child: int) -> int | None:
    """The exit code of a child; None if this process reaps all its children elsewhere."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ChildProcessError:
        return None
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def watch_parent() -> None:
    """End this process soon after its parent: nobody waits for what it does."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
