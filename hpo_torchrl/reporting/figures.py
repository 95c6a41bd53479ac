"""Pictures of a run: colour-blind safe, labelled at the line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe & Ito's palette, told apart with every common colour-vision deficiency.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"


def plot_learning_curve(
    path: str | Path,
    updates: Sequence[float],
    costs: Sequence[float],
    *,
    errors: Sequence[float] | None = None,
    optimum: float | None = None,
    lower_bound: float | None = None,
) -> Path:
    """Draw test cost against updates, with the optimum (or a lower bound) as a line.

    Args:
        path: the PNG file to write.
        updates: numbers of updates.
        costs: test cost per unit and period after each.
        errors: their standard errors: short tests are noisy, and may read below the optimum.
        optimum: cost of the optimal policy.
        lower_bound: a cost that no policy can go below.

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
    floor = optimum if optimum is not None else lower_bound
    if floor is not None and costs:
        label = "optimum" if optimum is not None else "lower bound"
        axes.axhline(floor, color=ORANGE, linewidth=1.5, linestyle="--")
        axes.annotate(
            f"{label} {floor:.3f}",
            (0.01, floor),
            xycoords=("axes fraction", "data"),
            xytext=(0, -12),
            textcoords="offset points",
            color=ORANGE,
        )
        # The start is many times the optimum; a logarithm keeps the end of the curve readable.
        if min(*costs, floor) > 0:
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.93 * floor)
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


def new_figure(
    rows: int, columns: int = 1, *, share_x: bool = True
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of the house's style and its panels, row by row."""
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
