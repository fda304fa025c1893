"""Another process of the same store: what it sees there, and whether it can use it."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from typing import Any

import diskq

from .noise import GROUP, TOPIC
from .scenarios import RETRY

Telling = dict[str, Any]
_PASSING = "bytes", "last_put_ns", "segments", "settings"  # not what a verb promises


class Silent(Exception):
    """Nothing was heard before the deadline, or the process ended."""


class Line:
    """Lines of JSON to and from another process."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._rest = b""

    def tell(self, **telling: Any) -> None:
        """Send one line. Raises: Silent."""
        try:
            os.write(self._writing, json.dumps(telling).encode() + b"\n")
        except BrokenPipeError:
            raise Silent("it ended") from None

    def hear(self, seconds: float | None = None) -> Telling:
        """The next line. Raises: Silent."""
        until = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = None if until is None else max(until - time.monotonic(), 0)
            if not select.select([self._reading], [], [], left)[0]:
                raise Silent("nothing heard")
            data = os.read(self._reading, 1 << 16)
            if not data:
                raise Silent("it ended")
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        heard: Telling = json.loads(line)
        return heard

    def fileno(self) -> int:
        """For select."""
        return self._reading

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reading)
        os.close(self._writing)


def spawn(job: Any, *arguments: Any) -> tuple[int, Line]:
    """Fork a process, in its own process group, that runs job(line, ...); returns its pid and
    the line to it."""
    there_in, here_out = os.pipe()
    here_in, there_out = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = os.fork()
    if pid:
        os.close(there_in)
        os.close(there_out)
        return pid, Line(here_in, here_out)
    try:
        os.setpgid(0, 0)
        os.close(here_in)
        os.close(here_out)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        job(Line(there_in, there_out), *arguments)
    except (Silent, SystemExit):  # told to end, or its starter is gone
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


class Prober:
    """A long-lived process that is told what to do, and is replaced when it hangs."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._pid, self._line = spawn(probe)

    def ask(self, verb: str, path: str) -> Telling:
        """Let it do something. Raises: Silent, when it does not answer in time."""
        self._line.tell(verb=verb, path=path)
        return self._line.hear(self._seconds)

    def answer(self) -> bool:
        """Whether it answers after all, once the interrupted process is dead; else another one
        takes its place."""
        with suppress(Silent):
            self._line.hear(self._seconds)
            return True
        self.end()
        self._pid, self._line = spawn(probe)
        return False

    def end(self) -> None:
        """Kill it."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._line.close()


def probe(line: Line) -> None:
    """The life of the prober."""
    verbs = {"look": look, "use": use, "drain": drain}
    while True:
        told = line.hear()
        try:
            answer = verbs[told["verb"]](told["path"])
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        line.tell(**answer)


def look(path: str) -> Telling:
    """All of the store that verbs promise something about, and who is alive in it."""
    try:
        store = diskq.open(path, create=False)
    except diskq.NotFound:
        return {"picture": None, "alive": []}
    with store:
        stats = store.stats()
        topics = {each.topic: _topic(store, each) for each in stats.topics if each.topic != TOPIC}
        alive = sorted(each.name for each in stats.consumers if each.group != GROUP)
        return {"picture": topics, "alive": alive}


def _topic(store: diskq.Store, stats: diskq.TopicStats) -> Telling:
    topic = store.topic(stats.topic)
    found = {key: value for key, value in stats._asdict().items() if key not in _PASSING}
    found["bodies"] = [each.body.decode() for each in topic.read()]
    found["planned"] = [each.body.decode() for each in topic.scheduled()]
    found["groups"] = {each.group: _group(topic, each) for each in stats.groups}
    return found


def _group(topic: diskq.Topic, stats: diskq.GroupStats) -> Telling:
    group = topic.group(stats.group)
    found = {key: value for key, value in stats._asdict().items() if key not in _PASSING}
    found["settings"] = repr(group.settings)
    found["pending"] = sorted(
        (each.offset, each.attempt, each.consumer) for each in group.pending()
    )
    found["letters"] = [(each.offset, each.reason, each.error) for each in group.dead()]
    return found


def use(path: str) -> Telling:
    """Do as any other process does: open, put, get, ack, close."""
    with diskq.open(path, durability="process") as store:
        topic = store.topic("t", retention="limits")
        group = topic.group("g", lease_seconds=600, backoff=RETRY)
        topic.put(b"prober")
        with group.consumer("prober") as consumer:
            message = consumer.get(timeout=2)
            message.ack()
            return {"acked": [message.body.decode()]}


def drain(path: str) -> Telling:
    """Take and ack what is left, see what is in the log, and check the store."""
    with diskq.open(path, create=False) as store:
        found: Telling = {"drained": {}, "stored": {}, "left": {}, "charged": []}
        for stats in store.stats().topics:
            topic = store.topic(stats.topic)
            found["stored"][stats.topic] = Counter(each.body.decode() for each in topic.read())
            for group in topic.groups():
                with group.consumer("prober") as consumer:
                    drained: Counter[str] = Counter()
                    while messages := consumer.get_many(1000, timeout=0):
                        drained.update(each.body.decode() for each in messages)
                        found["charged"] += [
                            each.body.decode() for each in messages if each.attempt > 1
                        ]
                        consumer.ack_many(messages)
                found["drained"][group.name] = drained
                found["left"][group.name] = group.stats().leased
        found["findings"] = [f"{each.where}: {each.problem}" for each in store.verify()]
        return found
