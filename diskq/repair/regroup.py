"""A group whose rows are damaged starts again; for salvage. Imported on demand."""

from __future__ import annotations

from ..base.clock import Clock
from ..delivery import key_order, positions
from ..format.held_row import HeldRow, decode_held
from ..format.layout import DEAD, HELD_KEY, ID_KEY, PARK, PARK_KEY, U32
from ..format.rows import GroupRow, TopicRow, decode_group, new_group
from ..tables import gaps, group_rows
from ..tables.group_tx import GroupTx, Place
from ..tables.log import Log


def restart_group(source: Log, topic: TopicRow, group_id: int, group: GroupRow) -> None:
    """Let a group read all that is stored. Its messages that are not stored any more stay dead, or
    wait."""
    tx = source.tx
    cursor = positions.resolve(source, topic, "earliest", "")
    position = positions.counters_at(source, topic, cursor)
    row = GroupRow(new_group(decode_group(group.config), *position))
    restarted = GroupTx(tx, Place(source.topic_id, "", group_id, ""), row)
    stored = list(tx.scan(U32.pack(group_id), database=tx.engine.held))
    group_rows.clear(restarted)
    alive: dict[int, HeldRow] = {}
    for key, value in stored:
        _, kind, offset = HELD_KEY.unpack_from(key)
        if kind == PARK and len(key) == PARK_KEY.size:
            offset = PARK_KEY.unpack(key)[3]
        gone = cursor.has_passed(offset) or gaps.past(tx, source.topic_id, topic, offset) > offset
        if kind != DEAD and gone:
            alive[offset] = decode_held(value)
        elif kind == DEAD and gone:
            row.dead += 1
        elif kind == DEAD:
            tx.delete(key, db=tx.engine.held)
    now_ns = Clock.wall_ns()
    for offset, message in sorted(alive.items()):
        key_order.wait_or_park(restarted, offset, message, max(message.due_ns, now_ns))
    row.skipped -= row.dead + row.waiting + row.parked
    tx.put(ID_KEY.pack(b"G", group_id), row.encode())
