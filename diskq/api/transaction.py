"""Transaction: settle messages and put others, on any topics of a store, all in one commit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Unpack

from ..base import check
from ..base.errors import Closed, WrongProcess
from ..base.model import Outgoing, Receipt
from ..delivery import put
from ..storage.handle import Handle
from ..storage.tx import Tx
from ..tables.group_tx import GroupTx
from .message import Action, Message
from .queue import Queue
from .topic import Topic

if TYPE_CHECKING:
    from ..base.options import PutOptions


class Transaction:
    """Settles and puts that happen together or not at all; made by `Store.transaction`.

    A context manager: on success it commits when the block ends, on an exception nothing happens.
    Until then all is kept in memory, so no lock is held while your code runs; a message counts as
    settled from the moment it was given to the transaction. If one of the leases was lost, the
    commit raises LeaseLost and changes nothing. It does not wait for room: then it raises Full.

    Without a block, call `commit` or `rollback`. After either, or the block, it is over and raises
    Closed. One that is dropped before, with something in it, is a ResourceWarning.

    Read from one topic and write to another, and each input has its effect exactly once, whatever
    dies in between. For one thread at a time.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._settled: list[tuple[Message, Action]] = []
        self._puts: list[tuple[Topic, put.Prepared]] = []
        self._over = False
        self.receipts: Sequence[Receipt] = ()  # of all puts in order, once it is committed
        self._generation = handle.engine.generation

    def put(self, topic: Topic | Queue, body: bytes, **options: Unpack[PutOptions]) -> None:
        """Append a message when this commits; see `Topic.put`."""
        self.put_many(topic, [check.outgoing(body, options) if options else body])

    def put_many(self, topic: Topic | Queue, messages: Iterable[bytes | Outgoing]) -> None:
        """Append messages when this commits; see `Topic.put_many`."""
        self._check_open()
        target = topic.topic if isinstance(topic, Queue) else topic
        if not isinstance(target, Topic):
            raise TypeError(f"expected a Topic or Queue, not {type(topic).__name__}")
        if target.handle.engine is not self._handle.engine:
            raise ValueError(f"topic {target.name!r} is in another store than the transaction")
        if found := check.messages(messages):
            self._puts.append((target, put.prepare(found)))

    def ack(self, message: Message) -> None:
        """See `Message.ack`."""
        self._settle(message, Message.acking)

    def nack(
        self, message: Message, delay_seconds: float | None = None, *, error: str | None = None
    ) -> None:
        """See `Message.nack`."""
        self._settle(message, lambda its: its.nacking(delay_seconds, error))

    def reject(self, message: Message, reason: str = "") -> None:
        """See `Message.reject`."""
        self._settle(message, lambda its: its.rejecting(reason))

    def release(self, message: Message, delay_seconds: float | None = None) -> None:
        """See `Message.release`."""
        self._settle(message, lambda its: its.releasing(delay_seconds))

    def _settle(self, message: Message, action: Callable[[Message], Action]) -> None:
        self._check_open()
        if not isinstance(message, Message):
            raise TypeError(f"expected a Message, not {type(message).__name__}")
        message.member.check_open()
        message.member.check_unsettled(message)
        if message.member.handle.engine is not self._handle.engine:
            raise ValueError(f"message {message.offset} is in another store than the transaction")
        self._settled.append((message, action(message)))
        message.settled = True

    def commit(self) -> None:
        """Do all of it, durably; called when the block ends. Then the transaction is over, also if
        this raises.

        Raises: LeaseLost, Full, Busy, NotFound, StoreMoved, ValueError; then nothing was changed,
        as after a `rollback`. Closed if the transaction is over.
        """
        try:
            self._check_open()
            if self._settled or self._puts:
                self._commit()
        finally:  # nothing if it is committed, whatever was raised behind that
            self.rollback()

    def rollback(self) -> None:
        """Forget all of it; the messages count as unsettled again. A consumer that iterates does
        not ack them, since what belongs to them did not happen: nack or release them, or they come
        again after their deadline. Nothing happens if the transaction is over."""
        for message, _ in () if self._over else self._settled:
            message.settled, message.failed = False, True
        self._settled, self._puts, self._over = [], [], True

    def _check_open(self) -> None:
        if self._over:
            raise Closed("the transaction is over; begin another")
        if self._generation != self._handle.engine.generation:
            raise WrongProcess(
                "the transaction belongs to the process that forked this one; begin another"
            )

    def _commit(self) -> None:
        settled, parts = self._settled, self._puts  # whatever a rollback does meanwhile

        def operation(tx: Tx) -> None:
            _settle_all(tx, settled)
            found = ((tx, topic.ref, prepared) for topic, prepared in parts)
            receipts = [receipt for each in found for receipt in put.append(*each)]
            tx.at_commit(self, "receipts", receipts)
            tx.at_commit(self, "_over", True)

        put.commit(self._handle, operation)
        for message, _ in settled:
            message.member.count_acked([message])

    def __enter__(self) -> Transaction:
        self._check_open()
        return self

    def __exit__(self, kind: object, _error: object, _trace: object) -> None:
        if kind is None and not self._over:
            self.commit()
        else:
            self.rollback()

    def __del__(self) -> None:
        if not getattr(self, "_over", True) and (self._settled or self._puts):
            text = "a transaction was dropped: nothing of it happened; commit or roll it back"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)


def _settle_all(tx: Tx, settled: Sequence[tuple[Message, Action]]) -> None:
    groups: dict[int, GroupTx] = {}
    for message, action in settled:
        place = message.member.place
        group = groups.get(place.group_id)
        if group is None:
            group = groups[place.group_id] = GroupTx(tx, place)
        action(group)
    for group in groups.values():
        group.store()
    for member in {message.member for message, _ in settled}:
        member.trim(tx)
