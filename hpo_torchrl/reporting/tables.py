"""Tables: one kind for reports and commands, CSV files, and the lines that a run prints."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hpo_torchrl.core.objective import worded
from hpo_torchrl.reporting.runs import REFERENCES

Row = Mapping[str, Any]
PERCENT = "+.2%"
_PHRASES = {
    "gap": "{gap:+.2%}",
    "gap_to_lower_bound": "at most {gap_to_lower_bound:+.2%} (to the lower bound)",
    "gap_to_upper_bound": "at least {gap_to_upper_bound:+.2%} (to the upper bound)",
}
# So many levels of a rule are shown.
_ITEMS = 8
_RESOLVED = 0.5  # alignment of a perfect estimator below which a reference is mostly noise
_LEGEND = """\
Each line is one way to estimate how the parameters should change, from one batch.
  signal      length of its average over many batches
  noise       how far one batch strays from that average; signal/noise above 1 is a clear gradient
  alignment   cosine with the mixed gradient of {reference} batches: 1 the same way, 0 any way
  bias        distance of its average from that of the mixed gradient, relative to the latter; the
              mixed gradient with cross term is the yardstick even if the training leaves it out,
              and whatever bias its critic gives it is not seen here
[low, high] are bootstrap intervals of 95 %; a bias whose low is 0 may be
none.
A (term) is one part of the gradient: pathwise + score function + cross = mixed. An estimator that
is not listed for some parameters is exactly 0 there."""
_UNCLEAR = """
The gradient here is below the noise of the reference: near a stationary point of the training,
alignment and bias say little. More --reference batches resolve it further."""


class _Formatter(string.Formatter):
    """Formats numbers: ``"-"`` is an unknown one, ``"never"`` an infinite one, which is a time."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """Return the text of one number."""
        if pd.isna(value):
            return "-"
        text = "never" if value == math.inf else super().format_field(value, format_spec)
        return text.replace("%", " %") if format_spec else text


def fill(template: str, row: Row) -> str:
    """Return ``template``, as for ``str.format``, with the values of a row.

    Examples:
        >>> from hpo_torchrl.reporting.tables import fill, interval
        >>> row = {"gap": 0.02, "gap_low": 0.01, "gap_high": 0.03, "time": float("inf")}
        >>> fill(f"{interval('gap', '.0%')} {{time:.1f}}", row)
        '2 % [1 %, 3 %] never'
    """
    text = _Formatter().vformat(template, (), row)
    for unknown, shown in (("[-, -]", "[-]"), ("- [-]", "-"), ("- (-)", "-")):
        text = text.replace(unknown, shown)
    return text


def interval(name: str, form: str) -> str:
    """Return the template of an estimate and its interval, which a single run does not have."""
    return f"{{{name}:{form}}} [{{{name}_low:{form}}}, {{{name}_high:{form}}}]"


def plain(*names: str) -> dict[str, str]:
    """Return the templates of columns that are shown under their own names."""
    return {name.replace("_", " "): f"{{{name}}}" for name in names}


def format_table(rows: pd.DataFrame | Sequence[Row], columns: Mapping[str, str]) -> str:
    """Format rows as a markdown table whose columns are also aligned in a terminal.

    Args:
        rows: the rows.
        columns: template by heading; see :func:`fill`.

    Examples:
        >>> from hpo_torchrl.reporting.tables import PERCENT, format_table
        >>> rows = [{"name": "hpo", "gap": 0.01}, {"name": "ppo", "gap": None}]
        >>> print(format_table(rows, {"name": "{name}", "gap": f"{{gap:{PERCENT}}}"}))
        | name | gap     |
        |:-----|--------:|
        | hpo  | +1.00 % |
        | ppo  |       - |
    """
    cells = _cells(rows, columns)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        rest = map(str.rjust, others, widths[1:])
        lines.append(f"| {' | '.join([first.ljust(widths[0]), *rest])} |")
    rules = ["-" * (width + 1) for width in widths]
    lines.insert(1, f"|{'|'.join([f':{rules[0]}', *(f'{rule}:' for rule in rules[1:])])}|")
    return "\n".join(lines)


def format_latex(rows: pd.DataFrame | Sequence[Row], columns: Mapping[str, str]) -> str:
    r"""Format rows as a LaTeX table, for the package ``booktabs``.

    Args:
        rows: the rows.
        columns: template by heading; see :func:`fill`.

    Examples:
        >>> from hpo_torchrl.reporting.tables import format_latex
        >>> print(format_latex([{"name": "R_S", "gap": 0.01}],
        ...     {"rule": "{name}", "gap": "{gap:.0%}"}))
        \begin{tabular}{lr}
        \toprule
        rule & gap \\
        \midrule
        R\_S & 1 \% \\
        \bottomrule
        \end{tabular}
    """
    head, *lines = _cells(rows, columns)
    shape = "l" + "r" * (len(head) - 1)
    table = pd.DataFrame(lines, columns=head)
    return table.to_latex(index=False, escape=True, column_format=shape).rstrip()


def write_rows(path: str | Path, rows: pd.DataFrame | Sequence[Row]) -> Path:
    """Write rows that share their keys, a gradient report for example, as a CSV file.

    Unknown values stay empty.
    """
    pd.DataFrame(rows).to_csv(path, index=False)
    return Path(path)


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
    per = known.get("test_cost_per", "period")
    lines = {"test cost": f"{_cost(known, 'test_cost')}   per unit and {per}"}
    if "objective" in known:
        lines = {"objective": _aim(known)} | lines
    costs = {key: known.get(key) for key in ("test_reward", *_costs(known))}
    costs |= known.get("baseline_costs", {})
    if "test_length" in known:
        lines["episode"] = "return {test_return:.4f} in {test_length:.1f} steps".format(**known)
    lines |= {name.replace("_", " "): f"{c:.4f}" for name, c in costs.items() if c is not None}
    gaps = [fill(phrase, known) for key, phrase in _PHRASES.items() if key in known]
    if "no_gap" in known:
        lines["gap"] = f"none: {known['no_gap']}"
    elif gaps:
        lines["gap"] = gaps[0] if "gap" in known else ", ".join(gaps)
    elif "optimal_cost" in summary and not any(costs.values()):
        lines["gap"] = "unknown: no optimum, bound or rule was computed"
    if "loses_to" in known:
        lines["loses to"] = f"the {known['loses_to']}: train longer, or otherwise"
    if "sampled_cost" in known:
        lines["sampled"] = f"{_cost(known, 'sampled_cost')}   actions drawn, not the most probable"
    lines |= known.get("in_words", {})
    if "protocol_cost" in known:
        note = "   finite horizon: another objective than the optimum's"
        lines["protocol cost"] = _cost(known, "protocol_cost") + note
    lines["trained"] = f"{_effort(summary)}, {summary['wall_seconds']:.0f} s"
    warned = [("warning", text) for text in known.get("warnings", ())]
    text = "\n".join(f"{name:<17}{text}" for name, text in (*lines.items(), *warned))
    return text + (f"\n\n{_format_record(summary)}" if known.get("record") else "")


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
        | seed               | test cost | standard error | gap to the optimum |
        |:-------------------|----------:|---------------:|-------------------:|
        | 0                  |   37.1000 |         0.0100 |            +0.27 % |
        | 1                  |   37.2000 |         0.0100 |            +0.54 % |
        | mean               |   37.1500 |              - |            +0.41 % |
        | standard deviation |    0.0707 |              - |            +0.19 % |
        <BLANKLINE>
        optimal cost     37.0000
        trained          2 seeds, 10 updates, 1,280 environment steps each, 6 s in all
    """
    first, seeds = summaries[0], pd.DataFrame(summaries)
    columns = {"seed": "{seed}", "test cost": "{test_cost:.4f}"}
    columns["standard error"] = "{test_cost_se:.4f}"
    measures = ["test_cost"]
    for name, (_, gap) in REFERENCES.items():
        if len(measures) == 1 and first.get(gap) is not None:
            measures.append(gap)
            columns[f"gap to the {name}"] = f"{{{gap}:{PERCENT}}}"
    spread = seeds[measures].agg(["mean", "std"]).assign(seed=["mean", "standard deviation"])
    seeds = seeds.reindex(columns=["seed", *measures, "test_cost_se", "wall_seconds"])
    rows = seeds.to_dict("records") + spread.to_dict("records")
    lines = [f"{name.replace('_', ' '):<17}{first[name]:.4f}" for name in _costs(first)]
    if first.get("objective"):
        lines.insert(0, f"{'objective':<17}{_aim(first)}")
    if first.get("no_gap"):
        lines.append(f"{'gap':<17}none: {first['no_gap']}")
    effort = f"{len(seeds)} seeds, {_effort(first)} each"
    lines.append(f"{'trained':<17}{effort}, {seeds['wall_seconds'].sum():.0f} s in all")
    return "\n".join([format_table(rows, columns), "", *lines])


