"""Interrupt each verb of diskq at every point at which Python can interrupt it, and see what broke.

`python3 tools/dev.py torture every_line --help` says how. The parts, lowest first: points.py finds
the places and raises there, scenarios.py has the verbs, prober.py looks from another process,
life.py is one process with one interruption, judge.py says what is wrong with it, run.py tries
them all.
"""

from .run import main as main
