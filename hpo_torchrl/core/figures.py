"""The style of all pictures: a colour-blind safe palette, thin grids and one size."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from hpo_torchrl.core.checks import first_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, told apart with every common colour-vision deficiency.
BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#666666", "#000000"
MODES = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", BLACK)


def new_figure(
    rows: int, columns: int = 1, *, share_x: bool = True
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of the house's style and its panels, row by row."""
    # A third of a second, which only those who draw should wait.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The object interface leaves a user's pyplot state and backend alone.
    figure = Figure(figsize=(3.0 + 4.0 * columns, 1.5 + 2.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(rows, columns, sharex=share_x, squeeze=False)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
    return figure, [list(row) for row in axes]


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure and return its path."""
    path = Path(path)
    figure.savefig(path, dpi=140)
    return path


def drawn(path: str | Path, draw: Callable[[], Any]) -> Any:
    """Return what ``draw`` does, which makes a picture; ``None`` if it fails, with a line why.

    A picture is worth no run: numbers that are computed are kept without it.
    """
    try:
        return draw()
    except Exception as error:
        line = f"warning: {path} was not drawn ({type(error).__name__}: {first_line(error)})"
        tqdm.write(line, file=sys.stderr)
        return None
