"""Gradient reports: one as a table and a picture, many compared estimator by estimator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo_torchrl.core.figures import BLUE, GREY, ORANGE, new_figure, save_figure
from hpo_torchrl.reporting.figures import Families, draw_points, legend_below, line_look
from hpo_torchrl.reporting.groups import gather
from hpo_torchrl.reporting.runs import MEASURES
from hpo_torchrl.reporting.statistics import Estimate, estimate_iqm
from hpo_torchrl.reporting.tables import Columns, format_table

Row = Mapping[str, Any]

_TITLES = {"discrete": "discrete action", "continuous": "continuous action"}
_RESOLVED = 0.5  # alignment of a perfect estimator below which a reference is mostly noise
_LEGEND = """\
Each line is one way to estimate how the parameters should change, from one batch.
  signal      length of its average over many batches
  noise       how far one batch strays from that average; signal/noise above 1 is a clear gradient
  alignment   cosine with the mixed gradient of {reference} batches: 1 the same way, 0 any way
  bias        distance of its average from that of the mixed gradient, relative to the latter; the
              mixed gradient with cross term is the yardstick even if the training leaves it out,
              and whatever bias its critic gives it is not seen here
[low, high] are bootstrap intervals, of 95 % unless asked otherwise; a bias whose low is 0 may be
none.
A (term) is one part of the gradient: pathwise + score function + cross = mixed."""


def format_gradients(
    rows: Sequence[Row], *, ceiling: Mapping[str, Sequence[float]], num_reference: int
) -> str:
    """Format a gradient report as one table, with what its columns mean.

    Args:
        rows: one per parameter group and estimator, as ``GradientReport.rows``.
        ceiling: by group, the alignment of a perfect estimator: estimate, low and high.
        num_reference: batches behind the reference gradient.
    """
    lines = [_LEGEND.format(reference=num_reference)]
    known = {row["estimator"]: row["known_bias"] for row in rows}
    for group, members in gather(rows, lambda row: row["group"]).items():
        best, least, _ = ceiling[group]
        lines += [
            "",
            f"{_TITLES.get(group, group)} (a perfect estimator would show alignment {best:.2f})",
            f"  {'':<24}{'signal':>10}{'noise':>10}{'signal/noise':>14}"
            f"{'alignment':>11}{'':<16}{'bias':>8}",
        ]
        lines += [_line(row, known=least >= _RESOLVED) for row in members]
        shown = {row["estimator"] for row in members}
        if zero := [name for name in known if name not in shown]:
            lines.append(f"  exactly 0 here: {', '.join(zero)}")
        if not least >= _RESOLVED:
            lines.append(
                "  The gradient here is below the noise of the reference: near a stationary point "
                "of the\n  training, alignment and bias say little. More --reference batches "
                "resolve it further."
            )
    lines += ["", "Known bias of the whole estimators"]
    whole = {row["estimator"] for row in rows if row["whole"]}
    lines += [f"  {name:<24}{bias}" for name, bias in known.items() if name in whole]
    return "\n".join(line.rstrip() for line in lines)


def plot_gradients(
    path: str | Path, rows: Sequence[Row], *, ceiling: Mapping[str, Sequence[float]]
) -> Path:
    """Draw alignment and signal-to-noise of the estimators, with intervals.

    Args:
        path: the PNG file to write.
        rows: as for :func:`format_gradients`.
        ceiling: by group, the alignment of a perfect estimator: a dashed line.

    Returns:
        The path.
    """
    groups = gather(rows, lambda row: row["group"])
    figure, panels = new_figure(len(groups), 2, share_x=False)
    for (group, members), (left, right) in zip(groups.items(), panels, strict=True):
        shown = members[::-1]
        names = [row["estimator"] for row in shown]
        for axes, measure in ((left, "alignment"), (right, "signal_to_noise")):
            for place, row in enumerate(shown):
                colour = BLUE if row["whole"] else GREY
                ends = [row[f"{measure}_low"], row[f"{measure}_high"]]
                axes.plot(ends, [place, place], color=colour, linewidth=4, alpha=0.35)
                axes.plot(row[measure], place, "o", color=colour)
            axes.set_yticks(range(len(names)), names if axes is left else [])
        if math.isfinite(ceiling[group][0]):
            left.axvline(ceiling[group][0], color=ORANGE, linestyle="--", linewidth=1.2)
        left.axvline(0.0, color=GREY, linewidth=0.8)
        left.set(xlabel="alignment", title=_TITLES.get(group, group), xlim=(-1.05, 1.05))
        right.axvline(1.0, color=GREY, linewidth=0.8)
        right.set_xscale("symlog", linthresh=0.1)
        right.set(xlabel="signal / noise", xlim=(0, None))
    return save_figure(figure, path)


def compare_gradients(
    reports: Mapping[Path, Sequence[Row]], labels: Mapping[Path, tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return signal-to-noise and alignment of every estimator over the folders of a group.

    Args:
        reports: rows of the gradient report by folder.
        labels: problem and algorithm of each folder; one that is not here is its own problem.

    Returns:
        Rows with the keys ``problem``, ``algorithm``, ``group`` (of parameters), ``estimator``,
        ``whole``, ``folders`` and, for ``signal_to_noise`` and ``alignment``, the interquartile
        mean over folders with a bootstrap interval over them; for a single folder, the report's own
        interval over its batches.
    """
    gathered: dict[tuple[str, ...], list[Row]] = {}
    for folder, rows in reports.items():
        for row in rows:
            problem, algorithm = labels.get(folder, (str(folder), ""))
            gathered.setdefault((problem, algorithm, row["group"], row["estimator"]), []).append(
                row
            )
    compared = []
    for place, same in gathered.items():
        names = zip(("problem", "algorithm", "group", "estimator"), place, strict=True)
        line: dict[str, Any] = {**dict(names), "whole": same[0]["whole"], "folders": len(same)}
        for measure in MEASURES:
            values = [v for v in (row[measure].value for row in same) if math.isfinite(v)]
            several = estimate_iqm(values) if values else Estimate(math.nan)
            line[measure] = several if len(same) > 1 else same[0][measure]
        compared.append(line)
    return compared


