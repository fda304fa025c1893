"""A user at a shell: real processes, on a store of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import diskq

# Without `site` each process starts faster: what is installed beside diskq may hook into it.
DISKQ = [sys.executable, "-S", "-m", "diskq"]
PATH = os.pathsep.join([str(Path(diskq.__file__).parent.parent), *sys.path])
DEADLINE_SECONDS = 100.0  # so that a slow machine is no failure


class Shell:
    """Runs `diskq` on one store; a test's deadline ends what hangs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.damaged = False  # on purpose: then it is not verified in the end
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("DISKQ_")},
            "PYTHONPATH": PATH,
            "DISKQ_STORE": str(self.store),
        }

    def run(
        self, *arguments: str | bytes, code: int = 0, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a verb to its end, which must have this exit code, and at most one line of error."""
        options = {"input": b"", "capture_output": True, "env": self.environment, **options}
        command = [*DISKQ, *arguments]
        done = subprocess.run(
            command, cwd=self.directory, timeout=DEADLINE_SECONDS, check=False, **options
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        assert b"Traceback" not in (done.stderr or b"")
        return done

    def out(self, *arguments: str | bytes, **options: Any) -> str:
        """What a verb that succeeds prints."""
        return self.run(*arguments, **options).stdout.decode()

    def json(self, *arguments: str, **options: Any) -> list[dict[str, Any]]:
        """The records that a verb prints."""
        return [json.loads(line) for line in self.out(*arguments, "--json", **options).splitlines()]

    def error(self, *arguments: str | bytes, code: int, **options: Any) -> str:
        """The one line that a verb which fails prints on stderr."""
        text = self.run(*arguments, code=code, **options).stderr.decode()
        assert text.startswith("diskq: ")
        assert text.count("\n") == 1
        return text

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a verb; it is killed when the test ends."""
        pipe = subprocess.PIPE
        options = {"stdout": pipe, "stderr": pipe, "env": self.environment, **options}
        command = [*DISKQ, *arguments]
        process = subprocess.Popen(command, cwd=self.directory, **options)
        self.processes.append(process)
        return process

    def open(self) -> diskq.Store:
        """The store, through the library."""
        return diskq.open(self.store)

    def fill(self, *bodies: bytes, **settings: Any) -> None:
        """Put messages into topic `mail`, which has a group `workers`."""
        with self.open() as store:
            topic = store.topic("mail")
            topic.group("workers", **settings)
            topic.put_many(bodies)

    def stats(self) -> diskq.GroupStats:
        """Group `workers` of topic `mail` in numbers."""
        with self.open() as store:
            return store.topic("mail").group("workers").stats()


def eventually(true: Callable[[], Any]) -> Any:
    """Wait until it is true, within the deadline."""
    until = time.monotonic() + DEADLINE_SECONDS
    while not (value := true()):
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.01)
    return value


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A user at a shell. The store is sound in the end."""
    shell = Shell(tmp_path)
    yield shell
    for process in shell.processes:
        process.kill()
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            pipe.close()
    if (shell.store / "data.mdb").exists() and not shell.damaged:
        with diskq.open(shell.store) as store:
            assert list(store.verify()) == []


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[[Callable[[], Any]], Any]:
    """`eventually`, for tests."""
    return eventually
