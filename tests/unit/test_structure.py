"""The shape of the core: what importing it costs, which way imports go, how large it is."""

from __future__ import annotations

import ast

import pytest
from support.programs import ROOT, run_python

from diskq.base.ondemand import MODULES

CORE = ROOT / "diskq"

# A module imports only from those before it; `docs/explanation/architecture.md` has the same list.
ORDER = (
    *(
        "errors",
        "limits",
        "guard",
        "ondemand",
        "clock",
        "model",
        "decoding",
        "codec",
        "segment",
        "check",
        "files",
    ),
    "environment",
    *(
        *("locks", "process", "wake", "door", "turns", "slots", "opened"),
        "hands",
        "tx",
        "engine",
        "ages",
        "room",
        "registry",
        "gaps",
        "log",
        "leases",
        "held",
        "keys",
        "schedule",
        "settle",
        "reclaim",
        "delivery",
        "retention",
        "puts",
        "admin",
    ),
    *("presence", "message", "consumer", "group", "topic", "queue", "store"),
    "__init__",
)

# Modules that few programs need are loaded when they are used, and no part of the core: MODULES.

# What takes long to import stays out of `import diskq`, so that each cron job starts fast.
EXPENSIVE = {
    *("click", "rich", "asyncio", "json", "logging", "inspect", "multiprocessing", "subprocess"),
    *("dataclasses", "email", "http", "urllib", "socket", "ssl", "pickle"),
}


def test_importing_diskq_imports_nothing_expensive():
    code = "import sys; bare = set(sys.modules); import diskq; print(*set(sys.modules) - bare)"
    loaded = set(run_python(code).stdout.split())
    assert "diskq.store" in loaded
    assert loaded & (EXPENSIVE | {"ctypes"}) == set()


def test_a_put_needs_nothing_expensive(tmp_path):
    code = """
import sys
bare = set(sys.modules)
import diskq
with diskq.open(sys.argv[1]) as store:
    store.topic("t").put(b"a")
print(*set(sys.modules) - bare)
"""
    loaded = set(run_python(code, tmp_path / "s").stdout.split())
    assert loaded & EXPENSIVE == set()


def imports_of(module):
    """Modules of the core that a module imports, also inside of functions, but not for types."""
    tree = ast.parse((CORE / f"{module}.py").read_text())
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.ImportFrom):
            if node.level == 1 and node.module is None:
                found.update(alias.name for alias in node.names)
            elif node.level == 1:
                found.add(node.module.split(".")[0])
            elif (node.module or "").split(".")[0] == "diskq":
                raise AssertionError(f"{module} imports {node.module} by its absolute name")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def core():
    """Names of the core's modules: of all that importing diskq loads."""
    code = "import sys, diskq; print(*(name for name in sys.modules if name.startswith('diskq')))"
    names = run_python(code).stdout.split()
    return {name.partition(".")[2] or "__init__" for name in names}


def test_the_list_has_every_module_of_the_core():
    assert set(ORDER) == core()
    files = {path.stem for path in CORE.glob("*.py")} - {"__main__"}
    assert files == {*ORDER, *MODULES}


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_those_before_it(module):
    before = set(ORDER[: ORDER.index(module)])
    assert imports_of(module) - before == set()


@pytest.mark.parametrize("module", [*ORDER, *MODULES])
def test_no_function_imports_anything(module):
    """A first use goes through `ondemand`, which says why."""
    tree = ast.parse((CORE / f"{module}.py").read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    within = [each for function in functions for each in ast.walk(function)]
    assert [each for each in within if isinstance(each, (ast.Import, ast.ImportFrom))] == []


@pytest.mark.parametrize("module", MODULES)
def test_what_is_loaded_on_demand_imports_only_from_the_core_and_those_before_it(module):
    before = set(MODULES[: MODULES.index(module)])
    assert imports_of(module) - set(ORDER) - before == set()


def test_few_modules_know_lmdb():
    knowing = {module for module in ORDER if "lmdb" in (CORE / f"{module}.py").read_text().split()}
    assert knowing <= {"__init__", "engine", "environment", "opened", "tx"}


def lines_of(module):
    return len((CORE / f"{module}.py").read_text().splitlines())


def test_no_module_of_the_core_is_longer_than_550_lines():
    assert {
        module: lines_of(module) for module in (*ORDER, *MODULES) if lines_of(module) > 550
    } == {}


def code_lines_of(module):
    """Lines of code: neither blank, nor comment, nor docstring."""
    text = (CORE / f"{module}.py").read_text()
    code = {
        number
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#")
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            code -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(code)


def test_all_below_the_command_line_has_fewer_than_8800_lines_of_code():
    modules = (path.stem for path in CORE.glob("*.py"))
    assert sum(map(code_lines_of, modules)) < 8800
