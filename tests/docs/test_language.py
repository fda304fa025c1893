"""The documents, the help texts, and the docstrings and comments have none of
the phrases that read as if translated; CONTRIBUTING.md says what to write instead."""

from __future__ import annotations

import ast
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from picture import graph

from diskq.cli import cli

ROOT = Path(__file__).parents[2]
PACKAGES = [f"diskq/{layer}" for layer in graph.LAYERS if (ROOT / "diskq" / layer).is_dir()]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PHRASES = {
    "a sentence that begins with Who or What": re.compile(
        r"(?:\A|(?<=[.!?:]\s)|(?<=[|\n#]\s)|(?<=\n\n))\s*[-*#>|\s]*(?:Who|What)\b(?![^.|]*\?)"
    ),
    "is to be": re.compile(r"\b(?:is|are|was|were)\s+to\s+be\b"),
    "anew": re.compile(r"\banew\b"),
    "so many or more": re.compile(r"\bso\s+(?:many|much|long)\s+or\s+more\b"),
    "of its own": re.compile(r"\bof\s+(?:its|their)\s+own\b"),
}


class Text(NamedTuple):
    """A piece of prose, and where it is."""

    where: str
    line: int
    text: str


def page(path: Path) -> Iterator[Text]:
    """The prose of a page: without its blocks of code."""
    text = path.read_text()
    blank = re.sub(
        r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S
    )
    yield Text(str(path.relative_to(ROOT)), 1, blank)


def module(path: Path) -> Iterator[Text]:
    """The docstrings and comments of a module; comments on successive lines of their kind are one
    text, a comment behind code is a separate one."""
    source, where = path.read_text(), str(path.relative_to(ROOT))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield Text(where, node.body[0].lineno, docstring)
    block: list[str] = []
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        goes_on = token.start[0] == last + 1 and token.line.strip().startswith("#")
        if block and not goes_on:
            yield Text(where, last - len(block) + 1, "\n".join(block))
            block = []
        block.append(token.string.lstrip("# "))
        last = token.start[0]
    if block:
        yield Text(where, last - len(block) + 1, "\n".join(block))


def helps(command: click.Command, context: click.Context | None = None) -> Iterator[Text]:
    """The help of a command, of its options, and of all commands below it."""
    here = click.Context(command, info_name=command.name, parent=context)
    yield Text(f"{here.command_path} --help", 1, textwrap.dedent(command.help or ""))
    for parameter in command.params:
        if text := getattr(parameter, "help", None):
            yield Text(f"{here.command_path} {parameter.opts[0]}", 1, text)
    if isinstance(command, click.Group):
        for name in command.list_commands(here):
            below = command.get_command(here, name)
            assert below is not None
            yield from helps(below, here)


def places(texts: Iterator[Text]) -> list[str]:
    """The places of all phrases in these texts, for people to read."""
    found = []
    for where, first, text in texts:
        for phrase, pattern in PHRASES.items():
            for match in pattern.finditer(text):
                begin = match.end() - len(match[0].lstrip(" -*#>|\n"))
                line = first + text.count("\n", 0, begin)
                excerpt = " ".join(text[begin : begin + 70].split())
                found.append(f"{where}:{line}: {phrase}: {excerpt}")
    return found


def listed(found: list[str]) -> str:
    return "\n".join(["write these in another way:", *found])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_reads_well(path):
    found = places(page(path))
    assert not found, listed(found)


def test_the_help_of_every_command_reads_well():
    found = places(helps(cli))
    assert not found, listed(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_docstrings_and_comments_of_a_package_read_well(package):
    found = [
        place for path in sorted((ROOT / package).rglob("*.py")) for place in places(module(path))
    ]
    assert not found, listed(found)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Who waits draws a number.", 1),
        ("It waits. What is left stays.", 1),
        ("Three kinds:\n\n- What is dead", 1),
        ("# What is durable", 1),
        ("| column |\n| What a dead process held | free |", 1),
        ("What does it cost? Nothing.", 0),
        ("It says what is left, and who has it.", 0),
        ("a message that is to be put\nor that are to\nbe dropped", 2),
        ("begin anew, renewed", 1),
        ("in so many or more segments", 1),
        ("a thread of its own, processes of their\nown", 2),
        ("it owns its files", 0),
    ],
)
def test_phrases_are_found(text, count):
    assert len(places(iter([Text("page", 1, text)]))) == count


def test_a_place_names_its_line():
    text = "It waits.\n\nWhat is left stays."
    assert places(iter([Text("page", 10, text)])) == [
        "page:12: a sentence that begins with Who or What: What is left stays."
    ]
