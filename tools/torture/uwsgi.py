"""Serve a queue from uWSGI, which forks in C behind Python's back, kill its workers, and compare.

    python3 tools/dev.py torture uwsgi                     builds uWSGI in a temporary environment
    python3 tools/dev.py torture uwsgi --uwsgi DIR/bin/uwsgi --requests 10000

The application opens the store, and puts, when it is imported: in the master. Its workers are forks
of that, without Python's hooks (prefork, as by default: no --lazy-apps, no --py-call-osafterfork).
They put for each request, or get and ack, or ask for numbers. Some are killed with kill -9. A
second application is mounted in a second interpreter of the same process, where py-lmdb cannot
work. The rules: each put that was answered is stored once, nothing that was acked comes again,
few readers are left, and the second application is refused in words, and has touched nothing.

Exit code 0: all is well; 1: something is wrong; 2: usage.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import tomllib
import venv
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import diskq

ROOT = Path(__file__).resolve().parents[2]

Answer = tuple[str, str, int, str]  # verb, body, status (0: the connection was cut), text

CLIENTS = 4
KILL_SECONDS = 1.0, 3.0  # between two kills
MOST_READERS = 16  # one for each process that reads now, and those of the dead until a look
ALL_READERS = 1024  # LMDB has no place for another one, so nobody can read
START_SECONDS = 60.0
APPLICATION = """
import os, sys, diskq
store = diskq.open(sys.argv[1] if len(sys.argv) > 1 else os.environ["STORE"], create=False)
topic = store.topic("t")
group = topic.group("g")
topic.put(b"import")
consumers = {}

def application(environ, start_response):
    verb, _, body = environ["PATH_INFO"].strip("/").partition("/")
    status = "200 OK"
    try:
        if verb == "put":
            topic.put(body.encode())
        elif verb == "work":
            pid = os.getpid()
            if pid not in consumers:
                consumers[pid] = group.consumer()
            message = consumers[pid].get(timeout=0)
            body = message.body.decode()
            message.ack()
        elif verb == "look":
            body = str(topic.stats().put)
    except diskq.Empty:
        status, body = "404 Nothing there", ""
    except BaseException as error:
        status, body = "500 Failed", repr(error)
    start_response(status, [("Content-Type", "text/plain")])
    return [body.encode()]
"""
SECOND = """
import os
try:
    import diskq
    store = diskq.open(os.environ["STORE"], create=False)
    store.topic("t").put(b"second interpreter")
    text = "opened"
