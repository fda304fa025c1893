"""The processes of the demo: `python -m diskq.cli.demo_work put STORE` and `hash STORE NAME PACE`.

They tell the demo what they do by lines of JSON on stdout, and end when their stdin does, so that
none is left behind if the demo itself is killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress

import diskq

TOPIC, GROUP = "files", "digests"


def put(path: str) -> None:
    """Put each path that arrives on stdin, one a line; what arrived together in one commit."""
    with diskq.open(path, create=False) as store:
        topic = store.topic(TOPIC)
        rest = b""
        while data := os.read(sys.stdin.fileno(), 65536):
            *lines, rest = (rest + data).split(b"\n")
            if lines:
                tell("put", len(topic.put_many(lines)))


def hash_files(path: str, name: str, pace_seconds: float) -> None:
    """Hash one file per message, `pace_seconds` each so that there is something to watch."""
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
    """One event for the demo, with the time: `time.monotonic` is the same in all processes."""
    print(json.dumps([what, time.monotonic(), *details]), flush=True)


def _end_with_stdin() -> None:
    sys.stdin.read()
    # To the main thread, which may sleep in a get: another thread's signal would not wake it.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


if __name__ == "__main__":
    if sys.argv[1] == "put":
        put(sys.argv[2])
    else:
        hash_files(sys.argv[2], sys.argv[3], float(sys.argv[4]))
