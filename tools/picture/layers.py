"""The layers of diskq as an SVG: a box for each package, a line for imports between two of them."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from html import escape

from .graph import LAYERS, ROOT, TOP, Module, read

PICTURE = ROOT / "docs" / "explanation" / "layers.svg"
SHOWN = [layer for layer in LAYERS if layer != "__main__"]  # which only starts the command line
WIDTH, BOX_WIDTH, BOX_HEIGHT, GAP, MARGIN = 880, 640, 52, 18, 20
BULGE = 24  # of a line, for each layer that it passes
DOWN, UP = "#4a6fa5", "#c0392b"
STYLE = "font-family='DejaVu Sans, Verdana, sans-serif'"


def main() -> int:
    """Write the picture."""
    PICTURE.write_text(draw(read()), encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}")
    return 0


def draw(modules: dict[str, Module]) -> str:
    """The picture; the same modules give the same text."""
    height = len(SHOWN) * (BOX_HEIGHT + GAP) - GAP + 2 * MARGIN
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' {STYLE}>",
        "<title>The layers of diskq, and which imports which</title>",
        "<defs>",
        *(_arrow(name, color) for name, color in (("down", DOWN), ("up", UP))),
        "</defs>",
        f"<rect width='{WIDTH}' height='{height}' fill='#ffffff'/>",
        *(part for layer in SHOWN for part in _box(layer, modules)),
        *_lines(_imports(modules)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _imports(modules: dict[str, Module]) -> Counter[tuple[str, str]]:
    """How many imports there are of one package in another, also for types."""
    found: Counter[tuple[str, str]] = Counter()
    for module in modules.values():
        for name in module.imports:
            ends = module.layer, modules[name].layer
            if len({*ends}) == 2 and {*ends} <= {*SHOWN}:
                found[ends] += 1
    return found


def _top(layer: str) -> int:
    """Where a box begins; the lowest layer is at the bottom."""
    return MARGIN + (len(SHOWN) - 1 - SHOWN.index(layer)) * (BOX_HEIGHT + GAP)


def _box(layer: str, modules: dict[str, Module]) -> Iterator[str]:
    inside = [module for module in modules.values() if module.layer == layer]
    count = len(inside) - (layer != TOP)  # the `__init__` of a package says what it is
    says = (ast.get_docstring(modules[layer].tree) or "").partition("\n")[0]
    title = "diskq/__init__.py" if layer == TOP else f"{layer}/"
    size = "1 module" if count == 1 else f"{count} modules"
    x, y = MARGIN, _top(layer)
    yield (
        f"<rect x='{x}' y='{y}' width='{BOX_WIDTH}' height='{BOX_HEIGHT}' rx='6'"
        " fill='#f4f6fa' stroke='#8796ad'/>"
    )
    yield (
        f"<text x='{x + 14}' y='{y + 22}' font-size='15' font-weight='bold' fill='#1f2a3a'>"
        f"{title}</text>"
    )
    yield (
        f"<text x='{x + BOX_WIDTH - 14}' y='{y + 22}' font-size='12' text-anchor='end'"
        f" fill='#5b6878'>{size}</text>"
    )
    yield f"<text x='{x + 14}' y='{y + 41}' font-size='12' fill='#3c4858'>{escape(says)}</text>"


def _lines(imports: Counter[tuple[str, str]]) -> Iterator[str]:
    """A line for each pair, outside of those that pass fewer layers."""
    ports = {layer: _ports(layer, imports) for layer in SHOWN}
    x = MARGIN + BOX_WIDTH
    for (low, high), count in sorted(imports.items(), key=lambda item: _key(item[0])):
        distance = SHOWN.index(low) - SHOWN.index(high)
        begin, end = ports[low][low, high], ports[high][low, high]
        bend = x + 16 + BULGE * abs(distance)
        name, color = ("down", DOWN) if distance > 0 else ("up", UP)
        yield (
            f"<path d='M{x},{begin} C{bend},{begin} {bend},{end} {x + 2},{end}' fill='none'"
            f" stroke='{color}' stroke-width='{1 + min(count, 20) / 10:.1f}' stroke-opacity='0.6'"
            f" marker-end='url(#{name})'><title>{low} imports {high}: {count}</title></path>"
        )


def _ports(layer: str, imports: Counter[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Where lines meet a box, from top to bottom, so that they do not cross there."""
    here = SHOWN.index(layer)

    def far(pair: tuple[str, str]) -> tuple[bool, int]:
        other = SHOWN.index(pair[0] if pair[1] == layer else pair[1]) - here
        return other < 0, abs(other) if other > 0 else other

    ends = sorted((pair for pair in imports if layer in pair), key=lambda pair: (far(pair), pair))
    step = BOX_HEIGHT / (len(ends) + 1)
    return {pair: round(_top(layer) + step * (place + 1), 1) for place, pair in enumerate(ends)}


def _key(pair: tuple[str, str]) -> tuple[int, int]:
    return SHOWN.index(pair[0]), SHOWN.index(pair[1])


def _arrow(name: str, color: str) -> str:
    return (
        f"<marker id='{name}' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7'"
        f" markerUnits='userSpaceOnUse' orient='auto'><path d='M0,0 L8,4 L0,8 z' fill='{color}'/>"
        "</marker>"
    )
