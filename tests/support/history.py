"""Judge a history of deliveries and settles of many processes: was there one holder at a time?

A ledger has two lines for each settle, before and after, so each took effect between two monotonic
stamps, or perhaps never if its process was killed in between. For each message the deliveries are
put in the order of their tokens; the rules then say when one holder may follow another.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Entry = dict[str, Any]
GIVING_UP = ("nack", "release")
NEVER = 2**63


class Settle(NamedTuple):
    """A verb that was tried; `ended` is NEVER and `outcome` "unknown" if it was cut off."""

    verb: str
    begun: int
    ended: int
    outcome: str
    deadline: int


class Delivery(NamedTuple):
    """A message as one consumer got it."""

    who: str
    offset: int
    token: int
    begun: int
    ended: int
    deadline: int
    settles: tuple[Settle, ...]


def read(ledgers: Iterable[Path]) -> list[Entry]:
    """The entries of all ledgers; a last line that a kill cut off is left out."""
    entries = []
    for ledger in ledgers:
        lines = ledger.read_text().split("\n")[:-1]
        entries += [json.loads(line) for line in lines]
    return entries


def deliveries(entries: Iterable[Entry]) -> list[Delivery]:
    """All deliveries with what was tried to settle them, by offset, then token."""
    got = {}
    tried: dict[int, list[Settle]] = defaultdict(list)
    begun: dict[str, Entry] = {}
    for entry in entries:
        token = entry["token"]
        if entry["phase"] == "got":
            got[token] = entry
        elif entry["phase"] == "try":
            begun[entry["who"]] = entry
            tried[token].append(Settle(entry["verb"], entry["at"], NEVER, "unknown", NEVER))
        else:
            deadline = entry.get("deadline", 0)
            settle = Settle(
                entry["verb"],
                begun.pop(entry["who"])["at"],
                entry["at"],
                entry["phase"],
                deadline,
            )
            tried[token][-1] = settle
            if settle.verb == "extend":  # a retry in a batch has a lease of its own
                for other in set(got[token]["shared"]) - {token}:
                    tried[other].append(settle._replace(verb="extended with another"))
    found = [
        Delivery(
            entry["who"],
            entry["offset"],
            token,
            entry["begun"],
            entry["at"],
            entry["deadline"],
            tuple(sorted(tried[token], key=lambda settle: settle.begun)),
        )
        for token, entry in got.items()
    ]
    return sorted(found, key=lambda delivery: (delivery.offset, delivery.token))


def problems(entries: list[Entry], deaths: dict[str, int]) -> list[str]:
    """Everything in a history that must not be; `deaths` says when a consumer's kill began."""
    gone = dict(deaths)
    for entry in entries:
        if entry["verb"] == "close":
            gone[entry["who"]] = entry["at"]
    tokens = [entry["token"] for entry in entries if entry["phase"] == "got"]
    found = [f"token {t} was given out twice" for t in set(tokens) if tokens.count(t) > 1]
    every = deliveries(entries)
    for delivery, following in zip(every, [*every[1:], None], strict=True):
        found += _check_settles(delivery)
        if following is not None and following.offset == delivery.offset:
            found += _check_pair(delivery, following, gone.get(delivery.who, NEVER))
    return found


def _check_settles(delivery: Delivery) -> Iterator[str]:
    what = f"message {delivery.offset}, token {delivery.token}"
    final = [s for s in delivery.settles if s.outcome == "ok" and "extend" not in s.verb]
    if len(final) > 1:
        yield f"{what}: settled {len(final)} times"
    for settle in delivery.settles:
        if settle.verb == "extended with another":
            continue
        if settle.outcome == "lost" and settle.ended < _deadline(delivery, settle.begun):
            yield f"{what}: {settle.verb} refused although its lease was valid"


def _check_pair(first: Delivery, second: Delivery, gone: int) -> Iterator[str]:
    """Two deliveries of a message, the second with the next larger token."""
    what = f"message {first.offset}, token {first.token}"
    if second.ended < first.begun:
        yield f"{what}: a larger token was given out before"
    given_up = False
    for settle in first.settles:
        if settle.verb == "extended with another":
            continue
        if settle.outcome == "ok" and settle.begun > second.ended:
            yield f"{what}: {settle.verb} succeeded after others had got the message"
        if settle.outcome == "ok" and settle.verb == "ack":
            yield f"{what}: delivered again after its ack"
        if settle.verb in GIVING_UP and settle.outcome != "lost":
            given_up |= settle.begun < second.ended
    if not (given_up or gone < second.ended or _deadline(first, second.begun) <= second.ended):
        yield f"{what}: delivered again while its lease was valid"


def _deadline(delivery: Delivery, at: int) -> int:
    """The deadline of a delivery as far as it was certainly extended before `at`; what was being
    extended at that time may have had either deadline."""
    deadline = delivery.deadline
    for settle in delivery.settles:
        if not settle.verb.startswith("extend"):
            continue
        if settle.outcome == "ok" and settle.ended < at:
            deadline = settle.deadline
        elif settle.outcome != "lost":
            deadline = min(deadline, settle.deadline)
    return deadline


def acked(entries: list[Entry]) -> tuple[set[int], set[int]]:
    """Offsets whose ack succeeded, and those whose ack was cut off by a kill."""
    sure = {e["offset"] for e in entries if e["verb"] == "ack" and e["phase"] == "ok"}
    tried = {e["offset"] for e in entries if e["verb"] == "ack" and e["phase"] == "try"}
    return sure, tried - sure
