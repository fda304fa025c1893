"""Whatever happens to consumers, a message has one holder at a time (G5, G6, G7)."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import history
from support.history import Entry
from support.workers import Worker, wait_until

import diskq
from diskq import Backoff

MESSAGES = 1500
CRASHES = 10
LEASE_SECONDS = 0.05


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Entry], dict[str, int], int]:
    """A history: its entries, when each kill began, and how many messages there were."""
    folder = tmp_path_factory.mktemp("history")
    path = str(folder / "store")
    workers: dict[str, Worker] = {}
    try:
        with diskq.open(path, durability="process") as store:
            deaths, count = _run(store, folder, workers)
            assert list(store.verify()) == []
    finally:
        for worker in workers.values():
            worker.clean_up()
    return history.read(folder.glob("c*")), deaths, count


def _run(
    store: diskq.Store, folder: Path, workers: dict[str, Worker]
) -> tuple[dict[str, int], int]:
    """Four consumers with short leases; one after the other is stopped past its lease or killed,
    and each killed one replaced."""
    chance = random.Random(1)
    topic = store.topic("q")
    group = topic.group(
        "default", lease_seconds=LEASE_SECONDS, max_deliveries=10_000, backoff=Backoff(0.0)
    )
    deaths: dict[str, int] = {}

    def begin() -> None:
        who, seed = f"c{len(workers)}", len(workers)
        ledger = str(folder / who)
        worker = Worker("make_history", path=store.path, ledger=ledger, who=who, seed=seed)
        workers[who] = worker
        worker.hear("ready")

    for _ in range(4):
        begin()
    for number in range(CRASHES):
        topic.put_many([b""] * (MESSAGES // CRASHES))
        settled = group.stats().acked
        wait_until(lambda settled=settled: group.stats().acked > settled + 20)
        who = chance.choice([who for who in workers if who not in deaths])
        if number % 2:
            deaths[who] = time.monotonic_ns()
            workers[who].kill()
            begin()
        else:
            workers[who].stop()
            time.sleep(3 * LEASE_SECONDS)
            workers[who].wake()
    wait_until(lambda: group.stats().lag == 0)
    for who, worker in workers.items():
        if who not in deaths:
            worker.tell("end")
            worker.hear("done")
    return deaths, MESSAGES


def test_a_message_has_one_holder_at_a_time(run):
    entries, deaths, _ = run
    assert history.problems(entries, deaths) == []


def test_every_message_is_acked_once(run):
    entries, _, count = run
    sure, cut_off = history.acked(entries)
    assert sure | cut_off == set(range(count))


def test_the_history_has_seen_everything_that_is_judged(run):
    entries, deaths, _ = run
    seen = {(entry["verb"], entry["phase"]) for entry in entries}
    for verb in ("ack", "nack", "release", "extend"):
        assert (verb, "ok") in seen
    assert {phase for _, phase in seen} >= {"lost"}
    assert len(deaths) == CRASHES // 2


# Negative control: a history with a fault planted must be found out.


def _first(entries: list[Entry], verb: str, phase: str) -> Entry:
    return next(e for e in entries if (e["verb"], e["phase"]) == (verb, phase))


def _deliver_again(entries: list[Entry], settle: Entry, after_ns: int) -> Entry:
    """Another consumer gets the message of a settle, a while after that."""
    got = next(e for e in entries if e["phase"] == "got" and e["token"] == settle["token"])
    larger = max(e["token"] for e in entries) + 1
    at = settle["at"] + after_ns
    again = {**got, "who": "c99", "token": larger, "begun": at, "at": at, "deadline": at + 10**9}
    entries.append(again)
    return again


def redeliver_what_was_acked(entries: list[Entry]) -> None:
    _deliver_again(entries, _first(entries, "ack", "ok"), 10**12)


def let_two_hold_it(entries: list[Entry]) -> None:
    nack = _first(entries, "nack", "ok")
    again = _deliver_again(entries, nack, 0)
    again["begun"] = again["at"] = next(
        e["at"] + 1 for e in entries if e["phase"] == "got" and e["token"] == nack["token"]
    )


def let_an_old_token_nack(entries: list[Entry]) -> None:
    lost = next(e for e in entries if e["phase"] == "lost" and e["verb"] != "extend")
    last = [e for e in entries if e["phase"] == "got" and e["offset"] == lost["offset"]][-1]
    lost.update(phase="ok", verb="nack", deadline=lost["at"])
    tried = entries[entries.index(lost) - 1]
    tried["at"] = max(tried["at"], last["at"] + 10**12)


def give_a_token_out_twice(entries: list[Entry]) -> None:
    got = [e for e in entries if e["phase"] == "got"]
    entries.append({**got[0], "at": got[0]["at"] + 1})


def let_tokens_fall(entries: list[Entry]) -> None:
    again = _deliver_again(entries, _first(entries, "nack", "ok"), -(10**12))
    again["deadline"] = again["at"]


def refuse_a_valid_lease(entries: list[Entry]) -> None:
    ack = _first(entries, "ack", "ok")
    got = next(e for e in entries if e["phase"] == "got" and e["token"] == ack["token"])
    got["deadline"] = ack["at"] + 10**12
    ack["phase"] = "lost"


@pytest.mark.parametrize(
    ("plant", "problem"),
    [
        (redeliver_what_was_acked, "delivered again after its ack"),
        (let_two_hold_it, "delivered again while its lease was valid"),
        (let_an_old_token_nack, "succeeded after others had got the message"),
        (give_a_token_out_twice, "was given out twice"),
        (let_tokens_fall, "a larger token was given out before"),
        (refuse_a_valid_lease, "refused although its lease was valid"),
    ],
)
def test_a_doctored_history_is_rejected(run, plant: Callable[[list[Entry]], None], problem: str):
    entries, deaths, _ = run
    doctored = copy.deepcopy(entries)
    plant(doctored)
    assert any(problem in found for found in history.problems(doctored, deaths))
