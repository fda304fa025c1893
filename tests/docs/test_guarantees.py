"""The page of guarantees has a row with a command for each promise, and each command, test and
option on it exists."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import ROOT, child_environment

PAGE = (ROOT / "docs/reference/guarantees.md").read_text()
PROMISES = [f"G{number}" for number in range(1, 19)]
RUN_TESTS = ["python3", "tools/dev.py", "test"]
HARNESSES = ("powercut", "torture", "bench")  # verbs of dev.py
PYTEST_OPTIONS = {"-s": 0, "--timeout": 1}  # how many values each takes


def code(text: str) -> list[str]:
    """What is in `...`."""
    return re.findall(r"`([^`\n]+)`", text)


def is_command(text: str) -> bool:
    return text.startswith("python3 tools/dev.py ")


def commands(page: str) -> list[str]:
    """All that a reader may copy: the lines of blocks, and whole commands in the text."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    return [
        *(line for block in blocks for line in block.splitlines()),
        *(text for text in code(outside) if is_command(text)),
    ]


def rows(page: str) -> dict[str, str]:
    """The rows of the promises, by name."""
    return dict(re.findall(r"^\| (G\d+) \| (.*) \|$", page, re.MULTILINE))


@functools.cache
def functions(path: Path) -> frozenset[str]:
    """The names of the functions of a module."""
    tree = ast.parse(path.read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@functools.cache
def help_of(*command: str) -> str:
    """What a tool says about its options."""
    run = subprocess.run(
        [sys.executable, "-m", *command, "--help"],
        env=child_environment(COLUMNS="200"),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return run.stdout


@functools.cache
def sources() -> str:
    """All test modules, one after the other."""
    here = Path(__file__)
    return "\n".join(path.read_text() for path in ROOT.glob("tests/**/*.py") if path != here)


def node_problems(node: str) -> list[str]:
    """What is wrong with the name of a test, or of a file or folder with tests."""
    name, *inside = node.split("::")
    path = ROOT / name
    if not path.exists():
        return [f"there is no {name}"]
    return [f"{name} has no {each}" for each in inside if each not in functions(path)]


def test_call_problems(arguments: list[str]) -> list[str]:
    found = []
    rest = iter(arguments)
    for each in rest:
        if each not in PYTEST_OPTIONS:
            found += node_problems(each)
        for _ in range(PYTEST_OPTIONS.get(each, 0)):
            next(rest)
    return found


test_call_problems.__test__ = False  # type: ignore[attr-defined]


def tool_problems(tool: str, arguments: list[str]) -> list[str]:
    """What a call of a tool has that its help does not."""
    command = [tool]
    if arguments and arguments[0] in re.findall(r"\w+", help_of(tool)):
        told = re.search(r"\{([\w,]+)\} \.\.\.", help_of(tool))
        if told and arguments[0] in told[1].split(","):
            command.append(arguments.pop(0))
    text = help_of(*command)
    found, option = [], ""
    for each in arguments:
        if each.startswith("--"):
            option = each
            if not re.search(rf"(?<![\w-]){re.escape(each)}(?![\w-])", text):
                found.append(f"{' '.join(command)} has no {each}")
        else:
            choices = re.search(rf"{re.escape(option)} \{{([^}}]+)\}}", text) if option else None
            allowed = choices[1].split(",") if choices else re.findall(r"\w+", text)
            if (choices or not option) and each not in allowed:
                found.append(f"{' '.join(command)} {option} takes no {each}")
            option = ""
    return found


def command_problems(command: str) -> list[str]:
    """What a command names that does not exist."""
    words = shlex.split(command)
    found = []
    while words and "=" in words[0]:
        name = words.pop(0).split("=")[0]
        found += [] if f'"{name}"' in sources() else [f"no test reads {name}"]
    if words[: len(RUN_TESTS)] == RUN_TESTS:
        return found + test_call_problems(words[len(RUN_TESTS) :])
    if words[:2] == RUN_TESTS[:2] and words[2:3] and words[2] in HARNESSES:
        return found + tool_problems(words[2], words[3:])
    return [*found, f"nobody knows how to check {command!r}"]


def problems(page: str) -> list[str]:
    """Everything on a page of guarantees that is not so."""
    promised = rows(page)
    found = [] if list(promised) == PROMISES else [f"there are rows for {', '.join(promised)}"]
    found += [f"{name} has no command" for name, row in promised.items()
              if not any(map(is_command, code(row)))]  # fmt: skip
    for command in commands(page):
        found += [f"{command}: {each}" for each in command_problems(command)]
    for text in code(page):
        if text.startswith(("tests/", "tools/")):
            found += node_problems(text)
    return found


def test_each_promise_has_a_row_and_all_it_names_exists():
    assert problems(PAGE) == []


@pytest.mark.parametrize("name", PROMISES)
def test_a_promise_without_a_row_is_found(name):
    page = re.sub(rf"^\| {name} \|.*\n", "", PAGE, flags=re.MULTILINE)
    assert problems(page)[0].startswith("there are rows for")


@pytest.mark.parametrize(
    ("there", "missing", "problem"),
    [
        ("test_puts.py", "test_putz.py", "there is no tests/unit/test_putz.py"),
        ("tests/model", "tests/models", "there is no tests/models"),
        ("::test_tokens_rise", "::test_tokens_fall", "has no test_tokens_fall"),
        ("dev.py torture run", "dev.py torment run", "knows how to check"),
        ("torture run", "torture ran", "takes no ran"),
        ("torture long --messages", "torture long --letters", "long has no --letters"),
        ("powercut --states", "powercut --state-count", "has no --state-count"),
        ("--control nosync", "--control none", "--control takes no none"),
        ("--durability commit", "--durability committed", "--durability takes no committed"),
        ("bench kill", "bench death", "takes no death"),
        ("`tests/processes/test_long_reader.py`", "`tests/long.py`", "there is no tests/long.py"),
        ("dev.py bench --check", "dev.py bench --judge", "bench has no --judge"),
        ("DISKQ_TEST_FULL", "DISKQ_TEST_ALL", "no test reads DISKQ_TEST_ALL"),
        ("python3 tools/dev.py test tests/model\n", "diskq model\n", "knows how to check 'diskq"),
    ],
)
def test_a_command_for_what_does_not_exist_is_found(there, missing, problem):
    assert there in PAGE
    found = problems(PAGE.replace(there, missing))
    assert any(problem in each for each in found), found


def test_a_row_without_a_command_is_found():
    page = re.sub(r"^(\| G9 \|.*?)`python3 [^`]+`", r"\1`not yet`", PAGE, flags=re.MULTILINE)
    assert problems(page) == ["G9 has no command"]
