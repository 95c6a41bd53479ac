"""Algorithms compared problem by problem, in pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo_torchrl.core.figures import GREY, MODES, new_figure, save_figure
from hpo_torchrl.reporting.comparison import finished_costs, times_to_target
from hpo_torchrl.reporting.groups import Problem
from hpo_torchrl.reporting.runs import FINISHED, Run
from hpo_torchrl.reporting.statistics import estimate_iqm, iqm_band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Gaps below this are drawn here: a logarithm has no place for a test that beat the optimum by luck.
_SMALLEST = 1e-4
_STYLES = ("-", "--", ":", "-.")
_MARKERS = ("s", "^", "v", "D", "x")
Families = Mapping[str, Sequence[Problem]]


def plot_learning_curves(
    path: str | Path, problem: Problem, *, names: Sequence[str] | None = None
) -> Path | None:
    """Draw the gap of every algorithm against updates and against environment steps.

    Each line is the interquartile mean of the finished runs at the updates at which all of them
    were tested, with its pointwise 95 % bootstrap interval. Without a reference the test cost is
    drawn instead of the gap.

    Args:
        path: the PNG file to write.
        problem: the problem.
        names: algorithms in the order of their colours, where figures are to agree; by default
            those of the problem.

    Returns:
        The path; ``None`` if no run has a tested row, and nothing is written.
    """
    column = problem.gap_column if problem.reference else "test_cost"
    figure, [panels] = new_figure(1, 2, share_x=False)
    drawn = False
    for place, name in enumerate(names or problem.algorithms):
        runs = problem.algorithms.get(name, ())
        finished = [run for run in runs if run.status == FINISHED and run.tests]
        points, curves = _common_points(finished, column)
        if not points["update"]:
            continue
        drawn = True
        middle, low, high = iqm_band(curves)
        colour, style = line_look(place)
        label = f"{name} ({len(finished)} of {len(runs)} runs)"
        for axes, axis in zip(panels, ("update", "env_steps"), strict=True):
            axes.plot(points[axis], _shown(middle), color=colour, linestyle=style, label=label)
            if low is not None and high is not None:
                axes.fill_between(
                    points[axis], _shown(low), _shown(high), color=colour, alpha=0.2, linewidth=0
                )
    if not drawn:
        return None
    measure = f"gap to {problem.reference}" if problem.reference else "test cost"
    for axes, xlabel in zip(panels, ("updates", "environment steps"), strict=True):
        axes.set(xlabel=xlabel)
        _gap_axis(axes, percent=problem.reference is not None)
    panels[0].set(ylabel=measure)
    for rule, cost in problem.lines_to_beat().items():
        _rule(panels, rule, problem.gap(cost) if problem.reference else cost)
    figure.suptitle(problem.label, wrap=True)
    legend_below(figure, panels)
    return save_figure(figure, path)


def plot_gap_against_size(
    path: str | Path, setting: str, families: Families, *, names: Sequence[str] | None = None
) -> Path:
    """Draw the final gap of every algorithm against a numerical setting of the environment.

    Points are interquartile means with 95 % bootstrap intervals (none for a single run). Grey
    lines are simple rules and the upper bound.

    Args:
        path: the PNG file to write.
        setting: the setting on the horizontal axis, ``"num_items"`` for example.
        families: by title of the panel, problems that differ in this setting alone, as
            :func:`find_families` returns them.
        names: algorithms in the order of their colours, where figures are to agree; by default
            those of these problems.

    Returns:
        The path.
    """
    figure, [panels] = new_figure(1, len(families), share_x=False)
    for axes, (title, problems) in zip(panels, families.items(), strict=True):
        for place, name in enumerate(names or _names(families)):
            points = []
            for problem in problems:
                costs = finished_costs(problem.algorithms.get(name, ()))
                gaps = [gap for gap in map(problem.gap, costs) if gap is not None]
                if gaps:
                    points.append((problem.settings[setting], estimate_iqm(gaps)))
            _points_with_intervals(axes, name, place, points)
        rules = dict.fromkeys(rule for problem in problems for rule in problem.lines_to_beat())
        for place, rule in enumerate(sorted(rules)):
            found = [
                (problem.settings[setting], problem.gap(problem.lines_to_beat()[rule]))
                for problem in problems
                if rule in problem.lines_to_beat()
            ]
            known = [(x, max(gap, _SMALLEST)) for x, gap in found if gap is not None]
            if known:
                style, marker = _STYLES[1 + place % 3], _MARKERS[place % len(_MARKERS)]
                axes.plot(
                    *zip(*known, strict=True),
                    color=GREY,
                    linestyle=style,
                    marker=marker,
                    markersize=4,
                    label=rule,
                )
        bases = [problem.reference for problem in problems if problem.reference]
        _gap_axis(axes, percent=True)
        axes.set(
            xlabel=setting,
            ylabel=f"gap to {' or '.join(dict.fromkeys(bases)) or 'reference'}",
            title=title,
        )
        axes.set_xticks([problem.settings[setting] for problem in problems])
    legend_below(figure, panels)
    return save_figure(figure, path)


def plot_updates_against_size(
    path: str | Path,
    setting: str,
    families: Families,
    *,
    target: float,
    names: Sequence[str] | None = None,
) -> Path:
    """Draw the updates to the target gap against a numerical setting of the environment.

    Lines are medians over all runs, dots the runs; crosses at the top are runs that did not reach
    the target, and a line ends where half of the runs did not.

    Args:
        path: the PNG file to write.
        setting: the setting on the horizontal axis.
        families: as for :func:`plot_gap_against_size`.
        target: gap to reach.
        names: as for :func:`plot_gap_against_size`.

    Returns:
        The path.
    """
    figure, [panels] = new_figure(1, len(families), share_x=False)
    for axes, (title, problems) in zip(panels, families.items(), strict=True):
        for place, name in enumerate(names or _names(families)):
            known = [p for p in problems if name in p.algorithms and p.reference]
            sizes = [problem.settings[setting] for problem in known]
            times = [times_to_target(p, p.algorithms[name], target)["updates"] for p in known]
            medians = [float(np.median(values)) for values in times]
            colour, style = line_look(place)
            axes.plot(
                sizes,
                [median if math.isfinite(median) else math.nan for median in medians],
                color=colour,
                linestyle=style,
                label=name,
            )
            for size, values in zip(sizes, times, strict=True):
                reached = [value for value in values if math.isfinite(value)]
                axes.plot([size] * len(reached), reached, ".", color=colour, alpha=0.6)
                if len(reached) < len(values):
                    axes.plot(
                        size,
                        0.98 - 0.04 * place,
                        "x",
                        color=colour,
                        transform=axes.get_xaxis_transform(),
                    )
                    axes.annotate(
                        f" {len(values) - len(reached)} never",
                        (size, 0.98 - 0.04 * place),
                        xycoords=axes.get_xaxis_transform(),
                        va="center",
                        fontsize=7,
                        color=colour,
                    )
        axes.set(xlabel=setting, ylabel=f"updates to a gap of {100 * target:g} %", title=title)
        axes.set_xticks([problem.settings[setting] for problem in problems])
        axes.margins(x=0.15, y=0.25)
        axes.set_ylim(bottom=0)
    legend_below(figure, panels)
    return save_figure(figure, path)


def _points_with_intervals(axes: Axes, name: str, place: int, points: Sequence[Any]) -> None:
    """Draw estimates at positions as a line with error bars where there are intervals."""
    if not points:
        return
    colour, style = line_look(place)
    sizes = [size for size, _ in points]
    middle = _shown([estimate.value for _, estimate in points])
    axes.plot(sizes, middle, color=colour, linestyle=style, marker="o", markersize=4, label=name)
    for size, estimate in points:
        if estimate.low is not None:
            axes.plot([size] * 2, _shown(estimate[1:]), color=colour, linewidth=4, alpha=0.35)


def _common_points(
    runs: Sequence[Run], column: str
) -> tuple[dict[str, list[float]], list[list[float]]]:
    """Return the points at which all runs were tested, and each run's values there."""
    tables = [
        {row["update"]: row for row in run.tests if math.isfinite(row.get(column, math.nan))}
        for run in runs
    ]
    updates = sorted(set.intersection(*map(set, tables))) if tables else []
    steps = [float(np.median([table[u]["env_steps"] for table in tables])) for u in updates]
    curves = [[table[update][column] for update in updates] for table in tables]
    return {"update": updates, "env_steps": steps}, curves


