"""backup and salvage: a new store with all of this one, or with the sound part of it."""

from __future__ import annotations

import click

import diskq

from . import output
from .common import open_store, plural, store_path

_DAMAGE_FOUND = 5
_SHOWN = 20  # findings
_COLUMNS = "topic", "stored", "lost", "scheduled", "restarted"


@click.command()
@click.argument("new", metavar="NEW", type=click.Path())
def backup(new: str) -> None:
    """Copy the store while it is in use. NEW, which must not exist, becomes a store with the same
    content: compact, flushed to its disk, and complete, or not there at all.

    \b
    diskq backup /backup/queue-$(date +%F)
    """
    with open_store(readonly=True) as store:
        store.backup(new)
    output.line(f"copied {store_path()} to {new}")


@click.command()
@click.argument("new", metavar="NEW", type=click.Path())
def salvage(new: str) -> None:
    """Copy the sound part of a damaged store to NEW, which must not exist. No process may use the
    store meanwhile; it is not changed. The exit code is 5 if damage was found.

    Offsets and the positions of groups stay the same. A group whose rows are damaged starts again
    at the oldest stored message.

    \b
    diskq salvage /var/lib/my/queue-new
    """
    topics, findings = diskq.salvage(store_path(), new)
    output.show(topics, _COLUMNS)
    for finding in findings[:_SHOWN]:
        output.line(f"found: {finding}")
    if len(findings) > _SHOWN:
        output.line(f"found: {len(findings) - _SHOWN} more such things")
    kept = plural(sum(topic.stored for topic in topics), "message")
    output.line(f"copied {kept} to {new}, {sum(topic.lost for topic in topics)} lost")
    if findings:
        click.get_current_context().exit(_DAMAGE_FOUND)
