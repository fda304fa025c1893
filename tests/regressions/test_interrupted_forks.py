"""An interrupt that came during a fork raised in diskq's own part of it, where CPython swallows
exceptions: the locks that were taken for the fork stayed taken, and every thread hung."""

from __future__ import annotations

import pytest
from support.programs import run_python

INTERRUPTED = """
import ctypes, functools, os, signal, sys, threading
swallowed = []
sys.unraisablehook = lambda args: swallowed.append(args.exc_type.__name__)
interrupt = functools.partial(ctypes.CDLL(None)["raise"], signal.SIGINT)  # acted on later
os.register_at_fork(**{sys.argv[2]: interrupt})
import diskq
queue = diskq.open(sys.argv[1]).queue("q")
child = os.fork()
if child == 0:
    signal.alarm(30)
    queue.put(b"from the child")
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
thread = threading.Thread(target=queue.put, args=[b"from a thread"], daemon=True)
thread.start()
thread.join(30)
assert not thread.is_alive()
assert swallowed == ["KeyboardInterrupt"]  # else nothing was shown
print(queue.qsize())
"""


@pytest.mark.parametrize("hook", ["before", "after_in_parent"])
def test_an_interrupt_during_a_fork_leaves_no_lock_behind(tmp_path, hook):
    assert run_python(INTERRUPTED, tmp_path / "store", hook).stdout == "2\n"
