"""Write what remains of a damaged store to a new one. For salvage; imported on demand."""

from __future__ import annotations

import time

from ..base import errors, limits
from ..base.clock import Clock
from ..base.model import Salvaged
from ..host import files
from ..storage.engine import Engine
from . import verify
from .broken_groups import restart_groups
from .log_copy import LogCopy
from .new_store import create, put_all, write_heads
from .remains import Remains
from .row_copy import group_rows, topic_rows


def copy_sound(remains: Remains, place: str) -> Salvaged:
    """Write what remains of a store to the new one that is being built in `place`."""
    create(remains, place)
    engine = Engine(place, files.identity_of(place), readonly=False, clock=Clock())
    copy = LogCopy(remains, engine)
    try:
        engine.open(time.monotonic() + limits.BUSY_SECONDS)
        for name in sorted(remains.logs):
            put_all(engine, copy.log_rows(remains.logs[name]))
        if remains.searched is not None:
            put_all(engine, copy.log_rows(copy.newer_segments(remains.searched)))
        if remains.rowless and not copy.ends:
            raise errors.Corrupt("no message of diskq is in it")
        put_all(engine, copy.rest_of_logs())
        put_all(engine, group_rows(remains, engine))
        put_all(engine, topic_rows(remains, copy, engine))
        engine.commit(lambda tx: write_heads(tx, remains, copy))
        restarted = engine.commit(lambda tx: restart_groups(tx, remains))
        remains.findings += map("\t".join, verify.check_store(engine))
        return Salvaged(copy.report(restarted), remains.findings)
    finally:
        engine.close()
