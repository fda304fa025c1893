"""info and verify: the store as a whole."""

from __future__ import annotations

import os
import signal

import click

from diskq import Corrupt, Finding, ReadOnly

from . import output
from .admin import GROUP_COLUMNS, TOPIC_COLUMNS
from .common import die_of, json_option, open_store

DAMAGE_FOUND = 5
_DIES_OF_DAMAGE = signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT


@click.command()
@json_option
def info(as_json: bool) -> None:
    """Show the store in numbers: its topics, groups and live consumers.

    \b
    diskq info
    diskq info --json | jq '.topics[].groups[].lag'
    """
    try:
        store = open_store()
    except ReadOnly:  # who may not write sees all but the consumers
        store = open_store(readonly=True)
    with store:
        stats = store.stats()
    if as_json:
        output.record(stats)
        return
    output.fields({**stats._asdict(), "limit_bytes": stats.limit_bytes or None})
    groups = [group for topic in stats.topics for group in topic.groups]
    for items, names in (
        (stats.topics, TOPIC_COLUMNS),
        (groups, GROUP_COLUMNS),
        (stats.consumers, ("name", "pid", "topic", "group", "waiting", "handling")),
    ):
        if items:
            output.line("")
            output.show(items, names)


@click.command()
@json_option
def verify(as_json: bool) -> None:
    """Check every invariant of the store; exit code 5 if something is damaged.

    Others may go on using the store. Reads all of it, so a large store takes its time.

    \b
    diskq verify
    diskq verify --json || mail -s "the queue is damaged" root < /dev/null
    """
    ctx = click.get_current_context()
    findings = []
    child = os.fork()  # LMDB maps the file, and damage in it can end a process
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code >= 0:
            ctx.exit(code)
        if -code not in _DIES_OF_DAMAGE:
            die_of(-code)
        findings = [Finding("store", f"checking it ended with {signal.Signals(-code).name}")]
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent says that it was interrupted
        try:
            with open_store(readonly=True) as store:
                findings = list(store.verify())
        except Corrupt as error:
            findings = [Finding("store", str(error))]
    for finding in findings:
        if as_json:
            output.record(finding)
        else:
            output.line(f"{finding.where}: {finding.problem}")
    if findings:
        ctx.exit(DAMAGE_FOUND)
    if not as_json:
        output.line(f"no damage found in {ctx.obj}")
