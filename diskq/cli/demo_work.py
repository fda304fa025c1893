"""The processes of the demo: `python -m diskq.cli.demo_work put STORE` and `hash STORE NAME PACE`,
and `Child`, by which the demo controls each.

They report events to the demo by lines of JSON on stdout, and end when their stdin does, so that
none is left behind if the demo is killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import diskq

TOPIC, GROUP = "files", "digests"
PATIENCE_SECONDS = 60.0  # without any news, before the demo gives up


def put(path: str) -> None:
    """Put each path that arrives on stdin, one per line; paths that arrive together are put in one
    commit."""
    with diskq.open(path, create=False) as store:
        topic = store.topic(TOPIC)
        rest = b""
        while data := os.read(sys.stdin.fileno(), 65536):
            *lines, rest = (rest + data).split(b"\n")
            if lines:
                tell("put", len(topic.put_many(lines)))


def hash_files(path: str, name: str, pace_seconds: float) -> None:
    """Hash one file per message, and take `pace_seconds` for each, so that there is something to
    watch."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    with (
        diskq.open(path, create=False) as store,
        store.topic(TOPIC).group(GROUP).consumer(name) as consumer,
    ):
        tell("here")
        for message in consumer:
            tell("got", message.offset, message.attempt)
            with suppress(FileNotFoundError), message:  # which nacks on an exception
                file = os.fsdecode(message.body)
                digest = digest_of(file)
                time.sleep(pace_seconds)
                tell("done", message.offset, file, digest)


def digest_of(path: str) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tell(what: str, *details: object) -> None:
    """Report one event to the demo, with the time: `time.monotonic` is the same in all
    processes."""
    print(json.dumps([what, time.monotonic(), *details]), flush=True)


def _end_with_stdin() -> None:
    sys.stdin.read()
    # For the main thread, which may sleep in a get: another thread's signal would not wake it.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


# The other end -----------------------------------------------------------------------------------


class DemoFailed(Exception):
    """The demo came to a halt before its end."""


class Child:
    """A process of the demo. Its events arrive in `news`, with its name."""

    def __init__(self, name: str, folder: Path, news: SimpleQueue[list[Any]], *args: str) -> None:
        self.name = name
        self.leaving = False  # it was asked to end
        self._errors = folder / f"{name}.err"
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "diskq.cli.demo_work", *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                process_group=0,  # Ctrl-C is for the demo alone, which ends its children
            )
        self._listener = threading.Thread(target=self._listen, args=(news,), daemon=True)
        self._listener.start()

    def _listen(self, news: SimpleQueue[list[Any]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith(b"\n"):  # else it was killed while it wrote
                news.put([self.name, *json.loads(line)])

    def write(self, lines: bytes) -> None:
        """Hand work to the process."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # `check` tells why
            self.process.stdin.write(lines)
            self.process.stdin.flush()

    def check(self) -> None:
        """Raise DemoFailed if the process ended without being asked."""
        code = self.process.poll()
        if code is not None and not self.leaving:
            last = self._errors.read_text(errors="replace").strip().splitlines()[-1:]
            raise DemoFailed(f"{self.name} ended with code {code}: {''.join(last)}")

    def leave(self) -> None:
        """Ask the process to end."""
        self.leaving = True
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def finish(self) -> None:
        """Wait until the process, which was asked to end, has ended and all its events are in
        `news`."""
        try:
            code = self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"{self.name} did not end") from None
        self._listener.join(PATIENCE_SECONDS)
        self.leaving = code == 0
        self.check()

    def kill(self) -> None:
        """Kill the process."""
        self.leaving = True
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    if sys.argv[1] == "put":
        put(sys.argv[2])
    else:
        hash_files(sys.argv[2], sys.argv[3], float(sys.argv[4]))
