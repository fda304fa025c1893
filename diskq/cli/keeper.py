"""A keeper: the process that starts the commands of one worker of `run`, and outlives a kill -9 of
`run` just long enough to end them.

The kernel can end a child with its parent (prctl(2), PR_SET_PDEATHSIG), but not the processes that
the child has started, and it counts the *thread* that forked as the parent. So each worker has a
keeper, forked before `run` has threads or a store: a process with one thread, which the kernel
makes the parent of all processes that its commands leave behind (PR_SET_CHILD_SUBREAPER). The end
of its socket tells the keeper that `run` is gone. A command ends with its keeper, too.

Another consumer may get a message as soon as its holder is dead, a moment before the command is
dead. So a keeper locks a byte for its message (for the key, if the group has an order by key) in
the file `slots`, far behind its content, and a command starts only when the one before has ended.

Requests: the environment of a command, with two files, its stdin and stderr; or a signal for it.
Replies: `started PID`, then `ended CODE`; or `failed ERRNO`.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

_SUBREAPER, _PDEATHSIG = 36, 1  # prctl(2)
_REQUEST_BYTES = 8192  # a key, and names
_PATIENCE_SECONDS = 10.0  # with the command before, if its holder was stopped and does not end it
_LOOK_MS = 10
_LOCKS = 2**62  # where the locks of commands begin in `slots`; 2**61 of them
_KEPT = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP


class Keeper:
    """The handle by which `run` uses a keeper. Created while the process has one thread; safe
    across threads."""

    def __init__(self, command: Sequence[str], slots: str) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _KEPT)
        try:
            self._pid = os.fork()
            if not self._pid:
                _be_keeper(other.detach(), mask, command, slots)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        other.close()

    def fileno(self) -> int:
        """The file that is readable when there is a reply."""
        return self._socket.fileno()

    def start(self, place: int, environment: Sequence[bytes], stdin: int, stderr: int) -> None:
        """Start the command, with NAME=VALUE added to its environment, once no other command has
        this `place`, a number below 2**61."""
        request = b"\0".join((b"%d" % place, *environment))
        socket.send_fds(self._socket, [request], [stdin, stderr])

    def signal(self, number: int) -> None:
        """Send a signal that ends the command to its process group. The reply comes when the whole
        group has ended. SIGKILL also ends processes that left the group."""
        with suppress(OSError):
            self._socket.send(b"%d" % number)

    def reply(self) -> tuple[str, int]:
        """Wait for a reply; returns ("gone", 0) if the keeper is gone."""
        try:
            word, _, number = self._socket.recv(_REQUEST_BYTES).decode().partition(" ")
        except ConnectionError:
            word = ""
        return (word, int(number)) if word else ("gone", 0)

    def close(self) -> None:
        """End the keeper, and a command that still runs."""
        self._socket.close()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _be_keeper(requests: int, mask: set[int], command: Sequence[str], slots: str) -> NoReturn:
    try:
        for file in map(int, os.listdir("/proc/self/fd")):
            if file > 2 and file != requests:  # so that other keepers see the end of their sockets
                with suppress(OSError):
                    os.close(file)
        for number in _KEPT:  # a command gets the default again, but ignored ones stay ignored
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _Keeping(socket.socket(fileno=requests), command, slots).serve()
    finally:
        os._exit(0)


class _Keeping:
    """The work of the keeper."""

    def __init__(self, requests: socket.socket, command: Sequence[str], slots: str) -> None:
        self._requests = requests
        self._command = command
        self._slots = slots
        self._pid = os.getpid()
        self._prctl = ctypes.CDLL(None).prctl
        self._prctl(_SUBREAPER, 1, 0, 0, 0)
        self._died, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self._leader = 0  # the command's process, and its group
        self._code: int | None = None  # its exit code, once it ended
        self._spared: set[int] = set()  # left behind by earlier commands
        self._file = -1

    def serve(self) -> None:
        """Start one command after the other, until `run` is gone."""
        while True:
            if not self._wait():
                continue
            request, files, _, _ = socket.recv_fds(self._requests, _REQUEST_BYTES, 2)
            if files:
                place, *environment = request.split(b"\0")
                self._handle(int(place), environment, files)
            elif not request:
                return

    def _handle(self, place: int, environment: list[bytes], files: list[int]) -> None:
        if self._lock(_LOCKS + place):
            reply = self._start(environment, files)
        else:
            reply = b"ended %d" % -signal.SIGTERM  # the request to end came before the start
        for file in files:
            os.close(file)
        if not reply:
            self._reply(b"started %d" % self._leader)
            reply = b"ended %d" % self._keep()
            self._leader = 0
        if self._file >= 0:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _LOCKS + place)
        self._reply(reply)

    def _reply(self, reply: bytes) -> None:
        with suppress(OSError):  # `run` is gone, which the next read of the socket shows
            self._requests.send(reply)

    def _lock(self, byte: int) -> bool:
        """Wait until no other command has the place; False if a request to end came meanwhile."""
        if self._file < 0:
            with suppress(OSError):
                self._file = os.open(self._slots, os.O_RDWR | os.O_CLOEXEC)
        until = time.monotonic() + _PATIENCE_SECONDS
        while self._file >= 0 and time.monotonic() < until:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                break
            except OSError:
                if self._wait(_LOOK_MS):
                    self._next_signal()
                    return False
        return True

    def _start(self, environment: list[bytes], files: list[int]) -> bytes:
        """Start the command; returns the reply if that failed."""
        self._spared = _children()
        given = dict(line.split(b"=", 1) for line in environment)
        try:
            process = subprocess.Popen(
                self._command,
                stdin=files[0],
                stderr=files[1],
                env=os.environb | given,
                process_group=0,  # a terminal's Ctrl-C is for `run`, which ends the commands
                preexec_fn=self._end_with_keeper,  # noqa: PLW1509 - there are no threads here
            )
        except OSError as error:
            return b"failed %d" % (error.errno or 0)
        self._leader, self._code = process.pid, None
        process.returncode = 0  # it is reaped here
        return b""

    def _end_with_keeper(self) -> None:
        self._prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._pid:  # the keeper died before that
            os._exit(1)

    def _keep(self) -> int:
        """Wait until the command ends; returns its exit code. Sends the signals that `run` asks
        for, and ends the command if `run` is gone."""
        told = False
        while self._code is None or (told and self._kill_group(0)):
            if not self._wait(_LOOK_MS if told else None):
                continue
            told = True
            number = self._next_signal()
            if number == signal.SIGKILL:
                self._end_all()
                return -number if self._code is None else self._code
            self._kill_group(number)
        return self._code

    def _wait(self, timeout_ms: int | None = None) -> bool:
        """Wait for a request, or for a child to end; returns whether there is a request."""
        poll = select.poll()
        poll.register(self._requests, select.POLLIN)
        poll.register(self._died, select.POLLIN)
        ready = [file for file, _ in poll.poll(timeout_ms)]
        if self._died in ready:
            os.read(self._died, _REQUEST_BYTES)
            self._reap()
        return self._requests.fileno() in ready

    def _next_signal(self) -> int:
        """The signal that `run` asks for. If `run` is gone, this ends the command and the
        keeper."""
        request = b""
        with suppress(ConnectionError):
            request = self._requests.recv(_REQUEST_BYTES)
        if not request:
            self._end_all()
            os._exit(0)
        return int(request)

    def _reap(self) -> None:
        """Note the children that ended, including adopted ones."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._note(*ended)

    def _note(self, pid: int, status: int) -> None:
        self._spared.discard(pid)
        if pid == self._leader:
            self._code = os.waitstatus_to_exitcode(status)

    def _kill_group(self, number: int) -> bool:
        """Send a signal to the command's process group; False if there is none."""
        try:
            os.killpg(self._leader, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # all its processes belong to other users
            pass
        return True

    def _end_all(self) -> None:
        """Kill all processes that the command started; children of children as the kernel makes
        them ours."""
        tried: set[int] = set()  # a process of another user cannot be killed
        while self._leader:
            self._kill_group(signal.SIGKILL)
            left = {self._leader} if self._code is None else set()
            left = (left | _children()) - self._spared - tried
            if not left:
                return
            for pid in left:
                tried.add(pid)
                with suppress(ProcessLookupError, PermissionError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    self._note(*os.waitpid(pid, 0))


def _children() -> set[int]:
    """The child processes of this process, which has one thread."""
    pid = os.getpid()
    with suppress(OSError), open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
        return set(map(int, file.read().split()))
    return set()
