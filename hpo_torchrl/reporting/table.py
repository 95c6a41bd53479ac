"""The lines that a run prints at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

# The gap that a row of several shows: the first that is known, and its heading.
_GAPS = {
    "gap": "gap",
    "gap_to_lower_bound": "gap to the lower bound",
    "gap_to_upper_bound": "gap to the upper bound",
}
# Of a rule's levels so many are shown.
_ITEMS = 8


def format_summary(summary: Mapping[str, Any]) -> str:
    """Format a run's summary as a short table, with what each figure means.

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
    rows = [("test cost", _estimate(summary, "test_cost") + "   per unit and period")]
    for key in ("optimal_cost", "lower_bound", "upper_bound"):
        if summary.get(key) is not None:
            rows.append((key.replace("_", " "), f"{summary[key]:.4f}"))
    for name, cost in (summary.get("baseline_costs") or {}).items():
        rows.append((name, f"{cost:.4f}"))
    if summary.get("gap") is not None:
        rows.append(("gap", f"{100 * summary['gap']:+.2f} %"))
    elif summary.get("gap_to_lower_bound") is not None:
        rows.append(("gap", _between(summary)))
    elif summary.get("gap_to_upper_bound") is not None:
        text = (
            f"{100 * summary['gap_to_upper_bound']:+.2f} % to the upper bound; no optimum is known"
        )
        rows.append(("gap", text))
    if summary.get("learned_s") is not None:
        learned = f"({summary['learned_s']}, {summary['learned_S']})"
        if summary.get("learned_rule_cost") is not None:
            learned += f", exact cost {summary['learned_rule_cost']:.4f}"
        if summary.get("optimal_s") is not None:
            learned += f"; optimal ({summary['optimal_s']}, {summary['optimal_S']})"
        rows.append(("learned (s, S)", learned))
    if summary.get("protocol_cost") is not None:
        note = "   finite horizon: another objective than the optimum's"
        rows.append(("protocol cost", _estimate(summary, "protocol_cost") + note))
    rows.append(
        (
            "trained",
            f"{summary['updates']:,} updates, {summary['env_steps']:,} environment steps, "
            f"{summary['wall_seconds']:.0f} s",
        )
    )
    lines = [f"{name:<17}{text}" for name, text in rows]
    return "\n".join(lines + (_record(summary) if summary.get("record") else []))


def format_seeds(summaries: Sequence[Mapping[str, Any]]) -> str:
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
    known = (key for key in _GAPS if first.get(key) is not None)
    key = next(known, None)
    gaps = None if key is None else [100 * summary[key] for summary in summaries]
    lines = [
        f"{name.replace('_', ' '):<17}{first[name]:.4f}"
        for name in ("optimal_cost", "lower_bound", "upper_bound")
        if first.get(name) is not None
    ]
    rows = [("seed", "test cost", "" if key is None else _GAPS[key])]
    for at, summary in enumerate(summaries):
        gap = "" if gaps is None else f"{gaps[at]:+.2f} %"
        rows.append((str(summary["seed"]), _estimate(summary, "test_cost"), gap))
    rows.append(("mean", f"{fmean(costs):.4f}", "" if gaps is None else f"{fmean(gaps):+.2f} %"))
    if len(costs) > 1:
        gap = "" if gaps is None else f"{stdev(gaps):.2f} %"
        note = "standard deviation over seeds"
        rows.append(("spread", f"{stdev(costs):.4f}", f"{gap:<10}{note}"))
    lines += [f"{name:<17}{cost:<24}{gap}".rstrip() for name, cost, gap in rows]
    seconds = sum(summary["wall_seconds"] for summary in summaries)
    lines.append(
        f"{'trained':<17}{len(summaries)} seeds, {first['updates']:,} updates, "
        f"{first['env_steps']:,} environment steps each, {seconds:.0f} s in all"
    )
    return "\n".join(lines)


def _record(summary: Mapping[str, Any]) -> list[str]:
    """Return the costs on recorded demand beside those of a rule, by test, and the rule."""
    rows = [("cost", "periods", str(summary["algorithm"]), "(s, S) rule", "difference")]
    for name, row in summary["record"].items():
        cost, rule = summary[f"{name}_cost"], row["rule_cost"]
        gap = f"{100 * (cost / rule - 1):+.2f} %" if rule else "-"
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


def _between(summary: Mapping[str, Any]) -> str:
    text = f"at most {100 * summary['gap_to_lower_bound']:+.2f} % (to the lower bound)"
    if summary.get("gap_to_upper_bound") is not None:
        text += f", at least {100 * summary['gap_to_upper_bound']:+.2f} % (to the upper bound)"
    return text


def _estimate(summary: Mapping[str, Any], key: str) -> str:
    error = summary.get(f"{key}_se")
    known = error is not None and math.isfinite(error)
    return f"{summary[key]:.4f}" + (f" +- {error:.4f}" if known else "")
