"""What a planner knows of each item: a table with a row for each, beside any kind of demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hpo_torchrl.core.checks import did_you_mean
from hpo_torchrl.problems.inventory.demand import Demand
from hpo_torchrl.problems.inventory.features import Feature
from hpo_torchrl.problems.inventory.order_costs import ItemFixedCost
from hpo_torchrl.problems.inventory.order_quantities import MinimumOrder, Packs
from hpo_torchrl.problems.inventory.ordering import make_features
from hpo_torchrl.problems.inventory.record import Record
from hpo_torchrl.problems.table_file import (
    ABSENT,
    Problems,
    TableFileError,
    read_table,
)

__all__ = ["with_items"]

# Columns that are arguments of the environment, and those that make a feature of their own.
_ARGUMENTS = ("lead_time", "holding_cost", "shortage_cost", "procurement_cost")
_FEATURES: dict[str, Callable[[list[float]], Feature]] = {
    "minimum_order": MinimumOrder,
    "pack_size": Packs,
    "item_fixed_cost": ItemFixedCost,
}
# Columns that a feature among the others reads, by its name.
_READ_BY = {"price": "profit", "volume": "storage"}
_COLUMNS = ("mean_demand", *_ARGUMENTS, *_FEATURES, *_READ_BY)


def with_items(path: str | Path, arguments: Mapping[str, Any]) -> dict[str, Any]:
    r"""Return arguments of :class:`~hpo_torchrl.problems.InventoryEnv` with what a file says.

    The file has a row for each item, with its name in the column ``item``, and any of the columns

    * ``lead_time``, ``holding_cost``, ``shortage_cost``, ``procurement_cost``: the arguments of
      these names. A cell that is empty leaves the argument as it is.
    * ``minimum_order``, ``pack_size``, ``item_fixed_cost``: the features
      :class:`~hpo_torchrl.problems.inventory.order_quantities.MinimumOrder`, ``Packs`` and
      ``ItemFixedCost``, beside the joint fixed cost or the features that are given. Empty is none.
    * ``price``, ``volume``: of the features ``Profit`` and ``Storage``, which must be among those
      given. An empty volume is 1.
    * ``mean_demand``: means of simulated demand. Empty is the argument ``demand``, if that is a
      number.

    Where demand is recorded, the items are those of the record, in its order. Otherwise they are
    those of the file, whose number ``num_items`` may be, or 1.

    Args:
        path: a file that ends in ``.csv``, ``.tsv``, ``.txt``, ``.xlsx`` or ``.parquet``, or one of
            these and ``.gz``.
        arguments: all arguments of the environment.

    Raises:
        FileNotFoundError: there is no such file.
        TableFileError: a column or an item is unknown or missing, or a cell is no number; the
            message lists the lines.
        ValueError: a column and an argument say two things of the same.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> path = Path(tempfile.mkdtemp()) / "items.csv"
        >>> rows = ["item,mean_demand,lead_time,minimum_order", "bolt,4,1,", "nut,11,3,25"]
        >>> _ = path.write_text("\n".join(rows))
        >>> env = InventoryEnv(items=path)
        >>> env.item_names, env.lead_times.tolist(), env.demand_mean.tolist()
        (['bolt', 'nut'], [1, 3], [4.0, 11.0])
        >>> print(env.pieces)
        each item: {0} (0, inf) or {0} [25, inf)
    """
    path = Path(path).absolute()
    demand = arguments["demand"]
    recorded = demand if isinstance(demand, Record) else None
    table = _read(path, None if recorded is None else recorded.items)
    n, found = len(table), dict(arguments)
    if recorded is None and arguments["num_items"] not in (None, 1, n):
        raise ValueError(
            f"num_items={arguments['num_items']}, but {path} has {n} items; leave num_items out "
            "(on the command line: env.num_items=null) or make them equal."
        )
    found |= {"num_items": n, "items": [*table.index]}
    for name in table.columns.intersection(_ARGUMENTS):
        found[name] = _filled(table[name], arguments[name])
    if "lead_time" in table:
        found["lead_time"] = [int(periods) for periods in found["lead_time"]]
    if "mean_demand" in table:
        found["demand"] = _with_mean(path, table["mean_demand"], demand)
    return found | _features(path, table, arguments)


def _read(path: Path, items: Sequence[str] | None) -> pd.DataFrame:
    """Return the numbers of a file by item, in the order of ``items`` if there are any."""
    texts = read_table(path, "utf-8", None)
    texts = texts.set_axis([str(name).strip().lower() for name in texts.columns], axis=1)
    _check_columns(path, [*texts.columns])
    if texts.empty:
        raise TableFileError(f"{path} holds no rows below its header.")
    report = Problems(path)
    report.say(texts[texts["item"] == ""], "item is empty")
    first = pd.Series(texts.index, texts.index).groupby(texts["item"]).transform("first")
    again = texts.assign(first=first)[first < first.index]
    report.say(again, "item {item!r} is in line {first:.0f} already")
    if items is not None:
        other = texts[~texts["item"].isin(items) & (texts["item"] != "")]
        hints = {name: did_you_mean(name, items) for name in other["item"]}
        words = "item {item!r} is not in the demand.{hint}"
        report.say(other.assign(hint=other["item"].map(hints)), words)
    numbers = {name: _numbers(texts[name], report) for name in texts.columns.drop("item")}
    report.refuse()
    table = pd.DataFrame(numbers, index=texts.index).set_index(texts["item"])
    if items is None:
        return table
    absent = [name for name in items if name not in table.index]
    if absent:
        near = "".join(did_you_mean(name, table.index) for name in absent[:1])
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise TableFileError(
            f"{path} lacks items of the demand: {', '.join(absent[:5])}{more}.{near} Add a row for "
            "each; its cells may be empty."
        )
    return table.loc[[*items]]


def _check_columns(path: Path, names: list[str]) -> None:
    known = ("item", *_COLUMNS)
    wrong = [f"the column {name!r} is there twice" for name in known if names.count(name) > 1]
    if "item" not in names:
        wrong.append(f"the column 'item' is missing{did_you_mean('item', names)}")
    wrong += [
        f"the column {name!r} is unknown{did_you_mean(name, known)}"
        for name in names
        if name not in known
    ]
    if wrong:
        raise TableFileError(
            f"{path}: {'; '.join(wrong)}. A file of items has item and any of "
            f"{', '.join(_COLUMNS)}."
        )


def _numbers(texts: pd.Series, report: Problems) -> pd.Series:
    """Return finite numbers >= 0, NaN where a cell is empty, and report what is none."""
    absent, name = texts.str.lower().isin(ABSENT), str(texts.name)
    number = pd.to_numeric(texts.where(~absent), errors="coerce").astype(float)
    sound, expected = np.isfinite(number) & (number >= 0), "a finite number >= 0 such as 3.5"
    if name == "lead_time":
        sound, expected = sound & (number == number.round()), "a whole number of periods >= 0"
    elif name == "mean_demand":
        sound, expected = sound & (number > 0), "a finite number > 0 such as 3.5"
    bad = texts[~absent & ~sound].to_frame("cell")
    report.say(bad, f"{name} must be {expected}, got {{cell!r:.40}}")
    return number


def _filled(column: pd.Series, usual: Any) -> list[Any]:
    """Return a column with the argument's value, or values by item, where it is empty."""
    many = isinstance(usual, Sequence) and not isinstance(usual, str)
    if many and len(usual) != len(column):
        raise ValueError(
            f"{column.name} must be a number or hold one entry per item: expected {len(column)} "
            f"entries, got {len(usual)}."
        )
    rows = zip(column, usual if many else [usual] * len(column), strict=True)
    return [other if np.isnan(own) else own for own, other in rows]


