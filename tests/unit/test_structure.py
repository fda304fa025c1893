"""The shape of diskq: which way imports go, how large its parts are, what importing it costs.

KNOWN has the violations that there are. A new one fails its test, and so does one that is mended
and still listed: whoever mends it deletes it here.
"""

from __future__ import annotations

import ast

import pytest
from picture import graph
from support.programs import run_python

MODULES = graph.read()
BELOW_CLI = {
    name: module for name, module in MODULES.items() if module.layer not in ("cli", "__main__")
}
# A topic refers to its store, a group to its topic, a consumer to its group, so that users go from
# one to the other. A queue and a transaction, which a store makes, refer to topics.
FACES = frozenset(
    f"api.{name}" for name in ("consumer", "group", "queue", "store", "topic", "transaction")
)
MOST = {"lines of a file": 400, "lines of a function": 50, "lines of a class": 250}
MOST |= {"methods of a class": 20, "imports of a module": 12}
CODE_LINES = 9600  # below the command line: neither blank, nor comment, nor docstring

# What takes long to import stays out of `import diskq`, so that each cron job starts fast.
EXPENSIVE = {
    *("click", "rich", "asyncio", "json", "logging", "inspect", "multiprocessing", "subprocess"),
    *("dataclasses", "email", "http", "urllib", "socket", "ssl", "pickle"),
}
KNOWN: dict[str, set[str]] = {}


def check(rule, found):
    """Fail unless these are exactly the violations of a rule that are known."""
    known = KNOWN.get(rule, set())
    assert set(found) - known == set(), f"new: {rule}"
    assert known - set(found) == set(), f"mended, so delete them from KNOWN: {rule}"


def test_nothing_is_known_of_a_rule_that_there_is_not():
    assert set(KNOWN) <= {*RULES, *MOST}


# Imports ----------------------------------------------------------------------------------------


def circles_at_run_time():
    """Modules in a circle of imports that are made as diskq runs, also in functions."""
    edges = {name: module.at_run_time for name, module in MODULES.items()}
    return set().union(*graph.circles(edges))


def circles_with_types():
    """Modules in a circle of any imports, but for the faces."""
    edges = {name: module.imports for name, module in MODULES.items()}
    return set().union(*graph.circles(edges)) - FACES


def imports_upward():
    """Imports of a package that comes later in graph.LAYERS."""
    return {f"{name} -> {other}" for name, other in graph.upward(MODULES)}


def imports_of_faces():
    """Modules below the faces that know one, if only for types."""
    below = graph.LAYERS[: graph.LAYERS.index("api")]
    return {
        name
        for name, module in MODULES.items()
        if module.layer in below and any(other.startswith("api.") for other in module.imports)
    }


def imports_by_absolute_name():
    """Modules below the command line that name diskq as others do."""
    return {
        name
        for name, module in BELOW_CLI.items()
        for node in ast.walk(module.tree)
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == graph.TOP)
        or (
            isinstance(node, ast.Import)
            and any(alias.name.split(".")[0] == graph.TOP for alias in node.names)
        )
    }


