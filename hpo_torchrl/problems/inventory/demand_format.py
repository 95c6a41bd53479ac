"""How a person's own file of demand may be written, and what is meant by what it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hpo_torchrl.core.checks import check_bool, check_choice, did_you_mean
from hpo_torchrl.problems.inventory.periods import CALENDARS, PER

REQUIRED = ("period", "item", "demand")
COSTS = ("price", "procurement_cost", "holding_cost", "shortage_cost")


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
        known = (*REQUIRED, *COSTS)
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
