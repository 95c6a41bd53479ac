"""The rows of a file of demand, from texts to numbers; all that is wrong is reported together.

A file is a table of texts, whose index is the line of each row. Checks pick rows of it, and a
report names the options that help.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pandas as pd

from hpo_torchrl.core.checks import did_you_mean
from hpo_torchrl.problems.inventory.demand_format import COSTS, REQUIRED, FileFormat
from hpo_torchrl.problems.inventory.periods import (
    expected_periods,
    label_of,
    read_periods,
    rounded,
    spacing,
)
from hpo_torchrl.problems.table_file import ABSENT, Problems, TableFileError

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


def named(path: Path, texts: pd.DataFrame, how: FileFormat) -> tuple[pd.DataFrame, list[str]]:
    """Return the columns that are used, by their names here, and notes on the others.

    Raises:
        TableFileError: one is missing, twice there or, where none are named, unknown.
    """
    found = [str(name).strip() for name in texts.columns]
    known, small = (*REQUIRED, *COSTS), [name.lower() for name in found]
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
    needed = ["item"] if how.wide else REQUIRED
    wrong += [f"the column {name!r} is missing" for name in needed if name not in sources]
    used = {part for parts in sources.values() for part in parts}
    rest = [name for name in dict.fromkeys(small) if name not in used]
    if not own and not how.wide:
        wrong += [f"the column {name!r} is unknown{did_you_mean(name, known)}" for name in rest]
    if wrong:
        raise TableFileError(_say_columns(path, texts, found, wrong))
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
            raise TableFileError(f"{path}: none of its columns reads as a period: {rest}.")
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
    words = ", ".join(f"{name}: {guesses.get(name, '...')}" for name in REQUIRED)
    return (
        f"{head} A demand file has {', '.join(REQUIRED)} and, if you like, {', '.join(COSTS)}; "
        f"got {', '.join(map(repr, found[:20])) or 'nothing'}. Say which is which: "
        f"columns={{{words}}}"
    )


def parsed(texts: pd.DataFrame, how: FileFormat, report: Problems, notes: list) -> pd.DataFrame:
    """Return the numbers, with periods as whole numbers or times, one row an item and period."""
    absent = texts["demand"].str.lower().isin(ABSENT)
    if how.missing == "zero" or how.late_items or how.wide:
        texts = texts[~absent]  # no row, which is said or filled in later
    values = texts.copy()
    for name in texts:
        empty = texts[name] == ""
        report.say(texts[empty], f"{name} is empty", "no demand: missing=zero")
        if name in ("demand", *COSTS):
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
        raise TableFileError(f"per={how.per} needs periods that are dates; these are numbers.")
    for name in texts.columns.intersection(COSTS):
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


def complete(
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
