"""Recorded demand from a person's own file: nothing filled in, nothing left out, unless asked.

A file becomes a table of texts, whose index is the line of each row. Checks pick rows of it; all
that is wrong is reported together, with the options that help.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hpo_torchrl.core.checks import check_bool, check_choice, check_float, check_int, did_you_mean
from hpo_torchrl.problems.inventory.periods import (
    CALENDARS,
    PER,
    expected_periods,
    label_of,
    read_periods,
    rounded,
    spacing,
    usual_season,
)
from hpo_torchrl.problems.inventory.table_file import (
    ABSENT,
    DemandFileError,
    Problems,
    read_table,
)

__all__ = ["DemandFile", "DemandFileError", "FileFormat", "read_demand"]

_REQUIRED = ("period", "item", "demand")
_COSTS = ("price", "procurement_cost", "holding_cost", "shortage_cost")
# What people call the columns, by parts of their names.
_NAMES = {
    "demand": ("demand", "qty", "quantity", "units", "sales", "sold", "volume", "verkauf", "menge"),
    "period": ("period", "date", "day", "week", "month", "time", "datum"),
    "item": ("item", "sku", "product", "article", "artikel", "part", "material", "store", "id"),
}
_SHOWN = 10
_MORE_COLUMNS = "items by store: columns={item: [Store, SKU], ...}"
# A file with so many columns that read as periods has one for each.
_WIDE = 3


@dataclass(frozen=True)
class FileFormat:
    """How a file of demand is written, and what is meant by what it lacks.

    Args:
        columns: names in the file of ``period``, ``item`` and ``demand`` (and of ``price``,
            ``procurement_cost``, ``holding_cost``, ``shortage_cost``), such as ``{"period":
            "Date", "item": ["Store", "SKU"], "demand": "Qty"}``; an item of several columns has a
            name of several parts. With it, other columns are not used; without, there may be none.
        wide: whether each row is an item, with a column for each period.
        dates: format of the periods, such as ``"%d/%m/%Y"``; ``None`` finds it.
        per: ``"day"``, ``"week"`` (from Monday) or ``"month"``: add demand up to these.
        calendar: which periods there are: ``"all"``, evenly spaced; ``"weekdays"``, the days of
            the week that occur; ``"present"``, those that the file has.
        missing: what no row for an item and period means: ``"error"``, or ``"zero"`` demand.
        late_items: items whose first row comes later: ``"zero"`` (no demand before), ``"cut"``
            (the record begins with the last of them) or ``"drop"``; ``None`` is ``missing``.
        repeated: several rows for an item and period: ``"error"``, or ``"sum"``.
        negative: demand below 0, such as returns, after any sum: ``"error"``, or ``"zero"``.
        decimal: the decimal sign.
        thousands: what separates thousands.
        encoding: of a text file; UTF-16 is recognised.
        sheet: of an Excel file, by name or number from 0.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is unknown.
    """

    columns: Any = None
    wide: bool = False
    dates: str | None = None
    per: str | None = None
    calendar: str = "all"
    missing: str = "error"
    late_items: str | None = None
    repeated: str = "error"
    negative: str = "error"
    decimal: str = "."
    thousands: str | None = None
    encoding: str = "utf-8"
    sheet: str | int | None = None

    def __post_init__(self) -> None:
        check_bool("wide", self.wide)
        choices = {
            "calendar": CALENDARS,
            "missing": ("error", "zero"),
            "repeated": ("error", "sum"),
            "negative": ("error", "zero"),
            "decimal": (".", ","),
        }
        for name, known in choices.items():
            check_choice(name, getattr(self, name), known)
        for name, known in {"per": (*PER,), "late_items": ("zero", "cut", "drop")}.items():
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), known)
        if self.thousands == self.decimal:
            raise ValueError(f"thousands and decimal are both {self.decimal!r}.")
        given = {} if self.columns is None else self.columns
        if not isinstance(given, Mapping):
            raise TypeError(
                "columns must be a mapping such as {period: Date, item: SKU, demand: Qty}, got "
                f"{given!r}."
            )
        known = (*_REQUIRED, *_COSTS)
        for name in given:
            if name not in known:
                raise ValueError(
                    f"columns.{name} is unknown{did_you_mean(str(name), known)} Known are "
                    f"{', '.join(known)}."
                )
        # Of tuples, so that equal formats are one.
        names = {name: (own,) if isinstance(own, str) else (*own,) for name, own in given.items()}
        object.__setattr__(self, "columns", tuple(sorted(names.items())) or None)


FORMAT_NAMES = tuple(known.name for known in fields(FileFormat))


@dataclass(frozen=True, eq=False)  # of arrays, equality is no yes or no
class DemandFile:
    """Demand of n items over T periods, and what the file says of each item's costs.

    Attributes:
        path: where it came from.
        items: names, in the order of their first appearance.
        periods: whole numbers, or dates as text, in order.
        demand: units, ``(T, n)``; read-only.
        costs: one number per item, by the names of the columns that the file has: ``"price"`` of a
            unit sold, ``"procurement_cost"`` per unit ordered, ``"holding_cost"`` per unit on hand
            and ``"shortage_cost"`` per unit short at the end of a period.
        notes: how it was understood, and what was filled in or left out.
    """

    path: Path
    items: tuple[str, ...]
    periods: tuple[int | str, ...]
    demand: NDArray[np.float64]
    costs: dict[str, tuple[float, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def split(
        self, fractions: Sequence[float] = (0.6, 0.2, 0.2), *, history: int = 0, least: int = 2
    ) -> dict[str, tuple[int, int]]:
        """Split the periods, in their order, into training, development and test periods.

        Args:
            fractions: shares of the three; they add up to 1.
            history: periods before the first decision, which may be taken in training periods.
            least: periods that each part must have, the training part besides its history.

        Returns:
            ``(first, end)`` of ``"train"``, ``"dev"`` and ``"test"``, with ``end`` not in it.

        Raises:
            TypeError: a fraction is not a number.
            ValueError: the fractions are not three that add up to 1, or a part is too short.

        Examples:
            >>> import numpy as np
            >>> from pathlib import Path
            >>> from hpo_torchrl.problems.inventory.demand_file import DemandFile
            >>> DemandFile(Path("x.csv"), ("A",), tuple(range(10)), np.ones((10, 1))).split()
            {'train': (0, 6), 'dev': (6, 8), 'test': (8, 10)}
        """
        given = np.ravel(np.asarray(fractions, dtype=object))
        shares = [check_float("fractions", share, minimum=0.0) for share in given]
        if len(shares) != 3 or abs(sum(shares) - 1.0) > 1e-6:
            raise ValueError(
                "fractions must be three numbers that add up to 1, the shares of training, "
                f"development and test periods, such as [0.6, 0.2, 0.2]; got {fractions!r}."
            )
        total = len(self.periods)
        ends = [0, round(total * shares[0]), round(total * (shares[0] + shares[1])), total]
        parts = dict(zip(("train", "dev", "test"), itertools.pairwise(ends), strict=True))
        for name, (first, end) in parts.items():
            needed = least + history * (name == "train")
            if end - first < needed:
                raise ValueError(
                    f"The {name} part of {self.path.name} would have {end - first} of {total} "
                    f"periods with fractions={shares}, but needs {needed}, with history={history} "
                    "in the training part; give a longer record, a shorter history or other "
                    "fractions."
                )
        return parts

    def season(self, given: int | None, training: tuple[int, int], least: float) -> int | None:
        """Return the periods of a season, ``None`` for none.

        Args:
            given: how many; 0 for none; ``None`` for what such periods usually have, if the
                training part is long enough.
            training: ``(first, end)`` of that part.
            least: seasons that it must have then.

        Raises:
            TypeError, ValueError: ``given`` is no whole number from 0 on.
        """
        if given is not None:
            return check_int("season", given, minimum=0) or None
        usual = usual_season(self.periods)
        long_enough = usual is not None and training[1] - training[0] >= least * usual
        return usual if long_enough else None


def read_demand(path: str | Path, **how: Any) -> DemandFile:
    r"""Read a table of demand with one row per period and item, once unless the file changes.

    The columns ``period``, ``item`` and ``demand`` are needed; ``price``, ``procurement_cost``,
    ``holding_cost`` and ``shortage_cost`` are optional and constant for each item. Other names are
    given by ``columns``. The order of columns and rows is free; names may be in capitals. Periods
    are whole numbers, dates, weeks or months in one of many formats, evenly spaced. Every item has
    a row in every period: where nothing was asked for, the demand is 0. Empty lines are skipped.
    :class:`FileFormat` says what else a file may be like.

    A text file has commas, semicolons, tabs or bars between its columns. Parquet needs ``pip
    install "hpo_torchrl[parquet]"``, Excel ``"hpo_torchrl[excel]"``.

    Args:
        path: a file that ends in ``.csv``, ``.tsv``, ``.txt``, ``.xlsx`` or ``.parquet``, or one of
            these and ``.gz``.
        how: arguments of :class:`FileFormat`.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: an argument has the wrong type.
        ValueError: an argument is unknown.
        DemandFileError: something in it is not as it should be; the message lists the lines of the
            file (for Parquet its rows, from 1), the first ten of them, counts the others, and names
            options that help.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from hpo_torchrl.problems.inventory.demand_file import read_demand
        >>> path = Path(tempfile.mkdtemp()) / "demand.csv"
        >>> _ = path.write_text("period,item,demand,holding_cost\n1,A,4,0.5\n2,A,7,0.5\n")
        >>> found = read_demand(path)
        >>> found.items, found.periods, found.demand.tolist(), found.costs
        (('A',), (1, 2), [[4.0], [7.0]], {'holding_cost': (0.5,)})
        >>> _ = path.write_text("Date;SKU;Qty\n02/01/2024;A;1.482,5\n04/01/2024;A;7\n")
        >>> names = {"period": "Date", "item": "SKU", "demand": "Qty"}
        >>> sales = {"columns": names, "decimal": ",", "thousands": ".", "missing": "zero"}
        >>> found = read_demand(path, dates="%d/%m/%Y", per="day", **sales)
        >>> found.periods, found.demand.flatten().tolist()
        (('2024-01-02', '2024-01-04'), [1482.5, 7.0])
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"path must be a text, the name of a file, got {path!r}.")
    path, written = Path(path).absolute(), FileFormat(**how)
    version = path.stat() if path.is_file() else None
    stamp = (0, 0) if version is None else (version.st_mtime_ns, version.st_size)
    return _read_version(path, written, *stamp)


