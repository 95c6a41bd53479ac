"""Generating units: what each can give, what it costs, and how long it must stay on or off."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo_torchrl.core.checks import check_int, did_you_mean

if TYPE_CHECKING:
    from hpo_torchrl.problems.table_file import Problems

# The ten units of Kazarlis, Bakirtzis and Petridis (1996), table I.
_TEN: dict[str, list[float]] = {
    "min_power": [150, 150, 20, 20, 25, 20, 25, 10, 10, 10],
    "max_power": [455, 455, 130, 130, 162, 80, 85, 55, 55, 55],
    "fixed_cost": [1000, 970, 700, 680, 450, 370, 480, 660, 665, 670],
    "linear_cost": [16.19, 17.26, 16.60, 16.50, 19.70, 22.26, 27.74, 25.92, 27.27, 27.79],
    "quadratic_cost": [
        *(0.00048, 0.00031, 0.002, 0.00211, 0.00398),
        *(0.00712, 0.00079, 0.00413, 0.00222, 0.00173),
    ],
    "min_up": [8, 8, 5, 5, 6, 3, 3, 1, 1, 1],
    "min_down": [8, 8, 5, 5, 6, 3, 3, 1, 1, 1],
    "hot_start_cost": [4500, 5000, 550, 560, 900, 170, 260, 30, 30, 30],
    "cold_start_cost": [9000, 10000, 1100, 1120, 1800, 340, 520, 60, 60, 60],
    "cold_hours": [5, 5, 4, 4, 4, 2, 2, 0, 0, 0],
    "initial_hours": [8, 8, -5, -5, -6, -3, -3, -1, -1, -1],
}
_TEN_DEMAND = [
    *(700, 750, 850, 950, 1000, 1100, 1150, 1200, 1300, 1400, 1450, 1500),
    *(1400, 1300, 1200, 1050, 1000, 1100, 1200, 1400, 1300, 1100, 900, 800),
]
# What a file may leave out.
_DEFAULTS = {
    "fixed_cost": 0.0,
    "quadratic_cost": 0.0,
    "min_up": 1,
    "min_down": 1,
    "hot_start_cost": 0.0,
    "cold_hours": 0,
    "ramp_up": np.inf,
    "ramp_down": np.inf,
    "must_run": 0,
}
_HOURS = ("min_up", "min_down", "cold_hours", "initial_hours")


@dataclass(frozen=True, eq=False)
class Units:
    r"""Thermal generating units, one number of each kind for each of the G units.

    A unit that is on and gives p MW burns fuel for :math:`a + b p + c p^2` an hour. A start after
    at most ``min_down + cold_hours`` hours off is a hot one, a later start is cold.

    Attributes:
        min_power, max_power: limits of the power of a unit that is on, in MW.
        fixed_cost, linear_cost, quadratic_cost: a in $/h, b in $/MWh, c in $/MW²h.
        min_up, min_down: hours that a unit stays on after a start, and off after a stop.
        hot_start_cost, cold_start_cost: in $ a start.
        cold_hours: hours off, beyond ``min_down``, after which a start is cold.
        initial_hours: hours for which a unit has been on at the start, negative if off.
        ramp_up, ramp_down: MW by which power may rise or fall from one hour to the next while the
            unit is on, or infinity. In its first hour a unit gives at most the larger of
            ``min_power`` and ``ramp_up``; it may stop from any power.
        must_run: whether the unit is always on.
        names: names of the units.

    Raises:
        ValueError: numbers are out of range or contradict one another; the message names them.

    Examples:
        >>> from hpo_torchrl.problems.unit_commitment import Units
        >>> units = Units.kazarlis(20)
        >>> len(units), float(units.max_power.sum())
        (20, 3324.0)
    """

    min_power: np.ndarray
    max_power: np.ndarray
    fixed_cost: np.ndarray
    linear_cost: np.ndarray
    quadratic_cost: np.ndarray
    min_up: np.ndarray
    min_down: np.ndarray
    hot_start_cost: np.ndarray
    cold_start_cost: np.ndarray
    cold_hours: np.ndarray
    initial_hours: np.ndarray
    ramp_up: np.ndarray
    ramp_down: np.ndarray
    must_run: np.ndarray
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "names":
                value = np.array(getattr(self, field.name), dtype=np.float64)  # its own
                object.__setattr__(self, field.name, value)
        number = len(self.names)
        if len({*self.names}) != number or number == 0:
            raise ValueError(f"units must be one or more, with different names, got {self.names}.")
        for field in fields(self):
            if field.name != "names" and getattr(self, field.name).shape != (number,):
                raise ValueError(
                    f"{field.name} of units must hold {number} numbers, as there are names, got "
                    f"the shape {getattr(self, field.name).shape}."
                )
        object.__setattr__(self, "must_run", self.must_run > 0)
        ramped = np.maximum(self.min_power, self.ramp_up)
        rules = {
            "min_power must be from 0 to max_power": (self.min_power >= 0)
            & (self.min_power <= self.max_power),
            "max_power must be positive and finite": (self.max_power > 0)
            & np.isfinite(self.max_power),
            "fuel costs must be finite, and quadratic_cost not negative": np.isfinite(
                self.fixed_cost + self.linear_cost + self.quadratic_cost
            )
            & (self.quadratic_cost >= 0),
            "start costs must be finite and not negative": np.isfinite(
                self.hot_start_cost + self.cold_start_cost
            )
            & (self.hot_start_cost >= 0),
            "cold_start_cost must be at least hot_start_cost": (
                self.cold_start_cost >= self.hot_start_cost
            ),
            "min_up and min_down must be at least 1, cold_hours at least 0": (self.min_up >= 1)
            & (self.min_down >= 1)
            & (self.cold_hours >= 0),
            "initial_hours must not be 0: it is the hours on, or minus the hours off": (
                self.initial_hours != 0
            ),
            "hours must be whole numbers": sum(getattr(self, name) % 1 for name in _HOURS) == 0,
            "ramps must be positive": (self.ramp_up > 0) & (self.ramp_down > 0) & (ramped > 0),
            "a unit that must run must be on at the start": ~self.must_run
            | (self.initial_hours > 0),
        }
        for rule, holds in rules.items():
            if not np.all(holds):
                place = self.names[int(np.argmin(holds))]
                raise ValueError(f"units: {rule}; that is not so of the unit {place!r}.")

    def __len__(self) -> int:
        return len(self.min_power)

    @property
    def full_load_cost(self) -> np.ndarray:
        """Cost of a MWh at full power, in $."""
        p = self.max_power
        return self.fixed_cost / p + self.linear_cost + self.quadratic_cost * p

    @property
    def priority(self) -> np.ndarray:
        """Numbers of the units, those that must run first, then the cheapest at full power."""
        return np.lexsort((np.arange(len(self)), self.full_load_cost, ~self.must_run))

    @classmethod
    def kazarlis(cls, num_units: int = 10) -> Units:
        """Return the classical ten units, or so many of them, over and over again.

        Source: S. A. Kazarlis, A. G. Bakirtzis and V. Petridis (1996), "A genetic algorithm
        solution to the unit commitment problem", IEEE Transactions on Power Systems 11(1), 83-92.
        """
        G = check_int("num_units", num_units, minimum=1)
        table: dict[str, Any] = {name: np.resize(row, G) for name, row in _TEN.items()}
        names = tuple(f"unit {i % 10 + 1}" + f" ({i // 10 + 1})" * (G > 10) for i in range(G))
        ramps = dict.fromkeys(("ramp_up", "ramp_down"), np.full(G, np.inf))
        return cls(**table, **ramps, must_run=np.zeros(G), names=names)

    @classmethod
    def read(cls, path: str | Path) -> Units:
        """Read a table with a row for each unit: columns as the attributes are called.

        ``name`` is optional, and so are ``fixed_cost``, ``quadratic_cost``, ``hot_start_cost`` and
        ``cold_hours`` (0), ``min_up`` and ``min_down`` (1), ``cold_start_cost`` (that of a hot
        start), ``ramp_up`` and ``ramp_down`` (none), ``must_run`` (no) and ``initial_hours`` (off
        for long enough).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a column is unknown or missing, or a cell is no number; the message lists
                the lines.
        """
        from hpo_torchrl.problems.table_file import Problems, read_table  # pandas is slow to load

        path = Path(path).absolute()
        table = read_table(path, "utf-8", None)
        known = [field.name for field in fields(cls) if field.name != "names"]
        for column in table:
            if column not in (*known, "name"):
                raise ValueError(
                    f"{path}: the column {column!r} is unknown{did_you_mean(column, known)}; "
                    f"columns are name, {', '.join(known)}."
                )
        problems, numbers = Problems(path), dict[str, Any]()
        for name in known:
            if name in table:
                numbers[name] = _numbers(table, name, problems)
        problems.refuse()
        optional = {*_DEFAULTS, "cold_start_cost", "initial_hours"}
        if missing := [name for name in known if name not in numbers and name not in optional]:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}.")
        rows = len(table)
        for name, value in _DEFAULTS.items():
            numbers.setdefault(name, np.full(rows, float(value)))
        numbers.setdefault("cold_start_cost", numbers["hot_start_cost"])
        off = -(numbers["min_down"] + numbers["cold_hours"] + 1)
        numbers.setdefault("initial_hours", np.where(numbers["must_run"] > 0, 24, off))
        plain = [f"unit {number + 1}" for number in range(rows)]
        return cls(**numbers, names=tuple(table.get("name", plain)))

    def write(self, path: str | Path) -> None:
        """Write the table that :meth:`read` reads."""
        import pandas as pd

        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        table = pd.DataFrame({"name": columns.pop("names"), **columns})
        table.assign(must_run=table["must_run"].astype(int)).to_csv(path, index=False)

    def changed(self, **numbers: Any) -> Units:
        """Return these units with other numbers."""
        return replace(self, **numbers)


def kazarlis_demand(num_units: int = 10) -> np.ndarray:
    """Return the demand of the classical day in MW, 24 hours, for so many units."""
    return np.asarray(_TEN_DEMAND, dtype=np.float64) * num_units / 10


def _numbers(table: Any, name: str, problems: Problems) -> np.ndarray:
    import pandas as pd

    found = pd.to_numeric(table[name].replace("", _DEFAULTS.get(name, "")), errors="coerce")
    wrong = table[found.isna()][[name]].rename(columns={name: "cell"})
    problems.say(wrong, f"{name} must be a number, got {{cell!r}}")
    return found.to_numpy(dtype=np.float64)
