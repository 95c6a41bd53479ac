"""Recorded demand from a person's own file: nothing filled in, nothing left out, unless asked."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.problems.inventory.demand_format import COSTS, FORMAT_NAMES, FileFormat
from hpo_torchrl.problems.inventory.demand_rows import complete, named, parsed
from hpo_torchrl.problems.inventory.periods import label_of, usual_season
from hpo_torchrl.problems.table_file import Problems, TableFileError, read_table

__all__ = ["FORMAT_NAMES", "DemandFile", "FileFormat", "TableFileError", "read_demand"]


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
        TableFileError: something in it is not as it should be; the message lists the lines of the
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
    texts, notes = named(path, texts, how)
    if texts.empty:
        raise TableFileError(f"{path} holds no rows below its header.")
    report = Problems(path)
    values = parsed(texts, how, report, notes)
    report.refuse()
    table = values.pivot(index="period", columns="item")
    items = values["item"].unique()
    demand, lines = table["demand"][items], table["line"][items]
    demand = complete(demand, lines, how, report, notes)
    report.refuse()
    array = demand.to_numpy(dtype=np.float64, copy=True)
    array.flags.writeable = False
    known = values.groupby("item")[[name for name in COSTS if name in texts]].first()
    costs = {name: tuple(known[name].loc[demand.columns].tolist()) for name in known}
    periods = tuple(label_of(period) for period in demand.index)
    return DemandFile(path, tuple(demand.columns), periods, array, costs, tuple(notes))