@functools.lru_cache(maxsize=4)
def _read_version(path: Path, how: FileFormat, modified: int, size: int) -> DemandFile:
    texts = read_table(path, how.encoding, how.sheet)
    texts, notes = _named(path, texts, how)
    if texts.empty:
        raise DemandFileError(f"{path} holds no rows below its header.")
    report = Problems(path)
    values = _parse(texts, how, report, notes)
    report.refuse()
    table = values.pivot(index="period", columns="item")
    items = values["item"].unique()
    demand, lines = table["demand"][items], table["line"][items]
    demand = _complete(demand, lines, how, report, notes)
    report.refuse()
    array = demand.to_numpy(dtype=np.float64, copy=True)
    array.flags.writeable = False
    known = values.groupby("item")[[name for name in _COSTS if name in texts]].first()
    costs = {name: tuple(known[name].loc[demand.columns].tolist()) for name in known}
    periods = tuple(label_of(period) for period in demand.index)
    return DemandFile(path, tuple(demand.columns), periods, array, costs, tuple(notes))


def _named(path: Path, texts: pd.DataFrame, how: FileFormat) -> tuple[pd.DataFrame, list[str]]:
    """Return the columns that are used, by their names here, and notes on the others.

    Raises:
        DemandFileError: one is missing, twice there or, where none are named, unknown.
    """
    found = [str(name).strip() for name in texts.columns]
    known, small = (*_REQUIRED, *_COSTS), [name.lower() for name in found]
    texts = texts.set_axis(small, axis=1)
    own = {name: [part.lower() for part in parts] for name, parts in how.columns or ()}
    sources = own if own else {name: [name] for name in known if name in small}
    wrong = [
        f"the column {part!r} is there {small.count(part)} times"
        if part in small
        else f"the column {part!r}, for {name}, is missing{did_you_mean(part, small)}"
        for name, parts in sources.items()
        for part in parts
        if small.count(part) != 1
    ]
    needed = ["item"] if how.wide else _REQUIRED
    wrong += [f"the column {name!r} is missing" for name in needed if name not in sources]
    used = {part for parts in sources.values() for part in parts}
    rest = [name for name in dict.fromkeys(small) if name not in used]
    if not own and not how.wide:
        wrong += [f"the column {name!r} is unknown{did_you_mean(name, known)}" for name in rest]
    if wrong:
        raise DemandFileError(_say_columns(path, texts, found, wrong))
    named = {
        name: texts[first].str.cat([texts[part] for part in others], sep="/")
        if others
        else texts[first]
        for name, (first, *others) in sources.items()
    }
    table, notes = pd.DataFrame(named, index=texts.index), list[str]()
    if how.wide:
        names = pd.Series(rest, rest)
        readable = read_periods(names, how.dates).values.notna()
        whens, rest = list(names[readable]), list(names[~readable])
        if not whens:
            raise DemandFileError(f"{path}: none of its columns reads as a period: {rest}.")
        notes.append(f"{len(whens)} columns are periods, {whens[0]} to {whens[-1]}")
        cells = texts[whens].assign(line=texts.index).melt("line", None, "period", "demand")
        table = table.drop(columns=["period", "demand"], errors="ignore")
        table = cells.merge(table, left_on="line", right_index=True).set_index("line")
    if rest:
        notes.append(f"columns not used: {', '.join(rest)}")
    return table, notes


