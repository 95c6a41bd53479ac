"""Schedules drawn: which units are on, and how they share the load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hpo_torchrl.core.figures import BLACK, GREY, ORANGE, new_figure, save_figure
from hpo_torchrl.problems.unit_commitment.formulation import alike
from hpo_torchrl.problems.unit_commitment.operation import VIOLATIONS, Operation
from hpo_torchrl.problems.unit_commitment.units import Units

# Rows of the chart that a reader can tell apart, and hours whose cells have room for a number.
_ROWS, _HOURS = 24, 48
_WIND, _STORE = "#BFE3F5", "#CC79A7"


class Row(NamedTuple):
    """A row of the chart: its name and the numbers of its units."""

    name: str
    units: np.ndarray


def rows_of(units: Units) -> list[Row]:
    """Return the rows of a chart, from the cheapest units at full power to the dearest.

    Units that are alike share one; where there are still too many, so do neighbours in cost.

    Examples:
        >>> from hpo_torchrl.problems.unit_commitment import Units
        >>> from hpo_torchrl.problems.unit_commitment.picture import rows_of
        >>> [row.name for row in rows_of(Units.kazarlis(20))][:2]
        ['2 x unit 1', '2 x unit 2']
    """
    group, order = alike(units), np.argsort(units.full_load_cost, kind="stable")
    kinds = list(dict.fromkeys(group[order]))
    if len(kinds) <= _ROWS:
        members = [np.flatnonzero(group == kind) for kind in kinds]
        return [Row(_name(units, those), those) for those in members]
    parts = np.array_split(order, _ROWS)
    ends = np.cumsum([0, *map(len, parts)])
    return [
        Row(f"{first + 1} to {last} by cost", part)
        for part, first, last in zip(parts, ends[:-1], ends[1:], strict=True)
    ]


def plot_schedules(
    path: str | Path, units: Units, operations: Mapping[str, Operation], day: int = 0
) -> Path:
    """Draw a day of schedules side by side: units that are on, and their powers under the demand.

    A unit has one colour in both panels, from the cheapest to the dearest at full power.

    Args:
        path: the PNG file to write.
        units: the units.
        operations: what they do, by title.
        day: which of the days.

    Returns:
        The path.
    """
    from matplotlib import colormaps
    from matplotlib.ticker import MultipleLocator

    rows = rows_of(units)
    colors = colormaps["viridis"](np.linspace(0.0, 0.95, len(rows)))
    figure, (charts, loads) = new_figure(2, len(operations))
    for chart, axes, (title, operation) in zip(charts, loads, operations.items(), strict=True):
        one = Operation(*(part[day] for part in operation))
        _draw_commitment(chart, rows, colors, one)
        _draw_dispatch(axes, rows, colors, one)
        chart.set(title=f"{title}: {_said(one)}")
    charts[0].set(ylabel="units on")
    loads[0].set(ylabel="MW")
    top = max(axes.get_ylim()[1] for axes in loads)
    for axes in loads:
        axes.set(xlabel="hour of the day", ylim=(0.0, top))
        axes.xaxis.set_major_locator(MultipleLocator(6))
    handles, labels = loads[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8
    )
    return save_figure(figure, path)


def _draw_commitment(axes: Any, rows: list[Row], colors: np.ndarray, one: Operation) -> None:
    number = np.stack([one.on[:, row.units].sum(-1) for row in rows])
    cells = np.ones((*number.shape, 4))
    cells[...] = colors[:, None]
    size = np.array([len(row.units) for row in rows])[:, None]
    cells[..., 3] = np.where(number > 0, 0.25 + 0.75 * number / size, 0.0)
    length = number.shape[1]
    axes.imshow(
        cells,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0, length, -0.5, len(rows) - 0.5),
    )
    if size.max() > 1 and length <= _HOURS:
        for r, t in zip(*np.nonzero(number), strict=True):
            luminous = cells[r, t, :3] @ [0.3, 0.6, 0.1] * cells[r, t, 3] + 1 - cells[r, t, 3]
            color = BLACK if luminous > 0.5 else "white"
            style: Any = {"ha": "center", "va": "center", "fontsize": 5.5, "color": color}
            axes.text(t + 0.5, r, f"{number[r, t]}", **style)
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=7)
    axes.set(ylim=(-0.5, len(rows) - 0.5), xlim=(0, length))
    axes.grid(visible=False)
    axes.hlines(np.arange(len(rows) - 1) + 0.5, 0, length, color="white", linewidth=0.8)


def _draw_dispatch(axes: Any, rows: list[Row], colors: np.ndarray, one: Operation) -> None:
    edges = np.arange(len(one.demand) + 1)
    below = np.zeros(len(one.demand))
    style: Any = {"step": "post", "linewidth": 0.0}
    for row, color in zip(rows, colors, strict=True):
        above = below + one.power[:, row.units].sum(-1)
        axes.fill_between(edges, _to_end(below), _to_end(above), color=color, **style)
        below = above
    taken = one.taken.sum(-1)
    for label, amount, look in (
        ("from batteries", np.maximum(-taken, 0.0), {"color": _STORE}),
        ("wind used", one.wind_used, {"color": _WIND}),
        ("unserved", one.unserved, {"facecolor": "none", "edgecolor": ORANGE, "hatch": "xxx"}),
    ):
        if amount.any():
            above = below + amount
            axes.fill_between(edges, _to_end(below), _to_end(above), label=label, **look, **style)
            below = above
    lines: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "demand": (one.demand, {"color": BLACK, "linewidth": 1.4}),
        "capacity on": (one.capacity, {"color": GREY}),
        "capacity needed": (one.need, {"color": ORANGE, "linestyle": "--"}),
    }
    if (taken > 0).any():
        charged = one.demand + np.maximum(taken, 0.0)
        lines["demand and charging"] = (charged, {"color": BLACK, "linestyle": ":"})
    for label, (values, look) in lines.items():
        axes.stairs(values, edges, label=label, baseline=None, **look)


def _to_end(values: np.ndarray) -> np.ndarray:
    """Repeat the last hour, at whose end a step ends."""
    return np.append(values, values[-1])


def _said(one: Operation) -> str:
    """Return the cost of a day and what it violates, in words."""
    text = f"${float(one.cost):,.0f}"
    lacks = {name: float(getattr(one, name).sum()) for name in VIOLATIONS}
    found = [f"{name} {amount:.3g} MWh" for name, amount in lacks.items() if amount >= 0.05]
    return ", ".join([text, *found])


def _name(units: Units, members: np.ndarray) -> str:
    name = units.names[members[0]]
    if len(members) == 1:
        return name
    return f"{len(members)} x {re.sub(r' [(]1[)]$', '', name)}"
