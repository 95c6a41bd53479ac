"""Gradient reports of many folders compared, estimator by estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo_torchrl.core.figures import GREY, new_figure, save_figure
from hpo_torchrl.reporting.comparison_figures import Families, legend_below, line_look
from hpo_torchrl.reporting.comparison_tables import format_table
from hpo_torchrl.reporting.statistics import Estimate, estimate_iqm

MEASURES = ("signal_to_noise", "alignment")
Row = Mapping[str, Any]


def compare_gradients(
    reports: Mapping[Path, Sequence[Row]], labels: Mapping[Path, tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return signal-to-noise and alignment of every estimator over the folders of a group.

    Args:
        reports: rows of ``gradients.csv`` by folder.
        labels: problem and algorithm of each folder; one that is not here is its own problem.

    Returns:
        Rows with the keys ``problem``, ``algorithm``, ``group`` (of parameters), ``estimator``,
        ``whole``, ``folders`` and, for ``signal_to_noise`` and ``alignment``, the interquartile
        mean over folders with ``_low`` and ``_high``: a bootstrap interval over folders, or, of a
        single folder, the report's own interval over its batches.
    """
    gathered: dict[tuple[str, ...], list[Row]] = {}
    for folder, rows in reports.items():
        problem, algorithm = labels.get(folder, (str(folder), ""))
        for row in rows:
            key = (problem, algorithm, row["group"], row["estimator"])
            gathered.setdefault(key, []).append(row)
    compared = []
    for (problem, algorithm, group, estimator), rows in gathered.items():
        line: dict[str, Any] = {"problem": problem, "algorithm": algorithm, "group": group}
        line |= {"estimator": estimator, "whole": rows[0]["whole"], "folders": len(rows)}
        for measure in MEASURES:
            estimate = (
                estimate_iqm([row[measure] for row in rows])
                if len(rows) > 1
                else Estimate(*(rows[0][f"{measure}{end}"] for end in ("", "_low", "_high")))
            )
            line |= dict(zip((measure, f"{measure}_low", f"{measure}_high"), estimate, strict=True))
        compared.append(line)
    return compared


def format_gradient_comparison(rows: Sequence[Row]) -> str:
    """Format the rows of :func:`compare_gradients` as markdown, one table per problem."""
    tables = []
    for place in dict.fromkeys((row["problem"], row["algorithm"], row["group"]) for row in rows):
        here = [row for row in rows if (row["problem"], row["algorithm"], row["group"]) == place]
        title = ", ".join(part for part in place[:2] if part)
        tables.append(
            format_table(
                ["estimator", "folders", "signal / noise", "alignment"],
                [
                    [row["estimator"] + ("" if row["whole"] else " (term)"), str(row["folders"])]
                    + [_interval(row, measure) for measure in MEASURES]
                    for row in here
                ],
                caption=f"{title}: {place[2]} parameters",
            )
        )
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
    shown = [row for row in rows if row["problem"] in sizes and row["whole"]]
    lines: dict[tuple[str, str, str, str], list[tuple[float, Row]]] = {}
    for row in shown:
        title, size = sizes[row["problem"]]
        key = (row["group"], title, row["algorithm"], row["estimator"])
        lines.setdefault(key, []).append((size, row))
    lines = {key: points for key, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    places = list(dict.fromkeys(key[:2] for key in lines))
    names = list(dict.fromkeys(key[2:] for key in lines))
    figure, panels = new_figure(len(places), len(MEASURES), share_x=False)
    for (group, title, *name), points in lines.items():
        colour, style = line_look(names.index((name[0], name[1])))
        points = sorted(points, key=lambda point: point[0])
        for axes, measure in zip(panels[places.index((group, title))], MEASURES, strict=True):
            x = [size for size, _ in points]
            values = {
                end: [row[f"{measure}{end}"] for _, row in points] for end in ("", "_low", "_high")
            }
            label = name[1] if len({algorithm for algorithm, _ in names}) == 1 else ", ".join(name)
            axes.plot(x, values[""], color=colour, linestyle=style, marker="o", label=label)
            axes.fill_between(x, values["_low"], values["_high"], color=colour, alpha=0.12)
    for (group, title), row_of_panels in zip(places, panels, strict=True):
        for axes, measure in zip(row_of_panels, MEASURES, strict=True):
            axes.set_xticks(sorted({size for family, size in sizes.values() if family == title}))
            axes.set(xlabel=setting, title=f"{group} {title}".strip())
            axes.set(ylabel=measure.replace("_to_", " / "))
            axes.axhline(float(measure == "signal_to_noise"), color=GREY, linewidth=0.8)
        row_of_panels[0].set_yscale("symlog", linthresh=0.1)
    legend_below(figure, [axes for line in panels for axes in line])
    return save_figure(figure, path)


def _interval(row: Row, measure: str) -> str:
    value, low, high = (row[f"{measure}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
