"""Kill, stop and interrupt the processes of a store, then prove that nothing was lost.

    python3 tools/dev.py torture --seconds 600              kill producers and consumers, judge
    python3 tools/dev.py torture check DIR                  judge the ledgers of a kept run again
    python3 tools/dev.py torture long --messages 1000000    a long run through a bounded queue
    python3 tools/dev.py torture storm --seconds 600        minutes of interrupts of every kind

`VERB --help` explains each; `run` is what happens without a verb.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from . import kills, long

HARNESSES = {  # modules of this package with a command line each
    "every_line": "verbs interrupted at each of their lines",
    "storm": "minutes of interrupts of every kind",
    "copies": "a program that copies its own store's files",
    "c_fork": "killed in a commit beside a child forked in C",
    "uwsgi": "killed workers of uWSGI",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("torture", description=__doc__, formatter_class=formatter)
    verbs = top.add_subparsers(dest="verb")
    run = verbs.add_parser(
        "run",
        help="kill, stop, drain, judge (the default)",
        description=kills.__doc__,
        formatter_class=formatter,
    )
    kills.add_options(run)
    again = verbs.add_parser("check", help="judge the ledgers of a kept run again")
    again.add_argument("folder")
    long.add_options(verbs.add_parser("long", help="a long run through a bounded queue"))
    for name, text in HARNESSES.items():
        verbs.add_parser(name, help=text, add_help=False)  # it has its own, see main
    return top


def main(arguments: Sequence[str]) -> int:
    """Run the tool; returns the exit code."""
    given = list(arguments)
    if given and given[0] in HARNESSES:
        code: int = import_module(f".{given[0]}", __package__).main(given[1:])
        return code
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given.insert(0, "run")
    options = parser().parse_args(given)
    verb = {"check": kills.check, "long": long.run}.get(options.verb, kills.run)
    return verb(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
