"""Every invariant of a store, checked in one snapshot."""

from __future__ import annotations

from collections.abc import Iterator

from ..base.model import Finding
from ..format.rows import GroupRow, TopicRow, decode_group, decode_topic
from ..storage.tx import Tx
from ..tables.log import Log
from . import contents
from .check_group import check_group
from .check_log import check_log, check_schedule
from .check_names import check_names, check_owners, sound_rows
from .counting import guarded


def broken_invariants(tx: Tx) -> Iterator[Finding]:
    """Everything that is wrong in a store whose pages are sound."""
    yield from contents.undecodable(tx)
    topics = sound_rows(tx, b"T", TopicRow, decode_topic)
    groups = sound_rows(tx, b"G", GroupRow, decode_group)
    yield from guarded("store", check_names(tx, topics, groups))
    for topic_id, topic in topics.items():
        where = f"topic {decode_topic(topic.config).name}"
        source = Log(tx, topic_id)
        yield from guarded(where, check_log(source, where, topic))
        yield from guarded(where, check_schedule(tx, where, topic_id, topic))
        for group_id in decode_topic(topic.config).groups:
            if group_id in groups:
                group = groups[group_id]
                place = f"{where}, group {decode_group(group.config).name}"
                yield from check_group(source, place, group_id, topic, group)
    yield from guarded("store", check_owners(tx, set(topics), set(groups)))
