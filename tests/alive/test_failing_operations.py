"""An operation that fails, and an exception at any line of what undoes it: the transaction ended
with nobody to end it, and each later write of the process hung inside of LMDB.

Only a tracer can raise at some of these lines, but nothing here depends on which."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

import diskq

CORE = str(Path(diskq.__file__).parent)
SOON = 20.0


class Interrupted(BaseException):
    pass


def interrupted_at(number, call):
    """Call, with an exception raised at this line of diskq; whether it got there."""
    seen = 0

    def tracer(frame, event, _):
        nonlocal seen
        if not frame.f_code.co_filename.startswith(CORE):
            return None
        if event == "line":
            seen += 1
            if seen == number:
                sys.settrace(None)
                raise Interrupted
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        call()
    except (Interrupted, diskq.DiskqError, ValueError):
        pass
    finally:
        sys.settrace(before)
    return seen >= number


def fail(tx):
    raise ValueError("no")


CALLS = {
    "its own": lambda store: store.handle.commit(fail),
    "a lost lease": lambda store: store.lost.ack(),
}


@pytest.mark.parametrize("which", CALLS)
def test_after_an_operation_that_failed_and_was_interrupted_the_store_is_free(tmp_path, which):
    with diskq.open(tmp_path / "store", durability="process") as store:
        queue = store.queue("q")
        queue.put(b"first")
        other = queue.group.consumer()
        store.lost = other.get_nowait()
        queue.group.seek("earliest")
        number = 1
        while interrupted_at(number, lambda: CALLS[which](store)):
            thread = threading.Thread(target=queue.put, args=[b"next"], daemon=True)
            thread.start()
            thread.join(SOON)
            assert not thread.is_alive(), f"hangs after an exception at line {number}"
            number += 1
        assert number > 20
        assert queue.topic.stats().stored == number
        assert list(store.verify()) == []
