"""Damages a store in many ways, each time a copy of the same one, and tells what then happens.

    python -m support.damaging DIRECTORY COUNT SEED [PLANT]    prints a JSON object per damage

What may end a process is done in a forked child. `check` is what `diskq verify` does, `use` opens
the store, consumes all of it and settles, without checking it first.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import diskq
from diskq.format import layout, segment
from diskq.repair.verify import main as check_suspect

PAGE, SECTOR = 4096, 512
OUTCOMES = ("ok", "refused", "wrong data", "another error", "others of its messages")
KINDS = ("flipped bit", "zeroed page", "random sector", "cut short", "page of an older commit")


def build(path: Path) -> tuple[dict[str, list[bytes]], set[bytes], bytes]:
    """Make a store with everything in it. Returns the bodies that are to come in each topic, all
    bodies, and the data file as it was some commits before."""
    made = random.Random(1)
    with diskq.open(path) as store:
        mail, keyed, bulk = (
            store.topic("mail", priorities=3),
            store.topic("keyed"),
            store.topic("b"),
        )
        at_once = diskq.Backoff(0)
        groups = [mail.group("g", max_deliveries=2, backoff=at_once)]
        groups.append(bulk.group("g", backoff=at_once))
        groups.append(keyed.group("g", ordering="key", backoff=at_once))
        for number in range(300):
            size = made.choice([10, 100, 3_000, 20_000])
            mail.put(made.randbytes(size), priority=number % 3, dedup_id=f"id {number}")
            keyed.put(b"%d" % number, key=f"key {number % 10}")
            if number % 10 == 0:
                mail.put(b"later", delay_seconds=10_000)
        bulk.put_many(made.randbytes(200) for _ in range(3_000))
        put = {message.body for topic in store.topics() for message in topic.read()}
        for group in groups:
            with group.consumer() as consumer:
                for number, message in enumerate(consumer.get_many(40, timeout=0)):
                    (message.ack, message.nack, message.reject)[number % 3]()
        old = (path / "data.mdb").read_bytes()
        for _ in range(10):
            for group in groups:
                with group.consumer() as consumer:
                    consumer.ack_many(consumer.get_many(10, timeout=0))
    return consume(path), put, old


def consume(path: Path) -> dict[str, list[bytes]]:
    """Take and ack all that is ready in a copy of a store; bodies by topic."""
    copy = path.with_name("consumed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(path, copy)
    with diskq.open(copy) as store:
        return {topic.name: _drain(topic) for topic in store.topics()}


def _drain(topic: diskq.Topic) -> list[bytes]:
    found = []
    for group in topic.groups():
        with group.consumer() as consumer:
            while messages := consumer.get_many(100, timeout=0):
                found += [message.body for message in messages]
                consumer.ack_many(messages)
    return found


def damage(data: bytearray, old: bytes, kind: str, choose: random.Random) -> bytearray:
    """A damaged copy of a data file."""
    data = data[:]
    start = choose.randrange(len(data) // PAGE) * PAGE
    if kind == "flipped bit":
        data[start + choose.randrange(PAGE)] ^= 1 << choose.randrange(8)
    elif kind == "zeroed page":
        data[start : start + PAGE] = bytes(PAGE)
    elif kind == "random sector":
        at = start + choose.randrange(PAGE // SECTOR) * SECTOR
        data[at : at + SECTOR] = choose.randbytes(SECTOR)
    elif kind == "cut short":
        del data[choose.randrange(len(data)) :]
    else:
        data[start : start + PAGE] = old[start : start + PAGE].ljust(PAGE, b"\0")
    return data


def in_child(action: Callable[[], str]) -> str:
    """Run an action in a child; what it came to: itself, "refused", an error that is not one of
    diskq's, or a signal."""
    child = os.fork()
    if not child:
        code = OUTCOMES.index("another error")
        try:
            code = OUTCOMES.index(action())
        except diskq.DiskqError:
            code = OUTCOMES.index("refused")
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return OUTCOMES[code] if code >= 0 else f"signal {-code}"


def main(directory: str, count: str, seed: str, plant: str = "") -> None:
    """Make the store, then damage it so many times."""
    if plant == "no checksums":
        segment.crc32 = layout.crc32 = lambda *_: 0
    path = Path(directory) / "store"
    expected, put, old = build(path)
    whole = bytearray((path / "data.mdb").read_bytes().rstrip(b"\0"))  # without the room behind it
    whole += bytes(-len(whole) % PAGE)
    choose = random.Random(int(seed))
    for number in range(int(count)):
        kind = KINDS[number % len(KINDS)]
        data = damage(whole, old, kind, choose)
        (path / "data.mdb").write_bytes(data)
        saved = path.with_name("saved")
        print(json.dumps(look_at(path, saved, expected, put, kind, data != whole)), flush=True)
        shutil.rmtree(saved, ignore_errors=True)


def look_at(
    path: Path,
    saved: Path,
    expected: dict[str, list[bytes]],
    put: set[bytes],
    kind: str,
    changed: bool,
):
    """What checking, using and salvaging make of a damaged store. Rows of counters and leases have
    no checksum: with an older page of them, messages may come again or be taken for done."""

    def check() -> str:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        return "refused" if check_suspect(str(path)) else "ok"

    def use() -> str:
        found = consume(path)
        known = put.issuperset(body for bodies in found.values() for body in bodies)
        return "ok" if found == expected else "others of its messages" if known else "wrong data"

    def save() -> str:
        diskq.salvage(path, saved)
        return "ok"

    def use_saved() -> str:
        with diskq.open(saved) as store:
            unsound = list(store.verify())
            found = [_drain(topic) for topic in store.topics()]
            return "wrong data" if unsound or list(store.verify()) or not found else "ok"

    checked, used, salvaged = in_child(check), in_child(use), in_child(save)
    result = {"kind": kind, "changed": changed, "check": checked, "use": used, "salvage": salvaged}
    if salvaged == "ok":
        result["saved"] = in_child(use_saved)
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
