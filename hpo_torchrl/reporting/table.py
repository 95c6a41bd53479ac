"""The lines that a run prints at its end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

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