def _say_columns(path: Path, texts: pd.DataFrame, found: list[str], wrong: list[str]) -> str:
    """Say what is wrong with the columns, and which option reads the file as it is."""
    head = f"{path}: {'; '.join(wrong[:_SHOWN])}{'; ...' if len(wrong) > _SHOWN else ''}."
    names = pd.Series(found, found, dtype=object)
    dated = read_periods(names[~names.str.fullmatch(r"\d{1,3}")], None) if len(names) else None
    if dated is not None and dated.values.notna().sum() >= max(_WIDE, 0.5 * len(found)):
        items = [name for name in names.index if pd.isna(dated.values.get(name))]
        guess = f"columns={{item: {items[0] if len(items) == 1 else items}}}".replace("'", "")
        return f"{head} It has a column for each period, so it is wide: wide=true {guess}"
    guesses = dict[str, str]()
    for name, parts in _NAMES.items():
        for part, column in itertools.product(parts, found):
            if part in column.lower() and column not in guesses.values():
                guesses.setdefault(name, column)
    words = ", ".join(f"{name}: {guesses.get(name, '...')}" for name in _REQUIRED)
    return (
        f"{head} A demand file has {', '.join(_REQUIRED)} and, if you like, {', '.join(_COSTS)}; "
        f"got {', '.join(map(repr, found[:20])) or 'nothing'}. Say which is which: "
        f"columns={{{words}}}"
    )


