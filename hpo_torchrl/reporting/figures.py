"""Pictures of a run: colour-blind safe, labelled at the line."""

from __future__ import annotations

import math
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


def plot_inventory_policy(
    path: str | Path,
    *,
    position: Sequence[float],
    order_probability: Sequence[float],
    order_up_to: Sequence[float],
    visited_position: Sequence[float],
    visited_order_up_to: Sequence[float],
    optimal_s: float | None = None,
    optimal_S: float | None = None,
) -> Path:
    """Draw a policy over the inventory position: when it orders, and up to what level.

    Args:
        path: the PNG file to write.
        position: inventory positions, units per item.
        order_probability: probability of ordering at each.
        order_up_to: position that an order reaches from each.
        visited_position: positions at which the running system ordered.
        visited_order_up_to: positions that these orders reached.
        optimal_s: reorder point of the optimal rule.
        optimal_S: order-up-to level of the optimal rule.

    Returns:
        The path.
    """
    figure, [[upper], [lower]] = new_figure(2)
    upper.plot(position, order_probability, color=BLUE, linewidth=1.8)
    upper.set(ylabel="probability of ordering", ylim=(-0.04, 1.12), title="Learned policy")
    lower.scatter(visited_position, visited_order_up_to, s=5, color=GREEN, alpha=0.4, linewidths=0)
    # Where it seldom orders, the level that an order would reach is not used: drawn dotted.
    for orders, style in ((True, "-"), (False, ":")):
        chosen = [
            level if (probability >= 0.5) == orders else math.nan
            for level, probability in zip(order_up_to, order_probability, strict=True)
        ]
        lower.plot(position, chosen, color=BLUE, linewidth=1.5, linestyle=style)
    if len(visited_order_up_to):
        lower.annotate(
            "orders in the running system",
            (max(visited_position), max(visited_order_up_to)),
            xytext=(6, -18),
            textcoords="offset points",
            color=GREEN,
        )
    lower.set(ylabel="order-up-to level", xlabel="inventory position (units per item)")
    if optimal_s is not None:
        for axes in (upper, lower):
            axes.axvline(optimal_s, color=ORANGE, linewidth=1.2, linestyle="--")
        upper.annotate(
            f"optimal s = {optimal_s:g}",
            (optimal_s, 1.04),
            xytext=(5, 0),
            textcoords="offset points",
            color=ORANGE,
        )
    if optimal_S is not None:
        lower.axhline(optimal_S, color=ORANGE, linewidth=1.2, linestyle="--")
        lower.annotate(
            f"optimal S = {optimal_S:g}",
            (0.99, optimal_S),
            xycoords=("axes fraction", "data"),
            xytext=(0, 5),
            textcoords="offset points",
            ha="right",
            color=ORANGE,
        )
    return save_figure(figure, path)


def plot_mode_plane(
    path: str | Path,
    *,
    extent: float,
    planes: Mapping[str, Sequence[Sequence[int]]],
    paths: Mapping[str, Sequence[Sequence[Sequence[float]]]],
    num_modes: int,
) -> Path:
    """Draw which mode a policy chooses in the plane of a two-dimensional state.

    Args:
        path: the PNG file to write.
        extent: the plane runs from -extent to extent in both coordinates.
        planes: by title, the mode at each point of a square grid, rows by the second coordinate.
        paths: by title, trajectories to draw over the plane: points ``(x_1, x_2)`` in order.
        num_modes: number of modes.

    Returns:
        The path.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    figure, [panels] = new_figure(1, len(planes), share_x=False)
    colours = ListedColormap([MODES[mode % len(MODES)] for mode in range(num_modes)])
    for axes, (title, plane) in zip(panels, planes.items(), strict=True):
        axes.imshow(
            plane,
            origin="lower",
            extent=(-extent, extent, -extent, extent),
            cmap=colours,
            vmin=-0.5,
            vmax=num_modes - 0.5,
            alpha=0.55,
            interpolation="nearest",
        )
        for points in paths.get(title, ()):
            axes.plot(*zip(*points, strict=True), color="black", linewidth=0.8, alpha=0.7)
        axes.set(title=title, xlabel="$x_1$", ylabel="$x_2$")
        axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
        axes.grid(visible=False)
    shown = [Patch(color=colours(mode), alpha=0.55) for mode in range(num_modes)]
    names = [f"mode {mode}" for mode in range(num_modes)]
    figure.legend(shown, names, loc="outside lower center", ncols=min(num_modes, 8), frameon=False)
    return save_figure(figure, path)


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
