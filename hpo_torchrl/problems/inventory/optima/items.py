"""Items that share a joint fixed cost: their checked parameters, and what they cost per period."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo_torchrl.core.checks import check_float, check_int, per_item
from hpo_torchrl.problems.inventory.optima.s_S import _one_period_cost

Vector = NDArray[np.float64]
Levels = NDArray[np.int64]

# The searches over rules are linear in these.
_MAX_STEPS = 2**20


@dataclass(frozen=True)
class Items:
    """n items with Poisson demand; vectors have shape ``(n,)``, costs are per unit and period."""

    mean: Vector
    holding: Vector
    shortage: Vector
    fixed_cost: float
    lead_time: int

    @property
    def slope(self) -> Vector:
        """``h p / (h + p)``: what one unit of spread costs at the newsvendor level."""
        return self.holding * self.shortage / (self.holding + self.shortage)

    @property
    def critical_ratio(self) -> Vector:
        """``p / (h + p)``: the service level of a newsvendor."""
        return self.shortage / (self.holding + self.shortage)

    def distinct(self) -> tuple[Items, Vector, NDArray[np.intp]]:
        """Items without repetitions, how often each occurs, and where each original went."""
        rows = np.stack([self.mean, self.holding, self.shortage], axis=1)
        rows, where, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
        items = Items(rows[:, 0], rows[:, 1], rows[:, 2], self.fixed_cost, self.lead_time)
        return items, counts.astype(np.float64), where.reshape(-1)

    def alone(self, i: int) -> Items:
        """Item ``i`` by itself."""
        at = slice(i, i + 1)
        vectors = self.mean[at], self.holding[at], self.shortage[at]
        return Items(*vectors, self.fixed_cost, self.lead_time)

    def one_period_cost(self, i: int, y: Levels, periods: int) -> Vector:
        """``G_i(y)`` of item ``i`` at levels ``y`` that meet ``periods`` periods of demand."""
        h, p = float(self.holding[i]), float(self.shortage[i])
        return _one_period_cost(y, periods * float(self.mean[i]), h, p)

    def one_period_costs(self, size: int, periods: int) -> Vector:
        """``G_i(y)`` of every item at the levels ``y = 0, ..., size - 1``: ``(n, size)``."""
        y = np.arange(size)
        return np.stack([self.one_period_cost(i, y, periods) for i in range(self.mean.size)])

    def newsvendor_bound(self, demand_means: Vector) -> int:
        """A level that no item's newsvendor level exceeds, ``demand_means`` being at most those.

        Bernstein's inequality, for demands that are sums of Poisson and binomial variables:
        ``P(X >= m + t) <= exp(-t^2 / (2 m + 2 t / 3))``, set equal to ``h / (h + p)``.
        """
        exponent = np.log1p(self.shortage / self.holding)
        t = exponent / 3 + np.sqrt(exponent**2 / 9 + 2 * exponent * demand_means)
        return int(np.ceil(demand_means + t).max())


def check_items(
    demand_mean: Any, holding_cost: Any, shortage_cost: Any, fixed_cost: Any, lead_time: Any
) -> Items:
    """Return the checked items; a number stands for all, n is the length of the longest sequence.

    Raises:
        TypeError: An argument is no number (nor a sequence of them), ``lead_time`` no integer.
        ValueError: A value is out of range, or the lengths differ.
    """
    given = {
        "demand_mean": demand_mean,
        "holding_cost": holding_cost,
        "shortage_cost": shortage_cost,
    }
    num_items = 1
    for name, value in given.items():
        size = _length(value)
        if size == 0:
            raise ValueError(f"{name} must be a number or hold one entry per item, got {value!r}.")
        num_items = max(num_items, size or 1)
    mean, h, p = (
        per_item(name, value, num_items, dtype=torch.float64, device=None, strict=True).numpy()
        for name, value in given.items()
    )
    K = check_float("fixed_cost", fixed_cost, minimum=0.0)
    return Items(mean, h, p, K, check_int("lead_time", lead_time, minimum=0))


def check_levels(name: str, value: Any, num_items: int) -> Levels:
    """Return order-up-to levels, one per item; an integer stands for all.

    Raises:
        TypeError: An entry is not an integer.
        ValueError: The length is not ``num_items``.
    """
    size = _length(value)
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.tolist()
    if size is None:
        entries = [_integer(name, value)] * num_items
    elif size == num_items:
        entries = [_integer(f"{name}[{i}]", entry) for i, entry in enumerate(value)]
    else:
        raise ValueError(
            f"{name} must be an integer or hold one entry per item: expected {num_items} "
            f"entries, got {size}."
        )
    return np.asarray(entries, dtype=np.int64)


def check_reach(name: str, value: int, items: Items) -> None:
    """Refuse a search over so many steps that it would take minutes.

    Raises:
        ValueError: More than a million steps.
    """
    if value > _MAX_STEPS:
        raise ValueError(
            f"the best {name} must be found within {_MAX_STEPS}, which takes a lower fixed_cost "
            f"or higher other costs; got fixed_cost={items.fixed_cost!r}, which asks for {value}."
        )


def _integer(name: str, value: Any) -> int:
    return check_int(name, value, minimum=-(2**53))


def _length(value: Any) -> int | None:
    """Entries of a sequence; None for a number, or what a later check will refuse."""
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.tolist()
    return len(value) if isinstance(value, Sequence) and not isinstance(value, str) else None
