"""G15: an exception in the middle of a first use never leaves a module that nobody can import.

CPython's lock of a module stays held when an exception is raised in the wrong place of an import,
so that each later import of it, by any thread, waits for ever.
"""

from __future__ import annotations

from support.programs import run_python

# At each instruction of a first use, a thread is interrupted; then another one does the same.
INTERRUPTED = """
import itertools, os, sys, threading, diskq
from diskq import api
from diskq.base import ondemand

LAZY = ondemand.lazy("api.transaction")

class Stop(Exception):
    pass

def load():
    if sys.argv[1] == "import":
        from diskq.api import transaction
        return transaction.Transaction
    return LAZY.Transaction

def interrupted(at):
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        name = frame.f_code.co_filename
        if "importlib" not in name and "ondemand" not in name:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen == at:
                raise Stop
        return trace

    def first():
        sys.settrace(trace)
        try:
            load()
        except Stop:
            pass
        finally:
            sys.settrace(None)
            ended.set()
            checked.wait()  # its identity is not to be that of the thread which is started next

    ended = threading.Event()
    threading.Thread(target=first, daemon=True).start()
    ended.wait(10)
    return seen >= at

for at in itertools.count(1):
    LAZY._loaded = None
    vars(api).pop("transaction", None)
    sys.modules.pop("diskq.api.transaction", None)
    checked = threading.Event()
    was = interrupted(at)
    found = []
    thread = threading.Thread(target=lambda: found.append(load()), daemon=True)
    thread.start()
    thread.join(10)
    checked.set()
    if not found or not was:
        break
print(at, "loaded" if found else "hangs", flush=True)
os._exit(0)
"""


def outcome(how):
    """How many instructions were cut short, until one hung the next use or there were no more."""
    at, found = run_python(INTERRUPTED, how).stdout.split()
    return int(at), found


def test_whatever_instruction_of_a_first_use_is_cut_short_the_next_use_succeeds():
    at, found = outcome("ondemand")
    assert found == "loaded", at
    assert at > 30


def test_control_a_plain_import_that_is_cut_short_hangs_others():
    assert outcome("import")[1] == "hangs"


# Each module that is loaded on demand, in a commit or a read: in the middle of its import a
# finalizer wants the same.
FINALIZED = """
import importlib.abc, sys, threading, time, diskq
from diskq.base import ondemand

found = []

class Garbage:
    def __del__(self):
        for call in use, lambda: ondemand.lazy(module).load():
            try:
                call()
            except diskq.Reentered:
                found.append("Reentered")

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "diskq." + module:
            self.thread = threading.get_ident()
            Garbage()

with diskq.open(sys.argv[1]) as store:
    topic = store.topic("t")
    topic.put(b"before")
    ways = (
        (store.handle.commit, lambda: topic.put(b"finalizer")),
        (store.handle.engine.read, topic.stats),
    )
    loaded, module = 0, ""
    sys.meta_path.insert(0, finder := Finder())
    for module in list(ondemand.LAZY):
        if "diskq." + module in sys.modules:
            continue
        began = time.monotonic()
        inside, use = ways[loaded % 2]
        inside(lambda tx: ondemand.lazy(module).load())
        assert finder.thread != threading.get_ident()
        loaded += 1
        assert time.monotonic() - began < 5, module
        assert len(found) == 2 * loaded, module
        topic.put(b"after")
    assert loaded > 5, loaded
print("ended", flush=True)
"""


def test_a_finalizer_in_the_middle_of_a_first_use_does_not_hang_it(path):
    """It runs in the thread that imports, while the thread that waits for that has the store."""
    assert run_python(FINALIZED, path).stdout == "ended\n"
