"""Recorded demand from a person's own CSV or Parquet file: nothing filled in, nothing left out."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpo_torchrl.core.checks import check_choice, check_float, check_int, first_line
from hpo_torchrl.problems.inventory.demand_table import DemandFileError, DemandTable
from hpo_torchrl.problems.inventory.periods import Period

__all__ = ["DemandFile", "DemandFileError", "Split", "read_demand", "read_record"]

# The line of a file on which a row begins, and what its columns hold.
_Row = tuple[int, list[Any]]


class Split(NamedTuple):
    """Where the parts of a record begin and end: ``(first, end)`` with ``end`` not in it."""

    train: tuple[int, int]
    dev: tuple[int, int]
    test: tuple[int, int]


@dataclass(frozen=True, eq=False)  # of arrays, equality is no yes or no
class DemandFile:
    """Demand of n items over T periods, and what the file says of each item's costs.

    Attributes:
        path: where it came from.
        items: names, in the order of their first appearance.
        periods: whole numbers, or dates, in order and evenly spaced.
        demand: units, ``(T, n)``; read-only.
        price: what a unit sells for, one entry per item; like the costs below ``None`` where the
            file has no such column.
        procurement_cost: cost per unit ordered.
        holding_cost: cost per unit on hand at the end of a period.
        shortage_cost: cost per unit short at the end of a period.
    """

    path: Path
    items: tuple[str, ...]
    periods: tuple[Period, ...]
    demand: NDArray[np.float64]
    price: tuple[float, ...] | None = None
    procurement_cost: tuple[float, ...] | None = None
    holding_cost: tuple[float, ...] | None = None
    shortage_cost: tuple[float, ...] | None = None

    def split(self, fractions: Sequence[float] = (0.6, 0.2, 0.2), *, least: int = 2) -> Split:
        """Split the periods, in their order, into training, development and test periods.

        Args:
            fractions: shares of the three; they add up to 1.
            least: periods that each part must have.

        Raises:
            TypeError: a fraction is not a number.
            ValueError: the fractions are not three that add up to 1, or a part is too short.

        Examples:
            >>> import numpy as np
            >>> from pathlib import Path
            >>> from hpo_torchrl.problems.inventory.demand_file import DemandFile
            >>> DemandFile(Path("x.csv"), ("A",), tuple(range(10)), np.ones((10, 1))).split()
            Split(train=(0, 6), dev=(6, 8), test=(8, 10))
        """
        check_int("least", least, minimum=1)
        if isinstance(fractions, str) or not isinstance(fractions, Sequence) or len(fractions) != 3:
            raise ValueError(
                "fractions must be three numbers, of the training, development and test periods, "
                f"such as [0.6, 0.2, 0.2]; got {fractions!r}."
            )
        shares = [
            check_float(f"fractions[{i}]", share, minimum=0.0, maximum=1.0, strict=True)
            for i, share in enumerate(fractions)
        ]
        if abs(sum(shares) - 1.0) > 1e-6:
            raise ValueError(f"fractions must add up to 1, got {shares}, in all {sum(shares):g}.")
        total = len(self.periods)
        ends = [round(total * shares[0]), round(total * (shares[0] + shares[1])), total]
        parts = Split(*zip([0, *ends[:2]], ends, strict=True))
        for name, (first, end) in parts._asdict().items():
            if end - first < least:
                raise ValueError(
                    f"The {name} part of {self.path.name} would have {end - first} of {total} "
                    f"periods with fractions={shares}, but needs {least}; give a longer record or "
                    "other fractions."
                )
        return parts

    def costs(
        self,
        lost_sales: bool,
        *,
        holding_cost: float | Sequence[float] | None = None,
        shortage_cost: float | Sequence[float] | None = None,
        procurement_cost: float | Sequence[float] | None = None,
    ) -> dict[str, float | Sequence[float]]:
        """Return the costs that hold: those given, else those of the file, else 1, 9 and 0.

        A price matters with lost sales alone, where a unit short costs what it would have sold
        for, unless a shortage cost is known. A sale that is only late earns its price in any case.

        Args:
            lost_sales: whether unmet demand is lost.
            holding_cost: cost per unit on hand, one number or one per item; ``None`` is not given.
            shortage_cost: cost per unit short.
            procurement_cost: cost per unit ordered.
        """
        price = self.price if lost_sales else None
        known = {
            "holding_cost": (holding_cost, self.holding_cost, 1.0),
            "shortage_cost": (shortage_cost, self.shortage_cost, price, 9.0),
            "procurement_cost": (procurement_cost, self.procurement_cost, 0.0),
        }
        return {
            name: next(cost for cost in costs if cost is not None) for name, costs in known.items()
        }


def read_demand(path: str | Path) -> DemandFile:
    r"""Read a table of demand with one row per period and item.

    The columns ``period``, ``item`` and ``demand`` are needed; ``price``, ``procurement_cost``,
    ``holding_cost`` and ``shortage_cost`` are optional and constant for each item. Their order is
    free, as is that of the rows; names may be in capitals. Periods are whole numbers, ISO dates
    (daily, weekly, monthly, ...) or ISO times without a zone, evenly spaced. Every item has a row
    in every period: where nothing was asked for, the demand is 0. Empty lines are skipped.

    A CSV file is UTF-8 with commas, semicolons or tabs between its columns and decimal *points*.
    Parquet needs ``pip install "hpo_torchrl[parquet]"``.

    Args:
        path: a file that ends in ``.csv`` or ``.parquet``.

    Returns:
        The demand.

    Raises:
        FileNotFoundError: there is no such file.
        DemandFileError: something in it is not as it should be; the message lists the lines of the
            file (for Parquet its rows, from 1), the first ten of them, and counts the others.
        ModuleNotFoundError: pyarrow, which reads Parquet, is not installed.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from hpo_torchrl.problems.inventory.demand_file import read_demand
        >>> path = Path(tempfile.mkdtemp()) / "demand.csv"
        >>> _ = path.write_text("period,item,demand,holding_cost\n1,A,4,0.5\n2,A,7,0.5\n")
        >>> found = read_demand(path)
        >>> found.items, found.periods, found.demand.tolist(), found.holding_cost
        (('A',), (1, 2), [[4.0], [7.0]], (0.5,))
    """
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise DemandFileError(f"{str(path)!r} must end in .csv or .parquet.")
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is not a file.")
    parquet = path.suffix.lower() == ".parquet"
    columns, rows = _read_parquet(path) if parquet else _read_csv(path)
    table = DemandTable(path, "row" if parquet else "line", columns)
    for row in rows:
        table.add(*row)
    return DemandFile(path, **table.finish())


def read_record(
    path: str | Path | None, split: str, fractions: Sequence[float], history: int, least: int
) -> tuple[DemandFile, Split]:
    """Read a file to train on, once unless it changes, and split it.

    Args:
        path: the file.
        split: the part that is asked for: ``"train"``, ``"dev"`` or ``"test"``.
        fractions: see :meth:`DemandFile.split`.
        history: periods before the first decision.
        least: periods that each part must have, besides.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as it stands, or a part is too short.
    """
    if path is None:
        raise ValueError(
            "path must name a .csv or .parquet file of demand, got None; on the command line "
            "env.path=FILE (a sample is examples/data/generated_demand.csv)."
        )
    check_choice("split", split, Split._fields)
    source = _read_once(Path(path))
    parts = source.split(fractions, least=least)
    if parts.train[1] < history + least:
        raise ValueError(
            f"history={history} needs as many periods before the first decision and "
            f"{least} more, but the training part of {source.path.name} has "
            f"{parts.train[1]}; take a shorter history or a longer record."
        )
    return source, parts


def _read_once(path: Path) -> DemandFile:
    if not path.is_file():
        return read_demand(path)  # which says so
    found = path.stat()
    return _read_version(path.absolute(), found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=4)
def _read_version(path: Path, modified: int, size: int) -> DemandFile:
    return read_demand(path)


def _read_csv(path: Path) -> tuple[list[str], Iterator[_Row]]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DemandFileError(f"{path}, line {line}: not UTF-8; save the file as UTF-8.") from error
    header = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    rows = _csv_rows(
        path, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    )
    try:
        return next(rows)[1], rows
    except StopIteration:
        raise DemandFileError(f"{path} is empty.") from None


def _csv_rows(path: Path, reader: Any) -> Iterator[_Row]:
    """Yield each row with the line on which it begins: a quoted name may run over several."""
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DemandFileError(f"{path}, line {line}: {error}.") from error
        if len(values) > 1 or any(value.strip() for value in values):
            yield line, values


def _read_parquet(path: Path) -> tuple[list[str], Iterator[_Row]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DemandFileError(
            f'{path} is a Parquet file, which pyarrow reads: pip install "hpo_torchrl[parquet]", '
            "or save it as CSV."
        ) from error
    try:
        table = parquet.ParquetFile(path).read()
    except Exception as error:
        raise DemandFileError(f"{path} cannot be read as Parquet: {first_line(error)}") from error
    columns = [column.to_pylist() for column in table.columns]
    rows = enumerate(map(list, zip(*columns, strict=True)), start=1)
    return table.column_names, iter(rows)
