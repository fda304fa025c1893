"""Note that the machine was started again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base.model import DURABILITIES
from ..base.ondemand import lazy
from ..delivery import settle
from ..format.decoding import unpacked
from ..format.layout import ID_KEY
from ..format.rows import GroupRow, decode_group
from ..storage.tx import Tx
from ..tables import catalog
from ..tables.group_tx import GroupTx, Place

if TYPE_CHECKING:
    from ..storage import creation
else:
    creation = lazy("storage.creation")


def note_boot(tx: Tx, boot_id: bytes) -> None:
    """Void all leases, since the machine was started again; no message is charged for that. Without
    flushes the store may not know the latest tokens: the next ones are larger than those."""
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
        group = GroupTx(tx, at, row)
        settle.release_owned(group, None)
        group.store()
