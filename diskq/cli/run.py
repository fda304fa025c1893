"""run: a command for each message."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue

import click

from diskq import Closed, Consumer, DiskqError, Empty, LeaseLost, Message

from . import output
from .common import find_group, group_option, open_store, stop_on_signals

FAILED = 1
REJECT, LATER = 65, 75  # exit codes of commands: EX_DATAERR and EX_TEMPFAIL of sysexits.h
_PAUSE_SECONDS = 1.0  # after a command said later: it is likely to say so again
_GRACE_SECONDS = 10.0  # from SIGTERM to SIGKILL
_LOOK_SECONDS = 1.0  # how often to look whether a command ended that left its stderr to others
_TAIL_BYTES = 1500  # of a command's stderr, kept in the message's history
_PIPE_BYTES = 65536


@click.command()
@click.argument("topic")
@group_option
@click.option("-j", "jobs", type=click.IntRange(1), default=1, help="Commands at once.")
@click.option("--once", is_flag=True, help="Handle what is there, then end.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def run(*, topic: str, group: str, jobs: int, once: bool, command: tuple[str, ...]) -> None:
    """Run a command for each message: `diskq run TOPIC [OPTIONS] -- COMMAND...`

    The body is its stdin; its environment has DISKQ_STORE, DISKQ_TOPIC, DISKQ_GROUP, DISKQ_OFFSET,
    DISKQ_ATTEMPT, DISKQ_TOKEN and, if the message has one, DISKQ_KEY. The lease is extended while
    it runs.

    \b
    Its exit code settles the message:
      0   done
      75  later: given back, not counted as failed; with --once all ends, with 75 too
      65  rejected: a dead letter at once
      else, or a signal: failed; it comes again after a while, at last it is a dead letter

    Ctrl-C and SIGTERM end the commands, and give their messages back. With --once the exit code is
    3 if no message was there, 75 if a command said later, else 1 if some failed or were rejected.

    \b
    diskq run mail -g workers -- ./send-mail.sh
    diskq run mail -g workers -j 4 --once -- sh -c 'curl --data-binary @- "$URL"'
    """
    if shutil.which(command[0]) is None:
        raise click.UsageError(f"there is no command {command[0]!r}; give its path")
    stop_on_signals()
    with open_store() as store:
        os.environ["DISKQ_STORE"] = os.path.abspath(store.path)
        os.environ.pop("DISKQ_KEY", None)
        found = find_group(store, topic, group)
        failed: set[int] = set()
        workers = [
            _Worker(found.consumer(f"run-{os.getpid()}-{number}"), command, once, failed)
            for number in range(jobs)
        ]
        _work(workers)
    handled = sum(worker.handled for worker in workers)
    if not handled:
        raise Empty(f"no message is ready in group {group!r} of {topic!r}")
    if failed:
        output.error(f"{len(failed)} of {handled} messages failed or were rejected")
    if any(worker.said_later for worker in workers):
        click.get_current_context().exit(LATER)
    if failed:
        click.get_current_context().exit(FAILED)


def _work(workers: Sequence[_Worker]) -> None:
    """Let the workers work until all are done, one fails, or a signal comes; then end them all."""
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    try:
        for worker in workers:
            threading.Thread(target=worker.work, args=[ended], daemon=True).start()
        for _ in workers:
            if error := ended.get():
                raise error
    finally:
        for worker in workers:
            worker.stop(signal.SIGTERM)
        until = time.monotonic() + _GRACE_SECONDS
        try:
            for worker in workers:
                worker.over.wait(max(until - time.monotonic(), 0))
        finally:  # the grace is over, or a second Ctrl-C came
            for worker in workers:
                worker.stop(signal.SIGKILL)
            for worker in workers:
                worker.over.wait()


class _Worker:
    """Handles one message after the other, in a thread and with a consumer of its own."""

    def __init__(
        self, consumer: Consumer, command: Sequence[str], once: bool, failed: set[int]
    ) -> None:
        self.handled = 0
        self.said_later = False
        self.over = threading.Event()
        self._consumer = consumer
        self._command = command
        self._once = once
        self._failed = failed  # offsets, of all workers, with `once`
        self._lease_seconds = consumer.group.settings.lease_seconds
        self._stopping = threading.Event()
        self._starting = threading.Lock()  # from looking at _stopping to having a process
        self._process: subprocess.Popen[bytes] | None = None  # while a message is handled

    def stop(self, signal_number: int) -> None:
        """Take no further message; send the signal to the command, and to all that it started."""
        with self._starting:
            self._stopping.set()
            process = self._process
        if process is None:
            self._consumer.close()  # its get ends
        else:
            _signal(process, signal_number)

    def work(self, ended: SimpleQueue[BaseException | None]) -> None:
        """What the thread does; tells `ended` when it is done, and what went wrong."""
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
        self.over.set()
        ended.put(error)

    def _take_one(self) -> None:
        """Take a message and handle it.

        Raises: Empty.
        """
        later = False
        try:
            with self._consumer.get(block=not self._once) as message:
                self.handled += message.offset not in self._failed
                later = self._handle(message)
        except LeaseLost as error:
            output.error(str(error))
        finally:
            self._process = None
        if later:
            self.said_later = True
            if self._once:
                raise Empty("the command said later")
            self._stopping.wait(_PAUSE_SECONDS)

    def _handle(self, message: Message) -> bool:
        """Run the command and settle the message; whether the command said later."""
        if message.key and "\0" in message.key:
            message.reject("its key has a NUL, which no environment can hold")
            self._note(message, failed=True)
            return False
        with self._starting:
            if self._stopping.is_set():
                message.release()
                return False
            process = self._process = self._start(message)
        try:
            said = self._attend(message, process)
        finally:
            _end(process)
        code = process.returncode
        what = f"exit status {code}" if code >= 0 else f"killed by signal {-code}"
        why = ": ".join(filter(None, [what, said.decode(errors="replace").strip()]))
        if code == 0:
            message.ack()
            self._note(message, failed=False)
        elif code == REJECT:
            message.reject(why)
            self._note(message, failed=True)
        elif code == LATER or self._stopping.is_set():
            message.release()
        else:
            message.nack(error=why)
            self._note(message, failed=True)
            output.error(f"attempt {message.attempt} of message {message.offset} failed: {what}")
        return code == LATER

    def _note(self, message: Message, *, failed: bool) -> None:
        """What became of a message, so far: it may be tried again."""
        if failed and self._once:
            self._failed.add(message.offset)
        else:
            self._failed.discard(message.offset)

    def _start(self, message: Message) -> subprocess.Popen[bytes]:
        meta = {
            "DISKQ_TOPIC": message.topic,
            "DISKQ_GROUP": message.group,
            "DISKQ_OFFSET": str(message.offset),
            "DISKQ_ATTEMPT": str(message.attempt),
            "DISKQ_TOKEN": str(message.token),
            **({} if message.key is None else {"DISKQ_KEY": message.key}),
        }
        try:
            with tempfile.TemporaryFile() as body:  # not a pipe, which would want to be fed
                body.write(message.body)
                body.seek(0)
                return subprocess.Popen(
                    self._command,
                    stdin=body,
                    stderr=subprocess.PIPE,
                    env=os.environ | meta,
                    process_group=0,  # a terminal's Ctrl-C is for us: we say when commands end
                )
        except OSError as error:
            message.release()
            raise DiskqError(f"cannot start {self._command[0]!r}: {error.strerror}") from error

    def _attend(self, message: Message, process: subprocess.Popen[bytes]) -> bytes:
        """Until the command ends, pass on what it says on stderr, and extend the lease. Returns the
        tail of what it said."""
        assert process.stderr is not None
        poll = select.poll()
        poll.register(process.stderr, select.POLLIN)
        every = self._lease_seconds / 3
        extend_at = time.monotonic() + every
        said, data = b"", b"something"
        while process.poll() is None:
            left = max(extend_at - time.monotonic(), 0)
            if not data:  # it closed its stderr
                with suppress(subprocess.TimeoutExpired):
                    process.wait(left)
            elif poll.poll(1000 * min(left, _LOOK_SECONDS)):
                data = _pass_on(process)
                said = (said + data)[-_TAIL_BYTES:]
            if time.monotonic() >= extend_at:
                message.extend()
                extend_at = time.monotonic() + every
        if data and poll.poll(0):  # the rest; what it started may keep the pipe open
            said += _pass_on(process)
        return said[-_TAIL_BYTES:]


def _pass_on(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stderr is not None
    data = os.read(process.stderr.fileno(), _PIPE_BYTES)
    output.errors(data)
    return data


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command that still runs: its message is somebody else's now."""
    assert process.stderr is not None
    process.stderr.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            _signal(process, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_SECONDS)
