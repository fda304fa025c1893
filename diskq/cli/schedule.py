"""schedule: the messages that are put later."""

from __future__ import annotations

import click

from . import output
from .common import find_topic, json_option, open_store, plural, topic_argument


@click.group()
def schedule() -> None:
    """List and cancel scheduled messages."""


@schedule.command("ls")
@topic_argument
@json_option
def schedule_ls(topic_name: str, as_json: bool) -> None:
    """List the scheduled messages of a topic, in order of time.

    \b
    diskq schedule ls mail
    diskq schedule ls mail --json | jq -r .body
    """
    with open_store(readonly=True) as store:
        names = "schedule_id", "due_ns", "priority", "key"
        output.show(find_topic(store, topic_name).scheduled(), names, as_json)


@schedule.command("cancel")
@topic_argument
@click.argument("schedule_ids", metavar="ID...", nargs=-1, required=True)
def schedule_cancel(topic_name: str, schedule_ids: tuple[str, ...]) -> None:
    """Cancel scheduled messages. The exit code is 1 if one was put already; those after it stay.

    \b
    diskq schedule cancel mail 1769842800000000000-0
    """
    count = 0
    with open_store() as store:
        topic = find_topic(store, topic_name)
        try:
            for schedule_id in dict.fromkeys(schedule_ids):
                topic.cancel(schedule_id)
                count += 1
        except Exception as error:
            if count:
                error.add_note(f"cancelled before: {plural(count, 'message')}")
            raise
    output.line(f"cancelled {plural(count, 'message')} of topic {topic_name}")
