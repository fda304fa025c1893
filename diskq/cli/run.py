"""run: a command for each message."""

from __future__ import annotations

import os
import select
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from queue import Empty as NothingYet
from queue import SimpleQueue

import click

from diskq import Busy, Closed, Consumer, DiskqError, Empty, LeaseLost, Message
from diskq.base import limits
from diskq.host import files

from . import output
from .common import find_group, group_option, open_store, store_path
from .keeper import Keeper
from .stopping import at_the_end, signals

FAILED = 1
REJECT, LATER = 65, 75  # exit codes of commands: EX_DATAERR and EX_TEMPFAIL of sysexits.h
_PAUSE_SECONDS = 1.0  # after a command said later: it is likely to say so again
_GRACE_SECONDS = 10.0  # from SIGTERM to SIGKILL
_CLEAN_UP_SECONDS = 30.0  # after SIGKILL, to give the messages back
_LOOK_SECONDS = 0.1
_TAIL_BYTES = 1500  # of a command's stderr, kept in the message's history
_PIPE_BYTES = 65536


@click.command()
@click.argument("topic")
@group_option
@click.option(
    "-j",
    "jobs",
    type=click.IntRange(1, limits.MAX_CONSUMERS),
    default=1,
    show_default=True,
    help="Run up to this many commands at once.",
)
@click.option("--once", is_flag=True, help="Handle the messages that are ready, then end.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def run(*, topic: str, group: str, jobs: int, once: bool, command: tuple[str, ...]) -> None:
    """Run a command for each message: `diskq run TOPIC [OPTIONS] -- COMMAND...`

    The command gets the body as its stdin, and in its environment DISKQ_STORE, DISKQ_TOPIC,
    DISKQ_GROUP, DISKQ_OFFSET, DISKQ_ATTEMPT, DISKQ_TOKEN and, if the message has one, DISKQ_KEY.
    The lease is extended while the command runs.

    \b
    The command's exit code settles the message:
      0   done
      75  later: the message is given back, and no attempt is counted; with --once no further
          message is taken, and the exit code is 75, too
      65  rejected: the message is a dead letter at once
      any other, or a signal: failed; the message comes again after a while, and is a dead letter
          in the end

    Ctrl-C, SIGTERM and SIGHUP stop `run`: each command and its process group get SIGTERM, and after
    10 seconds SIGKILL; then their messages are given back, and no attempt is counted. Further
    signals do not change that. If `run` is killed with SIGKILL, its commands are killed, too, with
    all processes that they started. With --once the exit code is 3 if no message was ready, 75 if a
    command said later, else 1 if some failed or were rejected.

    \b
    diskq run mail -g workers -- ./send-mail.sh
    diskq run mail -g workers -j 4 --once -- sh -c 'curl --data-binary @- "$URL"'
    """
    if shutil.which(command[0]) is None:
        raise click.UsageError(f"there is no command {command[0]!r}; give its path")
    os.environ["DISKQ_STORE"] = place = os.path.abspath(store_path())
    os.environ.pop("DISKQ_KEY", None)
    keepers = []
    for _ in range(jobs):  # before there is a store or a thread, which a fork would break
        keepers.append(Keeper(command, os.path.join(place, files.SLOTS)))
        at_the_end(keepers[-1].close)
    store = open_store()
    at_the_end(store.close)
    found = find_group(store, topic, group)
    failed: set[int] = set()
    workers = [
        _Worker(found.consumer(f"run-{os.getpid()}-{number}"), keeper, command[0], once, failed)
        for number, keeper in enumerate(keepers)
    ]
    _work(workers)
    handled = sum(worker.handled for worker in workers)
    if not handled:
        raise Empty(f"no message is ready in group {group!r} of {topic!r}")
    _end(workers, handled, failed)


def _end(workers: Sequence[_Worker], handled: int, failed: set[int]) -> None:
    """Report failures, and set the exit code."""
    if failed:
        output.error(f"{len(failed)} of {handled} messages failed or were rejected")
    if any(worker.said_later for worker in workers):
        click.get_current_context().exit(LATER)
    if failed:
        click.get_current_context().exit(FAILED)


def _work(workers: Sequence[_Worker]) -> None:
    """Run the workers until all are done, one fails, or a signal comes; then end them all."""
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    with signals.waking() as (woken, wake):

        def tell(error: BaseException | None) -> None:
            ended.put(error)
            with suppress(BlockingIOError):  # there is something to read already
                os.write(wake, b"\0")

        for worker in workers:
            threading.Thread(target=worker.work, args=[tell], daemon=True).start()
        error: BaseException | None = None
        left = len(workers)
        while left and error is None and not signals.first:
            select.select([woken], [], [])
            with suppress(BlockingIOError):
                os.read(woken, _PIPE_BYTES)
            with suppress(NothingYet):
                while error is None:
                    error = ended.get_nowait()
                    left -= 1
        _stop(workers)
    if error is not None:
        raise error


def _stop(workers: Sequence[_Worker]) -> None:
    """End the commands and the workers. No signal can prevent that."""
    signals.limit(_GRACE_SECONDS + _CLEAN_UP_SECONDS)
    until = time.monotonic() + _GRACE_SECONDS
    for number in (signal.SIGTERM, signal.SIGKILL):
        for worker in workers:
            worker.end_command(number)
        for worker in workers:
            worker.end_wait()
        for worker in workers:
            late = number == signal.SIGKILL
            worker.over.wait(None if late else max(until - time.monotonic(), 0))


class _Worker:
    """Handles one message after the other, with a separate thread and consumer."""

    def __init__(
        self, consumer: Consumer, keeper: Keeper, command: str, once: bool, failed: set[int]
    ) -> None:
        self.handled = 0
        self.said_later = False
        self.over = threading.Event()
        self._consumer = consumer
        self._keeper = keeper
        self._command = command
        self._once = once
        self._failed = failed  # offsets, of all workers, with `once`
        self._settings = consumer.group.settings
        self._stopping = threading.Event()
        self._starting = threading.Lock()  # from looking at _stopping to having a command
        self._running = False  # a command runs, or its message is not settled yet

    def end_command(self, number: int) -> None:
        """Take no further message, and send a signal to the command, if one runs."""
        with self._starting:
            self._stopping.set()
            if self._running:
                self._keeper.signal(number)

    def end_wait(self) -> None:
        """End the wait for a message; after `end_command`."""
        if not self._running:
            self._consumer.close()

    def work(self, tell: Callable[[BaseException | None], None]) -> None:
        """The work of the thread; calls `tell` at the end, with the error if there was one."""
        error: BaseException | None = None
        try:
            with self._consumer:
                while not self._stopping.is_set():
                    self._take_one()
        except Empty:
            pass
        except BaseException as caught:
            if not (isinstance(caught, Closed) and self._stopping.is_set()):
                error = caught
        tell(error)
        self.over.set()

    def _take_one(self) -> None:
        """Take a message and handle it.

        Raises: Empty.
        """
        later = False
        try:
            with self._consumer.get(block=not self._once) as message:
                self.handled += message.offset not in self._failed
                try:
                    later = self._handle(message)
                except (OSError, _NotStarted) as error:
                    self._settle(message.release)
                    why = getattr(error, "strerror", None) or error
                    raise DiskqError(f"cannot start {self._command!r}: {why}") from error
        except LeaseLost as error:
            output.error(str(error))
        finally:
            self._running = False
        if later:
            self.said_later = True
            if self._once:
                raise Empty("the command said later")

    def _handle(self, message: Message) -> bool:
        """Run the command and settle the message; returns whether the command said later."""
        if message.key and "\0" in message.key:
            self._settle(lambda: message.reject("its key has a NUL, which no environment can hold"))
            self._note(message, failed=True)
            return False
        with self._starting:
            if self._stopping.is_set():
                message.release()
                return False
            command = self._start(message)
            self._running = True
        try:
            self._attend(message, command)
        finally:
            command.close()
        code = command.code or 0
        what = f"exit status {code}" if code >= 0 else f"killed by signal {-code}"
        said = command.said.decode(errors="replace").strip()
        why = f"{what}: {said}" if said else what
        if code == 0:
            self._settle(message.ack)
            self._note(message, failed=False)
        elif code == REJECT:
            self._settle(lambda: message.reject(why))
            self._note(message, failed=True)
        elif self._stopping.is_set():
            self._settle(message.release)
        elif code == LATER:
            self._settle(lambda: message.release(_PAUSE_SECONDS))  # others go first
        else:
            self._settle(lambda: message.nack(error=why))
            self._note(message, failed=True)
            output.error(f"attempt {message.attempt} of message {message.offset} failed: {what}")
        return code == LATER

    def _settle(self, settle: Callable[[], None]) -> None:
        """Settle a message whose command has ended, even if other writers keep the store busy: the
        work must not be done again because of that."""
        while True:
            try:
                return settle()
            except Busy as error:
                if self._stopping.is_set():
                    self._consumer.close()  # which gives the message back
                    raise Closed("it was stopped before it could settle a message") from error
                output.error(str(error))

    def _note(self, message: Message, *, failed: bool) -> None:
        """Note whether a message failed. It may be tried again."""
        if failed and self._once:
            self._failed.add(message.offset)
        else:
            self._failed.discard(message.offset)

    def _start(self, message: Message) -> _Command:
        meta = {
            "DISKQ_TOPIC": message.topic,
            "DISKQ_GROUP": message.group,
            "DISKQ_OFFSET": str(message.offset),
            "DISKQ_ATTEMPT": str(message.attempt),
            "DISKQ_TOKEN": str(message.token),
            **({} if message.key is None else {"DISKQ_KEY": message.key}),
        }
        environment = [f"{name}={value}".encode() for name, value in meta.items()]
        with tempfile.TemporaryFile() as body:  # not a pipe, which would want to be fed
            body.write(message.body)
            body.seek(0)
            reading, writing = os.pipe()
            try:
                self._keeper.start(self._place(message), environment, body.fileno(), writing)
            except BaseException:
                os.close(reading)
                raise
            finally:
                os.close(writing)
        return _Command(self._keeper, reading)

    def _place(self, message: Message) -> int:
        """The place of a message, or of its key: only one command runs in a place at a time."""
        ordered = self._settings.ordering == "key" and message.key is not None
        what = f"key {message.key}" if ordered else f"offset {message.offset}"
        text = f"{message.topic}\0{message.group}\0{what}".encode()
        return int.from_bytes(blake2b(text, digest_size=8).digest()) >> 3

    def _attend(self, message: Message, command: _Command) -> None:
        """Extend the lease until the command ends. If the lease is lost, end the command: another
        consumer has its message now."""
        every = self._settings.lease_seconds / 3
        extend_at = time.monotonic() + every
        try:
            while not command.wait(extend_at - time.monotonic()):
                if time.monotonic() >= extend_at:
                    with suppress(Busy):  # then no other consumer can take the message, either
                        message.extend()
                    extend_at = time.monotonic() + every
        except DiskqError:
            command.end()
            raise


class _Command:
    """A running command, as its worker sees it. Its stderr is passed on."""

    def __init__(self, keeper: Keeper, stderr: int) -> None:
        self.code: int | None = None  # its exit code, once it ended
        self.said = b""  # the tail
        self._keeper = keeper
        self._stderr = stderr
        self._poll = select.poll()
        self._poll.register(keeper, select.POLLIN)
        self._poll.register(stderr, select.POLLIN)
        self._pid = 0

    def wait(self, seconds: float) -> bool:
        """Wait for news, at most this many seconds; returns whether the command has ended.

        Raises: _NotStarted.
        """
        ready = [file for file, _ in self._poll.poll(1000 * max(seconds, 0))]
        if self._stderr in ready:
            self._pass_on()
        if self._keeper.fileno() in ready:
            word, number = self._keeper.reply()
            if word == "started":
                self._pid = number
            elif word == "ended":
                if self._stderr in [file for file, _ in self._poll.poll(0)]:
                    self._pass_on()  # the rest; a process that it started may keep the pipe open
                self.code = number
            elif word == "failed":
                raise _NotStarted(os.strerror(number))
            else:
                if self._pid:  # the kernel has ended it, but not its group
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(self._pid, signal.SIGKILL)
                raise _NotStarted("the process that starts commands is gone")
        return self.code is not None

    def end(self) -> None:
        """End the command, and wait until it has ended."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._keeper.signal(number)
            until = time.monotonic() + _GRACE_SECONDS
            while number == signal.SIGKILL or time.monotonic() < until:
                if self.wait(max(until - time.monotonic(), _LOOK_SECONDS)):
                    return

    def close(self) -> None:
        """Stop listening to the command."""
        os.close(self._stderr)

    def _pass_on(self) -> None:
        data = os.read(self._stderr, _PIPE_BYTES)
        output.errors(data)
        self.said = (self.said + data)[-_TAIL_BYTES:]
        if not data:  # it closed its stderr
            self._poll.unregister(self._stderr)


class _NotStarted(Exception):
    """A command did not start, or its keeper is gone."""