def imports_in_functions():
    """A first use goes through `ondemand`, which says why."""
    return {
        name
        for name, module in BELOW_CLI.items()
        for function in ast.walk(module.tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }


def transactions_of_lmdb():
    """Modules above the tables that reach through a transaction to LMDB's."""
    return {
        name
        for name, module in MODULES.items()
        if module.layer not in ("storage", "tables")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr == "lmdb"
    }


def imports_of_lmdb():
    """Modules outside of storage/ and repair/ that import lmdb; diskq itself says why it fails."""
    return {
        name
        for name, module in MODULES.items()
        if module.layer not in ("storage", "repair", graph.TOP)
        for node in ast.walk(module.tree)
        if (isinstance(node, ast.Import) and any(alias.name == "lmdb" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "lmdb")
    }


RULES = {
    "no circles at run time": circles_at_run_time,
    "no circles with types": circles_with_types,
    "no imports upward": imports_upward,
    "nobody below the faces knows one": imports_of_faces,
    "imports have relative names": imports_by_absolute_name,
    "no function imports anything": imports_in_functions,
    "only storage and tables use LMDB's transactions": transactions_of_lmdb,
    "few modules know lmdb": imports_of_lmdb,
}


@pytest.mark.parametrize("rule", RULES)
def test_imports(rule):
    check(rule, RULES[rule]())


def test_every_module_is_in_a_layer():
    assert {module.layer for module in MODULES.values()} <= set(graph.LAYERS)


def test_each_face_is_in_the_circle_of_faces():
    edges = {name: module.imports for name, module in MODULES.items()}
    assert set().union(*graph.circles(edges)) == FACES


# The graph itself -------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path):
    """Reads a package with these modules, all of them empty but for what is given."""

    def make(**sources):
        for name in ("base.a", "base.b", "tables.c", "api.d"):
            path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(sources.get(path.stem, ""))
        (tmp_path / "__init__.py").write_text("")
        return graph.read(tmp_path)

    return make


@pytest.mark.parametrize(
    "source",
    [
        "from ..tables import c",
        "from ..tables.c import row",
        "from diskq.tables import c",
        "import diskq.tables.c",
        "def f():\n    from ..tables import c",
        'c = lazy("tables.c")',
        'def f():\n    return ondemand.lazy("tables.c").row',
        'if TYPE_CHECKING:\n    from ..tables import c\nelse:\n    c = lazy("tables.c")',
    ],
)
def test_each_way_to_import_is_seen(package, source):
    modules = package(a=source)
    assert modules["base.a"].at_run_time == {"tables.c"}
    assert modules["base.a"].for_types == set()
    assert graph.upward(modules) == {("base.a", "tables.c")}


@pytest.mark.parametrize("test", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_imports_for_types_are_told_apart(package, test):
    modules = package(a=f"if {test}:\n    from ..api.d import D\nfrom . import b")
    assert modules["base.a"].at_run_time == {"base.b"}
    assert modules["base.a"].for_types == {"api.d"}
    assert graph.upward(modules) == {("base.a", "api.d")}


def test_circles_are_found():
    edges = {"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a", "e"], "e": ["e"], "f": []}
    assert set(graph.circles(edges)) == {frozenset("abc"), frozenset("e")}


# Sizes ------------------------------------------------------------------------------------------


def sizes():
    """How large is each thing that has a limit: (which limit, name, size)."""
    for name, module in MODULES.items():
        yield "lines of a file", name, len(module.text.splitlines())
        above_base = [other for other in module.imports if not other.startswith("base.")]
        yield "imports of a module", name, len(above_base)  # base is for everybody
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield "lines of a function", f"{name} {node.name}", length(node)
            if isinstance(node, ast.ClassDef):
                methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
                yield "lines of a class", f"{name} {node.name}", length(node)
                yield "methods of a class", f"{name} {node.name}", len(methods)


def length(node):
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("what", MOST)
def test_nothing_is_too_large(what):
    check(what, {name for kind, name, size in sizes() if kind == what and size > MOST[what]})


def code_lines_of(module):
    """Lines of code: neither blank, nor comment, nor docstring."""
    code = {
        number
        for number, line in enumerate(module.text.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#")
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            code -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(code)


def test_all_below_the_command_line_stays_within_its_lines_of_code():
    assert sum(map(code_lines_of, BELOW_CLI.values())) <= CODE_LINES


# Costs ------------------------------------------------------------------------------------------


def test_importing_diskq_imports_nothing_expensive():
    code = "import sys; bare = set(sys.modules); import diskq; print(*set(sys.modules) - bare)"
    loaded = set(run_python(code).stdout.split())
    assert "diskq.api.store" in loaded
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
