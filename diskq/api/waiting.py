"""Waiting for a message: a blocked get sleeps on its group's word until there may be one."""

from __future__ import annotations

import time
from functools import partial
from threading import Thread

from ..base import limits
from ..delivery import waiting
from ..storage.tx import Tx
from ..tables.group_tx import GroupTx
from .membership import Membership


def wait_for_message(
    member: Membership, seen: int, until: float | None, thread: Thread, *, stuck: bool
) -> bool:
    """Sleep until the group, whose word was `seen`, may have a message; False if none came in time.
    If the last get was `stuck`, sleep at least once: what it saw does not count."""
    slots, group_id = member.engine.slots, member.place.group_id
    dead: list[tuple[int, int]] = []
    known: set[tuple[int, int]] = set()
    member.presence.count_waiting(thread, True)
    slept = False
    while slots.word(group_id) == seen and not (stuck and slept):
        member.engine.check_place()
        seconds, paused = member.engine.read(partial(look, member, thread, stuck))
        if seconds <= 0:
            break
        for index, owner in () if paused else dead:  # they held nothing, or it was seen
            slots.forget(index, owner)
        if until is not None:
            seconds = min(seconds, until - time.monotonic())
            if seconds <= 0:
                return False
        dead = sleep(member, seen, seconds, known)
        known.update(dead)
        slept = True
    return True


def may_get(member: Membership, thread: Thread) -> bool:
    """Whether a get may find a message: if not, it takes no write lock. Raises: StoreMoved."""
    member.engine.check_place()
    seconds, _ = member.engine.read(partial(look, member, thread, False))
    return seconds <= 0


def look(member: Membership, thread: Thread, stuck: bool, tx: Tx) -> tuple[float, bool]:
    """Seconds until there may be a message, 0 if there seems to be one; and whether the group is
    paused."""
    group, leaser = GroupTx(tx, member.place), member.leaser._replace(thread=thread)
    return waiting.seconds_to_wait(group, leaser, stuck=stuck), group.paused


def sleep(
    member: Membership, seen: int, seconds: float, known: set[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Sleep on the group's word. Death wakes no process, so look now and then whether consumers of
    other processes live; returns those that died, but for those that are known to be dead."""
    slots, group_id = member.engine.slots, member.place.group_id
    end = time.monotonic() + seconds
    while slots.word(group_id) == seen and (left := end - time.monotonic()) > 0:
        member.check_open()  # a close wakes this thread, but leaves the word alone
        others, dead = slots.peers(group_id)
        if dead := [peer for peer in dead if peer not in known]:
            return dead
        slots.wait(group_id, seen, min(left, limits.LOOK_SECONDS) if others else left)
    return []
