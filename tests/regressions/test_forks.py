"""A fork in the middle of an import by another thread: CPython's lock of that module stays taken in
the child for ever. So a child that put a message hung, once in some hundred runs of the tests."""

from __future__ import annotations

from support.programs import run_python

CHILD_PUTS = """
import importlib.abc, importlib.machinery, os, signal, sys, threading, time
import diskq

begun = threading.Event()

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "ctypes":  # what sleeping and waking need, imported with the first of them
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (begun.set(), time.sleep(0.5), execute(module))
        return spec

assert "ctypes" not in sys.modules
sys.meta_path.insert(0, Slow())
store = diskq.open(sys.argv[1])
queue = store.queue("q")
waiter = threading.Thread(target=queue.get, kwargs={"timeout": 30})
waiter.start()
assert begun.wait(30)
child = os.fork()
if child == 0:
    signal.alarm(20)
    queue.put(b"from the child")
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_a_child_forked_while_a_thread_imports_can_put(tmp_path):
    run_python(CHILD_PUTS, tmp_path / "store")
