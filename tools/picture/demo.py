"""Make docs/demo.svg, the picture in README.md, from a real run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from rich.console import Console, RenderableType

from diskq.cli import demo, demo_play, demo_view

PICTURE = Path(__file__).parents[2] / "docs" / "demo.svg"
WIDTH = 100


class Recorded(demo_view.Live):
    """The live view, which keeps the last moment in which a consumer is killed and not yet back."""

    def __init__(self) -> None:
        super().__init__(Console(width=WIDTH))
        self._kept: RenderableType = ""

    def show(self, picture: demo_view.Picture) -> None:
        """Called many times a second."""
        super().show(picture)
        if any(row.state == "killed" for row in picture.rows):
            self._kept = self._draw(picture)

    def save(self, path: Path) -> None:
        """Write what was kept."""
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            console = Console(width=WIDTH, record=True, file=nowhere, force_terminal=True)
            console.print(self._kept)
            path.write_text(console.export_svg(title="diskq demo", unique_id="demo"))


def main() -> int:
    """Play the demo, and write the picture if it passed."""
    view = Recorded()
    with tempfile.TemporaryDirectory() as name:
        passed = demo.run(demo_play.Pace(), view, Path(name), Path(name) / "store")
    if passed:
        view.save(PICTURE)
    return 0 if passed else 1