def format_gradient_comparison(rows: Sequence[Row]) -> str:
    """Format the rows of :func:`compare_gradients` as markdown, one table per problem."""
    columns: Columns = {
        "estimator": lambda row: row["estimator"] + ("" if row["whole"] else " (term)"),
        "folders": ("folders", "{}"),
        "signal / noise": ("signal_to_noise", "{:.2f}"),
        "alignment": ("alignment", "{:.2f}"),
    }
    tables = []
    for (problem, algorithm, group), members in gather(
        rows, lambda row: (row["problem"], row["algorithm"], row["group"])
    ).items():
        title = f"{problem}, {algorithm}" if algorithm else problem
        tables.append(f"{title}: {group} parameters\n\n{format_table(members, columns)}")
    return "\n\n".join(tables)


def plot_gradients_against_size(
    path: str | Path, setting: str, families: Families, rows: Sequence[Row]
) -> Path | None:
    """Draw signal-to-noise and alignment of the whole estimators against a numerical setting.

    Args:
        path: the PNG file to write.
        setting: the setting on the horizontal axis.
        families: problems that differ in this setting alone, as :func:`find_families` returns them.
        rows: as :func:`compare_gradients` returns them.

    Returns:
        The path; ``None`` if no family has reports at two values of the setting.
    """
    sizes = {
        problem.label: (title, problem.settings[setting])
        for title, family in families.items()
        for problem in family
    }
    shown = [row for row in rows if row["whole"] and row["problem"] in sizes]
    found = gather(shown, lambda row: (row["group"], sizes[row["problem"]][0]))
    places = {
        place: gather(members, lambda row: (row["algorithm"], row["estimator"]))
        for place, members in found.items()
        if len({row["problem"] for row in members}) > 1
    }
    if not places:
        return None
    names = list(dict.fromkeys(name for lines in places.values() for name in lines))
    several = len({algorithm for algorithm, _ in names}) > 1
    figure, panels = new_figure(len(places), len(MEASURES), share_x=False)
    for row_of_panels, ((group, title), lines) in zip(panels, places.items(), strict=True):
        for axes, measure in zip(row_of_panels, MEASURES, strict=True):
            for name, members in lines.items():
                points = {sizes[row["problem"]][1]: row[measure] for row in members}
                look = {"marker": "o", **line_look(names.index(name))}
                label = ", ".join(name if several else name[1:])
                draw_points(axes, dict(sorted(points.items())), label=label, **look)
            axes.set_xticks(sorted({size for family, size in sizes.values() if family == title}))
            axes.set(xlabel=setting, title=f"{group} {title}".strip())
            axes.set(ylabel=measure.replace("_to_", " / "))
            axes.axhline(float(measure == "signal_to_noise"), color=GREY, linewidth=0.8)
        row_of_panels[0].set_yscale("symlog", linthresh=0.1)
    legend_below(figure, [axes for line in panels for axes in line])
    return save_figure(figure, path)


def _line(row: Row, *, known: bool) -> str:
    name = row["estimator"] if row["whole"] else f"{row['estimator']} (term)"
    interval = f" [{row['alignment_low']:.2f}, {row['alignment_high']:.2f}]"
    bias = f"{_percent(row['bias'])} [{_percent(row['bias_low'])}, {_percent(row['bias_high'])}]"
    return (
        f"  {name:<24}{row['signal']:>10.3g}{row['noise']:>10.3g}"
        f"{row['signal_to_noise']:>14.2g}{row['alignment']:>11.2f}{interval:<16}"
        f"{(bias if known else '?') if row['whole'] else '':>8}"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value < 10 else ">1000 %"
