"""Faults that the harness must find, planted around Topic.put without knowing what is inside."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import diskq


def _around(cure: Callable[[Callable[[], Any], diskq.Topic, BaseException], Any]) -> None:
    put = diskq.Topic.put

    def planted(self: diskq.Topic, body: bytes, **options: Any) -> Any:
        try:
            return put(self, body, **options)
        except diskq.DiskqError:
            raise
        except BaseException as error:
            return cure(lambda: put(self, body, **options), self, error)

    diskq.Topic.put = planted  # type: ignore[method-assign]


def _twice(again: Callable[[], Any], topic: diskq.Topic, error: BaseException) -> Any:
    again()
    again()
    raise error


def _swallow(again: Callable[[], Any], topic: diskq.Topic, error: BaseException) -> Any:
    return None


def _foreign(again: Callable[[], Any], topic: diskq.Topic, error: BaseException) -> Any:
    raise RuntimeError("another's") from error


def _hang(again: Callable[[], Any], topic: diskq.Topic, error: BaseException) -> Any:
    diskq.Topic.put = lambda *a, **o: time.sleep(3600)  # type: ignore[method-assign,assignment]
    raise error


def _block(again: Callable[[], Any], topic: diskq.Topic, error: BaseException) -> Any:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, topic.store.path], stdout=subprocess.PIPE
    )
    assert holder.stdout
    holder.stdout.readline()
    raise error


_HOLDER = """
import lmdb, sys, time
environment = lmdb.open(sys.argv[1], max_dbs=64)
transaction = environment.begin(write=True)
print("holds it", flush=True)
time.sleep(3600)
"""


def _leave(again: Callable[[], Any], topic: diskq.Topic, error: BaseException) -> Any:
    _left.append(topic.group("g").consumer("left-behind"))
    raise error


_left: list[diskq.Consumer] = []

PLANTS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "twice": lambda: _around(_twice),
    "swallow": lambda: _around(_swallow),
    "foreign": lambda: _around(_foreign),
    "hang": lambda: _around(_hang),
    "block": lambda: _around(_block),
    "leave": lambda: _around(_leave),
}
