"""dead: the messages that a group has given up."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice

import click

from diskq import DeadLetter, Group, NotFound
from diskq.base import limits

from . import output
from .common import (
    OFFSET,
    find_group,
    group_option,
    json_option,
    may_remove,
    open_store,
    plural,
    removal_options,
)


@click.group()
def dead() -> None:
    """List, show, redrive and remove dead letters."""


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
@click.argument("offset", type=OFFSET)
@group_option
@json_option
def dead_show(topic: str, offset: int, group: str, as_json: bool) -> None:
    """Show a dead letter: its fields, its history, and its body.

    \b
    diskq dead show mail 17 -g workers
    """
    with open_store(readonly=True) as store:
        letter = _find(find_group(store, topic, group), offset)
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


def _find(group: Group, offset: int) -> DeadLetter:
    letter = next(group.dead(start=offset), None)
    if letter is None or letter.offset != offset:
        raise NotFound(
            f"message {offset} is not dead in group {group.name!r};"
            f" 'diskq dead ls {group.topic.name} -g {group.name}' lists the dead letters"
        )
    return letter


@dead.command("redrive")
@click.argument("topic")
@click.argument("offsets", type=OFFSET, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All dead letters of the group.")
@click.option("--limit", type=click.IntRange(1), help="At most this many, by offset.")
@group_option
def dead_redrive(
    *, topic: str, offsets: tuple[int, ...], everything: bool, limit: int | None, group: str
) -> None:
    """Give dead letters back to their group, which delivers them again: those at OFFSETS, the first
    by offset, or all.

    \b
    diskq dead redrive mail 17 18 -g workers
    diskq dead redrive mail --all -g workers
    """
    if bool(offsets) + everything + (limit is not None) != 1:
        raise click.UsageError("name the dead letters: give offsets, --limit N or --all")
    with open_store() as store:
        count = find_group(store, topic, group).redrive(limit, offsets or None)
    output.line(f"gave back {plural(count, 'dead letter')}")


@dead.command("rm")
@click.argument("topic")
@click.argument("offsets", type=OFFSET, nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All dead letters of the group.")
@group_option
@removal_options
def dead_rm(
    *,
    topic: str,
    offsets: tuple[int, ...],
    everything: bool,
    group: str,
    yes: bool,
    dry_run: bool,
) -> None:
    """Remove dead letters for good: those at OFFSETS, or all.

    \b
    diskq dead rm mail 17 18 -g workers --dry-run
    diskq dead rm mail --all -g workers --yes
    """
    if bool(offsets) + everything != 1:
        raise click.UsageError("name the dead letters: give offsets or --all")
    with open_store(readonly=dry_run) as store:
        found = find_group(store, topic, group)
        if everything:
            chosen = [letter.offset for letter in found.dead()]
        else:
            chosen = [_find(found, offset).offset for offset in dict.fromkeys(offsets)]
        what = f"dead letters of group {group} of topic {topic}"
        loss = plural(len(chosen), "dead letter")
        if may_remove(what, loss, yes=yes or not chosen, dry_run=dry_run):
            if everything:
                _forget_all(found, set(chosen))
            else:
                found.forget_dead(chosen)
            output.line(f"removed {loss}")


def _forget_all(group: Group, chosen: set[int]) -> None:
    """Forget those of the chosen messages that are still dead; another process may redrive some
    meanwhile."""
    while some := list(
        islice(
            (letter.offset for letter in group.dead() if letter.offset in chosen),
            limits.MAX_REDRIVE_MESSAGES,
        )
    ):
        with suppress(NotFound):
            group.forget_dead(some)
