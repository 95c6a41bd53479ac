"""A table of demand on its way in: what it holds, and all that is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo_torchrl.core.checks import did_you_mean
from hpo_torchrl.problems.inventory.periods import (
    Period,
    find_grid,
    kind_of,
    parse_period,
    without_midnight,
)

REQUIRED = ("period", "item", "demand")
COSTS = ("price", "procurement_cost", "holding_cost", "shortage_cost")
_SHOWN = 10
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_FIX = (
    "Nothing was left out or filled in. Every item needs one row in every period, with a demand "
    ">= 0: write 0 where nothing was asked for."
)
Problem = tuple[int, str]


class DemandFileError(ValueError):
    """A file of demand that cannot be read as it stands.

    Attributes:
        problems: the first ten, as (line of the file, text).
        count: how many there are.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = (), count: int = 0) -> None:
        super().__init__(message)
        self.problems, self.count = list(problems), count


@dataclass
class DemandTable:
    """Gathers the rows of a file.

    Args:
        path: the file.
        unit: what its rows are called in errors: ``"line"`` or ``"row"``.
        columns: names of its columns.

    Raises:
        DemandFileError: a needed column is missing, or one is unknown or there twice.
    """

    path: Path
    unit: str
    columns: list[str]
    problems: list[Problem] = field(default_factory=list)
    # Line and demand by period and item; line and cost, at its first row, by item, by column.
    cells: dict[tuple[Period, str], tuple[int, float]] = field(default_factory=dict)
    costs: dict[str, dict[str, tuple[int, float]]] = field(default_factory=dict)
    items: dict[str, None] = field(default_factory=dict)  # a dict keeps their order
    kind: tuple[str, int] | None = None
    length: int = 0

    def __post_init__(self) -> None:
        known, found = (*REQUIRED, *COSTS), [str(name).strip().lower() for name in self.columns]
        texts = [f"the column {name!r} is missing" for name in REQUIRED if name not in found]
        for name in dict.fromkeys(found):
            if name not in known:
                hint = did_you_mean(name, known)
                texts.append(f"the column {name!r} is unknown" + (f".{hint}" if hint else ""))
            elif found.count(name) > 1:
                texts.append(f"the column {name!r} is there {found.count(name)} times")
        if texts:
            raise DemandFileError(
                f"{self.path}: {'; '.join(texts)}.".replace("?.", "?") + " A demand file has "
                f"{', '.join(REQUIRED)} and, if you like, {', '.join(COSTS)}; got "
                f"{', '.join(map(repr, found))}. Rename columns, or leave others out."
            )
        self.columns = found
        self.costs = {name: {} for name in COSTS if name in found}

    def add(self, line: int, values: Sequence[Any]) -> None:
        """Take the row that begins on a line."""
        self.length += 1
        if len(values) != len(self.columns):
            fields = f"{len(values)} field" + ("" if len(values) == 1 else "s")
            self.problems.append((line, f"{fields}, but there are {len(self.columns)} columns"))
            return
        row = dict(zip(self.columns, values, strict=True))
        period = self._period(line, row["period"])
        item = "" if row["item"] is None else str(row["item"]).strip()
        demand = self._number(line, "demand", row["demand"])
        costs = {name: self._number(line, name, row[name]) for name in self.costs}
        if not item:
            self.problems.append((line, "item is empty"))
            return
        self.items.setdefault(item)
        for name, cost in costs.items():
            if cost is not None:
                self._set_cost(line, name, item, cost)
        if period is None:
            return
        if (period, item) in self.cells:
            text = f"period {period} of item {item!r} is on {self.unit} "
            self.problems.append((line, f"{text}{self.cells[period, item][0]} already"))
        else:
            self.cells[period, item] = line, 0.0 if demand is None else demand

    def finish(self) -> dict[str, Any]:
        """Return items, periods, demand and costs.

        Raises:
            DemandFileError: something is wrong with the table; the message lists it.
        """
        if self.length == 0:
            raise DemandFileError(f"{self.path} holds no rows below its header.")
        items = list(self.items)
        keys: list[Any] = sorted({period for period, _ in self.cells})
        lines = np.zeros((len(keys), len(items)), dtype=np.int64)
        demand = np.zeros(lines.shape)
        at = {period: place for place, period in enumerate(keys)}
        column = {item: place for place, item in enumerate(items)}
        for (period, item), (line, value) in self.cells.items():
            lines[at[period], column[item]] = line
            demand[at[period], column[item]] = value
        periods = without_midnight(keys)
        problems, more = list(self.problems), 0
        if lines.size:
            problems += self._missing_periods(periods, lines)
            gaps, count = self._missing_rows(periods, items, lines)
            problems, more = problems + gaps, count - len(gaps)
        self._refuse(problems, len(problems) + more)
        demand.flags.writeable = False
        costs = {
            name: tuple(found[item][1] for item in items) for name, found in self.costs.items()
        }
        return {"items": tuple(items), "periods": tuple(periods), "demand": demand, **costs}

    def _set_cost(self, line: int, name: str, item: str, cost: float) -> None:
        first, known = self.costs[name].setdefault(item, (line, cost))
        if cost != known:
            self.problems.append(
                (
                    line,
                    f"{name} of item {item!r} is {cost:g}, but {known:g} on {self.unit} {first}; "
                    "it must be the same in all periods",
                )
            )

    def _period(self, line: int, value: Any) -> Period | None:
        if _is_empty(value):
            self.problems.append((line, "period is empty"))
            return None
        try:
            period = parse_period(value)
        except ValueError as error:
            self.problems.append((line, f"period {error}, got {_show(value)}"))
            return None
        kind = kind_of(period)
        self.kind = self.kind or (kind, line)
        if kind == self.kind[0]:
            return period
        text = f"period {_show(value)} is a {kind}, but a {self.kind[0]} on {self.unit} "
        self.problems.append((line, f"{text}{self.kind[1]}"))
        return None

    def _number(self, line: int, name: str, value: Any) -> float | None:
        if _is_empty(value):
            self.problems.append((line, f"{name} is empty"))
            return None
        number = float("nan")
        if isinstance(value, str):
            if _NUMBER.fullmatch(value.strip()):
                number = float(value)
        elif isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
            number = float(value)
        if 0.0 <= number < float("inf"):
            return number
        text = f"{name} must be a finite number >= 0, got {_show(value)}"
        comma = isinstance(value, str) and "," in value
        self.problems.append((line, text + ("; write a decimal point" if comma else "")))
        return None

    def _missing_periods(self, periods: list[Any], lines: NDArray[np.int64]) -> list[Problem]:
        """Return gaps between periods, each on the first line of the period after it."""
        grid, found = find_grid(periods), list[Problem]()
        places = [grid.place(period) for period in periods]
        first = np.where(lines > 0, lines, np.iinfo(np.int64).max).min(axis=1).tolist()
        # Dates without their hyphens are no whole numbers: a month ends with a jump.
        dates = all(10_000_000 < place < 100_000_000 for place in places) and grid.label is str
        hint = "; write dates as 2024-01-31" if dates else ""
        for t in range(1, len(periods)):
            distance = places[t] - places[t - 1]
            if distance % grid.step:
                text = f"period {periods[t]} is {distance} after {periods[t - 1]}, where periods "
                found.append((first[t], f"{text}are {grid.step} apart{hint}"))
            elif distance > grid.step:
                missing = distance // grid.step - 1
                absent = grid.label(places[t - 1] + grid.step)
                text = f"before period {periods[t]} there is no period {absent}"
                text += f" nor the {missing - 1} after it" if missing > 1 else ""
                found.append((first[t], text + hint))
        return found

    def _missing_rows(
        self, periods: list[Any], items: list[str], lines: NDArray[np.int64]
    ) -> tuple[list[Problem], int]:
        """Return the first rows that items lack, each on a line nearby, and their number."""
        there = lines > 0
        known = np.flatnonzero(there.any(axis=0))  # of the others all rows are bad
        items, lines, there = [items[i] for i in known], lines[:, known], there[:, known]
        gaps = np.argwhere(~there)
        steps = np.arange(len(periods))[:, None]
        before = np.maximum.accumulate(np.where(there, steps, -1), axis=0)
        near = np.where(before >= 0, before, there.argmax(axis=0))
        near_line = np.take_along_axis(lines, near, axis=0)
        order = np.argsort(near_line[~there], kind="stable")[:_SHOWN]
        found = []
        for t, i in gaps[order]:
            text = f"item {items[i]!r} has no row for period {periods[t]}; this is its row for "
            found.append((int(near_line[t, i]), f"{text}{periods[near[t, i]]}"))
        return found, len(gaps)

    def _refuse(self, problems: list[Problem], count: int) -> None:
        if not problems:
            return
        shown = sorted(problems)[:_SHOWN]
        things = "1 thing is" if count == 1 else f"{count} things are"
        text = [f"{self.path} cannot be read as it stands, {things} wrong:"]
        text += [f"  {self.unit} {line}: {words}" for line, words in shown]
        if count > len(shown):
            text.append(f"  and {count - len(shown)} more")
        raise DemandFileError("\n".join([*text, _FIX]), shown, count)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _show(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
