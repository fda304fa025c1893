"""The processes of the torture, and what producers and operators do until they are told to end.

They use every verb, at random but by a seed, and write each intent and its outcome to a ledger. A
process is a fork of the tool, which has no store open at that time.
"""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import diskq
from diskq import Backoff, Group, Outgoing, Receipt, Store, Topic

from . import plants
from .ledger import PUTS, Ledger, make_body, read_body, unfinished

T = TypeVar("T")
MAX_DELIVERIES = 6
LANES = 3
TOPICS: dict[str, dict[str, Any]] = {
    "out": {},  # what transactions put
    "work": {"priorities": LANES, "dedup_seconds": 86400.0},
    "side": {"retention": "limits", "max_bytes": 1_000_000},  # whose group is moved about
}
REFUSALS = (diskq.LeaseLost, diskq.Full, diskq.NotFound, diskq.Busy)
PUT, GOT, ACKED, RETRIED = range(4)  # counters of a process


class Plan(NamedTuple):
    """A group of the torture; `share` of the consumers' time."""

    topic: str
    share: int
    settings: dict[str, Any]


GROUPS = {  # those that transactions write to come first: the rules need what is there
    "sink": Plan("out", 2, {}),
    "plain": Plan("work", 4, {"keep_expired": True}),
    "keyed": Plan("work", 4, {"ordering": "key"}),
    "tx": Plan("work", 4, {}),
    "replay": Plan("side", 1, {}),
}


def keep_only(names: Sequence[str]) -> None:
    """Have no other groups than these; for the tool, before it makes the store and processes."""
    for name in GROUPS.keys() - set(names):
        del GROUPS[name]


def make_store(path: Path, durability: str, backlog: int, lease_seconds: float) -> None:
    """The store of a run, with its topics and groups. Producers wait when so many messages are in
    their topic."""
    with diskq.open(path, durability=durability) as store:
        for name, settings in TOPICS.items():
            store.topic(name, max_messages=backlog if name == "work" else None, **settings)
        for name, plan in GROUPS.items():
            store.topic(plan.topic).group(
                name,
                lease_seconds=lease_seconds,
                max_deliveries=MAX_DELIVERIES,
                backoff=Backoff(0.01, 2, 0.2),
                **plan.settings,
            )


class Role:
    """One process: who it is, its luck, its ledgers and counters."""

    def __init__(
        self,
        folder: Path,
        slot: str,
        life: int,
        seed: int,
        counters: memoryview,
        *,
        plant: str = "",
        calm: bool = False,
    ) -> None:
        self.folder, self.slot, self.life, self.seed = folder, slot, life, seed
        self.who = f"{slot}.{life}"
        self.counters, self.plant, self.calm = counters, plant, calm
        self.chance = random.Random(f"{seed} {self.who}")
        self.stopping = False
        self._ledgers: dict[str, Ledger] = {}
        self._ids = 0

    @property
    def store_path(self) -> Path:
        return self.folder / "store"

    def ledger(self, kind: str) -> Ledger:
        """The ledger of a group, or of `puts`."""
        if kind not in self._ledgers:
            self._ledgers[kind] = Ledger(self.folder / f"{self.who}.{kind}")
        return self._ledgers[kind]

    def count(self, what: int, by: int = 1) -> None:
        """Tell the tool that so many more were done."""
        self.counters[what] += by

    def new_id(self) -> str:
        """A name that no other message has."""
        self._ids += 1
        return f"{self.who}:{self._ids}"

    def attempt(
        self,
        ledger: Ledger,
        verb: str,
        call: Callable[[], T],
        outcome: Callable[[T], dict[str, Any]] = lambda _: {},
        **more: Any,
    ) -> T | None:
        """Do something, with its intent before and its outcome after it in the ledger. None if it
        was refused."""
        number = ledger.intend(verb, **more)
        try:
            result = call()
        except REFUSALS as error:
            ledger.write(no=number, error=type(error).__name__)
            return None
        ledger.write(ok=number, **outcome(result))
        return result