def _with_mean(path: Path, column: pd.Series, demand: Any) -> Any:
    """Return simulated demand with the means of a file."""
    if isinstance(demand, Demand):
        raise ValueError(
            f"mean_demand of {path} is of simulated demand that a name or number says, got "
            f"demand={demand!r}; leave the column out."
        )
    kind = {"name": demand} if isinstance(demand, str) else demand
    usual = kind.get("mean") if isinstance(kind, Mapping) else kind
    means = _filled(column, np.nan if usual is None else usual)
    for item, mean in zip(column.index, means, strict=True):
        if mean != mean:
            raise ValueError(
                f"mean_demand of item {item!r} is empty in {path}, and demand={demand!r} has no "
                "mean; fill it in."
            )
    return {**kind, "mean": means} if isinstance(kind, Mapping) else means


def _features(path: Path, table: pd.DataFrame, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the features with those that columns make, where there are such columns."""
    columns = [name for name in (*_FEATURES, *_READ_BY) if name in table]
    if not columns:
        return {}
    known = {name: table[name].fillna(1.0).tolist() for name in _READ_BY if name in table}
    given = (arguments["features"], arguments["fixed_cost_per_item"])
    features = make_features(*given, len(table), arguments["lost_sales"], known)
    kinds = [type(feature) for feature in features]
    for name, reader in _READ_BY.items():
        if name in table and Feature.KINDS[reader] not in kinds:
            raise ValueError(
                f"The column {name!r} of {path} is for the feature {reader}, which is not there; "
                f"add {{name: {reader}, ...}} to features, or leave the column out."
            )
    if "price" in table and table["price"].isna().any():
        item = table.index[table["price"].isna()][0]
        raise ValueError(f"price of item {item!r} is empty in {path}; fill it in.")
    for name in table.columns.intersection([*_FEATURES]):
        made = _FEATURES[name](table[name].fillna(0.0).tolist())
        if type(made) in kinds:
            raise ValueError(
                f"{name} is a column of {path}, and {type(made).__name__} is among the features as "
                "well; leave one of them out."
            )
        features.append(made)
    return {"features": features, "fixed_cost_per_item": None}
