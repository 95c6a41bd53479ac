"""Tables: one kind for the report and its CSV files, and the lines that a run prints at its end."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hpo_torchrl.reporting.statistics import Estimate

Row = Mapping[str, Any]
Columns = Mapping[str, tuple[str, str] | Callable[[Row], str]]
PERCENT = "{:+.2%}"
# The costs that a gap is to, in the order of preference: the gap, and its heading.
_REFERENCES = ("optimal_cost", "lower_bound", "upper_bound")
_GAPS = {
    "gap": "gap",
    "gap_to_lower_bound": "gap to the lower bound",
    "gap_to_upper_bound": "gap to the upper bound",
}
# So many levels of a rule are shown.
_ITEMS = 8


def format_table(rows: Sequence[Row], columns: Columns) -> str:
    """Format rows as a markdown table whose columns are also aligned in a terminal.

    Args:
        rows: the rows.
        columns: by heading, the key of a value and its format, or a function of the row; see
            :func:`format_value`.

    Examples:
        >>> from hpo_torchrl.reporting.tables import PERCENT, format_table
        >>> print(format_table([{"name": "hpo", "gap": 0.01}],
        ...     {"name": ("name", "{}"), "gap": ("gap", PERCENT)}))
        | name | gap     |
        |:-----|--------:|
        | hpo  | +1.00 % |
    """
    cells = [list(columns)]
    for row in rows:
        found = (c(row) if callable(c) else format_value(row[c[0]], c[1]) for c in columns.values())
        cells.append(list(found))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        adjust = str.ljust if line is cells[0] else str.rjust
        padded = list(map(adjust, line, widths))
        padded[0] = line[0].ljust(widths[0])
        lines.append(f"| {' | '.join(padded)} |")
    rules = ["-" * (width + 1) for width in widths]
    lines.insert(1, f"|{'|'.join([f':{rules[0]}', *(f'{rule}:' for rule in rules[1:])])}|")
    return "\n".join(lines)


def format_value(value: Any, form: str = "{}") -> str:
    """Format a value of a table.

    Args:
        value: a text, number or :class:`Estimate`; ``"-"`` stands for ``None`` and NaN, and
            ``"never"`` for an infinite number, which is a time.
        form: as for ``str.format``.

    Examples:
        >>> from hpo_torchrl.reporting.statistics import Estimate
        >>> from hpo_torchrl.reporting.tables import format_value
        >>> format_value(Estimate(2.0, 1.0, 3.0), "{:.1f}"), format_value(Estimate(2.0), "{:.1f}")
        ('2.0 [1.0, 3.0]', '2.0 [-]')
    """
    if isinstance(value, Estimate):
        if math.isnan(value.value):
            return "-"
        middle, *ends = (form.format(number) for number in value if number is not None)
        text = f"{middle} [{', '.join(ends) or '-'}]"
    elif value is None or value != value:
        return "-"
    else:
        text = "never" if value == math.inf else form.format(value)
    return text.replace("%", " %")


def write_rows(path: str | Path, rows: Sequence[Row]) -> Path:
    """Write rows that share their keys, a gradient report for example, as a CSV file.

    An :class:`Estimate` becomes three columns, the ends of its interval with ``_low`` and ``_high``
    added to the name; what is unknown stays empty.
    """
    flat = []
    for row in rows:
        line: dict[str, Any] = {}
        for key, value in row.items():
            if isinstance(value, Estimate):
                known = [None if v is None or math.isnan(v) else v for v in value]
                line |= dict(zip((key, f"{key}_low", f"{key}_high"), known, strict=True))
            else:
                line[key] = value
        flat.append(line)
    path = Path(path)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
    return path


def format_summary(summary: Row) -> str:
    """Format a run's summary as a short table that says what each figure means.

    Args:
        summary: the content of ``summary.json``.

    Examples:
        >>> from hpo_torchrl.reporting import format_summary
        >>> print(format_summary({"test_cost": 37.1, "test_cost_se": 0.01, "optimal_cost": 37.064,
        ...     "gap": 0.00097, "updates": 10, "env_steps": 1280, "wall_seconds": 3.0}))
        test cost        37.1000 +- 0.0100   per unit and period
        optimal cost     37.0640
        gap              +0.10 %
        trained          10 updates, 1,280 environment steps, 3 s
    """
    known = {key: value for key, value in summary.items() if value is not None}
    rows = {"test cost": _cost(summary, "test_cost") + "   per unit and period"}
    if "test_reward" in known:
        rows["test reward"] = f"{known['test_reward']:.4f}"
    rows |= {key.replace("_", " "): f"{known[key]:.4f}" for key in _REFERENCES if key in known}
    rows |= {name: f"{cost:.4f}" for name, cost in known.get("baseline_costs", {}).items()}
    gaps = {key: format_value(known[key], PERCENT) for key in _GAPS if key in known}
    upper = gaps.get("gap_to_upper_bound")
    if "gap" in gaps:
        rows["gap"] = gaps["gap"]
    elif "gap_to_lower_bound" in gaps:
        rows["gap"] = f"at most {gaps['gap_to_lower_bound']} (to the lower bound)"
        rows["gap"] += f", at least {upper} (to the upper bound)" if upper else ""
    elif upper:
        rows["gap"] = f"{upper} to the upper bound; no optimum is known"
    if "learned_s" in known:
        text = f"({known['learned_s']}, {known['learned_S']})"
        if "learned_rule_cost" in known:
            text += f", exact cost {known['learned_rule_cost']:.4f}"
        if "optimal_s" in known:
            text += f"; optimal ({known['optimal_s']}, {known['optimal_S']})"
        rows["learned (s, S)"] = text
    if "protocol_cost" in known:
        note = "   finite horizon: another objective than the optimum's"
        rows["protocol cost"] = _cost(summary, "protocol_cost") + note
    rows["trained"] = f"{_effort(summary)}, {summary['wall_seconds']:.0f} s"
    lines = [f"{name:<17}{text}" for name, text in rows.items()]
    return "\n".join(lines + (_record(summary) if summary.get("record") else []))


def format_seeds(summaries: Sequence[Row]) -> str:
    """Format the summaries of several seeds: a row for each, then their mean and spread.

    Args:
        summaries: the contents of ``summary.json``, of one problem and one algorithm.

    Examples:
        >>> from hpo_torchrl.reporting import format_seeds
        >>> rows = [{"seed": seed, "test_cost": 37.1 + 0.1 * seed, "test_cost_se": 0.01,
        ...     "optimal_cost": 37.0, "gap": (0.1 + 0.1 * seed) / 37.0, "updates": 10,
        ...     "env_steps": 1280, "wall_seconds": 3.0} for seed in range(2)]
        >>> print(format_seeds(rows))
        optimal cost     37.0000
        seed             test cost               gap
        0                37.1000 +- 0.0100       +0.27 %
        1                37.2000 +- 0.0100       +0.54 %
        mean             37.1500                 +0.41 %
        spread           0.0707                  0.19 %    standard deviation over seeds
        trained          2 seeds, 10 updates, 1,280 environment steps each, 6 s in all
    """
    first, costs = summaries[0], [summary["test_cost"] for summary in summaries]
    key = next((key for key in _GAPS if first.get(key) is not None), None)
    gaps = [summary[key] for summary in summaries] if key else []
    rows = [("seed", "test cost", _GAPS[key] if key else "")]
    for place, summary in enumerate(summaries):
        gap = format_value(gaps[place], PERCENT) if key else ""
        rows.append((str(summary["seed"]), _cost(summary, "test_cost"), gap))
    rows.append(("mean", f"{fmean(costs):.4f}", format_value(fmean(gaps), PERCENT) if key else ""))
    if len(costs) > 1:
        gap = format_value(stdev(gaps), "{:.2%}") if key else ""
        spread = f"{gap:<10}standard deviation over seeds"
        rows.append(("spread", f"{stdev(costs):.4f}", spread))
    lines = [
        f"{name.replace('_', ' '):<17}{first[name]:.4f}"
        for name in _REFERENCES
        if first.get(name) is not None
    ]
    lines += [f"{name:<17}{cost:<24}{gap}".rstrip() for name, cost, gap in rows]
    seconds = sum(summary["wall_seconds"] for summary in summaries)
    lines.append(
        f"{'trained':<17}{len(summaries)} seeds, {_effort(first)} each, {seconds:.0f} s in all"
    )
    return "\n".join(lines)


def _record(summary: Row) -> list[str]:
    """Return the costs on recorded demand next to those of a rule, by test, and the rule."""
    rows = [("cost", "periods", str(summary["algorithm"]), "(s, S) rule", "difference")]
    for name, row in summary["record"].items():
        cost, rule = summary[f"{name}_cost"], row["rule_cost"]
        gap = format_value(cost / rule - 1 if rule else None, PERCENT)
        rows.append((name, row["periods"], f"{cost:.4f}", f"{rule:.4f}", gap))
    widths = [17, *(max(map(len, column)) + 3 for column in list(zip(*rows, strict=True))[1:])]
    lines = ["".join(f"{text:<{w}}" for text, w in zip(row, widths, strict=True)) for row in rows]
    found = summary["rule"]
    Q, levels = found["Q"], dict(zip(found["items"], found["S"], strict=True))
    if len(levels) == 1:
        (S,) = levels.values()
        text = f"(s, S) = ({S - Q:g}, {S:g})"
    else:
        shown = ", ".join(f"{item} {S:g}" for item, S in list(levels.items())[:_ITEMS])
        more = f" and {len(levels) - _ITEMS} more" if len(levels) > _ITEMS else ""
        text = f"order all items up to S once they lack {Q:g} in all; S: {shown}{more}"
    note = "best in the training periods"
    return ["", *(line.rstrip() for line in lines), f"{'(s, S) rule':<17}{note}: {text}"]


def _effort(summary: Row) -> str:
    return f"{summary['updates']:,} updates, {summary['env_steps']:,} environment steps"


def _cost(summary: Row, key: str) -> str:
    error = summary.get(f"{key}_se")
    known = error is not None and math.isfinite(error)
    return f"{summary[key]:.4f}" + (f" +- {error:.4f}" if known else "")
