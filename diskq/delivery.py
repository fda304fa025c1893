"""What happens to a message of a group: leased, acked, given back, failed; and who died.

This is the policy between the faces and the rows. All functions run inside a write transaction
(`look` in a read transaction), change the given group row, and leave it to the caller to store it.

    ready --take--> leased --ack--> gone
                      |--give back, holder died--> ready, in its old place
                      |--fail (nack, deadline passed, died while handling it)--> waiting
                      '--fail (reject, max_deliveries reached)--> dead
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice, takewhile
from typing import NamedTuple

from . import held, leases, limits, log
from .clock import NS, nanoseconds
from .codec import (
    GROUP_KEY,
    HELD,
    LANE,
    TOPIC_KEY,
    WAITING,
    GroupRow,
    HeldRow,
    LeaseRow,
    TopicRow,
    decode_group,
    decode_topic,
)
from .engine import Database, Tx
from .errors import LeaseLost
from .log import Log, Stored
from .model import Failure


class Place(NamedTuple):
    """A group, and where its messages are."""

    topic_id: int
    topic: str
    group_id: int
    group: str
    database: Database  # of the topic's log


class Member(NamedTuple):
    """A consumer, as lease rows name it."""

    owner: int
    slot: int


class Grant(NamedTuple):
    """Messages leased together, and how often they failed before."""

    lease: LeaseRow
    messages: Sequence[Stored]
    failures: int


# Taking -----------------------------------------------------------------------------------------


def take(tx: Tx, at: Place, group: GroupRow, member: Member, limit: int) -> list[Grant]:
    """Lease up to `limit` messages: retries that are due, then the lowest offsets.

    Finding nothing, it first takes back what dead consumers held.
    """
    if group.leased:
        _expire(tx, at, group)
    topic = log.load(tx, at.topic_id, at.topic)
    grants = _grant(tx, at, group, topic, member, limit)
    if not grants and group.leased and _reap(tx, at, group):
        grants = _grant(tx, at, group, topic, member, limit)
    if grants and group.waiting:
        _pass_on_the_watch(tx, at)
    return grants


def _pass_on_the_watch(tx: Tx, at: Place) -> None:
    """Who takes a message stops waiting for the next retry; let another consumer wait for it."""
    due = held.next_due(tx, at.group_id)
    if due and due[0] - tx.engine.clock.wall_ns() < nanoseconds(limits.WAIT_SECONDS):
        tx.wake(at.group_id, 1)


def _grant(
    tx: Tx, at: Place, group: GroupRow, topic: TopicRow, member: Member, limit: int
) -> list[Grant]:
    settings = decode_group(group.config).settings
    unread = topic.next[LANE] - group.cursor[LANE]
    if limit > 1:
        limit = _fair_share(tx, at, member, limit, unread + group.ready + group.waiting)
    if settings.max_in_flight is not None:
        limit = min(limit, settings.max_in_flight - group.leased)
    clock = tx.engine.clock
    deadline_ns = clock.monotonic_ns() + nanoseconds(settings.lease_seconds)
    grants: list[Grant] = []

    def grant(row: LeaseRow, messages: Sequence[Stored], failures: int) -> int:
        row.deadline_ns = deadline_ns
        row.owner, row.slot = member
        row.granted_ns = clock.wall_ns()
        row.token = tx.next_tokens(row.count)
        leases.grant(tx, at.group_id, row)
        grants.append(Grant(row, messages, failures))
        group.leased += len(messages)
        group.delivered += len(messages)
        return len(messages)

    while limit > 0 and group.waiting:
        due = held.next_due(tx, at.group_id)
        if due is None or due[0] > clock.wall_ns():
            break
        row = held.lease(tx, at.group_id, group, due[1], due[0])
        message = Stored(due[1], row.record, row.flags, row.put_at_ns)
        limit -= grant(LeaseRow(due[1], 1, flags=HELD), [message], row.failures)
        group.redelivered += 1
    source = Log(tx, at.database, at.topic_id)
    while limit > 0 and group.ready:
        run = leases.take_back(tx, at.group_id, group, limit)
        if run is None:
            break
        messages = source.read(run.first, run.first + run.count)
        if run.settled:
            messages = [messages[position] for position in run.positions()]
        limit -= grant(run, messages, 0)
        group.redelivered += len(messages)
    if limit > 0 and unread > 0:
        first = group.cursor[LANE]
        count = min(limit, unread)
        messages = source.read(first, first + count)
        group.cursor[LANE] = first + count
        grant(LeaseRow(first, count), messages, 0)
    return grants


def _fair_share(tx: Tx, at: Place, member: Member, limit: int, available: int) -> int:
    """A batch leaves their share to the consumers that are waiting now."""
    waiting = tx.engine.slots.count_waiting(at.group_id, member.slot)
    return min(limit, max(1, -(-available // (waiting + 1))))


def _expire(tx: Tx, at: Place, group: GroupRow) -> None:
    """Take messages back whose deadline passed, now that somebody wants them."""
    now = tx.engine.clock.monotonic_ns()
    passed = takewhile(lambda row: row.deadline_ns <= now, leases.rows(tx, at.group_id, 1))
    for row in list(islice(passed, limits.MAX_EXPIRED_LEASES)):
        name = _holder_name(tx, row)
        for position in row.positions():
            fail(tx, at, group, row, row.first + position, "expired", name, "")
        leases.update(tx, at.group_id, row)


def _reap(tx: Tx, at: Place, group: GroupRow) -> bool:
    """Take back the leases of dead consumers; charge only what they were handling."""
    found = False
    for row in list(islice(_dead(tx, at.group_id), limits.MAX_DEAD_OWNERS_LEASES)):
        found = True
        _free_dead(tx, at, group, row)
    return found


def _dead(tx: Tx, group_id: int) -> Iterable[LeaseRow]:
    known: dict[tuple[int, int], bool] = {}
    for row in leases.rows(tx, group_id, 1):
        who = row.slot, row.owner
        if who not in known:
            known[who] = tx.engine.slots.alive(*who)
        if not known[who]:
            yield row


def _free_dead(tx: Tx, at: Place, group: GroupRow, row: LeaseRow) -> None:
    """Give back a row whose holder died. The message it named, or its only one, is charged. If it
    named none of several, they will be delivered one by one, so that the next death names it."""
    slot = tx.engine.slots.read(row.slot)
    named = slot.handling if slot.owner == row.owner else None
    if named is None and row.unsettled == 1:
        named = row.next_unsettled
    if named is not None and row.holds(named):
        name = _holder_name(tx, row)
        fail(tx, at, group, row, named, "crashed", name, "", delay_ns=0)
    release_run(tx, at, group, row, solo=named is None)
    tx.after.append(partial(tx.engine.slots.forget, row.slot, row.owner))


def _holder_name(tx: Tx, row: LeaseRow) -> str:
    slot = tx.engine.slots.read(row.slot)
    return slot.name if slot.owner == row.owner else ""


def look(tx: Tx, at: Place) -> float:
    """Seconds until the group may have a message to take, 0 if it seems to have one now."""
    data = tx.get(GROUP_KEY.pack(b"G", at.group_id))
    topic = tx.get(TOPIC_KEY.pack(b"T", at.topic_id))
    if data is None or topic is None:
        return 0  # deleted: taking tells
    group = GroupRow(data)
    in_flight = decode_group(group.config).settings.max_in_flight
    room = in_flight is None or group.leased < in_flight
    if room and (group.ready or TopicRow(topic).next[LANE] > group.cursor[LANE]):
        return 0
    seconds = limits.WAIT_SECONDS
    clock = tx.engine.clock
    if room and group.waiting and (due := held.next_due(tx, at.group_id)):
        seconds = min(seconds, (due[0] - clock.wall_ns()) / NS)
    if group.leased:
        first = next(leases.rows(tx, at.group_id, 1), None)
        if first is not None:
            seconds = min(seconds, (first.deadline_ns - clock.monotonic_ns()) / NS)
        if any(_dead(tx, at.group_id)):
            return 0
        if any(not tx.engine.slots.is_mine(row.slot) for row in leases.rows(tx, at.group_id, 1)):
            seconds = min(seconds, limits.LOOK_SECONDS)
    return max(seconds, 0)


# Settling ---------------------------------------------------------------------------------------


def holding(tx: Tx, at: Place, lease: LeaseRow, offsets: Sequence[int]) -> LeaseRow:
    """The row in which `lease` still holds these messages. The fence: all who settle pass here.

    Raises: LeaseLost.
    """
    row = leases.find(tx, at.group_id, lease.deadline_ns, lease.first, lease.token)
    for offset in offsets:
        if row is None or not row.holds(offset):
            raise LeaseLost(
                f"the lease of message {offset} in group {at.group!r} was lost: its deadline"
                " passed and others took it back; drop this work, it is being done again",
                topic=at.topic,
                group=at.group,
                offset=offset,
                token=lease.token + offset - lease.first,
            )
    assert row is not None
    return row


def ack(tx: Tx, at: Place, group: GroupRow, lease: LeaseRow, offsets: Sequence[int]) -> None:
    """Settle messages of one lease for good.

    Raises: LeaseLost.
    """
    row = holding(tx, at, lease, offsets)
    for offset in offsets:
        row.settled |= 1 << offset - row.first
    if row.flags & HELD:
        held.drop(tx, at.group_id, row.first)
    leases.update(tx, at.group_id, row)
    group.leased -= len(offsets)
    group.acked += len(offsets)
    _wake_held_back(tx, at, group, len(offsets))


def fail(
    tx: Tx,
    at: Place,
    group: GroupRow,
    row: LeaseRow,
    offset: int,
    cause: str,
    consumer: str,
    error: str,
    *,
    delay_ns: int | None = None,
) -> None:
    """End a delivery without success: the message waits `delay_ns` (default: the backoff), or is
    dead if it was rejected or failed `max_deliveries` times. The caller updates the lease row."""
    if row.flags & HELD:
        message = held.load(tx, at.group_id, offset)
    else:
        _, record, flags, put_at_ns = Log(tx, at.database, at.topic_id).read(offset, offset + 1)[0]
        message = HeldRow(WAITING, flags, 0, 0, put_at_ns, (), record)
    now = tx.engine.clock.wall_ns()
    message.failures += 1
    message.history += (Failure(now, cause, consumer, error[: limits.MAX_ERROR_CHARS]),)
    row.settled |= 1 << offset - row.first
    group.leased -= 1
    group.failed += 1
    settings = decode_group(group.config).settings
    if cause == "reject" or message.failures >= settings.max_deliveries:
        held.bury(tx, at.group_id, group, offset, message, now)
    else:
        if delay_ns is None:
            delay_ns = settings.backoff.delay_ns(message.failures)
        held.wait(tx, at.group_id, group, offset, message, now + delay_ns)
        tx.wake(at.group_id, 1)
    _wake_held_back(tx, at, group, 1)


def release(tx: Tx, at: Place, group: GroupRow, row: LeaseRow, offset: int) -> None:
    """Give one message of a lease back, uncharged and in its old place."""
    if row.unsettled == 1:
        return release_run(tx, at, group, row, solo=False)
    row.settled |= 1 << offset - row.first
    leases.update(tx, at.group_id, row)
    leases.grant(tx, at.group_id, LeaseRow(offset, 1))
    group.leased -= 1
    group.ready += 1
    tx.wake(at.group_id, 1)


def release_run(tx: Tx, at: Place, group: GroupRow, row: LeaseRow, *, solo: bool) -> None:
    """Give back all that is not settled of a lease row, uncharged."""
    if row.flags & HELD and row.unsettled:
        message = held.load(tx, at.group_id, row.first)
        held.wait(tx, at.group_id, group, row.first, message, tx.engine.clock.wall_ns())
        row.settled = 1
        group.leased -= 1
        tx.wake(at.group_id, 1)
    leases.give_back(tx, at.group_id, group, row, solo=solo)


def _wake_held_back(tx: Tx, at: Place, group: GroupRow, count: int) -> None:
    """Consumers that max_in_flight holds back can go on."""
    most = decode_group(group.config).settings.max_in_flight
    if most is not None and group.leased + count >= most:
        tx.wake(at.group_id, count)


# Trimming ---------------------------------------------------------------------------------------


def trim(tx: Tx, at: Place) -> int:
    """Delete segments that every group has passed, a bounded number; returns how many."""
    topic = log.load(tx, at.topic_id, at.topic)
    groups = decode_topic(topic.config).groups
    floors = [leases.floor(tx, group, leases.load(tx, group, at.group)) for group in groups]
    if not floors:
        return 0
    deleted = Log(tx, at.database, at.topic_id).trim(topic, min(floors))
    if deleted:
        log.store(tx, at.topic_id, topic)
    return deleted
