"""Demand and wind of a day: given, recorded, or drawn; known in advance but for an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_float, check_int, did_you_mean
from hpo_torchrl.problems.unit_commitment.units import Units, kazarlis_demand

# Of a drawn day: mean level of the wind and its swing over the day, as shares of the capacity, and
# the size of the slow waves in the demand beside its level.
_WIND_LEVEL, _WIND_SWING, _WAVES = (0.05, 0.65), 0.2, 0.4


class Days:
    r"""Forecasts for a day at its beginning, and how what comes differs from them.

    The forecast of demand is one of the given days, drawn anew for each episode, times

    .. math:: \exp(\sigma_d\, (z_0 + 0.4\, z_1 \sin(2 \pi t / T + \phi)))

    with the spread :math:`\sigma_d`. Wind is that of the same day, or without a record a level
    between 5 and 65 % of the capacity with a wave of 20 % over the day. Both are missed by errors
    that decay from hour to hour,

    .. math:: e' = \rho\, e + \sigma \sqrt{1 - \rho^2}\, \xi,

    relative to the forecast of demand, and to the capacity of wind.

    Args:
        demand: forecasts of demand in MW, ``(D, T)``.
        wind: of wind, likewise, or ``None``.
        wind_capacity: power that wind cannot exceed, in MW.
        day_spread: :math:`\sigma_d`.
        demand_error, wind_error: standard deviations :math:`\sigma` of the errors.
        error_kept: share :math:`\rho` of an error that is left after an hour.

    Raises:
        ValueError: a number is out of range, or shapes disagree.
    """

    def __init__(
        self,
        demand: Any,
        wind: Any = None,
        *,
        wind_capacity: float = 0.0,
        day_spread: float = 0.0,
        demand_error: float = 0.0,
        wind_error: float = 0.0,
        error_kept: float = 0.9,
    ) -> None:
        self.demand = torch.as_tensor(np.atleast_2d(demand), dtype=torch.float64)
        self.wind = None if wind is None else torch.as_tensor(np.atleast_2d(wind)).double()
        self.wind_capacity = check_float("wind_capacity", wind_capacity, minimum=0.0)
        self.day_spread = check_float("day_spread", day_spread, minimum=0.0, maximum=0.5)
        self.demand_error = check_float("demand_error", demand_error, minimum=0.0, maximum=0.5)
        self.wind_error = check_float("wind_error", wind_error, minimum=0.0, maximum=1.0)
        self.error_kept = check_float("error_kept", error_kept, minimum=0.0, maximum=0.999)
        for name, value in {"demand": self.demand, "wind": self.wind}.items():
            if value is None:
                continue
            good = (value >= 0) & value.isfinite()
            if value.shape != self.demand.shape or not bool(good.all()):
                raise ValueError(
                    f"{name} must hold {tuple(self.demand.shape)} finite powers of at least 0 MW, "
                    f"got {tuple(value.shape)} from {value.min():g} to {value.max():g}."
                )
        if self.wind is not None and self.wind_capacity < float(self.wind.max()):
            self.wind_capacity = float(self.wind.max())

    @classmethod
    def of(cls, units: Units, demand: Any, wind: Any, hours: int, **others: float) -> Days:
        """Make the days of an environment.

        Args:
            units: its units.
            demand: ``None`` for the classical day, scaled to the number of units; ``hours`` numbers
                in MW; or the path of a record, a table with a row for each hour and the columns
                ``demand`` and, if there is wind, ``wind``.
            wind: ``None``, or as many numbers.
            hours: hours of a day.
            others: as above.
        """
        if demand is None:
            demand = np.resize(kazarlis_demand(len(units)), hours)
        elif isinstance(demand, (str, Path)):
            if wind is not None:
                raise ValueError("wind must stand in the file that demand names, in a column wind.")
            demand, wind = read_days(demand, hours)
        shape = np.shape(demand)
        if shape[-1:] != (hours,):
            raise ValueError(
                f"demand must hold one power for each of horizon={hours} hours, got numbers of "
                f"shape {shape}."
            )
        return cls(demand, wind, **others)

    @property
    def certain(self) -> bool:
        """Whether there is one day, and it is known."""
        errors = self.demand_error + self.wind_error * (self.wind_capacity > 0)
        drawn = self.wind is None and self.wind_capacity > 0
        return len(self.demand) == 1 and errors + self.day_spread == 0 and not drawn

    def draw(
        self, draw: Callable[[Any, Sequence[int]], Tensor], batch: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Draw forecasts of demand and wind for episodes, ``(*B, T)`` each.

        Args:
            draw: ``draw(torch.rand, shape)``, with the generator, type and device in place.
            batch: shape ``*B``.
        """
        number, hours = self.demand.shape
        uniform = draw(torch.rand, (*batch, 5))
        which = (uniform[..., 0] * number).long().clamp_max(number - 1)
        demand = self.demand.to(uniform)[which]
        turn = 2 * torch.pi * torch.arange(hours).to(uniform) / hours
        wave = torch.sin(turn + 2 * torch.pi * uniform[..., 1:2])
        if self.day_spread:
            level, swing = draw(torch.randn, (*batch, 2)).split(1, -1)
            demand = demand * (self.day_spread * (level + _WAVES * swing * wave)).exp()
        if self.wind is not None:
            return demand, self.wind.to(uniform)[which]
        least, most = _WIND_LEVEL
        wave = torch.sin(turn + 2 * torch.pi * uniform[..., 2:3])
        wind = least + (most - least) * uniform[..., 3:4] + _WIND_SWING * uniform[..., 4:5] * wave
        return demand, self.wind_capacity * wind.clamp(0.0, 1.0)

    def next_error(self, error: Tensor, noise: Tensor) -> Tensor:
        """Return the errors of the next hour, ``(*B, 2)``: of demand and of wind."""
        size = error.new_tensor([self.demand_error, self.wind_error])
        return self.error_kept * error + (1 - self.error_kept**2) ** 0.5 * size * noise

    def actual(self, demand: Tensor, wind: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Return what comes where forecasts are missed by errors; shapes broadcast."""
        wind = wind + self.wind_capacity * error[..., 1]
        return demand * (1 + error[..., 0]), wind.clamp(0.0, self.wind_capacity)

    def expected(self, demand: Tensor, wind: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is to be expected in the coming hours, given the last hour's errors.

        Args:
            demand: forecasts of the coming hours, ``(*B, T)``.
            wind: likewise.
            error: errors of the last hour, ``(*B, 2)``.
        """
        ahead = torch.arange(1, demand.shape[-1] + 1, dtype=demand.dtype, device=demand.device)
        left = (self.error_kept**ahead).unsqueeze(-1) * error.unsqueeze(-2)
        demand, wind = self.actual(demand, wind, left)
        return demand, wind.where(demand > 0, 0.0)


def read_days(path: str | Path, hours: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Read whole days of demand and, if there is such a column, wind, ``(D, hours)`` each.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is unknown or missing, a cell is no power, or the last day is not
            whole; the message lists the lines.
    """
    import pandas as pd  # slow to load

    from hpo_torchrl.problems.table_file import Problems, read_table

    path = Path(path).absolute()
    table = read_table(path, "utf-8", None)
    problems, found = Problems(path), dict[str, np.ndarray]()
    for column in table:
        if column not in ("demand", "wind", "time"):
            raise ValueError(
                f"{path}: the column {column!r} is unknown"
                f"{did_you_mean(column, ['demand', 'wind', 'time'])}; columns are time (not read), "
                "demand and wind."
            )
        if column != "time":
            numbers = pd.to_numeric(table[column], errors="coerce")
            wrong = table[~((numbers >= 0) & np.isfinite(numbers))][[column]].rename(
                columns={column: "cell"}
            )
            problems.say(wrong, f"{column} must be a power of at least 0 MW, got {{cell!r}}")
            found[column] = numbers.to_numpy(dtype=np.float64)
    problems.refuse()
    if "demand" not in found:
        raise ValueError(f"{path} lacks the column demand.")
    check_int("horizon", hours, minimum=1)
    if len(table) % hours or not len(table):
        raise ValueError(
            f"{path} must have whole days of {hours} rows, got {len(table)} rows; leave out the "
            f"last {len(table) % hours}, or set horizon to the hours of a day."
        )
    days = {column: values.reshape(-1, hours) for column, values in found.items()}
    return days["demand"], days.get("wind")