def _parse(texts: pd.DataFrame, how: FileFormat, report: Problems, notes: list) -> pd.DataFrame:
    """Return the numbers, with periods as whole numbers or times, one row an item and period."""
    absent = texts["demand"].str.lower().isin(ABSENT)
    if how.missing == "zero" or how.late_items or how.wide:
        texts = texts[~absent]  # no row, which is said or filled in later
    values = texts.copy()
    for name in texts:
        empty = texts[name] == ""
        report.say(texts[empty], f"{name} is empty", "no demand: missing=zero")
        if name in ("demand", *_COSTS):
            values[name] = _numbers(texts[name], how, report, signed=name == "demand")
        elif name == "period":
            periods = read_periods(texts[name], how.dates)
            values[name] = periods.values
            expected = f"{{period!r:.40}}, where the others are like {periods.example}"
            bad = texts[periods.values.isna() & ~empty]
            dated = periods.values.dtype.kind == "M"
            options = ["their format: dates=%d/%m/%Y"] if dated else []
            report.say(bad, f"period is {expected}", *options)
            notes.append(f"periods are read as {periods.example}")
    if how.per is not None and values["period"].dtype.kind == "M":
        values["period"] = rounded(values["period"], how.per)
    elif how.per is not None:
        raise DemandFileError(f"per={how.per} needs periods that are dates; these are numbers.")
    for name in texts.columns.intersection(_COSTS):
        known = values.groupby("item")[name].transform("first")
        changed = texts.assign(known=known)[values[name].notna() & (values[name] != known)]
        text = f"{name} of item {{item!r}} is {{{name}}}, but {{known:g}} before; it must be the "
        report.say(changed, text + "same in all periods")
    values["line"] = values.index
    keys, sums = ["period", "item"], how.repeated == "sum" or how.per is not None
    first = values.groupby(keys)["line"].transform("first")
    if sums:
        number = int((first < values["line"]).sum())
        if number:
            notes.append(f"{number} rows were added to others of their item and period")
        others = {name: "first" for name in values if name not in (*keys, "demand")}
        values = values.groupby(keys, sort=False, as_index=False).agg({"demand": "sum", **others})
        values.index = pd.Index(values["line"])
    else:
        again = texts.assign(first=first)[first < values["line"]]
        text = "period {period} of item {item!r} is in line {first:.0f} already"
        report.say(again, text, "several sales of a period: repeated=sum", _MORE_COLUMNS)
    below = values[values["demand"] < 0]
    if how.negative == "zero":
        values["demand"] = values["demand"].clip(lower=0.0)
        notes.extend([f"{len(below)} demands below 0 count as 0"] if len(below) else [])
    else:
        report.say(below, "demand is {demand:g}, below 0", "returns: negative=zero")
    return values


