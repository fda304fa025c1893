"""The way of a message through the files of diskq: put, get and ack on a warm store."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType

import diskq

PACKAGE = str(Path(diskq.__file__).parent) + "/"
WARM_UP = 3  # messages that have gone the same way before


def main() -> int:
    """Print the figures, and the files in the order in which they are first called."""
    ways = walk()
    passed = dict.fromkeys(file for way in ways.values() for file in way)
    print("verb   files  changes of the file")
    for verb, way in ways.items():
        print(f"{verb:5}  {len(set(way)):5}  {changes(way):5}")
    print(f"all    {len(passed):5}")
    print(*passed, sep="\n")
    return 0


def walk() -> dict[str, list[str]]:
    """For each verb the files of its calls, one for each call, in their order."""
    with tempfile.TemporaryDirectory() as folder, diskq.open(f"{folder}/store") as store:
        topic = store.topic("mail")
        with topic.group("workers").consumer() as consumer:
            for _ in range(WARM_UP):
                topic.put(b"warm")
                consumer.get().ack()
            messages: list[diskq.Message] = []
            put = files_of(lambda: topic.put(b"hello"))
            get = files_of(lambda: messages.append(consumer.get()))
            ack = files_of(messages[0].ack)
    return {"put": put, "get": get, "ack": ack}


def changes(way: list[str]) -> int:
    """How often a call is in another file than the call before it."""
    return sum(one != other for one, other in pairwise(way))


def files_of(action: Callable[[], object]) -> list[str]:
    """The files of diskq whose functions are called, one for each call."""
    way: list[str] = []

    def trace(frame: FrameType, event: str, argument: object) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(PACKAGE):
            way.append(name.removeprefix(PACKAGE))

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return way
