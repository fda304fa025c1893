"""The only source of numbers for every face: one consistent snapshot, nothing is counted here.
Imported on demand.

Counters live in the rows that commits write anyway, so this costs the same with a long backlog.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..base.errors import NotFound
from ..base.model import (
    DURABILITIES,
    ConsumerInfo,
    GroupStats,
    PendingMessage,
    StoreStats,
    TopicStats,
)
from ..format.layout import FORMAT_VERSION, HELD
from ..format.rows import decode_group, decode_topic
from ..host.slots import NOTHING, SEVERAL
from ..storage.engine import Engine
from ..storage.readers import open_reads
from ..storage.reserve import used_bytes
from ..storage.tx import Tx
from ..tables import catalog, group_tx, held, leases, log


def group_stats(tx: Tx, group_id: int, name: str) -> GroupStats:
    """A group in numbers. Raises: NotFound."""
    row = group_tx.load(tx, group_id, name)
    topic = log.load(tx, decode_group(row.config).topic_id, "")
    unread = sum(topic.next) - sum(row.next) - row.ahead
    states = unread, row.ready, row.leased, row.waiting, row.parked
    totals = row.acked, row.delivered, row.redelivered, row.failed
    ended = row.expired, row.dropped, row.purged
    paused = decode_group(row.config).paused
    names = decode_topic(topic.config).name, name
    return GroupStats(*names, sum(states), *states, row.dead, *totals, *ended, paused)


def topic_stats(tx: Tx, topic_id: int, name: str) -> TopicStats:
    """A topic in numbers. Raises: NotFound."""
    row = log.load(tx, topic_id, name)
    groups = tuple(
        group_stats(tx, number, name) for name, number in catalog.group_ids(tx, topic_id)
    )
    counts = row.scheduled, row.stored, row.segments, row.bytes, row.dropped, row.last_put_ns
    return TopicStats(name, sum(row.next), *counts, groups)


def pending(tx: Tx, group_id: int, name: str) -> Iterator[PendingMessage]:
    """The leased messages of a group, by deadline. Raises: NotFound."""
    group_tx.load(tx, group_id, name)
    for lease in leases.rows(tx, group_id, 1):
        slots = tx.engine.members
        alive = slots and slots.alive(lease.slot, lease.owner)
        holder = slots.read(lease.slot).name if slots and alive else ""
        failures = held.load(tx, group_id, lease.first).failures if lease.flags & HELD else 0
        for offset in lease.offsets():
            token = lease.token + offset - lease.first
            yield PendingMessage(offset, holder, token, lease.deadline_ns, failures + 1)


def consumers(tx: Tx) -> Iterator[ConsumerInfo]:
    """The live consumers of all processes, by slot."""
    for slot in tx.engine.members.live() if tx.engine.members else ():
        try:
            group = decode_group(group_tx.load(tx, slot.group, "").config)
            topic = decode_topic(log.load(tx, group.topic_id, "").config)
        except NotFound:
            continue  # it learns soon
        where = topic.name, group.name
        handling = None if slot.handling in (NOTHING, SEVERAL) else slot.handling
        yield ConsumerInfo(slot.name, slot.pid, *where, slot.waiting > 0, handling)


def store_stats(engine: Engine) -> StoreStats:
    """A store in numbers."""
    reads = engine.look(open_reads)
    file_bytes = engine.check_place()

    def snapshot(tx: Tx) -> StoreStats:
        meta = engine.meta
        return StoreStats(
            path=engine.path,
            store_id=meta.store_id.hex(),
            format_version=FORMAT_VERSION,
            durability=DURABILITIES[meta.durability],
            commit_id=tx.commit_id,
            file_bytes=file_bytes,
            used_bytes=used_bytes(tx),
            limit_bytes=meta.max_bytes,
            readers=len(reads),
            oldest_reader_pid=reads[0].pid if reads else 0,
            oldest_reader_lag=reads[0].lag if reads else 0,
            topics=tuple(topic_stats(tx, number, name) for name, number in catalog.topic_ids(tx)),
            consumers=tuple(consumers(tx)),
        )

    return engine.read(snapshot)
