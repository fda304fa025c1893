"""Groups whose rows do not add up, found and restarted. For salvage; imported on demand."""

from __future__ import annotations

from itertools import islice

from ..format.rows import decode_group
from ..storage.tx import Tx
from ..tables.log import Log
from .check_group import check_group
from .regroup import restart_group
from .remains import Remains


def restart_groups(tx: Tx, remains: Remains) -> dict[int, list[str]]:
    """Let the groups whose rows do not add up start again; their names, by topic."""
    restarted: dict[int, list[str]] = {}
    for group_id, group in remains.groups.items():
        topic_id, name = decode_group(group.config)[:2]
        source, topic = Log(tx, topic_id), remains.topics[topic_id]
        broken = group_id in remains.broken
        findings = check_group(source, f"group {name}", group_id, topic, group)
        wrong = list(islice(findings, 3))
        if broken or wrong:
            remains.findings += map("\t".join, wrong)
            restart_group(source, topic, group_id, group)
            restarted.setdefault(topic_id, []).append(name)
    return restarted
