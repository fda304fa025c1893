"""A grant: messages that one consumer gets under one lease."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from threading import Thread
from typing import NamedTuple

from ..base.clock import nanoseconds
from ..format.layout import HELD, PREFETCHED, SOLO
from ..format.lease_row import LeaseRow
from ..format.segment import Parts
from ..storage.hands import Lease
from ..tables import key_owners, leases
from ..tables.group_tx import GroupTx
from ..tables.log import Stored, parts_of
from .passing import FLAGS, Search, drop_undeliverable


class Member(NamedTuple):
    """A consumer as lease rows name it, and the thread of it that asks.

    `prefetch`: the consumer handles what it gets one by one. `waiting`: the thread counts as
    waiting.
    """

    owner: int
    slot: int
    prefetch: bool = False
    thread: Thread | None = None
    waiting: bool = False


class Choice(NamedTuple):
    """Messages to grant together, maybe none: the row of their lease, which is not stored yet, and
    how often they failed before."""

    row: LeaseRow
    messages: Sequence[Stored]
    failures: int = 0

    def is_last(self, member: Member) -> bool:
        """Whether the member gets nothing more with it: it is a suspect, or a retry for a member
        that handles messages in order."""
        flags = self.row.flags
        return bool(flags & SOLO or (flags & HELD and member.prefetch))


class Grant(NamedTuple):
    """Messages leased together, and how often they failed before. `parts` are the messages taken
    apart, empty if all of them are plain bodies."""

    lease: Lease
    messages: Sequence[Stored]
    failures: int
    parts: Sequence[Parts]


def choose_run(search: Search, run: LeaseRow) -> Choice:
    """Choose the messages of a run that was leased before, but for those that end here; those that
    were not looked at are ready again."""
    group = search.group
    ranges = (group.log.read(first, stop, search.topic) for first, stop in run.runs())
    stored = list(chain.from_iterable(ranges))
    messages, passed = drop_undeliverable(search, stored)
    if passed < len(stored):
        rest = leases.run_of([message.offset for message in stored[passed:]], run.flags)
        leases.insert(group, rest)
        group.row.ready += rest.unsettled
    if messages:
        run = leases.run_of([message.offset for message in messages], run.flags)
        group.row.redelivered += len(messages)
    return Choice(run, messages)


def store_lease(group: GroupTx, choice: Choice, member: Member) -> Grant:
    """Grant a choice of messages, all of which must be decodable. Raises: Corrupt."""
    row, messages, failures = choice
    parts: Sequence[Parts] = ()
    if any(map(FLAGS, messages)):
        parts = [parts_of(message) for message in messages]
    row.owner, row.slot = member.owner, member.slot
    row.flags |= PREFETCHED if member.prefetch else 0
    row.token = group.tx.next_tokens(row.count)
    row.granted_ns = group.clock.wall_ns()
    lasts_ns = nanoseconds(group.settings.lease_seconds)
    row.deadline_ns = group.clock.monotonic_ns() + lasts_ns
    leases.insert(group, row)
    lease = Lease(row, lasts_ns, _keys_of(messages) if group.keyed else {})
    group.hands.add(member.thread, lease)
    group.row.leased += len(messages)
    group.row.delivered += len(messages)
    return Grant(lease, messages, failures, parts)


def _keys_of(messages: Sequence[Stored]) -> dict[int, int]:
    hashes = ((each.offset, key_owners.hash_of(each.record, each.flags)) for each in messages)
    return {offset: key for offset, key in hashes if key is not None}
