"""Everything that is wrong with a group."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from ..base.model import LANE_BITS, Finding
from ..format.layout import HELD
from ..format.rows import GroupRow, TopicRow, decode_group
from ..storage.tx import TOKEN_BITS, Tx
from ..tables import catalog, gaps, leases
from ..tables.log import Log
from .check_held import check_held
from .check_keys import check_keys
from .counting import compare, guarded


def check_group(
    source: Log, where: str, group_id: int, topic: TopicRow, group: GroupRow
) -> Iterator[Finding]:
    """Everything that is wrong with a group."""
    yield from guarded(where, _check_group(source, where, group_id, topic, group))
    yield from guarded(where, _check_needs(source, where, group_id, topic, group))
    keyed = decode_group(group.config).settings.ordering == "key"
    yield from guarded(where, check_keys(source, where, group_id, keyed))


def _check_needs(
    source: Log, where: str, group_id: int, topic: TopicRow, group: GroupRow
) -> Iterator[Finding]:
    """All that a group needs of the log is there, and not more than there can be."""
    if len(group.next) != len(topic.next):
        yield Finding(where, f"it has {len(group.next)} lanes, its topic {len(topic.next)}")
        return
    first = [source.first(topic, lane) for lane in range(len(topic.next))]
    leased = (row.offsets() for row in leases.rows(source.tx, group_id) if not row.flags & HELD)
    for offset in chain(group.offsets, *leased):
        if offset < first[offset >> LANE_BITS]:
            yield Finding(where, f"needs offset {offset}, which was trimmed")
        if gaps.past(source.tx, source.topic_id, topic, offset) > offset:
            yield Finding(where, f"needs offset {offset}, which is in a gap of the log")
    if any(mine > end for mine, end in zip(group.next, topic.next, strict=True)):
        yield Finding(where, "its cursor is behind the end of the log")
    ahead = gaps.ahead(source.tx, source.topic_id, topic, group.offsets)
    yield from compare(where, ahead=(group.ahead, ahead))


def _check_group(
    source: Log, where: str, group_id: int, topic: TopicRow, group: GroupRow
) -> Iterator[Finding]:
    """Each message is in one place, and the counters are right."""
    tx = source.tx

    def is_known(offset: int) -> bool:  # a held message may be in a gap ahead, after a seek back
        passed = _is_passed(group, offset)
        return passed or gaps.past(tx, source.topic_id, topic, offset) > offset

    taken: set[int] = set()
    leased_held: set[int] = set()
    yield from _check_leases(tx, where, group_id, group, taken, leased_held)
    yield from check_held(tx, where, group_id, group, is_known, taken, leased_held)
    here = group.ready + group.leased + group.waiting + group.parked + group.dead
    gone = group.acked + group.expired + group.dropped + group.purged
    yield from compare(where, passed=(sum(group.next), group.skipped + here + gone))


def _check_leases(
    tx: Tx, where: str, group_id: int, group: GroupRow, taken: set[int], leased_held: set[int]
) -> Iterator[Finding]:
    """Leases do not overlap. Adds the offsets in them to `taken`, or to `leased_held`."""
    newest = tx.txn_id + catalog.load_meta(tx).commit_base  # the engine may know an older base
    ready = leased = 0
    for row in leases.rows(tx, group_id):
        if row.settled >> row.count or not row.unsettled or row.token >> TOKEN_BITS > newest:
            yield Finding(where, f"the lease at {row.first} has nothing unsettled, or an odd token")
        ready += row.unsettled if not row.deadline_ns else 0
        leased += row.unsettled if row.deadline_ns else 0
        if row.flags & HELD:
            leased_held.add(row.first)
            continue
        for offset in row.offsets():
            if offset in taken or not _is_passed(group, offset):
                yield Finding(where, f"the lease of {offset} overlaps another, or the cursor")
            taken.add(offset)
    yield from compare(where, ready=(group.ready, ready), leased=(group.leased, leased))


def _is_passed(group: GroupRow, offset: int) -> bool:
    lane = offset >> LANE_BITS
    return lane < len(group.next) and offset < group.offset(lane)
