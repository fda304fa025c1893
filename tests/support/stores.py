"""Looks at stores and messages, for tests."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager


def dump(store):
    """Every row of a store, byte for byte."""
    engine = store.handle.engine
    logs = {topic.name: engine.log(topic.id) for topic in store.topics()}

    def rows(tx):
        found = {"state": dict(tx.scan(b"")), "held": dict(tx.scan(b"", database=engine.held))}
        for name, database in logs.items():
            found[f"log of {name}"] = dict(tx.scan(b"", database=database))
        return found

    return engine.read(rows)


@contextmanager
def nothing_changes(store):
    """Fail if a single byte of the store differs at the end."""
    before = dump(store)
    yield
    same = dump(store) == before  # a difference of megabytes would be told for minutes
    assert same


def digest(path):
    """The size and the digest of a file, which are told quickly when they differ."""
    if not path.exists():
        return None
    data = path.read_bytes()
    return len(data), hashlib.sha256(data).hexdigest()


def commits(store):
    """How many commits the store has seen."""
    return store.stats().commit_id


def verified(path, **options):
    """Findings in the store at this path, seen by a fresh opening."""
    import diskq

    with diskq.open(path, **options) as store:
        return list(store.verify())


def bodies(messages):
    """The bodies of messages, in order."""
    return [message.body for message in messages]


def offsets(messages):
    """The offsets of messages, in order."""
    return [message.offset for message in messages]
