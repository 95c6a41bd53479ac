"""Recorded demand from a person's own CSV or Parquet file: nothing filled in, nothing left out.

A file becomes a table of texts, whose index is the line of each row. Checks pick rows of it; all
that is wrong is reported together.
"""

from __future__ import annotations

import csv
import functools
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hpo_torchrl.core.checks import check_float, did_you_mean, first_line

__all__ = ["DemandFile", "DemandFileError", "read_demand"]

_REQUIRED = ("period", "item", "demand")
_COSTS = ("price", "procurement_cost", "holding_cost", "shortage_cost")
_WHOLE = r"[+-]?[0-9]{1,15}"
_DATE = r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.0*)?)?)?"
_SHOWN = 10
_FIX = (
    "Nothing was left out or filled in. Every item needs one row in every period, with a demand "
    ">= 0: write 0 where nothing was asked for, and dates as 2024-01-31."
)


class DemandFileError(ValueError):
    """A file of demand that cannot be read as it stands; the message lists the lines."""


@dataclass(frozen=True, eq=False)  # of arrays, equality is no yes or no
class DemandFile:
    """Demand of n items over T periods, and what the file says of each item's costs.

    Attributes:
        path: where it came from.
        items: names, in the order of their first appearance.
        periods: whole numbers, or dates as text, in order and evenly spaced.
        demand: units, ``(T, n)``; read-only.
        costs: one number per item, by the names of the columns that the file has: ``"price"`` of a
            unit sold, ``"procurement_cost"`` per unit ordered, ``"holding_cost"`` per unit on hand
            and ``"shortage_cost"`` per unit short at the end of a period.
    """

    path: Path
    items: tuple[str, ...]
    periods: tuple[int | str, ...]
    demand: NDArray[np.float64]
    costs: dict[str, tuple[float, ...]] = field(default_factory=dict)

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


