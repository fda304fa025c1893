"""Looking into a store that other processes fill."""

from __future__ import annotations

import diskq


def test_a_topic_can_be_read_by_a_process_that_did_nothing_else_before(path, start):
    producer = start("produce", path=path, name="p", count=3)
    producer.hear("ready")
    producer.tell()
    producer.hear("done")
    assert producer.end() == 0
    with diskq.open(path) as store:
        assert [message.offset for message in store.topic("q").read()] == [0, 1, 2]
