"""Who takes what another consumer prefetched may do so while that one hands it out."""

from __future__ import annotations

import threading

from diskq.tables import leases


def test_a_prefetched_message_is_not_taken_while_it_is_handed_out(topic, group, monkeypatch):
    topic.put_many([b"%d" % number for number in range(4)])
    holder, idle = group.consumer("holder", prefetch=4), group.consumer("idle")
    got = [holder.get().offset]
    update = leases.update

    def hand_out_the_rest():
        got.extend(message.offset for message in holder.get_many(3, timeout=0))

    handing_out = threading.Thread(target=hand_out_the_rest)

    def update_late(*arguments):
        """The idle one has looked what is handed out, and has not committed."""
        monkeypatch.setattr(leases, "update", update)
        handing_out.start()
        handing_out.join(0.5)
        update(*arguments)

    monkeypatch.setattr(leases, "update", update_late)
    taken = idle.get().offset
    handing_out.join()
    assert taken not in got
    assert sorted([*got, taken]) == [0, 1, 2, 3]
