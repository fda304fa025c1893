"""The view of the demo: live on a terminal with rich, else plain lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from diskq import GroupStats

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class Row(NamedTuple):
    """A consumer: `share` is its part of all recent work, from 0 to 1."""

    name: str
    state: str
    done: int
    share: float


class Picture(NamedTuple):
    """The state of the demo at one moment."""

    seconds: float
    files: int
    put: int
    group: GroupStats
    rows: Sequence[Row]


def lost(put: int, group: GroupStats) -> int:
    """The number of messages that were put and are in no state."""
    there = group.unread + group.ready + group.leased + group.waiting + group.dead + group.acked
    return put - there


def _balance_parts(put: int, group: GroupStats) -> list[tuple[str, int]]:
    return [
        ("put", put),
        ("= acked", group.acked),
        ("+ leased", group.leased),
        ("+ ready", group.ready),
        ("+ unread", group.unread),
        ("+ waiting", group.waiting),
        ("+ dead", group.dead),
        (", lost", lost(put, group)),
        (", redelivered", group.redelivered),
    ]


def balance(put: int, group: GroupStats) -> str:
    """The number of messages in each state, in one line."""
    parts = (f"{what} {number:,}" for what, number in _balance_parts(put, group))
    return " ".join(parts).replace(" ,", ",")


class Plain:
    """A view that prints a line for each event, and the balance now and then."""

    def __init__(self, every_seconds: float) -> None:
        self._every_seconds = every_seconds
        self._next = every_seconds

    def log(self, seconds: float, text: str) -> None:
        """Something happened."""
        click.echo(f"{seconds:5.1f} s  {text}")

    def show(self, picture: Picture) -> None:
        """Called many times a second."""
        if picture.seconds >= self._next:
            self._next = picture.seconds + self._every_seconds
            self.log(picture.seconds, balance(picture.put, picture.group))

    def close(self) -> None:
        """End the view; there is nothing to clean up."""


class Live:
    """A view that redraws bars, states and the latest events in place."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live as RichLive

        self._live = RichLive(console=console, auto_refresh=False)
        self._live.start()
        self._events: list[str] = []

    def log(self, seconds: float, text: str) -> None:
        """Something happened."""
        self._events.append(f"{seconds:5.1f} s  {text}")

    def show(self, picture: Picture) -> None:
        """Called many times a second."""
        self._live.update(self._draw(picture), refresh=True)

    def close(self) -> None:
        """End the view; the last picture stays on the screen."""
        self._live.stop()

    def _draw(self, picture: Picture) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 1))
        for title in ("consumer", "state", "share of the last 2 s", "", "done"):
            table.add_column(
                title, header_style="dim", justify="right" if title == "done" else "left"
            )
        for row in picture.rows:
            style = "red" if row.state == "killed" else "green"
            bar = ProgressBar(total=1, completed=row.share, width=36, complete_style=style)
            table.add_row(
                row.name, Text(row.state, style), bar, f"{row.share:4.0%}", f"{row.done:,}"
            )
        numbers: list[str] = []
        states = Table(box=None, pad_edge=False, padding=(0, 1))
        for title, number in _balance_parts(picture.put, picture.group):
            states.add_column(title, header_style="dim", justify="right")
            numbers.append(f"{number:,}")
        states.add_row(*numbers, style="bold")
        return Panel(
            Group(
                table,
                "",
                states,
                "",
                Text("\n".join(self._events[-12:]), overflow="ellipsis", no_wrap=True),
            ),
            title=f"diskq demo: {picture.files:,} files, {picture.seconds:.1f} s",
            title_align="left",
            border_style="dim",
            width=min(self._live.console.width, 110),
        )


View = Plain | Live


def choose(every_seconds: float) -> View:
    """The live view if there is a terminal and rich (`pip install diskq[tui]`)."""
    if sys.stdout.isatty():
        try:
            from rich.console import Console
        except ImportError:
            return Plain(every_seconds)
        console = Console()
        if console.is_terminal and not console.is_dumb_terminal:
            return Live(console)
    return Plain(every_seconds)
