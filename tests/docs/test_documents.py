"""The documents tell the truth: their examples run, their links lead somewhere, and the modules
that they name are there.

Python blocks of a document share a namespace. Blocks marked `console` are run by bash with `diskq`
on the PATH; each command must succeed, and what is shown below it must be what it prints. There
"..." stands for anything, any number for any other, and white space does not count. With nothing
below, anything goes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from picture import graph
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
END = "--- end of a command: "


def matches(shown: str, printed: str) -> bool:
    """Whether a document shows what was printed, loosely."""
    parts = re.findall(r"\.\.\.|\d[\d.,]*|\s+|[^\d\s.]+|.", shown.strip())
    loose = {"...": r"[\s\S]*"}
    pattern = "".join(
        loose.get(part)
        or (r"\s+" if part.isspace() else r"\d[\d.,]*" if part[0].isdigit() else re.escape(part))
        for part in parts
    )
    return re.fullmatch(pattern, printed.strip()) is not None


def run_console(example: Example) -> str | None:
    """Run the commands of a block in one shell; returns what is wrong, as sybil wants it."""
    commands: list[str] = []
    shown: list[str] = []
    for line in example.parsed.splitlines():
        if line.startswith("$ "):
            commands.append(line[2:])
            shown.append("")
        elif line.startswith("> "):
            commands[-1] += "\n" + line[2:]
        else:
            shown[-1] += line + "\n"
    script = "".join(f'{command}\necho "{END}$?"\n' for command in commands)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": path, "NO_COLOR": "1", "COLUMNS": "100"},
        timeout=60,
        check=False,
    )
    results = re.findall(rf"([\s\S]*?){END}(\d+)\n", run.stdout)
    for command, expected, (printed, code) in zip(commands, shown, results, strict=True):
        if code != "0":
            return f"exit code {code} of: {command}\n{printed}"
        if expected and not matches(expected, printed):
            return f"the output of: {command}\nis shown as\n{expected}\nbut is\n{printed}"
    return None


BLOCKS = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser("console", run_console), SkipParser()]
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_of_a_document_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example in BLOCKS.parse(path):
        example.evaluate()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_links_of_a_document_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    missing = [
        link for link in links if not link.startswith("http") and not (path.parent / link).exists()
    ]
    assert not missing


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("put 12 at 3.5", "put 1,234  at 0", True),
        ("one ... three", "one two two three", True),
        ("a line\n", "a line\nand another", False),
        ("topic mail", "topic males", False),
        ("v1.0.", "v2.7.", True),
    ],
)
def test_shown_output_is_compared_loosely_but_compared(shown, printed, same):
    assert matches(shown, printed) is same


def test_the_table_of_packages_has_each_of_them_from_top_to_bottom():
    text = (ROOT / "docs/explanation/architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ", text, re.MULTILINE)
    assert rows == [layer for layer in reversed(graph.LAYERS) if layer in rows]
    packages = {path.parent.name for path in (ROOT / "diskq").glob("*/__init__.py")}
    assert {*rows, "cli"} == packages


def test_the_modules_that_the_architecture_names_are_there():
    text = (ROOT / "docs/explanation/architecture.md").read_text()
    named = re.findall(
        r"`((?:api|operate|repair|delivery|tables|storage|host|format|base)/\w+)", text
    )
    assert len(named) > 5
    assert not [name for name in named if not (ROOT / "diskq" / f"{name}.py").exists()]
