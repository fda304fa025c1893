"""`diskq demo`: real processes do real work, one of them is killed, and the last line is a verdict.

Two producers put the path of every .py file of Python's standard library; consumers hash the files.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

import diskq

from . import demo_view
from .demo_play import Demo, Pace, shares
from .demo_verdict import judge
from .demo_work import TOPIC, DemoFailed


@contextmanager
def work_folder(*, keep: bool) -> Iterator[Path]:
    """A temporary folder, removed at the end unless `keep`."""
    if keep:
        yield Path(tempfile.mkdtemp(prefix="diskq-demo-"))
        return
    with tempfile.TemporaryDirectory(prefix="diskq-demo-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def run(pace: Pace, view: demo_view.View, folder: Path, store_path: Path) -> bool:
    """Play the demo, then print the result and the verdict; returns whether it is PASS."""
    with ExitStack() as stack:
        stack.callback(view.close)
        store = stack.enter_context(diskq.open(store_path))
        if any(topic.name == TOPIC for topic in store.topics()):
            raise click.UsageError(f"{store_path} has been used before; choose a new directory")
        demo = Demo(store, folder, pace, view, stack)
        try:
            outcome = demo.play()
            wrong = judge(outcome)
        except DemoFailed as error:
            outcome, wrong = None, [str(error)]
        seconds = time.monotonic() - demo.started
    if outcome is not None:
        click.echo()
        click.echo(f"shares: {shares(demo.done)}; side by side {shares(demo.side_by_side)}")
        click.echo(f"kill -9 to redelivery: {1000 * (outcome.redelivery_seconds or 0):.0f} ms")
        click.echo(f"verify: {len(outcome.findings)} findings")
        click.echo(demo_view.balance(outcome.put, outcome.group))
    for problem in wrong[:10]:
        click.echo(f"wrong: {problem}")
    if wrong:
        click.echo(f"FAIL: {len(wrong)} things are wrong, in {seconds:.1f} s")
    else:
        click.echo(f"PASS: all {len(demo.files):,} digests are right, in {seconds:.1f} s")
    return not wrong


@click.command()
@click.option("--fast", is_flag=True, help="Every fourth file, in about 6 s instead of 20.")
@click.option("--keep", is_flag=True, help="Keep the store, and print its path.")
@click.option(
    "--store",
    "directory",
    type=click.Path(path_type=Path),
    help="Create the store in this new directory, and keep it.",
)
def demo(fast: bool, keep: bool, directory: Path | None) -> None:
    """Watch real processes share, crash and recover; the last line is PASS or FAIL.

    Two producers put the path of every .py file of Python's standard library. CA hashes them
    alone, then CB and CC join. CB is killed in the middle of a message and comes back. One file
    is missing: its message becomes a dead letter, and is redriven once the file exists. In the
    end every digest must equal the one computed without a queue.

    \b
    diskq demo
    diskq demo --fast
    diskq demo --store /tmp/look && diskq -s /tmp/look info
    """
    pace = Pace(feed=5.0, alone=1.0, away=0.5, every_file=4, line=1.0) if fast else Pace()
    with work_folder(keep=keep and directory is None) as folder:
        store_path = directory or folder / "store"
        try:
            passed = run(pace, demo_view.choose(pace.line), folder, store_path)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        finally:
            if keep or directory:
                click.echo(f"the store is kept in {store_path}", err=True)
    raise SystemExit(0 if passed else 1)


if __name__ == "__main__":
    demo()
