"""Pictures of one run and of many: learning curves, gradients, and anything by size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hpo_torchrl.core.figures import BLACK, BLUE, GREY, MODES, ORANGE, new_figure, save_figure
from hpo_torchrl.core.reference import excess
from hpo_torchrl.reporting.published import PUBLISHED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Gaps in percent, and signal-to-noise ratios, below this are drawn here.
_SMALLEST = 1e-2
# So are larger values here: a gradient that hardly has noise has a ratio beyond any axis.
_LARGEST = 1e12
# A logarithmic axis of a wider range has room for its major labels only.
_WIDE = 20.0
# No multiple of the number of colours, so that lines of the same colour differ.
_STYLES = ("-", "--", ":")
_MARKERS = ("o", "s", "^", "v", "D", "x")
# What a figure calls algorithms, settings and tests; others by their names.
_NAMES = {"hpo": "HPO", "ppo": "PPO", "ddpg": "DDPG", "s_S": "best (s, S) or (Q, S) rule"}
_NAMES |= {"R_S": "best (R, S) rule", "da_ac": "DA-AC", "dim": "dimension"}
_NAMES |= {"num_items": "number of items", "num_modes": "number of modes"}
_NAMES |= {"protocol": "periods 17 to 100, from an empty start", "long_run": "the long run"}
Labels = Mapping[str, str]
Names = Sequence[str]


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
    """Draw how far the test cost is above the optimum (or a lower bound) against updates.

    Where neither is known, or it is 0, the cost itself is drawn.

    Args:
        path: the PNG file to write.
        updates: numbers of updates.
        costs: test cost per unit and period after each.
        errors: their standard errors: short tests are noisy, and may read below the optimum. Two
            of the last one are a line, below which gaps tell nothing.
        optimum: cost of the optimal policy.
        lower_bound: a cost that no policy can go below.
        baselines: costs of simple rules by name, drawn as lines.

    Returns:
        The path.
    """
    floor, named = (optimum, "optimum") if optimum is not None else (lower_bound, "lower bound")
    rows = pd.DataFrame({"update": updates, "cost": costs, "line": "short test"})
    spread = 2.0 * np.asarray(errors if errors is not None else math.nan)
    rows = rows.assign(cost_low=rows["cost"] - spread, cost_high=rows["cost"] + spread)
    title = f": short test {costs[-1]:.2f}" if len(costs) else ""
    title += f" \u00b1 {errors[-1]:.2f}" if errors else ""
    figure, [[axes]] = new_figure(1)
    y, label = "cost", "cost per unit and period"
    if floor:
        # The start is many times the optimum: on a logarithm of the gap the end is readable too.
        y, label = "gap", f"above the {named}, %"
        ends = ["cost", "cost_low", "cost_high"]
        rows[["gap", "gap_low", "gap_high"]] = excess(rows[ends], floor)
        title += f", {named} {floor:.2f}"
    lines = {
        f"{name} {cost:.3f}": excess(cost, floor) if floor else cost
        for name, cost in (baselines or {}).items()
        if cost is not None
    }
    if floor and errors:
        lines["noise of a test"] = 2.0 * errors[-1] / abs(floor)
    tested = rows
    for line, level in lines.items():
        own = {"line": line, y: level, f"{y}_low": math.nan}
        rows = pd.concat([rows, tested.assign(**own)])
    axes.set(xlabel="updates", ylabel=label, title=f"Learning curve{title}")
    _draw_lines(axes, rows, "update", y, ["short test"])
    return _save(figure, path)


def plot_lines(path: Path, rows: pd.DataFrame, xs: Labels, ys: Labels, names: Names) -> Path:
    """Draw columns against others, with their intervals, in a row of panels for each title.

    Args:
        path: the PNG file to write.
        rows: the columns ``title``, ``line``, those of ``xs``, and those of ``ys`` with their
            intervals. An infinite end of an interval is above the panel; where the column itself
            is infinite, a line ends and a cross is at the upper edge.
        xs: labels of the horizontal axes, by column.
        ys: labels of the vertical axes, by column.
        names: lines in the order of their colours, which figures share; others, of simple rules for
            example, are grey, and published ones black.

    Returns:
        The path.
    """
    titles, pairs = rows.groupby("title"), list(product(xs, ys))
    figure, grid = new_figure(len(titles), len(pairs), share_x=False)
    for (title, members), panels in zip(titles, grid, strict=True):
        for axes, (x, y) in zip(panels, pairs, strict=True):
            axes.set(xlabel=in_words(xs[x]), ylabel=ys[y], title=in_words(title))
            _draw_lines(axes, members.dropna(subset=y), x, y, names)
    return _save(figure, path)


def plot_gradients(
    path: str | Path, rows: Sequence[Mapping[str, Any]], *, ceiling: Mapping[str, Sequence[float]]
) -> Path:
    """Draw alignment and signal-to-noise of the estimators, with intervals.

    Args:
        path: the PNG file to write.
        rows: as for :func:`format_gradients`.
        ceiling: by group, the alignment of a perfect estimator: a dashed line.

    Returns:
        The path.
    """
    groups = pd.DataFrame(rows).groupby("group", sort=False)
    figure, panels = new_figure(len(groups), 2, share_x=False)
    for (group, members), (left, right) in zip(groups, panels, strict=True):
        shown, places = members[::-1], range(len(members))
        colours = np.where(shown["whole"], BLUE, GREY)
        for axes, measure in ((left, "alignment"), (right, "signal_to_noise")):
            ends = shown[f"{measure}_low"], shown[f"{measure}_high"]
            axes.hlines(places, *ends, colors=colours, linewidth=4, alpha=0.35)
            axes.scatter(shown[measure], places, c=colours)
        if math.isfinite(ceiling[group][0]):
            left.axvline(ceiling[group][0], color=ORANGE, linestyle="--", linewidth=1.2)
        left.axvline(0.0, color=GREY, linewidth=0.8)
        left.set_yticks(places, shown["estimator"])
        left.set(xlabel="alignment", title=f"{group} action", xlim=(-1.05, 1.05))
        right.axvline(1.0, color=GREY, linewidth=0.8)
        right.set_yticks(places, [""] * len(members))
        right.set_xscale("symlog", linthresh=0.1)
        right.set(xlabel="signal / noise", xlim=(0, None))
    return save_figure(figure, path)


def in_words(name: str) -> str:
    """Return a key as a reader would say it.

    Examples:
        >>> from hpo_torchrl.reporting.figures import in_words
        >>> in_words("hpo cross_term=False"), in_words("num_items"), in_words("published PPO")
        ('HPO cross term=False', 'number of items', 'published PPO')
    """
    first, space, rest = name.partition(" ")
    return (_NAMES.get(first, first) + space + rest).replace("_", " ")


def _draw_lines(axes: Axes, rows: pd.DataFrame, x: str, y: str, names: Names) -> None:
    """Draw a column with its intervals: bars at a few sizes, a band along a learning curve."""
    clipped = y.startswith(("gap", "signal"))  # what is small by luck has no place on a logarithm
    scale, least = 100.0 if y.startswith("gap") else 1.0, _SMALLEST if clipped else -math.inf
    bars, lines = x == "size", list(dict.fromkeys([*names, *rows["line"]]))
    for name, line in rows.sort_values(x, kind="stable").groupby("line", sort=False):
        place = lines.index(name)
        colour = MODES[place % len(MODES)] if name in names else GREY
        look: Any = {"color": colour, "linestyle": _STYLES[place % len(_STYLES)]}
        if name.startswith(PUBLISHED):
            colour = look["color"] = BLACK
        look["label"] = in_words(name)
        if bars:
            look |= {"marker": _MARKERS[place % len(_MARKERS)], "markersize": 4}
        ends = scale * line.set_index(x)[[y, f"{y}_low", f"{y}_high"]].replace(math.inf, math.nan)
        middle, low, high = (ends.clip(least, _LARGEST)[column] for column in ends)
        axes.plot(middle.index, middle, **look)
        if bars and len(never := line[np.isinf(line[y])]):  # marks at the upper edge
            own = {**look, "linestyle": "", "label": None, "marker": "x", "markersize": 7}
            edge = axes.get_xaxis_transform()
            axes.plot(never[x], [0.97] * len(never), transform=edge, clip_on=False, **own)
        if low.notna().any():
            shade, width = (axes.vlines, 4) if bars else (axes.fill_between, 0)
            high = high.fillna(1.1 * high.max())
            shade(low.index, low, high, color=colour, alpha=0.25, linewidth=width)
    if bars:
        axes.set_xticks(rows[x].unique())
    if clipped or ("cost" in y and rows[y].min() > 0):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        low, high = axes.get_ylim()
        axes.yaxis.set_minor_formatter("{x:.3g}" if high / low < _WIDE else "")
    elif bars:
        axes.axhline(0.0, color=GREY, linewidth=0.8)


def _save(figure: Figure, path: str | Path) -> Path:
    """Put one legend of all panels below the figure, and write it."""
    shown: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    style: Any = {"ncols": 2, "frameon": False, "fontsize": 8}
    figure.legend(shown.values(), shown, loc="outside lower center", **style)
    return save_figure(figure, path)