def format_gradients(
    rows: Sequence[Row], *, ceiling: Mapping[str, Sequence[float]], num_reference: int
) -> str:
    """Format a gradient report as a table, with what the columns mean.

    Args:
        rows: one per parameter group and estimator, as ``GradientReport.rows``.
        ceiling: by group, the alignment of a perfect estimator: estimate, low and high.
        num_reference: batches behind the reference gradient.
    """
    table = pd.DataFrame(rows)
    unclear = [group for group, (_, least, _) in ceiling.items() if not least >= _RESOLVED]
    hidden = ~table["whole"] | table["group"].isin(unclear)
    table.loc[hidden, ["bias", "bias_low", "bias_high"]] = math.nan
    known = table[table["whole"]].drop_duplicates("estimator")
    table["estimator"] = table["estimator"].where(table["whole"], table["estimator"] + " (term)")
    columns = plain("estimator") | {
        "parameters": "{group} action",
        "signal": "{signal:.3g}",
        "noise": "{noise:.3g}",
        "signal/noise": "{signal_to_noise:.2g}",
        "alignment": interval("alignment", ".2f"),
        "bias": interval("bias", ".2g"),
    }
    parts = [_LEGEND.format(reference=num_reference), format_table(table, columns)]
    for group, (best, *_) in ceiling.items():
        parts.append(f"{group}: a perfect estimator would show alignment {best:.2f}.")
        if group in unclear:
            parts[-1] += _UNCLEAR
    return "\n\n".join([*parts, format_table(known, plain("estimator", "known_bias"))])