def _numbers(texts: pd.Series, how: FileFormat, report: Problems, *, signed: bool) -> pd.Series:
    """Return finite numbers, not negative unless ``signed``, and report what is none."""
    plain = texts.str.replace("\u00a0", " ")
    if how.thousands is not None:
        plain = plain.str.replace(how.thousands, "", regex=False)
    elif how.decimal == ",":
        plain = plain.where(~plain.str.contains(".", regex=False), "two signs")
    if how.decimal != ".":
        plain = plain.str.replace(how.decimal, ".", regex=False)
    number = pd.to_numeric(plain, errors="coerce").astype(float)
    number = number.where((number.abs() < math.inf) & (signed | (number >= 0)))
    bad = texts[number.isna() & (texts != "")]
    options = []
    for pattern, option in (
        (r"-?\d{1,3}(,\d{3})+(\.\d+)?", "thousands, as in 1,482: thousands=','"),
        (r"-?\d{1,3}(\.\d{3})*,\d+", "a decimal comma, as in 3,5: decimal=','"),
        (r"-?\d{1,3}(\.\d{3})+,\d+", "thousands, as in 1.482,5: decimal=',' thousands='.'"),
        (r"-?\d{1,3}( \d{3})+([.,]\d+)?", "thousands, as in 1 482: thousands=' '"),
    ):
        if how.thousands is None and bad.str.fullmatch(pattern).any():
            options.append(option)
    if bad.str.lower().isin(ABSENT).any():
        options += ["no demand: missing=zero", "not yet sold: late_items=cut, drop or zero"]
    expected = "a finite number such as 3.5" if signed else "a finite number >= 0 such as 3.5"
    report.say(
        bad.to_frame("cell"), f"{texts.name} must be {expected}, got {{cell!r:.40}}", *options
    )
    return number


