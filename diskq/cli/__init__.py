"""The command line: `diskq [-s STORE] VERB ...`.

Each family of verbs has a module, imported only when one of its verbs is used, so that a `put` from
cron starts fast. Every failure ends in `_report`: one line on stderr, one exit code.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from typing import NoReturn

import click

from diskq import Busy, DiskFailed, DiskqError, Empty, Full, LeaseLost, NoPermission, __version__

from . import output
from .common import Options, busy_option
from .stopping import Stopped, die_of, end_of, signals

ERROR, USAGE, NO_PERMISSION = 1, 2, 77
EXIT_CODES = (  # the first that fits; `verify` ends with 5 if it found damage
    (click.UsageError, USAGE),
    (ValueError, USAGE),  # an argument that the core refused
    (Empty, 3),
    (LeaseLost, 4),
    (DiskFailed, 74),
    (Busy, 75),
    (Full, 75),
    (NoPermission, NO_PERMISSION),
    (DiskqError, ERROR),
    (click.ClickException, ERROR),
    (PermissionError, NO_PERMISSION),
    (OSError, ERROR),
)
_HINTS = {errno.EMFILE: "; allow this process more of them: ulimit -n 1024"}

VERBS = {  # verb: its module and name there, and a line of help
    "put": ("putting.put", "Store one message, or many."),
    "get": ("messages.get", "Take messages, print them and ack them."),
    "run": ("run.run", "Run a command for each message."),
    "peek": ("messages.peek", "Print stored messages without taking them."),
    "tail": ("messages.tail", "Print the last messages without taking them."),
    "info": ("store.info", "Show the store in numbers."),
    "topic": ("topics.topic", "List, show, create, change and remove topics."),
    "group": ("groups.group", "List, show, create, change and remove groups."),
    "dead": ("dead.dead", "List, show, redrive and remove dead letters."),
    "schedule": ("schedule.schedule", "List and cancel scheduled messages."),
    "consumer": ("store.consumer", "List live consumers."),
    "trim": ("care.trim", "Delete messages that no group of a topic needs any more."),
    "purge": ("care.purge", "Delete messages of a topic."),
    "verify": ("store.verify", "Check every invariant of the store."),
    "backup": ("recovery.backup", "Copy the store while it is in use."),
    "salvage": ("recovery.salvage", "Copy the sound part of a damaged store."),
    "demo": ("demo.demo", "Watch real processes share, crash and recover."),
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(".")
        command = getattr(importlib.import_module(f".{module}", __name__), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


@click.group(
    cls=_Verbs,
    subcommand_metavar="VERB ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "-s",
    "--store",
    metavar="STORE",
    envvar="DISKQ_STORE",
    help="Directory of the store. [or $DISKQ_STORE]",
)
@busy_option
@click.version_option(__version__, prog_name="diskq", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, store: str | None, busy: float | None) -> None:
    """A queue on disk, without a server.

    \b
    export DISKQ_STORE=/var/lib/my/queue      or give -s STORE each time
    diskq put mail hello                      creates the store and the topic
    diskq group create mail workers           creates a group, which starts at the first message
    diskq get mail -g workers                 prints hello
    diskq run mail -g workers -- ./send.sh    runs a command for each message that comes

    \b
    Exit codes: 0 done, 1 error, 2 usage, 3 nothing found, 4 lease lost, 5 damage found,
    74 disk failed, 75 full or busy: try later, 77 no permission, 130 interrupted,
    143 terminated.
    """
    ctx.obj = Options(store, busy)


def main() -> None:
    """Run this process's command line, then end the process."""
    _fill_standard_files()
    signals.catch()
    try:
        code = _invoke(sys.argv[1:])
    except Stopped as stopped:
        _end_of(stopped)
    except Exception as error:
        code = _report(error)
    signals.ignore()
    sys.exit(code)


def _end_of(stopped: Stopped) -> NoReturn:
    """End as the signal demands. Output that was not printed yet is dropped, since it may have no
    reader."""
    signals.let_go()
    notes = getattr(stopped, "__notes__", ())
    if notes or stopped.number == signal.SIGINT:
        output.error("; ".join([str(stopped), *notes]))
    end_of(stopped.number)


def _fill_standard_files() -> None:
    """Open files for a closed stdin, stdout or stderr, so that no file of the store gets their
    number, which any code may write to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


def _invoke(arguments: list[str]) -> int:
    if "_DISKQ_COMPLETE" in os.environ:  # a shell asks for completions
        cli.main(arguments, prog_name="diskq")
    try:
        with cli.make_context("diskq", arguments) as ctx:  # its end cleans up
            try:
                signals.raise_them()
                _run(ctx)
            finally:
                signals.note_them()
    except click.exceptions.Exit as done:
        return done.exit_code
    return 0


def _run(ctx: click.Context) -> None:
    try:
        cli.invoke(ctx)
    finally:
        if not signals.first:
            output.flush()


def _report(error: Exception) -> int:
    """Print the error in one line; returns its exit code."""
    signals.let_go()
    if isinstance(error, BrokenPipeError):  # the reader of our output has seen enough
        die_of(signal.SIGPIPE)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        output.errors(error.format_message().encode() + b"\n")
        return USAGE
    code = next((code for kind, code in EXIT_CODES if isinstance(error, kind)), None)
    if code is None:
        if sys.flags.dev_mode:
            raise error
        error.add_note(f"this is a bug, {type(error).__name__}; python -X dev -m diskq shows where")
    output.error("; ".join([_text(error), *getattr(error, "__notes__", ())]))
    return code or ERROR


def _text(error: Exception) -> str:
    match error:
        case click.NoSuchOption(option_name="-s" | "--store" as name):
            return f"No such option {name!r} here; it goes before the verb: diskq -s STORE put ..."
        case click.NoSuchOption(option_name=str(name)) if name[1:2].isdigit():
            way_out = "write -- before a leading minus"
            return f"No such option {name!r}; {way_out}: diskq put TOPIC -- {name}"
        case click.UsageError():
            text = error.format_message().rstrip(".")
            return f"{text}; see '{error.ctx.command_path} --help'" if error.ctx else text
        case UnicodeEncodeError():
            return f"{error.object!r} is not text in UTF-8"
        case OSError(filename=where, strerror=str(why)):
            hint = _HINTS.get(error.errno or 0, "")
            return f"{where}: {why}{hint}" if isinstance(where, str) else f"{why}{hint}"
    return str(error)
