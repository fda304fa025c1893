"""dead: what a group has given up, why, and another try for it."""

from __future__ import annotations

import click

from diskq import NotFound

from . import output
from .common import find_group, group_option, json_option, open_store, plural


@click.group()
def dead() -> None:
    """List, show and redrive dead letters."""


@dead.command("ls")
@click.argument("topic")
@group_option
@json_option
def dead_ls(topic: str, group: str, as_json: bool) -> None:
    """List the dead letters of a group, by offset.

    \b
    diskq dead ls mail -g workers
    diskq dead ls mail -g workers --json | jq .error
    """
    with open_store(readonly=True) as store:
        names = "offset", "dead_at_ns", "reason", "failures", "error"
        output.show(find_group(store, topic, group).dead(), names, as_json)


@dead.command("show")
@click.argument("topic")
@click.argument("offset", type=click.IntRange(0))
@group_option
@json_option
def dead_show(topic: str, offset: int, group: str, as_json: bool) -> None:
    """Show a dead letter: its history, and below an empty line its body.

    \b
    diskq dead show mail 17 -g workers
    """
    with open_store(readonly=True) as store:
        letter = next(find_group(store, topic, group).dead(start=offset), None)
    if letter is None or letter.offset != offset:
        raise NotFound(
            f"message {offset} is not dead in group {group!r};"
            f" 'diskq dead ls {topic} -g {group}' lists what is"
        )
    if as_json:
        output.record(letter)
        return
    shown = "offset", "key", "put_at_ns", "dead_at_ns", "reason", "failures"
    headers = {f"header {name}": value for name, value in letter.headers.items()}
    output.fields({**{name: getattr(letter, name) for name in shown}, **headers})
    output.line("")
    output.show(letter.history, ("at_ns", "cause", "consumer", "error"))
    output.line("")
    output.write(letter.body + b"\n")


@dead.command("redrive")
@click.argument("topic")
@click.argument("offsets", type=click.IntRange(0), nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All dead letters of the group.")
@click.option("--limit", type=click.IntRange(1), help="The first so many, by offset.")
@group_option
def dead_redrive(
    *, topic: str, offsets: tuple[int, ...], everything: bool, limit: int | None, group: str
) -> None:
    """Give dead letters back to their group, to be delivered anew: those at OFFSETS, the first by
    offset, or all.

    \b
    diskq dead redrive mail 17 18 -g workers
    diskq dead redrive mail --all -g workers
    """
    if bool(offsets) + everything + (limit is not None) != 1:
        raise click.UsageError("say which: give offsets, --limit N or --all")
    with open_store() as store:
        count = find_group(store, topic, group).redrive(limit, offsets or None)
    output.line(f"gave back {plural(count, 'dead letter')}")
