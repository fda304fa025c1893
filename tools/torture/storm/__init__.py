"""Minutes of time limits, Ctrl-C, asynchronous errors, handlers and finalizers that use the store,
in a process of many threads beside an ordinary one; then all ledgers are compared with the store.

`python3 tools/dev.py torture storm --help` says how. victim.py is the process in the
storm, ledger.py what it writes, judge.py the rules, run.py the storm.
"""

from .run import main as main
