"""info, consumer and verify: the store as a whole."""

from __future__ import annotations

import os
import signal

import click

from diskq import Corrupt, Finding
from diskq.host.child import OF_DAMAGE
from diskq.storage.readers import NOTICED_LAG

from . import output
from .common import json_option, open_store, store_path
from .groups import group_columns
from .stopping import Stopped, die_of, signals
from .topics import TOPIC_COLUMNS

_CONSUMER_COLUMNS = "name", "pid", "topic", "group", "waiting", "handling"

DAMAGE_FOUND = 5


@click.command()
@json_option
def info(as_json: bool) -> None:
    """Show the store in numbers: its topics, groups and live consumers.

    \b
    diskq info
    diskq info --json | jq '.topics[].groups[].lag'
    """
    with open_store(readonly=True) as store:
        stats = store.stats()
    if as_json:
        output.record(stats)
        return
    none = {name: getattr(stats, name) or None for name in ("limit_bytes", "oldest_reader_pid")}
    output.fields({**stats._asdict(), **none})
    if stats.oldest_reader_lag >= NOTICED_LAG:
        output.line(
            f"process {stats.oldest_reader_pid} has been reading for {stats.oldest_reader_lag}"
            " commits; until it goes on or ends, no freed space is used again"
        )
    groups = [group for topic in stats.topics for group in topic.groups]
    for items, names in (
        (stats.topics, TOPIC_COLUMNS),
        (groups, group_columns(groups)),
        (stats.consumers, _CONSUMER_COLUMNS),
    ):
        if items:
            output.line("")
            output.show(items, names)


@click.group()
def consumer() -> None:
    """List live consumers."""


@consumer.command("ls")
@json_option
def consumer_ls(as_json: bool) -> None:
    """List the live consumers of the store, of all processes. WAITING tells whether a consumer
    waits for a message; HANDLING is the offset of the message that it is handling, if known.

    \b
    diskq consumer ls
    diskq consumer ls --json | jq .pid
    """
    with open_store(readonly=True) as store:
        output.show(store.stats().consumers, _CONSUMER_COLUMNS, as_json)


@click.command()
@json_option
def verify(as_json: bool) -> None:
    """Check every invariant of the store; the exit code is 5 if something is damaged.

    Other processes may go on using the store. All of it is read, so a large store takes a while.

    \b
    diskq verify
    found=$(diskq verify) || [ $? != 5 ] || echo "$found" | mail -s "the queue is damaged" root
    """
    ctx = click.get_current_context()
    findings = []
    child = os.fork()  # LMDB maps the file, and damage in it can end a process
    if child:
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except Stopped:
            os.kill(child, signal.SIGKILL)
            raise
        if code >= 0:
            ctx.exit(code)
        if -code not in OF_DAMAGE:
            die_of(-code)
        findings = [Finding("store", f"checking it ended with {signal.Signals(-code).name}")]
    else:
        signals.let_go()  # the parent says that it was interrupted
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
        output.line(f"no damage found in {store_path()}")
