"""Algorithms compared problem by problem, as markdown tables that are also read in a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hpo_torchrl.reporting.comparison import compare_pairs, compare_times
from hpo_torchrl.reporting.groups import Problem

Row = Mapping[str, Any]


def format_comparison(problem: Problem, rows: Sequence[Row], *, target: float) -> str:
    """Format the tables of one problem as markdown.

    Args:
        problem: the problem.
        rows: the rows of :func:`compare_algorithms`, of this problem or of all.
        target: gap to reach.

    Examples:
        >>> from pathlib import Path
        >>> from hpo_torchrl.reporting import Problem, Run, compare_algorithms, format_comparison
        >>> run = Run(Path(), {}, {"test_cost": 1.02, "wall_seconds": 9.0}, status="finished")
        >>> problem = Problem("lqr", "lqr", {}, {"hpo": [run]}, "optimum", 1.0)
        >>> rows = compare_algorithms([problem], target=0.10)
        >>> text = format_comparison(problem, rows, target=0.10)
        >>> text.splitlines()[0], text.splitlines()[-1][:32]
        ('Optimum 1.0000.', '| hpo       |     1 | 1.0200 [-]')
    """
    return "\n\n".join(_tables(problem, rows, target))


def _tables(problem: Problem, rows: Sequence[Row], target: float) -> Iterator[str]:
    yield _reference_line(problem)
    to = f"gap to {problem.reference}" if problem.reference else "gap"
    reach = f"to {100 * target:g} %"
    times = [f"{unit} {reach}" for unit in ("updates", "env steps", "seconds")]
    yield format_table(
        ["algorithm", "seeds", "test cost", to, "worst", "reached", *times, "wall seconds"],
        [_line(row) for row in rows if row["problem"] == problem.label],
    )
    pairs = compare_pairs([problem])
    if pairs:
        yield format_pairs(pairs)
    if len(problem.algorithms) > 1 and problem.reference is not None:
        ratios = compare_times(problem, target=target)
        if not ratios:
            yield "No algorithm reached the target in half of its runs: no ratio of times."
        else:
            yield format_table(
                ["algorithm", f"updates {reach}", f"seconds {reach}"],
                [
                    [row["algorithm"]]
                    + [_between(row, f"{unit}_ratio", "{:.2f}") for unit in ("updates", "seconds")]
                    for row in ratios
                ],
                caption=f"Times as many as {ratios[0]['fastest']}, which is the fastest:",
            )


def format_pairs(pairs: Sequence[Row]) -> str:
    """Format the rows of :func:`compare_pairs` as markdown."""
    return format_table(
        ["algorithm", "costs less than", "with probability"],
        [[row["first"], row["second"], _between(row, "probability", "{:.2f}")] for row in pairs],
        caption="Probability of improvement:",
    )


def format_overall(rows: Sequence[Row]) -> str:
    """Format the rows of :func:`compare_overall` as markdown."""
    return format_table(
        ["algorithm", "runs", "gap", "worst"],
        [
            [
                row["algorithm"],
                str(row["runs"]),
                _between(row, "gap_iqm", "{:+.2%}"),
                _number(row["gap_worst"], "{:+.2%}"),
            ]
            for row in rows
        ],
    )


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> str:
    """Format a markdown table whose columns are also aligned in a terminal.

    Examples:
        >>> print(format_table(["name", "gap"], [["hpo", "+1 %"]]))
        | name | gap  |
        |:-----|-----:|
        | hpo  | +1 % |
    """
    widths = [max(len(line[place]) for line in (header, *rows)) for place in range(len(header))]
    lines = [caption, ""] if caption else []
    lines.append(_cells(header, widths, heading=True))
    rules = ["-" * (width + 1) for width in widths]
    lines.append("|" + "|".join([f":{rules[0]}", *(f"{rule}:" for rule in rules[1:])]) + "|")
    return "\n".join(lines + [_cells(row, widths) for row in rows])


def _cells(row: Sequence[str], widths: Sequence[int], *, heading: bool = False) -> str:
    cells = [
        text.ljust(width) if heading or place == 0 else text.rjust(width)
        for place, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    return f"| {' | '.join(cells)} |"


def _line(row: Row) -> list[str]:
    complete = row["finished"] == row["seeds"]
    return [
        row["algorithm"],
        str(row["seeds"]) if complete else f"{row['finished']} of {row['seeds']}",
        _between(row, "cost_iqm", "{:.4f}"),
        _between(row, "gap_iqm", "{:+.2%}"),
        _number(row["gap_worst"], "{:+.2%}"),
        "-" if row["reached"] is None else f"{row['reached']} of {row['seeds']}",
        *(_time(row[f"{name}_to_target"], "{:,.0f}") for name in ("updates", "env_steps")),
        _time(row["seconds_to_target"], "{:,.1f}"),
        _number(row["wall_seconds"], "{:,.0f}"),
    ]


def _reference_line(problem: Problem) -> str:
    words = []
    if problem.reference is None:
        words.append("Neither optimum nor lower bound is known: no gap")
    elif problem.reference_cost is None:
        words.append(f"The {problem.reference} stands in the summary of a finished run: none yet")
    else:
        words.append(f"{problem.reference.capitalize()} {problem.reference_cost:.4f}")
    for name, cost in problem.lines_to_beat().items():
        gap = problem.gap(cost)
        words.append(
            f"{name} {cost:.4f}" + ("" if gap is None else f" ({_number(gap, '{:+.2%}')})")
        )
    return "; ".join(words) + "."


def _time(value: float | None, form: str) -> str:
    return "never" if value == math.inf else _number(value, form)


def _number(value: float | None, form: str) -> str:
    if value is None or math.isnan(value):
        return "-"
    return form.format(value).replace("%", " %")


def _between(row: Row, name: str, form: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if value is None or math.isnan(value):
        return "-"
    if low is None:
        return f"{_number(value, form)} [-]"
    return f"{_number(value, form)} [{_number(low, form)}, {_number(high, form)}]"