except BaseException as error:
    text = f"{type(error).__name__}: {error}"

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]
"""


class Server:
    """uWSGI with both applications."""

    def __init__(self, uwsgi: Path, folder: Path) -> None:
        self.folder = folder
        (folder / "app.py").write_text(APPLICATION)
        (folder / "second.py").write_text(SECOND)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [str(uwsgi), "--http-socket", f"127.0.0.1:{self.port}", "--master"]
        command += ["--processes", "4", "--wsgi-file", "app.py", "--mount", "/second=second.py"]
        command += ["--manage-script-name", "--need-app", "--disable-logging", "--die-on-term"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "STORE": str(folder / "store")}
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log
            )

    def wait(self) -> None:
        """Until it answers."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(OSError, http.client.HTTPException):
                if ask(self.port, "/hello")[0] == 200:
                    return
            time.sleep(0.05)
        raise SystemExit("uwsgi: the server did not start\n" + self.log())

    def log(self) -> str:
        """The end of its log."""
        return (self.folder / "log").read_text(errors="replace")[-3000:]

    def workers(self) -> list[int]:
        """The pids of its workers."""
        master = self.process.pid
        with suppress(OSError):
            text = Path(f"/proc/{master}/task/{master}/children").read_text()
            return [int(pid) for pid in text.split()]
        return []

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def ask(port: int, path: str) -> tuple[int, str]:
    """One request, on a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def client(port: int, name: str, requests: int, path: Path) -> None:
    """Puts, gets and looks in turn; what came of them goes to a file."""
    lines = []
    for number in range(requests):
        verb = ("put", "work", "look")[number % 3]
        body = f"{name}-{number}" if verb == "put" else ""
        try:
            status, text = ask(port, f"/{verb}/{body}")
        except (OSError, http.client.HTTPException) as error:
            status, text = 0, type(error).__name__
        lines.append([verb, body, status, text])
    path.write_text(json.dumps(lines))


def run_clients(server: Server, options: argparse.Namespace) -> tuple[list[Answer], int, int]:
    """All requests, while workers are killed: the answers, how many were killed, and the most
    readers seen."""
    chance = random.Random(options.seed)
    pids = []
    for number in range(CLIENTS):
        pid = os.fork()
        if pid == 0:
            try:
                path = server.folder / f"client-{number}"
                client(server.port, f"client-{number}", options.requests // CLIENTS, path)
            finally:
                os._exit(0)
        pids.append(pid)
    kills = readers = 0
    with diskq.open(server.folder / "store", create=False) as store:
        kill_at = time.monotonic() + chance.uniform(*KILL_SECONDS)
        while pids:
            time.sleep(0.05)
            try:
                readers = max(readers, store.stats().readers)
            except diskq.Unsupported:
                readers = ALL_READERS
            if time.monotonic() > kill_at and (workers := server.workers()):
                kill_at = time.monotonic() + chance.uniform(*KILL_SECONDS)
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(workers), signal.SIGKILL)
                    kills += 1
            pids = [pid for pid in pids if os.waitpid(pid, os.WNOHANG)[0] == 0]
    answers: list[Answer] = []
    for path in server.folder.glob("client-*"):
        answers += [tuple(each) for each in json.loads(path.read_text())]
    return answers, kills, readers


def judge(path: Path, answers: list[Answer]) -> list[str]:
    """Compare the answers with the store; returns what is wrong."""
    problems = []
    put = {body for verb, body, status, _ in answers if verb == "put" and status == 200}
    tried = {body for verb, body, _, _ in answers if verb == "put"}
    done = Counter(text for verb, _, status, text in answers if verb == "work" and status == 200)
    errors = Counter(text for _, _, status, text in answers if status == 500)
    problems += [f"error: {count} times {text[:200]}" for text, count in errors.items()]
    with diskq.open(path, create=False) as store:
        stored = Counter(each.body.decode() for each in store.topic("t").read())
        left: Counter[str] = Counter()
        with store.topic("t").group("g").consumer() as consumer:
            while messages := consumer.get_many(1000, timeout=0):
                left.update(each.body.decode() for each in messages)
                consumer.ack_many(messages)
        problems += [f"verify: {each.where}: {each.problem}" for each in store.verify()]
        if (readers := store.stats().readers) > MOST_READERS:
            problems.append(f"readers: {readers} are left")
    lost = put - stored.keys()
    twice = [body for body, count in stored.items() if count > 1]
    again = [body for body, count in done.items() if count > 1 or body in left]
    foreign = stored.keys() - tried - {"import"}
    for what, bodies in (
        ("lost", lost),
        ("doubled", twice),
        ("acked, and came again", again),
        ("unexpected", foreign),
    ):
        if bodies:
            problems.append(f"{what}: {len(bodies)}, as {min(bodies)}")
    return problems


def drill(uwsgi: Path, folder: Path, options: argparse.Namespace) -> list[str]:
    """All of it; what is wrong."""
    with diskq.open(folder / "store", durability=options.durability) as store:
        topic = store.topic("t", retention="limits")
        topic.group("g", lease_seconds=3600, max_deliveries=1000, backoff=diskq.Backoff(0))
        before = store.stats().commit_id
    began = time.monotonic()
    server = Server(uwsgi, folder)
    try:
        server.wait()
        with diskq.open(folder / "store", create=False) as store:
            commits = store.stats().commit_id - before
        refused = ask(server.port, "/second")[1]
        answers, kills, readers = run_clients(server, options)
    finally:
        server.stop()
    seconds = time.monotonic() - began
    problems = judge(folder / "store", answers)
    if not refused.startswith("Unsupported"):
        problems.append(f"second interpreter: {refused[:200]}")
    if commits != 1:
        problems.append(f"second interpreter: {commits} commits until the first request, not 1")
    if readers > MOST_READERS:
        problems.append(f"readers: {readers} at a time")
    counts = Counter(status for _, _, status, _ in answers)
    works = sum(verb == "work" and status == 200 for verb, _, status, _ in answers)
    print(
        f"requests {len(answers)}, answered {counts[200] + counts[404]}, cut off by kills"
        f" {counts[0]}, failed {counts[500]}; got and acked {works}; workers killed {kills}; most"
        f" readers {readers}; {len(answers) / seconds:.0f} requests a second"
    )
    print(f"second interpreter: {refused[:300]}")
    if problems and options.verbose:
        print(server.log())
    return problems


def build(folder: Path) -> Path:
    """Build uWSGI, with what diskq needs beside it."""
    print("building uWSGI: this takes a minute ...", flush=True)
    venv.create(folder, with_pip=True, symlinks=True)
    with (ROOT / "pyproject.toml").open("rb") as file:
        needed = tomllib.load(file)["project"]["dependencies"]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "uwsgi", *needed], check=True)
    return folder / "bin" / "uwsgi"


def main(arguments: Sequence[str]) -> int:
    """The drill."""
    parser = argparse.ArgumentParser(
        prog="torture uwsgi",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--uwsgi", type=Path, help="the program, in an environment with lmdb and click")
    add("--requests", type=int, default=10_000)
    add("--durability", default="relaxed", choices=("commit", "relaxed", "process"))
    add("--seed", type=int, default=1)
    add("--verbose", action="store_true", help="show the server's log if something is wrong")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="diskq-uwsgi-"))
    try:
        uwsgi = options.uwsgi.absolute() if options.uwsgi else build(folder / "environment")
        problems = drill(uwsgi, folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(*problems[:20], sep="\n")
    print(f"wrong {len(problems)}")
    return 1 if problems else 0