def spawn(job: Callable[[Role], None], role: Role) -> int:
    """Run a job in a process of its own; returns the process id."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # it may be told to stop at once
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        return pid
    code = 3
    try:

        def stop(*_: object) -> None:
            role.stopping = True

        signal.signal(signal.SIGTERM, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tool
        if role.plant:
            plants.plant(role.plant, role.slot)
        job(role)
        code = 0
    except BaseException:
        role.ledger(PUTS).write(died=traceback.format_exc())
    finally:
        os._exit(code)


# Producers --------------------------------------------------------------------------------------


class Draft(NamedTuple):
    """A message to be put, and in which topic."""

    topic: str
    name: str
    options: dict[str, Any]

    def record(self) -> list[Any]:
        """As the ledger has it."""
        wanted = ("key", "priority", "ttl_seconds", "delay_seconds", "dedup_id")
        return [self.topic, self.name, *(self.options.get(each) for each in wanted)]


def draft(role: Role, topic: str, *, plain: bool = False) -> Draft:
    """A message with options at random, or with none but its lane."""
    chance = role.chance
    options: dict[str, Any] = {}
    if not plain and chance.random() < 0.6:
        options["key"] = f"k{chance.randrange(200)}"
    if topic == "work":  # a key keeps to its lane, so its order is that of its offsets
        key = options.get("key")
        options["priority"] = zlib.crc32(key.encode()) % LANES if key else chance.randrange(LANES)
    if topic != "out" and not plain:
        if chance.random() < 0.03:
            options["ttl_seconds"] = chance.uniform(0.05, 1)
        if chance.random() < 0.05:
            options["delay_seconds"] = chance.uniform(0.05, 0.5)
        if chance.random() < 0.2:
            options["headers"] = {"from": role.who}
    return Draft(topic, role.new_id(), options)


def outgoing(role: Role, each: Draft) -> Outgoing:
    """What is given to diskq."""
    key, lane = each.options.get("key"), each.options.get("priority", 0)
    return Outgoing(make_body(each.name, key, lane, role.chance), **each.options)


def put(role: Role, store: Store, drafts: Sequence[Draft]) -> Sequence[Receipt] | None:
    """Put messages in one commit: one by put, several by put_many, into several topics by a
    transaction."""
    messages = [outgoing(role, each) for each in drafts]
    target = store.topic(drafts[0].topic)

    def call() -> Sequence[Receipt]:
        if len({each.topic for each in drafts}) > 1:
            with store.transaction() as tx:
                for each, message in zip(drafts, messages, strict=True):
                    tx.put_many(store.topic(each.topic), [message])
            return tx.receipts
        if len(drafts) > 1:
            return target.put_many(messages, timeout=0.2)
        return [target.put(messages[0].body, timeout=0.2, **drafts[0].options)]

    found = role.attempt(
        role.ledger(PUTS), "put", call, receipts, msgs=[each.record() for each in drafts]
    )
    role.count(PUT, len(found or ()))
    return found


def receipts(found: Sequence[Receipt]) -> dict[str, Any]:
    """Receipts, as the ledger has them."""
    return {"msgs": [(each.offset, each.duplicate, each.schedule_id) for each in found]}


def produce(role: Role) -> None:
    """Put messages in all ways; first again what the predecessor may not have put, if it has a
    dedup_id."""
    chance = role.chance
    with diskq.open(role.store_path, create=False) as store:
        before = unfinished(role.folder / f"{role.slot}.{role.life - 1}.{PUTS}")
        again = [each for each in (before or {}).get("msgs", ()) if each[-1]]
        for where, name, key, lane, ttl, _, dedup_id in again:
            options: dict[str, Any] = {
                "key": key,
                "priority": lane,
                "ttl_seconds": ttl,
                "dedup_id": dedup_id,
            }
            put(role, store, [Draft(where, name, options)])
        while not role.stopping:
            topic = chance.choices(("work", "side"), (9, 1))[0]
            way = chance.choices((_put_one, _put_many, _put_ids, _put_pair, _cancel), WAYS)[0]
            way(role, store, topic)


WAYS = (10, 5, 3, 1, 1)


def _put_one(role: Role, store: Store, topic: str) -> None:
    put(role, store, [draft(role, topic)])


def _put_many(role: Role, store: Store, topic: str) -> None:
    plain = role.chance.random() < 0.5
    count = role.chance.randint(2, 40)
    put(role, store, [draft(role, topic, plain=plain) for _ in range(count)])


def _put_ids(role: Role, store: Store, _topic: str) -> None:
    """With ids that this and other producers used a moment ago, and use again."""
    drafts = []
    for _ in range(role.chance.choice((1, 1, 5))):
        each = draft(role, "work")
        each.options["dedup_id"] = f"{time.monotonic_ns() >> 30}-{role.chance.randrange(50)}"
        drafts.append(each)
    put(role, store, drafts)


def _put_pair(role: Role, store: Store, _topic: str) -> None:
    put(role, store, [draft(role, "work"), draft(role, "out")])


def _cancel(role: Role, store: Store, _topic: str) -> None:
    """Schedule a message, and forget it."""
    each = draft(role, "work")
    each.options["delay_seconds"] = role.chance.uniform(0.01, 0.3)
    found = put(role, store, [each])
    planned = found[0].schedule_id if found else None
    if planned is not None:
        topic = store.topic("work")
        role.attempt(role.ledger(PUTS), "cancel", lambda: topic.cancel(planned), id=each.name)


# Operators --------------------------------------------------------------------------------------


def operate(role: Role) -> None:
    """Pause, resume, redrive, trim, seek, fork and verify, now and then."""
    with diskq.open(role.store_path, create=False) as store:
        tidy(store)
        while not role.stopping:
            action = role.chance.choice((_pause, _redrive, _redrive, _trim, _seek, _fork, _look))
            action(role, store)
            time.sleep(role.chance.uniform(0.01, 0.3))


def tidy(store: Store) -> None:
    """Undo what a killed operator left: paused groups, and copies of groups."""
    for topic, group in _groups(store):
        if group.name in GROUPS:
            group.resume()
        else:
            topic.group(group.name).delete()


def _groups(store: Store) -> Iterator[tuple[Topic, Group]]:
    for topic in store.topics():
        for group in topic.groups():
            yield topic, group


def _group(role: Role, store: Store) -> tuple[str, Group]:
    name = role.chance.choice(list(GROUPS))
    return name, store.topic(GROUPS[name].topic).group(name)


def _pause(role: Role, store: Store) -> None:
    _, group = _group(role, store)
    group.pause()
    time.sleep(role.chance.uniform(0, 0.2))
    group.resume()


def _redrive(role: Role, store: Store) -> None:
    name, group = _group(role, store)
    dead = [letter.offset for letter in group.dead()]
    some = role.chance.sample(dead, min(len(dead), 20))
    if some:
        ledger = role.ledger(name)
        role.attempt(ledger, "redrive", lambda: group.redrive(offsets=some), offsets=some)


def _trim(role: Role, store: Store) -> None:
    role.chance.choice(store.topics()).trim()


def _seek(role: Role, store: Store) -> None:
    if "replay" not in GROUPS:
        return
    topic = store.topic("side")
    put_so_far = topic.stats().put
    to = role.chance.choice(("earliest", "latest", role.chance.randint(0, put_so_far)))
    role.attempt(role.ledger("replay"), "seek", lambda: topic.group("replay").seek(to))


def _fork(role: Role, store: Store) -> None:
    """What was acked before the fork must not be in the new group."""
    if "plain" not in GROUPS:
        return
    ledger = role.ledger("plain")
    group = store.topic("work").group("plain")
    name = f"copy-{role.who}-{ledger.number}"
    copy = role.attempt(ledger, "fork", lambda: group.fork(name))
    number = ledger.number
    if copy is None:
        return
    with copy.consumer(role.who) as consumer:
        messages: list[diskq.Message] = []
        with suppress(diskq.Busy):  # without a timeout it hardly waits for those that write
            messages = consumer.get_many(200, timeout=0)
        bodies = [read_body(each.body, each.key, each.priority)[0] for each in messages]
        offsets = [each.offset for each in messages]
        ledger.write(copy=list(zip(offsets, bodies, strict=True)), fork=number)
        consumer.ack_many(messages)
    copy.delete()


def _look(role: Role, store: Store) -> None:
    """The store must be sound at any time."""
    if role.chance.random() < 0.2:
        findings = [f"{each.where}: {each.problem}" for each in store.verify()]
        if findings:
            role.ledger(PUTS).write(died=f"verify found {findings[:5]}")
    store.stats()
