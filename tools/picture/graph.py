"""The modules of diskq and what each imports, read from their source.

A module has its name below diskq: "api.store", "cli" for a package's `__init__`, "diskq" for the
one of diskq itself. An import counts wherever it stands: at the top, in a function, through
`lazy("tables.dedup")`, and, apart from these, for types only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "diskq"
TOP = "diskq"  # the module that `import diskq` names
LAYERS = (  # lowest first: a package imports only from itself and from those before it
    *("base", "format", "host", "storage", "tables", "delivery", "repair", "operate", "api"),
    *(TOP, "cli", "__main__"),
)


class Module(NamedTuple):
    """A module and what it imports of diskq; what it needs as it runs is not in `for_types`."""

    name: str
    tree: ast.Module
    text: str
    at_run_time: frozenset[str]
    for_types: frozenset[str]

    @property
    def layer(self) -> str:
        """The package, or the module itself if it is in none."""
        return self.name.partition(".")[0]

    @property
    def imports(self) -> frozenset[str]:
        """All of them."""
        return self.at_run_time | self.for_types


def read(package: Path = PACKAGE) -> dict[str, Module]:
    """All modules of a package by name."""
    paths = {_name(path, package): path for path in sorted(package.rglob("*.py"))}
    return {name: _read(name, path, paths) for name, path in paths.items()}


def circles(edges: dict[str, Iterable[str]]) -> list[frozenset[str]]:
    """The sets of modules in which each imports, directly or not, each other one."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[frozenset[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(edges[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            start = stack.index(name)
            members = frozenset(stack[start:])
            del stack[start:]
            if len(members) > 1 or name in edges[name]:
                found.append(members)

    for name in sorted(edges):
        if name not in order:
            visit(name)
    return found


def upward(modules: dict[str, Module]) -> set[tuple[str, str]]:
    """Imports of a module in a higher layer, also for types."""
    return {
        (module.name, other)
        for module in modules.values()
        for other in module.imports
        if LAYERS.index(modules[other].layer) > LAYERS.index(module.layer)
    }


def _name(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or TOP


def _read(name: str, path: Path, paths: dict[str, Path]) -> Module:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    inside = [] if name == TOP else name.split(".")
    if path.stem != "__init__":
        inside = inside[:-1]
    found: dict[bool, set[str]] = {False: set(), True: set()}
    for node, for_types in _nodes(tree, False):
        found[for_types].update(_imported(node, inside, paths))
    at_run_time = found[False] - {name}
    return Module(
        name, tree, text, frozenset(at_run_time), frozenset(found[True] - at_run_time - {name})
    )


def _nodes(node: ast.AST, for_types: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes, and whether only type checkers see them."""
    yield node, for_types
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        for child in node.body:
            yield from _nodes(child, True)
        for child in node.orelse:
            yield from _nodes(child, for_types)
        return
    for each in ast.iter_child_nodes(node):
        yield from _nodes(each, for_types)


def _imported(node: ast.AST, inside: list[str], paths: dict[str, Path]) -> Iterator[str]:
    """Modules of diskq that a node imports, if it is an import or a call of `lazy`."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            top, _, rest = alias.name.partition(".")
            if top == TOP:
                yield rest or TOP
    elif isinstance(node, ast.ImportFrom):
        words = node.module.split(".") if node.module else []
        if node.level:
            origin = [*inside[: len(inside) - node.level + 1], *words]
        elif words[:1] == [TOP]:
            origin = words[1:]
        else:
            return
        for alias in node.names:
            name = ".".join([*origin, alias.name])
            yield name if name in paths else ".".join(origin) or TOP
    elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "lazy":
        [argument] = node.args
        if isinstance(argument, ast.Constant):
            yield str(argument.value)