def _cells(rows: pd.DataFrame | Sequence[Row], columns: Mapping[str, str]) -> list[list[str]]:
    """Return the headings and the texts of a table, by line."""
    table = [list(columns)]
    for row in pd.DataFrame(rows).to_dict("records"):
        table.append([fill(template, row) for template in columns.values()])
    return table


def _format_record(summary: Row) -> str:
    """Return the costs on recorded demand next to those of a rule, by test, and the rule."""
    record = pd.DataFrame(summary["record"].values()).assign(test=list(summary["record"]))
    record["cost"] = [summary[f"{name}_cost"] for name in record["test"]]
    record["gap"] = record["cost"] / record["rule_cost"].replace(0.0, math.nan) - 1.0
    columns = plain("test", "periods") | {str(summary["algorithm"]): "{cost:.4f}"}
    columns |= {"(s, S) rule": "{rule_cost:.4f}", "difference": f"{{gap:{PERCENT}}}"}
    rule, Q = summary["rule"], summary["rule"]["Q"]
    levels = [f"{item} {S:g}" for item, S in zip(rule["items"], rule["S"], strict=True)]
    if Q is None:
        text = "never to order"
    elif len(levels) == 1:
        text = f"(s, S) = ({rule['S'][0] - Q:g}, {rule['S'][0]:g})"
    else:
        more = f" and {len(levels) - _ITEMS} more" if len(levels) > _ITEMS else ""
        text = f"order all items up to S once they lack {Q:g} in all; S: "
        text += ", ".join(levels[:_ITEMS]) + more
    note = f"{'(s, S) rule':<17}best found in the training periods: {text}"
    lines = [f"{format_table(record, columns)}\n\n{note}", _fit_in_words(summary)]
    return "\n".join(line for line in [*lines, recommendation(summary)] if line)


def _fit_in_words(summary: Row) -> str:
    """Return the models that training demand was drawn from, and how many do not fit."""
    if (fit := summary.get("demand_fit")) is None:
        return ""
    models = ", ".join(f"{number} {name}" for name, number in fit["models"].items())
    odd = ", ".join([*fit["odd"]][:_ITEMS]) + (" ..." if len(fit["odd"]) > _ITEMS else "")
    poor = f"; demand_fit.csv says what does not fit of {odd}" if odd else ""
    return f"{'fitted demand':<17}{models}{poor}"


def recommendation(summary: Row) -> str:
    """Return which of a policy and the rule beside it to use, by the dev periods, and why.

    Test periods are for neither: what chose between them could not judge the choice.
    """
    dev, cost = summary.get("record", {}).get("dev"), summary.get("dev_cost")
    if dev is None or cost is None:
        return ""
    rule = dev["rule_cost"]
    best, least, most = ("policy", cost, rule) if cost <= rule else ("(s, S) rule", rule, cost)
    other = "rule" if best == "policy" else "policy"
    by = f", {1.0 - least / most:.1%} less than the {other}" if most > 0 else ""
    return f"{'recommended':<17}the {best}: it costs {least:.4g} on the dev periods{by}"


def _aim(summary: Row) -> str:
    """Return what was trained and, where it is another, what was tested, in words."""
    trained, tested = (
        worded(summary.get(f"{of}objective"), summary.get(f"{of}discount", 1.0))
        for of in ("", "test_")
    )
    return tested if trained == tested else f"trained for {trained}, tested on {tested}"


def _costs(summary: Row) -> list[str]:
    """Return the costs that gaps may be to, as far as they are known."""
    return [key for key, _ in REFERENCES.values() if summary.get(key) is not None]


def _effort(summary: Row) -> str:
    return f"{summary['updates']:,} updates, {summary['env_steps']:,} environment steps"


def _cost(summary: Row, key: str) -> str:
    error = summary.get(f"{key}_se", math.nan)
    return f"{summary[key]:.4f}" + (f" +- {error:.4f}" if math.isfinite(error) else "")
