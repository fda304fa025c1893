"""Each rule of the torture rejects a ledger that breaks it, and none rejects what is in order."""

from __future__ import annotations

import zlib
from collections import defaultdict

import pytest
from torture import ledger
from torture.rules import Facts, GroupFacts, Judge


class Book:
    """Ledgers by hand. Each entry is a microsecond after the one before; leases end after 100."""

    def __init__(self):
        self.entries = defaultdict(list)
        self.at = 0
        self.gone = {}
        self.dead = []
        self.numbers = defaultdict(int)
        self.end = 0

    def write(self, kind, who, **entry):
        self.at += 1000
        here = self.entries[kind]
        ref = f"{who}.{kind}:{len(here) + 1}"
        here.append({"at": self.at, "who": who, "ref": ref, **entry})

    def attempt(self, kind, who, verb, outcome, result=None, **intent):
        self.numbers[who] += 1
        self.write(kind, who, do=verb, n=self.numbers[who], **intent)
        if outcome == "ok":
            self.write(kind, who, ok=self.numbers[who], **(result or {}))
        elif outcome:
            self.write(kind, who, no=self.numbers[who], error=outcome)

    def put(
        self, *messages, outcome="ok", topic="work", duplicate=False, scheduled=None, **options
    ):
        """Messages as id and offset, in one commit."""
        records = [
            [topic, name, None, None, options.get("ttl"), options.get("delay"), options.get("id")]
            for name, _ in messages
        ]
        result = {"msgs": [(offset, duplicate, scheduled) for _, offset in messages]}
        self.attempt("puts", "p", "put", outcome, result, msgs=records)
        if topic == "work":
            self.end += sum(offset is not None for _, offset in messages) * (not duplicate)

    def got(self, offset, token, name, who="c1", group="plain", key=None, bad="", **more):
        row = [offset, token, self.at + 100_000, name, key, bad, token]
        entry = {"begun": self.at, "s": 1, **more}
        self.write(group, who, got=[row], **entry)

    def settle(self, verb, offset, token, outcome="ok", who="c1", group="plain", **more):
        self.attempt(group, who, verb, outcome, set=[(verb, offset, token)], **more)

    def later(self):
        """Until all leases so far have passed their deadlines."""
        self.at += 200_000

    def rules(self, *, keyed=False, stats=None, keeps_expired=True):
        """The rules that are broken."""
        groups = {
            "sink": GroupFacts("out"),
            "plain": GroupFacts("work", keyed, keeps_expired, False, stats or {}, self.dead),
        }
        facts = Facts(groups, {"work": [(0, self.end)]}, self.gone)
        judge = Judge(lambda kind: self.entries.get(kind, ()), facts)
        return {violation.rule for violation in judge.violations()}


@pytest.fixture
def book():
    """A message that was put, got, and not yet acked."""
    book = Book()
    book.put(("a", 0))
    book.got(0, 10, "a")
    return book


def test_a_history_in_order_breaks_no_rule(book):
    book.settle("ack", 0, 10)
    assert book.rules() == set()


@pytest.mark.parametrize("way", ["kill", "nack", "nack cut off", "close", "deadline", "extended"])
def test_a_message_may_come_again_for_a_reason(book, way):
    if way == "kill":
        book.gone["c1"] = book.at
    elif way == "nack":
        book.settle("nack", 0, 10)
    elif way == "nack cut off":
        book.settle("nack", 0, 10, outcome="")
    elif way == "close":
        book.write("plain", "c1", do="close", n=9, s=1)
    else:
        if way == "extended":
            book.attempt("plain", "c1", "extend", "ok", {"deadline": book.at + 150_000}, lease=10)
        book.later()
    book.got(0, 11, "a", who="c2")
    book.settle("ack", 0, 10, outcome="LeaseLost")
    book.settle("ack", 0, 11, who="c2")
    assert book.rules() == set()


def test_an_ack_that_was_cut_off_may_have_happened(book):
    book.settle("ack", 0, 10, outcome="")
    assert book.rules() == set()


def test_a_put_that_was_cut_off_may_have_happened(book):
    book.settle("ack", 0, 10)
    book.put(("b", None), outcome="")
    assert book.rules() == set()
    book.end = 2
    book.got(1, 12, "b")
    book.settle("ack", 1, 12)
    assert book.rules() == set()


def never_seen(book):
    book.settle("ack", 0, 10)
    book.put(("b", 1))


def given_up_and_gone(book):
    book.settle("nack", 0, 10)


def cut_off_before_the_last_delivery(book):
    book.settle("ack", 0, 10, outcome="")
    book.gone["c1"] = book.at
    book.got(0, 11, "a", who="c2")
    book.settle("release", 0, 11, who="c2")