def _complete(
    demand: pd.DataFrame, lines: pd.DataFrame, how: FileFormat, report: Problems, notes: list
) -> pd.DataFrame:
    """Return demand in all periods of the calendar, if what has no row is filled in or absent."""
    periods = expected_periods(demand.index, how.calendar)
    _check_spacing(demand.index, lines.min(axis=1), how, report)
    if report.found:
        return demand
    if how.calendar != "all":
        notes.append(f"calendar: {how.calendar}, {len(periods)} periods")
    begun = demand.notna().cumsum() > 0
    late = [item for item in demand if not begun[item].iloc[0]]
    if late and how.late_items == "drop":
        notes.append(f"items left out, as they begin later: {', '.join(late)}")
        demand = demand.drop(columns=late)
    elif late and how.late_items == "cut":
        first = begun.all(axis=1).idxmax()
        notes.append(f"the record begins with {label_of(first)}, the first period of all items")
        demand, periods = demand.loc[first:], periods[periods >= first]
    elif late and how.late_items == "zero":
        demand = demand.where(begun, 0.0)
    demand = demand.reindex(periods)
    number = int(demand.isna().sum().sum())
    if number and how.missing == "zero":
        notes.append(f"{number} of {demand.size} demands have no row and count as 0")
        return demand.fillna(0.0)
    near = lines[demand.columns].ffill().bfill().reindex(periods, method="nearest")
    near = (
        near.where(demand.isna()).set_axis([label_of(at) for at in periods]).rename_axis("period")
    )
    gaps = near.melt(ignore_index=False, value_name="line").dropna().reset_index()
    text = "item {item!r} has no row for period {period}; this one of its rows is near"
    options = ["no demand in periods without a row: missing=zero"]
    if late:
        options.append("items that begin later: late_items=cut, drop or zero")
    report.say(gaps.set_index("line"), text, *options)
    return demand


def _check_spacing(index: pd.Index, lines: pd.Series, how: FileFormat, report: Problems) -> None:
    """Say of each period if it does not follow the one before, by the calendar."""
    if len(index) < 2 or how.calendar != "all":
        return
    apart, step, unit = spacing(index)
    apart.index = pd.Index(lines[1:])
    rows = pd.DataFrame({"period": [label_of(at) for at in index[1:]], "apart": apart})
    rows["before"] = [label_of(at) for at in index[:-1]]
    rows["absent"] = [label_of(at + step * unit) for at in index[:-1]]
    uneven = apart // step * step != apart
    far = f"period {{period}} is {{apart}} after {{before}}, where periods are {step} apart"
    options = ["periods that are closed, and no periods at all: calendar=present"]
    if index.dtype.kind == "M":
        options.insert(0, "to add up to days, weeks or months: per=day, week or month")
    report.say(rows[uneven], far, *options)
    skipped = rows[~uneven & (apart > step)]
    if how.missing == "zero" and not uneven.any():
        return
    options = ["periods without demand: missing=zero", "closed periods: calendar=present"]
    if (
        index.dtype.kind == "M"
        and set(range(7)) - set(index.day_of_week)
        and step == pd.Timedelta("1D")
    ):
        options = ["closed on some days of the week: calendar=weekdays", *options]
    report.say(skipped, "before period {period} there is no period {absent}", *options)
