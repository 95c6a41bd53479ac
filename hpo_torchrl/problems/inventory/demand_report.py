"""What a file of demand holds, for a person to look at before anything is trained."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hpo_torchrl.problems.inventory.demand_file import DemandFile
from hpo_torchrl.problems.inventory.demand_fit import fit_demand

# Items in the table, and oddities of a kind, that are shown one by one.
_SHOWN = 20
# A demand so many times the item's mean, or a share of periods without demand, is worth a look.
_HUGE, _RARE = 20.0, 0.95
# So many periods of no demand at the end: the item may no longer be sold.
_ENDED = 0.1
# A joint fixed cost of so many periods' demand: were the units meant?
_DEAR = 1000.0


def describe_demand(
    source: DemandFile,
    parts: dict[str, tuple[int, int]],
    fixed_cost_per_item: float | None,
    season: int | None = None,
) -> str:
    """Return what was understood of a file, how it is split, what fits it and what is odd, as text.

    Args:
        source: the file.
        parts: ``(first, end)`` of the periods for ``"train"``, ``"dev"`` and ``"test"``.
        fixed_cost_per_item: joint fixed cost per item.
        season: periods of a season, for the models that are fitted to the training part.

    Examples:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from hpo_torchrl.problems.inventory.demand_report import describe_demand
        >>> demand = np.array([[3.0], [0.0], [5.0], [4.0], [400.0], [2.0]])
        >>> source = DemandFile(Path("sales.csv"), ("A",), tuple(range(6)), demand)
        >>> parts = {"train": (0, 4), "dev": (4, 5), "test": (5, 6)}
        >>> print(describe_demand(source, parts, 64.0))
        file      sales.csv
        periods   6, from 0 to 5
        train     4 periods, 0 to 3
        dev       1 period, 4 to 4
        test      1 period, 5 to 5
        items     1
          item mean deviation no demand most
             A   69       148      17 %  400
        models    fitted to the training part; in brackets what they simulate
          item        model mean variation       zeros         95 % season autocorrelation
             A intermittent    3      0.76 25 % (24 %) 4.85 (5.169)      -               0
        odd       nothing was found
    """
    table = pd.DataFrame(source.demand, columns=[*source.items])
    lines = [
        ("file", str(source.path)),
        ("periods", f"{len(table)}, from {source.periods[0]} to {source.periods[-1]}"),
        *(("", note) for note in source.notes),
    ]
    for name, (first, end) in parts.items():
        unit = "period" if end - first == 1 else "periods"
        span = f"{source.periods[first]} to {source.periods[end - 1]}"
        lines.append((name, f"{end - first} {unit}, {span}"))
    number = f"{len(source.items)}" + (
        f", the first {_SHOWN}:" if len(source.items) > _SHOWN else ""
    )
    lines.append(("items", number))
    text = [f"{name:<10}{words}" for name, words in lines]
    text += [f"  {row}" for row in _items(table).to_string(index=False).splitlines()]
    text += _fit(source, parts, season)
    odd = _odd(source, table, parts, fixed_cost_per_item) or ["nothing was found"]
    text += [f"{'odd' if not at else '':<10}{words}" for at, words in enumerate(odd)]
    return "\n".join(text)


def _items(table: pd.DataFrame) -> pd.DataFrame:
    shown = table.iloc[:, :_SHOWN]
    figures = {
        "item": shown.columns,
        "mean": [f"{value:.4g}" for value in shown.mean()],
        "deviation": [f"{value:.4g}" for value in shown.std(ddof=0)],
        "no demand": [f"{100 * value:.0f} %" for value in (shown == 0).mean()],
        "most": [f"{value:.6g}" for value in shown.max()],
    }
    return pd.DataFrame(figures)


def _fit(source: DemandFile, parts: dict[str, tuple[int, int]], season: int | None) -> list[str]:
    """Return the models of the training part, or why there are none."""
    try:
        fit = fit_demand(source.demand[slice(*parts["train"])], season)
    except ValueError as error:
        return [f"{'models':<10}none: {error}"]
    rows = fit.table.assign(item=source.items)
    odd = rows.loc[rows["odd"] != "", ["item", "odd"]]
    shown = rows.head(_SHOWN)
    figures = {
        "item": shown["item"],
        "model": shown["model"],
        "mean": [f"{value:.4g}" for value in shown["mean"]],
        "variation": [f"{value:.2f}" for value in shown["variation"]],
        "zeros": _beside(shown, "zeros", "{:.0%}"),
        "95 %": _beside(shown, "quantile", "{:.4g}"),
        "season": [
            "-" if low == high else f"{low:.2f} to {high:.2f}"
            for low, high in zip(shown["low"], shown["high"], strict=True)
        ],
        "autocorrelation": [f"{value:.2g}" for value in shown["autoregression"]],
    }
    text = [f"{'models':<10}fitted to the training part; in brackets what they simulate"]
    text += [f"  {row}" for row in pd.DataFrame(figures).to_string(index=False).splitlines()]
    if fit.common > 0:
        text.append(f"{'':<10}items have a factor of deviation {fit.common**0.5:.2f} in common")
    for item, words in odd.head(_SHOWN).itertuples(index=False):
        text.append(f"{'':<10}does not fit, {item}: {words}")
    if len(odd) > _SHOWN:
        text.append(f"{'':<10}does not fit: {len(odd) - _SHOWN} more")
    return text


def _beside(rows: pd.DataFrame, name: str, form: str) -> list[str]:
    pairs = zip(rows[name], rows[f"{name}_model"], strict=True)
    return [f"{form.format(own)} ({form.format(model)})".replace("%", " %") for own, model in pairs]


def _odd(
    source: DemandFile,
    table: pd.DataFrame,
    parts: dict[str, tuple[int, int]],
    fixed_cost_per_item: float | None,
) -> list[str]:
    mean, number = table.mean(), len(table)
    train = table.iloc[slice(*parts["train"])]
    last = number - np.argmax((table.to_numpy() > 0)[::-1], axis=0)
    kinds = {
        "no demand in the training part, of which nothing can be learned": train.sum() == 0,
        "hardly ever any demand": ((table == 0).mean() > _RARE) & (train.sum() > 0),
        "the same demand in every period": (table.nunique() == 1) & (mean > 0),
        f"a demand more than {_HUGE:g} times the mean": table.max() > _HUGE * mean.clip(lower=1.0),
        "no demand for the last tenth of the record, as if no longer sold": (
            (last < number * (1 - _ENDED)) & (mean > 0)
        ),
    }
    found = []
    for words, which in kinds.items():
        names = [str(name) for name in table.columns[np.asarray(which)]]
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            found.append(f"{words}: {', '.join(names[:5])}{more}")
    each, usual = fixed_cost_per_item or 0.0, float(mean.mean())
    if usual > 0 and each > _DEAR * usual:
        found.append(
            f"an order costs {each:g} per item (fixed_cost_per_item), {each / usual:,.0f} times "
            "an item's mean demand of a period: is it in the unit of the other costs?"
        )
    return found