def nobody_put_it(book):
    book.settle("ack", 0, 10)
    book.got(1, 12, "z")
    book.settle("ack", 1, 12)


def stored_twice(book):
    book.settle("ack", 0, 10)
    book.got(1, 12, "a")
    book.settle("ack", 1, 12)


def elsewhere_than_its_receipt_says(book):
    book.settle("ack", 0, 10)
    book.put(("b", 1))
    book.got(2, 12, "b")
    book.settle("ack", 2, 12)
    book.dead = [(1, "c", "rejected")]


def damaged(book):
    book.settle("nack", 0, 10)
    book.got(0, 11, None, bad="the body fails its check")
    book.settle("ack", 0, 11)


def acked_and_given_out(book):
    book.settle("ack", 0, 10)
    book.later()
    book.got(0, 11, "a", who="c2")
    book.settle("nack", 0, 11, who="c2")


def acked_and_dead(book):
    book.settle("ack", 0, 10)
    book.dead = [(0, "a", "rejected")]


def acked_and_in_a_later_fork(book):
    book.settle("ack", 0, 10)
    book.attempt("plain", "o", "fork", "ok")
    book.write("plain", "o", copy=[(0, "a")], fork=1)


def two_hold_it(book):
    book.got(0, 11, "a", who="c2")
    book.settle("ack", 0, 11, who="c2")


def two_hold_it_after_an_extend(book):
    book.attempt("plain", "c1", "extend", "ok", {"deadline": book.at + 900_000}, lease=10)
    book.later()
    two_hold_it(book)


def an_old_token_nacks(book):
    book.later()
    book.got(0, 11, "a", who="c2")
    book.settle("nack", 0, 10)
    book.settle("ack", 0, 11, who="c2")


def both_acks_succeed(book):
    book.later()
    book.got(0, 11, "a", who="c2")
    book.settle("ack", 0, 10)
    book.settle("ack", 0, 11, who="c2")


def settled_twice(book):
    book.settle("nack", 0, 10)
    book.settle("ack", 0, 10)


def refused_though_valid(book):
    book.settle("ack", 0, 10, outcome="LeaseLost")
    book.later()
    book.got(0, 11, "a")
    book.settle("ack", 0, 11)


def tokens_fall(book):
    book.settle("release", 0, 10)
    book.got(0, 9, "a", who="c2")
    book.settle("ack", 0, 9, who="c2")


def token_twice(book):
    book.settle("release", 0, 10)
    book.got(0, 10, "a", who="c2")
    book.settle("ack", 0, 10, who="c2")


def token_of_nowhere(book):
    book.settle("ack", 0, 10)
    book.settle("ack", 0, 77)


def come_before_it_is_due(book):
    book.settle("ack", 0, 10)
    book.put(("b", None), delay=60.0, scheduled="1")
    book.end = 2
    book.got(1, 12, "b")
    book.settle("ack", 1, 12)


def come_after_its_ttl(book):
    book.settle("ack", 0, 10)
    book.put(("b", 1), ttl=1.0)
    book.at += 2 * 10**9
    book.got(1, 12, "b")
    book.settle("ack", 1, 12)


def refused_and_there(book):
    book.settle("ack", 0, 10)
    book.put(("b", 1), outcome="Full")
    book.got(1, 12, "b")
    book.settle("ack", 1, 12)


def cancelled_and_there(book):
    book.settle("ack", 0, 10)
    book.put(("b", None), delay=0.0, scheduled="1")
    book.attempt("puts", "p", "cancel", "ok", id="b")
    book.end = 2
    book.got(1, 12, "b")
    book.settle("ack", 1, 12)


def half_of_a_put_many(book):
    book.settle("ack", 0, 10)
    book.put(("b", None), ("c", None), outcome="")
    book.end = 2
    book.got(1, 12, "b")
    book.settle("ack", 1, 12)


def both_of_one_id(book):
    book.settle("ack", 0, 10)
    for number, name in enumerate("bc", 1):
        book.put((name, number), id="same")
        book.got(number, 11 + number, name)
        book.settle("ack", number, 11 + number)


def duplicate_of_nothing(book):
    book.settle("ack", 0, 10)
    book.put(("b", 0), id="same", duplicate=True)


def put_but_not_acked(book):
    _transact(book, "")
    book.got(0, 11, "out of a", group="sink")
    book.gone["c1"] = book.at
    book.got(0, 12, "a", who="c2")
    book.settle("ack", 0, 12, who="c2")


def acked_but_not_put(book):
    _transact(book, "ok")


def refused_but_put(book):
    book.later()
    book.got(0, 12, "a", who="c2")
    _transact(book, "LeaseLost")
    book.settle("ack", 0, 12, who="c2")
    book.got(0, 11, "out of a", group="sink")