def read_demand(path: str | Path) -> DemandFile:
    r"""Read a table of demand with one row per period and item, once unless the file changes.

    The columns ``period``, ``item`` and ``demand`` are needed; ``price``, ``procurement_cost``,
    ``holding_cost`` and ``shortage_cost`` are optional and constant for each item. Their order is
    free, as is that of the rows; names may be in capitals. Periods are whole numbers, ISO dates
    (daily, weekly, monthly, ...) or ISO times without a zone, evenly spaced. Every item has a row
    in every period: where nothing was asked for, the demand is 0. Empty lines are skipped.

    A CSV file is UTF-8 with commas, semicolons or tabs between its columns and decimal *points*.
    Parquet needs ``pip install "hpo_torchrl[parquet]"``.

    Args:
        path: a file that ends in ``.csv`` or ``.parquet``.

    Raises:
        FileNotFoundError: there is no such file.
        DemandFileError: something in it is not as it should be; the message lists the lines of the
            file (for Parquet its rows, from 1), the first ten of them, and counts the others.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from hpo_torchrl.problems.inventory.demand_file import read_demand
        >>> path = Path(tempfile.mkdtemp()) / "demand.csv"
        >>> _ = path.write_text("period,item,demand,holding_cost\n1,A,4,0.5\n2,A,7,0.5\n")
        >>> found = read_demand(path)
        >>> found.items, found.periods, found.demand.tolist(), found.costs
        (('A',), (1, 2), [[4.0], [7.0]], {'holding_cost': (0.5,)})
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"path must be a text, the name of a .csv or .parquet file, got {path!r}.")
    path = Path(path).absolute()
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise DemandFileError(f"{str(path)!r} must end in .csv or .parquet.")
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is not a file.")
    version = path.stat()
    return _read_version(path, version.st_mtime_ns, version.st_size)


@functools.lru_cache(maxsize=4)
def _read_version(path: Path, modified: int, size: int) -> DemandFile:
    read = _read_parquet if path.suffix.lower() == ".parquet" else _read_csv
    texts = read(path)
    texts.columns = pd.Index(_check_columns(path, texts.columns))
    if texts.empty:
        raise DemandFileError(f"{path} holds no rows below its header.")
    texts = texts.apply(lambda column: column.str.strip())
    values, problems = _parse(texts)
    _refuse(path, problems)
    items = values["item"].unique()
    table = values.assign(line=values.index).pivot(index="period", columns="item")
    demand, lines = table["demand"][items], table["line"][items]
    periods = demand.index if demand.index.dtype.kind == "i" else demand.index.astype(str)
    near = lines.ffill().bfill().where(lines.isna()).set_index(periods.rename("period"))
    gaps = near.melt(ignore_index=False, value_name="line").dropna().reset_index()
    text = "item {item!r} has no row for period {period}; this one of its rows is near"
    uneven = _check_spacing(demand.index, lines.min(axis=1))
    _refuse(path, [_say(gaps.set_index("line"), text), *uneven])
    array = demand.to_numpy(copy=True)
    array.flags.writeable = False
    names = [name for name in _COSTS if name in texts]
    costs = {name: tuple(table[name][items].iloc[0].tolist()) for name in names}
    return DemandFile(path, tuple(items), tuple(periods.tolist()), array, costs)


def _say(rows: pd.DataFrame, text: str) -> pd.Series:
    """Say of rows, by their line, what is wrong with them; the text has columns in braces."""
    return pd.Series([text.format(**row) for row in rows.to_dict("records")], rows.index, object)


def _refuse(path: Path, problems: list[pd.Series]) -> None:
    """Raise an error that says the first ten problems and counts the others, if there are any."""
    found = pd.concat(problems).sort_index(kind="stable")
    if len(found):
        unit = "row" if path.suffix.lower() == ".parquet" else "line"
        text = [f"{path} cannot be read as it stands, things wrong: {len(found)}"]
        text += [f"  {unit} {line:.0f}: {words}" for line, words in found.head(_SHOWN).items()]
        if len(found) > _SHOWN:
            text.append(f"  and {len(found) - _SHOWN} more")
        raise DemandFileError("\n".join([*text, _FIX]))


def _parse(texts: pd.DataFrame) -> tuple[pd.DataFrame, list[pd.Series]]:
    """Return the numbers, with periods as whole numbers or times, and all that is wrong."""
    values, problems = texts.copy(), list[pd.Series]()
    for name in texts:
        empty = texts[name] == ""
        problems.append(_say(texts[empty], f"{name} is empty"))
        if name in ("demand", *_COSTS):
            number = pd.to_numeric(texts[name], errors="coerce").astype(float)
            values[name] = number.where((number >= 0) & (number < math.inf))
            expected = "a finite number >= 0 such as 3.5"
        elif name == "period" and (texts[name].str.fullmatch(_WHOLE) | empty).mean() >= 0.5:
            whole = texts[name].where(texts[name].str.fullmatch(_WHOLE))
            values[name] = pd.to_numeric(whole, errors="coerce")
            expected = "a whole number, like the others"
        elif name == "period":
            dates = texts[name].where(texts[name].str.fullmatch(_DATE))
            values[name] = pd.to_datetime(dates, format="ISO8601", errors="coerce")
            expected = "a date or time such as 2024-01-31T06:00, or all must be whole numbers"
        bad = texts[values[name].isna() & ~empty]
        problems.append(_say(bad, f"{name} must be {expected}, got {{{name}!r:.40}}"))
    for name in texts.columns.intersection(_COSTS):
        known = values.groupby("item")[name].transform("first")
        changed = texts.assign(known=known)[values[name].notna() & (values[name] != known)]
        text = f"{name} of item {{item!r}} is {{{name}}}, but {{known:g}} before; it must be the "
        problems.append(_say(changed, text + "same in all periods"))
    line = pd.Series(texts.index, texts.index)
    first = line.groupby([values["period"], values["item"]]).transform("first")
    again = texts.assign(first=first)[first < line]
    text = "period {period} of item {item!r} is in line {first:.0f} already"
    return values, [*problems, _say(again, text)]


def _check_spacing(index: pd.Index, lines: pd.Series) -> list[pd.Series]:
    """Say of each period if it does not follow the one before, by the most frequent distance.

    Distances of dates are in months where they are uneven in days, but all on one day of the month
    or all on its last.
    """
    if len(index) == 1:
        return []
    apart, offset = pd.Series(np.diff(index), lines[1:]), 1
    if index.dtype.kind == "M" and apart.nunique() > 1 and apart.min() >= pd.Timedelta(days=28):
        ends = index.is_month_end.all()
        if ends or index.day.nunique() == 1:
            apart = pd.Series(np.diff(12 * index.year + index.month), lines[1:])
            offset = pd.offsets.MonthEnd() if ends else pd.DateOffset(months=1)
    # The smallest of equally frequent ones: a gap is a multiple of it.
    step = apart.mode().iloc[0]
    rows = pd.DataFrame({"period": index[1:].astype(str), "apart": apart})
    rows["before"] = index[:-1].astype(str)
    rows["absent"] = (index[:-1] + step * offset).astype(str)
    uneven = apart // step * step != apart
    far = f"period {{period}} is {{apart}} after {{before}}, where periods are {step} apart"
    skipped = "before period {period} there is no period {absent}"
    return [_say(rows[uneven], far), _say(rows[~uneven & (apart > step)], skipped)]


def _check_columns(path: Path, names: pd.Index) -> list[str]:
    """Return the names in small letters, if they are those of a demand file."""
    known, found = (*_REQUIRED, *_COSTS), [str(name).strip().lower() for name in names]
    wrong = [f"the column {name!r} is missing" for name in _REQUIRED if name not in found]
    for name in dict.fromkeys(found):
        if name not in known:
            wrong.append(f"the column {name!r} is unknown{did_you_mean(name, known)}")
        elif found.count(name) > 1:
            wrong.append(f"the column {name!r} is there {found.count(name)} times")
    if wrong:
        raise DemandFileError(
            f"{path}: {'; '.join(wrong)}. A demand file has {', '.join(_REQUIRED)} and, if you "
            f"like, {', '.join(_COSTS)}; got {', '.join(map(repr, found)) or 'nothing'}. Rename "
            "columns, or leave others out."
        )
    return found


def _read_csv(path: Path) -> pd.DataFrame:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DemandFileError(f"{path}, line {line}: not UTF-8; save the file as UTF-8.") from error
    header = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, line = dict[int, list[str]](), 1
    try:
        for values in reader:
            if len(values) > 1 or "".join(values).strip():
                columns = next(iter(rows.values()), values)
                if len(values) != len(columns):
                    raise csv.Error(f"{len(values)} fields, but there are {len(columns)} columns")
                rows[line] = values
            line = reader.line_num + 1  # a quoted name may run over several
    except csv.Error as error:
        raise DemandFileError(f"{path}, line {line}: {error}.") from error
    table = pd.DataFrame.from_dict(rows, orient="index", dtype=str)
    return table.iloc[1:].set_axis(next(iter(rows.values()), []), axis=1)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        import pyarrow.parquet as parquet

        table = parquet.ParquetFile(path).read().to_pandas(ignore_metadata=True).convert_dtypes()
    except Exception as error:
        raise DemandFileError(
            f"{path} cannot be read as Parquet: {first_line(error)}; it takes pyarrow: "
            'pip install "hpo_torchrl[parquet]". Or save it as CSV.'
        ) from error
    table.index += 1
    return table.astype(str).where(table.notna(), "")