def _names(families: Families) -> list[str]:
    """Return the algorithms of all problems, so that each has its colour in every panel."""
    problems = [problem for family in families.values() for problem in family]
    return list(dict.fromkeys(name for problem in problems for name in problem.algorithms))


def line_look(place: int) -> tuple[str, str]:
    """Return colour and line style of an algorithm."""
    return MODES[place % len(MODES)], _STYLES[place // len(MODES) % len(_STYLES)]


def _shown(values: Any) -> Any:
    return np.maximum(values, _SMALLEST)


def _gap_axis(axes: Axes, *, percent: bool) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    scale, unit = (100.0, " %") if percent else (1.0, "")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{scale * value:g}{unit}"))
    low, high = axes.get_ylim()
    if high / low > 20:
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{scale * value:.3g}{unit}"))


def _rule(panels: Sequence[Axes], name: str, level: float | None) -> None:
    if level is not None and level > 0:
        for axes in panels:
            axes.axhline(level, color=GREY, linestyle="--", linewidth=1.2)
            axes.annotate(
                name,
                (0.99, level),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=GREY,
            )


def legend_below(figure: Figure, panels: Sequence[Axes]) -> None:
    """Put one legend of all panels below the figure."""
    shown: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            shown.setdefault(label, handle)
    if shown:
        columns = 2 if max(map(len, shown)) < 45 and len(panels) > 1 else 1
        figure.legend(
            list(shown.values()),
            list(shown),
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=8,
        )