def _transact(book, outcome):
    """Ack the message and put another one in one commit."""
    record = ["out", "out of a", None, None, None, None, None]
    result = {"msgs": [(0, False, None)]}
    settles = [("ack", 0, 10)]
    book.attempt("plain", "c1", "transaction", outcome, result, set=settles, msgs=[record])


@pytest.mark.parametrize(
    ("plant", "rule"),
    [
        (never_seen, "lost"),
        (given_up_and_gone, "lost"),
        (cut_off_before_the_last_delivery, "lost"),
        (nobody_put_it, "unexpected"),
        (stored_twice, "unexpected"),
        (elsewhere_than_its_receipt_says, "unexpected"),
        (damaged, "body"),
        (acked_and_given_out, "acked, again"),
        (acked_and_dead, "acked, again"),
        (acked_and_in_a_later_fork, "acked, again"),
        (two_hold_it, "unexplained"),
        (two_hold_it_after_an_extend, "unexplained"),
        (an_old_token_nacks, "old token"),
        (both_acks_succeed, "acked twice"),
        (both_acks_succeed, "old token"),
        (settled_twice, "settled twice"),
        (refused_though_valid, "refused"),
        (tokens_fall, "token"),
        (token_twice, "token twice"),
        (token_of_nowhere, "unexpected"),
        (come_before_it_is_due, "early"),
        (come_after_its_ttl, "late"),
        (refused_and_there, "refused put"),
        (cancelled_and_there, "cancelled"),
        (half_of_a_put_many, "torn"),
        (both_of_one_id, "dedup"),
        (duplicate_of_nothing, "dedup"),
        (put_but_not_acked, "torn"),
        (acked_but_not_put, "lost"),
        (refused_but_put, "torn"),
    ],
)
def test_a_ledger_that_breaks_a_rule_is_rejected(book, plant, rule):
    plant(book)
    assert rule in book.rules()


def test_a_transaction_that_was_cut_off_may_have_happened_as_a_whole(book):
    _transact(book, "")
    book.got(0, 11, "out of a", group="sink")
    assert book.rules() == set()


def test_a_transaction_that_did_not_put_did_not_ack_either(book):
    """Its message was acked by nobody, so it must be somewhere else."""
    _transact(book, "")
    assert book.rules() == {"lost"}


def two_of_a_key(book, second_at_once):
    book.put(("b", 1))
    book.entries["plain"].clear()
    book.got(0, 10, "a", key="k")
    if second_at_once:
        book.got(1, 11, "b", who="c2", key="k")
    book.settle("ack", 0, 10)
    if not second_at_once:
        book.got(1, 11, "b", who="c2", key="k")
    book.settle("ack", 1, 11, who="c2")


@pytest.mark.parametrize(("second_at_once", "rules"), [(False, set()), (True, {"key order"})])
def test_a_message_waits_for_the_earlier_one_of_its_key(book, second_at_once, rules):
    two_of_a_key(book, second_at_once)
    assert book.rules(keyed=True) == rules


@pytest.mark.parametrize(("keeps_expired", "rules"), [(False, set()), (True, {"lost"})])
def test_a_message_that_nobody_got_may_have_expired(book, keeps_expired, rules):
    book.settle("ack", 0, 10)
    book.put(("b", 1), ttl=0.1)
    book.got(1, 12, "b")
    book.settle("release", 1, 12)
    assert book.rules(keeps_expired=keeps_expired) == rules


@pytest.mark.parametrize(("acked", "rules"), [(1, set()), (2, {"counts"}), (0, {"counts"})])
def test_what_a_group_counts_is_what_the_ledgers_say(book, acked, rules):
    book.settle("ack", 0, 10)
    stats = {"acked": acked, "dead": 0, "expired": 0, "lag": 0}
    assert book.rules(stats=stats) == rules


def test_a_process_that_ended_by_an_error_is_told(book):
    book.settle("ack", 0, 10)
    book.write("puts", "c1", died="Traceback: something that must not be")
    assert book.rules() == {"died"}


# Ledgers ----------------------------------------------------------------------------------------


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path):
    (tmp_path / "c1.plain").write_text('{"at":1}\n{"at":2,"do"')
    entries = list(ledger.read(tmp_path, "plain"))
    assert entries == [{"at": 1, "who": "c1", "ref": "c1.plain:1"}]


@pytest.mark.parametrize("damage", [lambda body: body[:-1], lambda body: b"0" + body[1:]])
def test_a_body_that_changed_is_seen(damage):
    content = b"p0.1:1|k|2|xyz"
    body = b"%08x|" % zlib.crc32(content) + content
    assert ledger.read_body(body, "k", 2) == ("p0.1:1", "")
    assert ledger.read_body(body, "other", 2)[1]
    assert ledger.read_body(damage(body), "k", 2)[0] is None
