"""Pictures of a run: colour-blind safe, labelled at the line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, told apart with every common colour-vision deficiency.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
# Learning curves show costs up to this many times the optimum.
_HIGHEST = 5.0
MODES = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


def plot_learning_curve(
    path: str | Path,
    updates: Sequence[float],
    costs: Sequence[float],
    *,
    errors: Sequence[float] | None = None,
    optimum: float | None = None,
    lower_bound: float | None = None,
    baselines: Mapping[str, float] | None = None,
) -> Path:
    """Draw test cost against updates, with the optimum (or a lower bound) as a line.

    Args:
        path: the PNG file to write.
        updates: numbers of updates.
        costs: test cost per unit and period after each.
        errors: their standard errors: short tests are noisy, and may read below the optimum.
        optimum: cost of the optimal policy.
        lower_bound: a cost that no policy can go below.
        baselines: costs of simple rules by name, drawn as lines.

    Returns:
        The path.
    """
    figure, [[axes]] = new_figure(1)
    axes.plot(updates, costs, color=BLUE, linewidth=1.8)
    spread = list(errors) if errors is not None else []
    if spread:
        lower = [cost - 2 * error for cost, error in zip(costs, spread, strict=True)]
        upper = [cost + 2 * error for cost, error in zip(costs, spread, strict=True)]
        axes.fill_between(updates, lower, upper, color=BLUE, alpha=0.2, linewidth=0)
    for name, cost in (baselines or {}).items():
        _level(axes, f"{name} {cost:.3f}", cost, GREY, above=True)
    floor = optimum if optimum is not None else lower_bound
    if floor is not None and costs:
        label = "optimum" if optimum is not None else "lower bound"
        _level(axes, f"{label} {floor:.3f}", floor, ORANGE, above=False)
        # The start is many times the optimum: a logarithm, cut there, keeps the end readable.
        if min(*costs, floor) > 0:
            axes.set_yscale("log")
            highest = max([*costs, *(baselines or {}).values()])
            axes.set_ylim(0.93 * floor, min(1.1 * highest, _HIGHEST * floor))
    if costs:
        axes.annotate(
            f"short test {costs[-1]:.2f}" + (f" \u00b1 {spread[-1]:.2f}" if spread else ""),
            (updates[-1], costs[-1]),
            xytext=(0, 10),
            textcoords="offset points",
            ha="right",
            color=BLUE,
        )
    _plain_numbers(axes)
    axes.set(xlabel="updates", ylabel="cost per unit and period", title="Learning curve")
    return save_figure(figure, path)


def _level(axes: Axes, label: str, cost: float, colour: str, *, above: bool) -> None:
    """Draw a horizontal line with its name."""
    axes.axhline(cost, color=colour, linewidth=1.4, linestyle="--")
    axes.annotate(
        label,
        (0.01, cost),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4 if above else -12),
        textcoords="offset points",
        color=colour,
    )


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


def _plain_numbers(axes: Axes) -> None:
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure and return its path."""
    path = Path(path)
    figure.savefig(path, dpi=140)
    return path
