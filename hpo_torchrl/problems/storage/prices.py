"""Prices of energy: a profile that comes again, and a deviation from it that wanders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hpo_torchrl.core.checks import check_float, entries_of

# A typical day with a morning and an evening peak, from midnight on, per MWh.
DAY = (
    *(42.0, 39.0, 37.0, 36.0, 37.0, 41.0, 50.0, 60.0, 63.0, 57.0, 50.0, 45.0),
    *(42.0, 40.0, 41.0, 45.0, 53.0, 64.0, 72.0, 70.0, 62.0, 55.0, 50.0, 46.0),
)


class Prices(NamedTuple):
    r"""A cycle of prices with an autoregressive deviation.

    The price of step t is :math:`f_{t \bmod L} + y_t` with :math:`y_{t+1} = \kappa y_t + \sigma
    \epsilon_t` and standard normal :math:`\epsilon`. A record is a cycle as long as itself, with
    :math:`\sigma = 0`.

    Attributes:
        profile: :math:`f`, the prices of a cycle, ``(L,)``, per MWh.
        kept: :math:`\kappa`, share of the deviation that is left after a step.
        shock: :math:`\sigma`, standard deviation of what is added in a step.
    """

    profile: np.ndarray
    kept: float
    shock: float

    @classmethod
    def of(cls, profile: Any, kept: Any, shock: Any, step_hours: float) -> Prices:
        """Check the numbers.

        Args:
            profile: prices step by step, or a CSV file of them; ``None`` is a typical day.
            kept: share left after a step, below 1.
            shock: standard deviation of what is added.
            step_hours: length of a step, for the typical day.

        Raises:
            TypeError: an entry is not a number.
            ValueError: a number is out of range, or there are none.
            FileNotFoundError: there is no such file.
        """
        check_float("price_kept", kept, minimum=0.0, maximum=1 - 1e-6)
        check_float("price_shock", shock, minimum=0.0)
        if profile is None:
            hours = np.arange(steps_of_day(step_hours)) * step_hours
            numbers = np.interp(hours, np.arange(25), [*DAY, DAY[0]])
        else:
            numbers = series("price", profile)
        return cls(numbers, float(kept), float(shock))

    @property
    def spread(self) -> float:
        """Standard deviation of y in the long run."""
        return self.shock / math.sqrt(1 - self.kept**2)


def steps_of_day(step_hours: float) -> int:
    """Return how many steps a day has, at least one."""
    return max(1, round(24 / step_hours))


def series(name: str, values: Any) -> np.ndarray:
    """Return numbers step by step, from a list or from a CSV file.

    A file has a column of that name, or a single column of numbers beside others such as times.

    Args:
        name: name of the argument, and of the column.
        values: one number, a sequence, or the path of a CSV file.

    Raises:
        TypeError: an entry is not a number.
        ValueError: there are no numbers, or one is missing or infinite.
        FileNotFoundError: there is no such file.

    Examples:
        >>> from hpo_torchrl.problems.storage.prices import series
        >>> series("price", [30, 50.5]).tolist()
        [30.0, 50.5]
    """
    if isinstance(values, (str, Path)):
        values = _column(name, Path(values))
    elif isinstance(values, (int, float)):
        values = [values]
    numbers = [check_float(name, value) for value in entries_of(name, values)]
    if not numbers:
        raise ValueError(f"{name} must hold at least one number, got {values!r}.")
    return np.array(numbers)


def _column(name: str, path: Path) -> list[float]:
    import pandas as pd  # slow to load

    table = pd.read_csv(path)
    numeric = table.select_dtypes("number").columns
    if name in table:
        column = name
    elif len(numeric) == 1:
        column = numeric[0]
    else:
        raise ValueError(
            f"{name}={str(path)!r} must have a column {name!r}, got the columns {[*table]}; rename "
            "the one that is meant."
        )
    return pd.to_numeric(table[column]).tolist()
