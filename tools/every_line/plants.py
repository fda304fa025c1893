"""Faults that the harness must find, planted around Topic.put without knowing what is inside."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import lmdb

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
    raise error


def _swallow(again: Callable[[], Any], topic: diskq.Topic, error: BaseException) -> Any:
    return None


def _foreign(again: Callable[[], Any], topic: diskq.Topic, error: BaseException) -> Any:
    raise RuntimeError("another's") from error


def _hang(again: Callable[[], Any], topic: diskq.Topic, error: BaseException) -> Any:
    diskq.Topic.put = lambda *a, **o: time.sleep(3600)  # type: ignore[method-assign,assignment]
    raise error


def _block(again: Callable[[], Any], topic: diskq.Topic, error: BaseException) -> Any:
    if os.fork() == 0:
        environment = lmdb.open(topic.store.path, max_dbs=64)
        environment.begin(write=True)
        time.sleep(3600)
    time.sleep(0.2)
    raise error


def _leave(again: Callable[[], Any], topic: diskq.Topic, error: BaseException) -> Any:
    _left.append(topic.group("g").consumer("left behind"))
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
