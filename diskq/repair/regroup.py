"""A group whose rows are damaged starts again; for salvage. Imported on demand."""

from __future__ import annotations

from ..base.clock import Clock
from ..base.model import LANE_BITS
from ..delivery import key_order
from ..format.held_row import HeldRow, decode_held
from ..format.layout import DEAD, HELD_KEY, ID_KEY, PARK, PARK_KEY, U32
from ..format.rows import GroupRow, TopicRow, decode_group, new_group
from ..tables import catalog, gaps
from ..tables.group_tx import GroupTx, Place
from ..tables.log import Log


def restart_group(source: Log, topic: TopicRow, group_id: int, group: GroupRow) -> None:
    """Let a group read all that is stored. Its messages that are not stored any more stay dead, or
    wait."""
    tx = source.tx
    for kind in (b"L", b"D", b"K"):
        for key in [key for key, _ in tx.scan(ID_KEY.pack(kind, group_id))]:
            tx.delete(key)
    cursor = catalog.positions(source, topic, "earliest", "")
    position = catalog.position(source, topic, cursor)
    row = GroupRow(new_group(decode_group(group.config), *position))
    alive: dict[int, HeldRow] = {}
    for key, value in list(tx.scan(U32.pack(group_id), database=tx.engine.held)):
        _, kind, offset = HELD_KEY.unpack_from(key)
        if kind == PARK and len(key) == PARK_KEY.size:
            offset = PARK_KEY.unpack(key)[3]
        gone = offset < (cursor + [0] * 256)[offset >> LANE_BITS]
        gone = gone or gaps.past(tx, source.topic_id, topic, offset) > offset
        if kind == DEAD and gone:
            row.dead += 1
            continue
        tx.lmdb.delete(key, db=tx.engine.held)
        if gone:
            alive[offset] = decode_held(value)
    now_ns = Clock.wall_ns()
    restarted = GroupTx(tx, Place(source.topic_id, "", group_id, ""), row)
    for offset, message in sorted(alive.items()):
        key_order.wait_or_park(restarted, offset, message, max(message.due_ns, now_ns))
    row.skipped -= row.dead + row.waiting + row.parked
    tx.put(ID_KEY.pack(b"G", group_id), row.encode())
