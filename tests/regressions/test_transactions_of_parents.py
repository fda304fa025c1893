"""A forked child cannot commit the transaction of its parent: both did, and put twice."""

from __future__ import annotations

from support.programs import run_python

BOTH_COMMIT = """
import os, sys
import diskq

store = diskq.open(sys.argv[1])
topic = store.topic("t")
tx = store.transaction()
tx.put(topic, b"once")
child = os.fork()
if child == 0:
    try:
        tx.commit()
    except diskq.WrongProcess:
        os._exit(0)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
tx.commit()
assert [message.body for message in topic.read()] == [b"once"]
"""


def test_only_the_process_that_began_a_transaction_commits_it(tmp_path):
    run_python(BOTH_COMMIT, tmp_path / "store")
