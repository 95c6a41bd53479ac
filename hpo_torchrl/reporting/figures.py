"""Pictures of one run and of many: learning curves, gaps and training times by size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo_torchrl.core.figures import BLUE, GREY, MODES, ORANGE, new_figure, save_figure
from hpo_torchrl.reporting.groups import Problem
from hpo_torchrl.reporting.runs import FINISHED, Run
from hpo_torchrl.reporting.statistics import Estimate, estimate_iqm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The learning curve of a run shows costs up to this many times the optimum.
_HIGHEST = 5.0
# Gaps below this are drawn here: a logarithm has no place for a test that beat the optimum by luck.
_SMALLEST = 1e-4
_STYLES = ("-", "--", ":", "-.")
_MARKERS = ("s", "^", "v", "D", "x")
Families = Mapping[str, Sequence[Problem]]


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
    title = "Learning curve" + (f": short test {costs[-1]:.2f}" if costs else "")
    if errors is not None and len(errors):
        middle, spread = np.asarray(costs), 2.0 * np.asarray(errors)
        axes.fill_between(updates, middle - spread, middle + spread, color=BLUE, alpha=0.2, lw=0)
        title += f" \u00b1 {errors[-1]:.2f}"
    for place, (name, cost) in enumerate((baselines or {}).items()):
        _level(axes, f"{name} {cost:.3f}", cost, GREY, at=0.01 + 0.25 * (place % 4))
    floor = optimum if optimum is not None else lower_bound
    if floor is not None and costs:
        label = "optimum" if optimum is not None else "lower bound"
        _level(axes, f"{label} {floor:.3f}", floor, ORANGE, offset=-12)
        # The start is many times the optimum: a logarithm, cut there, keeps the end readable.
        if min(*costs, floor) > 0:
            axes.set_yscale("log")
            highest = max([*costs, *(baselines or {}).values()])
            top = min(1.1 * highest, _HIGHEST * floor)
            axes.set_ylim(floor * (floor / top) ** 0.1, top)  # room for the label
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set(xlabel="updates", ylabel="cost per unit and period", title=title)
    return save_figure(figure, path)


def plot_learning_curves(path: str | Path, problem: Problem, names: Sequence[str]) -> Path | None:
    """Draw the gap of every algorithm against updates and against environment steps.

    Each line is the interquartile mean of the finished runs at the updates at which all of them
    were tested, with its pointwise 95 % bootstrap interval. Without a reference the test cost is
    drawn instead of the gap.

    Args:
        path: the PNG file to write.
        problem: the problem.
        names: algorithms in the order of their colours, which figures share.

    Returns:
        The path; ``None`` if no run has a tested row, and nothing is written.
    """
    column = problem.gap_column if problem.reference else "test_cost"
    figure, [panels] = new_figure(1, 2, share_x=False)
    for place, name in enumerate(names):
        runs = problem.algorithms.get(name, ())
        finished = [run for run in runs if run.status == FINISHED and run.tests]
        updates, steps, curves = _common_points(finished, column)
        if not updates:
            continue
        line, look = estimate_iqm(curves), line_look(place)
        label = f"{name} ({len(finished)} of {len(runs)} runs)"
        for axes, x in zip(panels, (updates, steps), strict=True):
            axes.plot(x, np.maximum(line.value, _SMALLEST), label=label, **look)
            if line.low is not None:
                band = np.maximum(line[1:], _SMALLEST)
                axes.fill_between(x, *band, color=look["color"], alpha=0.2, linewidth=0)
    if not panels[0].lines:
        return None
    for axes, xlabel in zip(panels, ("updates", "environment steps"), strict=True):
        axes.set(xlabel=xlabel)
        _gap_axis(axes, percent=problem.reference is not None)
        for rule, cost in problem.baselines.items():
            level = problem.gap(cost) if problem.reference else cost
            if level is not None and level > 0:
                _level(axes, rule, level, GREY)
    panels[0].set(ylabel=f"gap to {problem.reference}" if problem.reference else "test cost")
    figure.suptitle(problem.label, wrap=True)
    legend_below(figure, panels)
    return save_figure(figure, path)


def plot_gap_against_size(
    path: str | Path, setting: str, families: Families, names: Sequence[str]
) -> Path:
    """Draw the final gap of every algorithm against a numerical setting of the environment.

    Points are interquartile means with 95 % bootstrap intervals (none for a single run). Grey
    lines are simple rules and the upper bound.

    Args:
        path: the PNG file to write.
        setting: the setting on the horizontal axis, ``"num_items"`` for example.
        families: by title of the panel, problems that differ in this setting alone, as
            :func:`find_families` returns them.
        names: as for :func:`plot_learning_curves`.

    Returns:
        The path.
    """
    figure, panels = _panels(families, setting)
    for axes, problems in zip(panels, families.values(), strict=True):
        for place, name in enumerate(names):
            known = [problem for problem in problems if problem.gaps(name)]
            points = {p.settings[setting]: estimate_iqm(p.gaps(name)) for p in known}
            draw_points(axes, points, least=_SMALLEST, label=name, marker="o", **line_look(place))
        for place, rule in enumerate(sorted({rule for p in problems for rule in p.baselines})):
            found = {p.settings[setting]: p.gap(p.baselines.get(rule)) for p in problems}
            points = {size: Estimate(gap) for size, gap in found.items() if gap is not None}
            look = {"color": GREY, "linestyle": _STYLES[1 + place % 3]}
            marker = _MARKERS[place % len(_MARKERS)]
            draw_points(axes, points, least=_SMALLEST, label=rule, marker=marker, **look)
        bases = dict.fromkeys(problem.reference for problem in problems if problem.reference)
        axes.set(ylabel=f"gap to {' or '.join(bases) or 'reference'}")
        _gap_axis(axes, percent=True)
    legend_below(figure, panels)
    return save_figure(figure, path)


def plot_updates_against_size(
    path: str | Path,
    setting: str,
    families: Families,
    names: Sequence[str],
    target: float,
) -> Path:
    """Draw the updates to the target gap against a numerical setting of the environment.

    Lines are medians over all runs, dots the runs; crosses at the top are runs that did not reach
    the target, and a line ends where half of the runs did not.

    Args:
        path: the PNG file to write.
        setting: the setting on the horizontal axis.
        families: as for :func:`plot_gap_against_size`.
        names: as for :func:`plot_gap_against_size`.
        target: gap to reach.

    Returns:
        The path.
    """
    figure, panels = _panels(families, setting)
    for axes, problems in zip(panels, families.values(), strict=True):
        for place, name in enumerate(names):
            look, medians = line_look(place), {}
            for problem in problems:
                times = problem.times(problem.algorithms.get(name, ()), target)
                if times is None:
                    continue
                size, updates = problem.settings[setting], times["updates"]
                median = float(np.median(updates))
                medians[size] = Estimate(median if math.isfinite(median) else math.nan)
                reached = list(filter(math.isfinite, updates))
                axes.plot([size] * len(reached), reached, ".", color=look["color"], alpha=0.6)
                if never := len(updates) - len(reached):
                    text, height = f"\u00d7 {never} never", 0.98 - 0.04 * place
                    style: Any = {"transform": axes.get_xaxis_transform(), "fontsize": 7}
                    axes.text(size, height, text, va="center", color=look["color"], **style)
            draw_points(axes, medians, label=name, **look)
        axes.set(ylabel=f"updates to a gap of {100 * target:g} %")
        axes.margins(x=0.15, y=0.25)
        axes.set_ylim(bottom=0)
    legend_below(figure, panels)
    return save_figure(figure, path)


def line_look(place: int) -> dict[str, Any]:
    """Return colour and line style of an algorithm."""
    style = _STYLES[place // len(MODES) % len(_STYLES)]
    return {"color": MODES[place % len(MODES)], "linestyle": style}


def draw_points(
    axes: Axes, points: Mapping[float, Estimate], *, least: float = -math.inf, **look: Any
) -> None:
    """Draw estimates at some sizes as a line, and their intervals as bars."""
    if points:
        middle, low, high = np.maximum(np.array(list(points.values()), dtype=float).T, least)
        axes.plot(list(points), middle, markersize=4, **look)
        axes.vlines(list(points), low, high, color=look["color"], linewidth=4, alpha=0.35)


def legend_below(figure: Figure, panels: Sequence[Axes]) -> None:
    """Put one legend of all panels below the figure."""
    shown: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    if shown:
        columns = 2 if max(map(len, shown)) < 45 and len(panels) > 1 else 1
        style: Any = {"ncols": columns, "frameon": False, "fontsize": 8}
        figure.legend(shown.values(), shown, loc="outside lower center", **style)


def _panels(families: Families, setting: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for each family, whose problems are on the horizontal axis."""
    figure, [panels] = new_figure(1, len(families), share_x=False)
    for axes, (title, problems) in zip(panels, families.items(), strict=True):
        axes.set(xlabel=setting, title=title)
        axes.set_xticks([problem.settings[setting] for problem in problems])
    return figure, panels


