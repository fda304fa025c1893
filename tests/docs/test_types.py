"""A type checker accepts right programs that use diskq, with the types it should see, and refuses
wrong lines."""

from __future__ import annotations

import re
import subprocess
import sys

from support.programs import ROOT, child_environment

PROGRAM = """\
from collections.abc import Sequence
from datetime import timedelta
from typing import assert_type

import diskq
from diskq import Backoff, Consumer, Group, Message, Outgoing, Receipt, Store, Topic, Transaction

with diskq.open("queue", durability="relaxed", max_bytes=1 << 30) as store:
    assert_type(store, Store)
    topic = store.topic("mail", retention="limits", max_messages=100)
    assert_type(topic, Topic)
    group = topic.group("workers", lease_seconds=10, ordering="key", backoff=Backoff(0))
    assert_type(group, Group)
    receipt = topic.put(b"hello", key="a", headers={"h": "v"}, delay_seconds=1.5)
    assert_type(receipt, Receipt)
    assert_type(receipt.offset, int | None)
    assert_type(topic.put_many([b"one", Outgoing(b"two", priority=0)]), Sequence[Receipt])
    with group.consumer("ca", prefetch=3) as consumer:
        assert_type(consumer, Consumer)
        with consumer.get(timeout=1) as message:
            assert_type(message, Message)
            assert_type(message.body, bytes)
            assert_type(message.key, str | None)
            message.ack()
        assert_type(consumer.get_many(10, timeout=0), list[Message])
        for each in consumer:
            assert_type(each, Message)
            each.nack(error="later")
    assert_type(store.queue("jobs").put(b"x"), Receipt)
    with store.transaction() as transaction:
        assert_type(transaction, Transaction)
    assert_type(group.stats().ready, int)


def handle(message: Message) -> Receipt:
    return topic.put(message.body, ttl_seconds=timedelta(days=1).total_seconds())
"""
WRONG = {  # a line, and the code of the error that it must have
    'topic.put("text")': "arg-type",
    'topic.put(b"x", priority="high")': "arg-type",
    'topic.put(b"x", delay=1)': "call-arg",
    'topic.put(b"x", "key", "more")': "call-arg",
    'topic.put_many(b"x")': "arg-type",
    'assert_type(topic.put(b"x"), int)': "assert-type",
    'diskq.open("queue", durability=True)': "arg-type",
    'diskq.open("queue", durable=True)': "call-arg",
    'store.topic("mail", retention=3)': "arg-type",
    'store.topic("mail", max_size=3)': "call-arg",
    'topic.group("workers", lease=10)': "call-arg",
    'topic.group("workers", ordering=True)': "arg-type",
    'consumer.get(timeout="1")': "arg-type",
    "consumer.get().acknowledge()": "attr-defined",
    "number: int = consumer.get().body": "assignment",
    'with open("x") as file: topic.put(file.read())': "arg-type",
}


def checked(path, text):
    """The errors that mypy finds in a program: line and code."""
    program = path / "program.py"
    program.write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--show-error-codes", "--config-file="]
    run = subprocess.run(
        [*command, f"--cache-dir={ROOT / '.mypy_cache' / 'users'}", str(program)],
        cwd=path,
        env=child_environment(MYPYPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr
    found = re.findall(r"^program\.py:(\d+): error: .* \[([\w-]+)\]$", run.stdout, re.MULTILINE)
    assert len(found) == run.stdout.count(" error: "), run.stdout
    return [(int(line), code) for line, code in found]


def test_right_lines_are_accepted_and_wrong_ones_refused(tmp_path):
    """All in one program, which mypy reads once."""
    right = len(PROGRAM.splitlines())
    codes = {line: set() for line in WRONG}
    for number, code in checked(tmp_path, PROGRAM + "\n".join(WRONG)):
        assert number > right, (number, code)
        codes[list(WRONG)[number - right - 1]].add(code)
    assert {line: WRONG[line] in found for line, found in codes.items()} == dict.fromkeys(
        WRONG, True
    )
