"""The gradient report as a table, a file and a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo_torchrl.core.figures import BLUE, GREY, ORANGE, new_figure, save_figure

Row = Mapping[str, Any]

_TITLES = {"discrete": "discrete choice", "continuous": "continuous action"}
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
    for group in dict.fromkeys(row["group"] for row in rows):
        best, least, _ = ceiling[group]
        lines += [
            "",
            f"{_TITLES.get(group, group)} (a perfect estimator would show alignment {best:.2f})",
            f"  {'':<24}{'signal':>10}{'noise':>10}{'signal/noise':>14}"
            f"{'alignment':>11}{'':<16}{'bias':>8}",
        ]
        lines += [_line(row, known=least >= _RESOLVED) for row in rows if row["group"] == group]
        zero = [
            name
            for name in known
            if name not in {r["estimator"] for r in rows if r["group"] == group}
        ]
        if zero:
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


def write_rows(path: str | Path, rows: Sequence[Row]) -> Path:
    """Write rows that share their keys, a gradient report for example, as a CSV file."""
    path = Path(path)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


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
    groups = list(dict.fromkeys(row["group"] for row in rows))
    figure, panels = new_figure(len(groups), 2, share_x=False)
    for group, (left, right) in zip(groups, panels, strict=True):
        shown = [row for row in rows if row["group"] == group][::-1]
        names = [row["estimator"] for row in shown]
        for axes, measure in ((left, "alignment"), (right, "signal_to_noise")):
            for place, row in enumerate(shown):
                colour = BLUE if row["whole"] else GREY
                axes.plot(
                    [row[f"{measure}_low"], row[f"{measure}_high"]],
                    [place, place],
                    color=colour,
                    linewidth=4,
                    alpha=0.35,
                )
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