def _common_points(
    runs: Sequence[Run], column: str
) -> tuple[list[float], list[float], list[list[float]]]:
    """Return updates at which all runs were tested, environment steps, and values by run there."""
    tables = [
        {row["update"]: row for row in run.tests if math.isfinite(row.get(column, math.nan))}
        for run in runs
    ]
    updates = sorted(set.intersection(*map(set, tables))) if tables else []
    steps = [float(np.median([table[u]["env_steps"] for table in tables])) for u in updates]
    return updates, steps, [[table[update][column] for table in tables] for update in updates]


def _gap_axis(axes: Axes, *, percent: bool) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    scale, unit = (100.0, " %") if percent else (1.0, "")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{scale * value:g}{unit}"))
    low, high = axes.get_ylim()
    minor = FuncFormatter(lambda value, _: f"{scale * value:.3g}{unit}")
    axes.yaxis.set_minor_formatter(NullFormatter() if high / low > 20 else minor)


def _level(
    axes: Axes, label: str, height: float, colour: str, *, offset: int = 3, at: float = 0.01
) -> None:
    """Draw a horizontal line with its name."""
    axes.axhline(height, color=colour, linewidth=1.3, linestyle="--")
    place: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate(label, (at, height), xytext=(0, offset), fontsize=9, color=colour, **place)
