"""Change and delete topics and groups: what operators do. Imported on demand.

A deletion first takes the names away in one commit, so that everybody sees it at once, and leaves a
row 'X'; then it removes the rest in bounded commits. If it is cut off, `sweep` goes on at the next
open.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from ..base import limits, options
from ..base.errors import Busy, ConfigConflict, NotFound
from ..base.model import DURABILITIES, LANE_BITS, GroupSettings, TopicSettings
from ..base.ondemand import lazy
from ..delivery import retention
from ..delivery.settle import Place, Settling
from ..format.decoding import unpacked
from ..format.layout import (
    DEAD,
    DELETED_GROUP,
    DELETED_KEY,
    DELETED_TOPIC,
    HELD,
    ID_KEY,
    KEY_KEY,
    LIVE,
    SOLO,
    U32,
)
from ..format.rows import GroupRow, TopicRow, decode_group, decode_topic, new_group
from ..storage.engine import Engine
from ..storage.environment import Database
from ..storage.reserve import room_of
from ..storage.tx import Tx
from ..tables import catalog, dedup, gaps, held, key_owners, leases, log
from ..tables.log import Log

if TYPE_CHECKING:
    from ..storage import creation
else:
    creation = lazy("storage.creation")


if TYPE_CHECKING:
    from ..api.group import Group
    from ..api.topic import Topic
    from ..tables.catalog import Given, Start


def update_topic(topic: Topic, given: Given) -> TopicSettings:
    """Change settings of a topic; returns all of them.

    Raises: ConfigConflict for what cannot change, NotFound, TypeError, ValueError.
    """
    while True:
        settings = topic.store.commit(lambda tx: _update_topic(tx, topic.id, topic.name, given))
        if settings is not None:
            return settings


def _update_topic(tx: Tx, topic_id: int, name: str, given: Given) -> TopicSettings | None:
    """None if it has not got to that: there were ids to be forgotten first."""
    row = log.load(tx, topic_id, name)
    config = decode_topic(row.config)
    settings = options.changes(config.settings, given)
    longer = settings.dedup_seconds > config.settings.dedup_seconds
    if longer and dedup.forget_all_of(tx, topic_id, name):
        return None  # in a longer window they would be known again
    more = settings.priorities - len(row.next)
    if more < 0:
        raise ConfigConflict(f"priorities of topic {name!r} can only grow; it has {len(row.next)}")
    row.next += [0] * more
    row.config = config._replace(settings=settings).encode()
    log.store(tx, topic_id, row)
    for group_id in config.groups if more else ():
        group = leases.load(tx, group_id, "")
        group.next += [0] * more
        leases.store(tx, group_id, group)
    tx.announced.add(topic_id)
    return settings


def update_group(tx: Tx, at: Place, given: Given) -> GroupSettings:
    """Change settings of a group; returns all of them. Raises: as update_topic."""
    row = leases.load(tx, at.group_id, at.group)
    config = decode_group(row.config)
    settings = options.changes(config.settings, given)
    if settings.ordering != config.settings.ordering:
        raise _fixed("ordering", "group", at.group)
    row.config = config._replace(settings=settings).encode()
    leases.store(tx, at.group_id, row)
    tx.wake(at.group_id, limits.MAX_CONSUMERS)
    return settings


def set_paused(tx: Tx, at: Place, paused: bool) -> None:
    """Stop deliveries of a group, or go on."""
    row = leases.load(tx, at.group_id, at.group)
    row.config = decode_group(row.config)._replace(paused=paused).encode()
    leases.store(tx, at.group_id, row)
    tx.wake(at.group_id, limits.MAX_CONSUMERS)


def _fixed(what: str, kind: str, name: str) -> ConfigConflict:
    return ConfigConflict(f"{what} of {kind} {name!r} cannot change; make a new {kind} for that")


def seek_group(tx: Tx, at: Place, to: Start) -> None:
    """See Group.seek."""
    group = Settling(tx, at)
    topic = group.load_topic()
    _seek(group, topic, catalog.places(group.log, topic, to, "to"))
    group.store()
    retention.trim(group.log, at.topic)


def messages_from(group: Group, to: Start) -> tuple[int, bool]:
    """How many messages would come after a seek; and whether it asks for some that are gone, or at
    a time for some that may be."""
    place = group.place

    def look(tx: Tx) -> tuple[int, bool]:
        source, topic = Log(tx, place.topic_id), log.load(tx, place.topic_id, "")
        cursor = catalog.places(source, topic, to, "to")
        counts, ahead = catalog.position(source, topic, cursor)
        less = ahead > 0
        for lane, offset in enumerate(cursor):
            if isinstance(to, int) and to >> LANE_BITS == lane:
                less |= to < offset  # it was moved past what is gone
            else:
                less |= lane << LANE_BITS < offset == source.first(topic, lane)
        return sum(topic.next) - sum(counts) - ahead, less and to != "latest"

    return group.topic.store.engine.read(look)


def _seek(group: Settling, topic: TopicRow, cursor: Sequence[int]) -> None:
    """Go on at these offsets, one of each lane: whoever has a message leased loses it, nothing
    waits or is parked any more, and dead letters that come again are forgotten."""
    tx, row = group.tx, group.row
    for lease in list(leases.rows(tx, group.id)):
        leases.forget(tx, group.id, lease)
    for offset, message in list(held.rows(tx, group.id, LIVE)):
        held.stop_waiting(tx, group.id, row, offset, message)
    for key, offset, _ in list(key_owners.parked(tx, group.id)):
        key_owners.unpark(tx, group.id, row, key, offset)
    for key, _ in list(key_owners.holders(tx, group.id)):
        tx.delete(KEY_KEY.pack(b"K", group.id, key))
    for offset, _ in list(held.rows(tx, group.id, DEAD)):
        stays = gaps.past(tx, group.at.topic_id, topic, offset) != offset
        if offset >= cursor[offset >> LANE_BITS] and not stays:
            held.drop(tx, group.id, offset, DEAD)
            row.dead -= 1
    row.ready = row.leased = 0
    row.next, row.ahead = catalog.position(group.log, topic, cursor)
    ended = row.acked + row.dead + row.expired + row.dropped + row.purged
    row.skipped = sum(row.next) - ended
    tx.wake(group.id, limits.MAX_CONSUMERS)


def fork_group(tx: Tx, at: Place, name: str) -> int:
    """Make a group that is where another one is: its cursor, what waits, is parked or is dead, and
    its settings. What is leased there is ready here. Returns its id.

    Raises: ConfigConflict if there is a group of this name, Full.
    """
    if tx.get(catalog.group_name(at.topic_id, name)) is not None:
        raise ConfigConflict(
            f"topic {at.topic!r} has a group {name!r} already; choose another name"
        )
    old = Settling(tx, at)
    config = decode_group(old.row.config)._replace(name=name, paused=False)
    group_id = catalog.add_group(
        old.log, old.load_topic(), name, new_group(config, old.row.next, old.row.ahead)
    )
    _copy(old, Settling(tx, at._replace(group_id=group_id, group=name)))
    return group_id


def _copy(group: Settling, other: Settling) -> None:
    """Copy all but the cursor and the totals to a new group. What is leased here is given back
    there, uncharged."""
    tx, copy = group.tx, other.row
    room = room_of(tx)
    for lease in [lease for lease in leases.rows(tx, group.id) if not lease.flags & HELD]:
        leases.grant(tx, other.id, leases.run_of(lease.offsets(), lease.flags & SOLO))
        copy.ready += lease.unsettled
    live, dead = (list(held.rows(tx, group.id, kind)) for kind in (LIVE, DEAD))
    parked = list(key_owners.parked(tx, group.id))
    for message in [each for _, each in (*live, *dead)] + [each for _, _, each in parked]:
        if not room.take(message.size):
            raise group.full()
    suspects = {each.offset for each in held.due_rows(tx, group.id) if each.suspect}
    suspects |= {each.first for each in leases.rows(tx, group.id) if each.flags & SOLO}
    for offset, message in live:
        message.flags |= SOLO if offset in suspects else 0
        held.wait(tx, other.id, copy, offset, message, message.due_ns)
    for key, offset, message in parked:
        key_owners.park(tx, other.id, copy, key, offset, message)
    for offset, message in dead:
        held.bury(tx, other.id, copy, offset, message, message.due_ns)
    for key, offset in list(key_owners.holders(tx, group.id)):
        key_owners.take(tx, other.id, key, offset)
    copy.skipped = sum(copy.next) - copy.ready - copy.waiting - copy.parked - copy.dead
    other.store()


def delete_topic(engine: Engine, name: str, busy_seconds: float) -> None:
    """Remove a topic, its groups and its messages.

    Raises: NotFound.
    """

    def operation(tx: Tx) -> None:
        topic_id = catalog.find_topic(tx, name)
        if topic_id is None:
            raise NotFound(
                f"there is no topic {name!r}; see store.topics() or 'diskq topic ls'", topic=name
            )
        topic = log.load(tx, topic_id, name)
        for group_id in decode_topic(topic.config).groups:
            _take_away(tx, topic_id, group_id, "")
        tx.delete(b"N" + name.encode())
        tx.delete(ID_KEY.pack(b"T", topic_id))
        tx.announced.add(topic_id)
        tx.put(_deleted(DELETED_TOPIC, topic_id), b"")

    engine.commit(operation, None, busy_seconds)
    with suppress(Busy):  # it is deleted; the next opening goes on
        sweep(engine, busy_seconds)


def delete_group(engine: Engine, at: Place, busy_seconds: float) -> None:
    """Remove a group, its leases and held messages.

    Raises: NotFound.
    """

    def operation(tx: Tx) -> None:
        topic = log.load(tx, at.topic_id, at.topic)
        known = decode_topic(topic.config)
        _take_away(tx, at.topic_id, at.group_id, at.group)
        left = tuple(group for group in known.groups if group != at.group_id)
        topic.config = known._replace(groups=left).encode()
        log.store(tx, at.topic_id, topic)
        retention.trim(Log(tx, at.topic_id), at.topic)

    engine.commit(operation, None, busy_seconds)
    with suppress(Busy):  # it is deleted; the next opening goes on
        sweep(engine, busy_seconds)


def _take_away(tx: Tx, topic_id: int, group_id: int, known_as: str) -> None:
    name = decode_group(leases.load(tx, group_id, known_as).config).name
    tx.delete(catalog.group_name(topic_id, name))
    tx.delete(ID_KEY.pack(b"G", group_id))
    tx.put(_deleted(DELETED_GROUP, group_id), b"")
    tx.wake(group_id, limits.MAX_CONSUMERS)  # its consumers learn that it is gone


def sweep(engine: Engine, busy_seconds: float) -> None:
    """Remove what deleted topics and groups left behind, in bounded commits."""
    for key, _ in engine.read(lambda tx: list(tx.scan(b"X"))):
        while engine.commit(partial(_sweep_some, key), None, busy_seconds):
            pass


def _sweep_some(key: bytes, tx: Tx) -> bool:
    number = int(unpacked(DELETED_KEY, key)[2])
    if key[1] == DELETED_TOPIC:
        places = tx.log(number), tx.engine.schedule, tx.engine.dedup
        more = any(_erase(tx, U32.pack(number), place) for place in places)
        more = more or _erase(tx, ID_KEY.pack(b"O", number))
    else:
        more = any(_erase(tx, ID_KEY.pack(kind, number)) for kind in (b"L", b"D", b"K"))
        more = more or _erase(tx, U32.pack(number), tx.engine.held)
    if not more:
        tx.delete(key)
    return more


def _erase(tx: Tx, prefix: bytes, database: Database = None) -> bool:
    keys = [key for key, _ in islice(tx.scan(prefix, database=database), limits.MAX_TRIM_SEGMENTS)]
    for key in keys:
        tx.lmdb.delete(key, db=database or tx.engine.state)
    return bool(keys)


def note_boot(tx: Tx, boot_id: bytes) -> None:
    """Void all leases, since the machine was started anew; nobody is charged for that. Where
    nothing is flushed, tokens may have been given out that the store does not know of: go on behind
    them."""
    meta = catalog.load_meta(tx)
    known, meta.boot_id = any(meta.boot_id), boot_id
    meta.boot_noted_ns = tx.engine.clock.elapsed_ns()
    if known and DURABILITIES[meta.durability] == "process":
        forgotten = creation.FORGOTTEN
        meta.commit_base += creation.later(tx.commit_id, forgotten) - tx.commit_id
    catalog.store_meta(tx, meta)
    tx.at_commit(tx.engine, "meta", meta)
    for key, value in list(tx.scan(b"G")) if known else ():
        row = GroupRow(value)
        config = decode_group(row.config)
        group_id = unpacked(ID_KEY, key)[1]
        at = Place(config.topic_id, "", group_id, config.name)
        group = Settling(tx, at, row)
        group.release_owned(None)
        group.store()


def _deleted(kind: int, number: int) -> bytes:
    return DELETED_KEY.pack(b"X", kind, number)
