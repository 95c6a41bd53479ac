"""Items with Poisson demand: their checked parameters, and what all exact costs are made of."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import toeplitz
from scipy.special import gammainc, gammaincc, gammaln

from hpo_torchrl.core.checks import check_float, check_int, per_item

Vector = NDArray[np.float64]
Levels = NDArray[np.int64]


@dataclass(eq=False)
class Items:
    """n items with Poisson demand, backlogging and a joint fixed cost: a problem with exact costs.

    A period goes, for every item: the inventory position is seen and an order may lift it; the
    order placed ``lead_time`` periods ago arrives; demand occurs; holding or shortage cost is
    charged on the net inventory left. An order can thus first serve the demand of ``lead_time``
    periods later, so a position after ordering meets ``lead_time + 1`` periods of demand before
    its cost is charged. One fixed cost is paid per order, whatever it contains; an order that
    would contain nothing is not placed.

    Args:
        demand_mean: means of the Poisson demands, in units per period; above 0.
        holding_cost: costs per unit on hand at the end of a period; above 0.
        shortage_cost: costs per unit backlogged at the end of a period; above 0. Each of the three
            is a number for all items or a sequence with one entry per item; n is the length of
            the longest sequence.
        fixed_cost: cost per order placed; at least 0.
        lead_time: whole periods from placing an order to its arrival; at least 0.

    Attributes:
        mean, holding, shortage: the three rows in float64, ``(n,)``.

    Raises:
        TypeError: an argument is no number (nor a sequence of them), ``lead_time`` no integer.
        ValueError: a value is out of range, or the lengths differ.

    Examples:
        >>> Items([10, 10], 1, 9, 2 * 64, 2).critical_ratio
        array([0.9, 0.9])
    """

    demand_mean: Any
    holding_cost: Any
    shortage_cost: Any
    fixed_cost: float
    lead_time: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        names = ("demand_mean", "holding_cost", "shortage_cost")
        rows = {name: getattr(self, name) for name in names}
        n = max(1, *(np.asarray(row, dtype=object).size for row in rows.values()))
        self.mean, self.holding, self.shortage = (
            vector(name, row, n, strict=True) for name, row in rows.items()
        )
        self.fixed_cost = check_float("fixed_cost", self.fixed_cost, minimum=0.0)
        self.lead_time = check_int("lead_time", self.lead_time, minimum=0)

    @classmethod
    def of(cls, env: Any, rule: str) -> Items:
        """Return the items of an environment whose fixed cost is joint.

        Raises:
            ValueError: the environment is not one with backlogged Poisson demand and positive
                costs; the message says that ``rule`` needs one.
        """
        if not env.solvable:
            what = f"{type(env).__name__} with demand={env.demand!r}, lost_sales={env.lost_sales}"
            raise ValueError(
                f"algorithm={rule} needs env=inventory with backlogged Poisson demand and "
                f"positive holding and shortage costs, got {what}; choose another algorithm."
            )
        rows = (env.demand_mean, env.holding_cost, env.shortage_cost)
        mean, holding, shortage = (row.double().tolist() for row in rows)
        return cls(mean, holding, shortage, env.fixed_cost, env.lead_time)

    @property
    def slope(self) -> Vector:
        """``h p / (h + p)``: what one unit of spread costs at the newsvendor level."""
        return self.holding * self.shortage / (self.holding + self.shortage)

    @property
    def critical_ratio(self) -> Vector:
        """``p / (h + p)``: the service level of a newsvendor."""
        return self.shortage / (self.holding + self.shortage)

    def row(self, i: int) -> tuple[float, float, float]:
        """Return mean, h and p of item ``i``."""
        return float(self.mean[i]), float(self.holding[i]), float(self.shortage[i])

    def alone(self, i: int) -> Items:
        """Return item ``i`` by itself."""
        return Items(*self.row(i), self.fixed_cost, self.lead_time)

    def distinct(self) -> tuple[Items, Vector, NDArray[np.intp]]:
        """Return items without repetitions, how often each occurs, where each original went."""
        rows = np.stack([self.mean, self.holding, self.shortage], axis=1)
        rows, where, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
        mean, holding, shortage = rows.T
        items = Items(mean, holding, shortage, self.fixed_cost, self.lead_time)
        return items, counts.astype(np.float64), where.reshape(-1)

    def one_period_costs(self, y: Levels, periods: int) -> Vector:
        """Return ``G_i(y)`` of every item at levels that meet ``periods`` of demand.

        Args:
            y: levels, ``(m,)`` or by item ``(n, m)``.
            periods: number of periods.

        Returns:
            Costs, ``(n, m)``.
        """
        rows = (row[:, None] for row in (periods * self.mean, self.holding, self.shortage))
        return one_period_cost(y, *rows)

    def newsvendor_bound(self, demand_means: Vector) -> int:
        """Return a level that no newsvendor level exceeds, ``demand_means`` being at most those.

        Bernstein's inequality, for demands that are sums of Poisson and binomial variables:
        ``P(X >= m + t) <= exp(-t^2 / (2 m + 2 t / 3))``, set equal to ``h / (h + p)``.
        """
        exponent = np.log1p(self.shortage / self.holding)
        t = exponent / 3 + np.sqrt(exponent**2 / 9 + 2 * exponent * demand_means)
        return int(np.ceil(demand_means + t).max())


def check_item(
    mean: float, h: float, p: float, lead_time: int, *, least_mean: float = 0.0, free: bool = False
) -> tuple[float, float, float, int]:
    """Return the checked numbers of a single item; ``free`` lets h and p be 0.

    Raises:
        TypeError: an argument is not a number, or ``lead_time`` is not an integer.
        ValueError: an argument is out of range.
    """
    mean = check_float("demand_mean", mean, minimum=least_mean, strict=least_mean == 0)
    h = check_float("holding_cost", h, minimum=0.0, strict=not free)
    p = check_float("shortage_cost", p, minimum=0.0, strict=not free)
    return mean, h, p, check_int("lead_time", lead_time, minimum=0)


def vector(name: str, value: Any, n: int, *, minimum: float = 0.0, strict: bool = False) -> Vector:
    """Return one number per item, ``(n,)``; see :func:`~hpo_torchrl.core.checks.per_item`."""
    row = per_item(name, value, n, dtype=torch.float64, device=None, minimum=minimum, strict=strict)
    return row.numpy()


# -- Poisson demand ------------------------------------------------------------------------------


def one_period_cost(y: Levels, mean: Any, h: Any, p: Any) -> Vector:
    """Return ``G(y) = E[h (y - X)^+ + p (X - y)^+]`` for X Poisson; arguments broadcast."""
    # P(X <= k) = gammaincc(k + 1, mean) and P(X > k) = gammainc(k + 1, mean). Taking each part
    # from its own tail spares the cancellation of p (mean - y) + (h + p) E(y - X)^+ at large p.
    k = np.maximum(y, 0)
    on_hand = k * gammaincc(k + 1, mean) - mean * gammaincc(k, mean)
    backlog = mean * gammainc(k, mean) - k * gammainc(k + 1, mean) + (k - y)
    return np.asarray(h * on_hand + p * backlog, dtype=np.float64)


def newsvendor_level(mean: float, h: float, p: float) -> int:
    """Return the smallest y with ``P(X <= y) >= p / (h + p)``, X Poisson: the least of G."""
    # The upper tail keeps its relative accuracy where the critical ratio rounds to 1.
    return bisect_left(range(2**53), True, key=lambda y: bool(gammainc(y + 1, mean) <= h / (h + p)))


def poisson(k: Levels, mean: float) -> Vector:
    """Return ``P(D = k)``."""
    return np.exp(k * math.log(mean) - mean - gammaln(k + 1.0))


def visit_probabilities(mean: float, n: int) -> Vector:
    """Return ``u(0), ..., u(n - 1)``: the probability that cumulative demand ever equals j."""
    # Skipping the periods without demand keeps the recursion regular as P(D = 0) nears 1.
    pmf = poisson(np.arange(1, n), mean) / -math.expm1(-mean)
    # Only what underflows is cut off, so truncation costs no accuracy.
    backwards = np.trim_zeros(pmf, "b")[::-1].copy()
    u = np.ones(n)
    for j in range(1, n):
        width = min(j, backwards.size)
        u[j] = u[j - width : j] @ backwards[backwards.size - width :]
    return u


def falls(mean: float, size: int) -> Vector:
    """Return ``P(D = x - y)`` at row x, column y."""
    return toeplitz(poisson(np.arange(size), mean), np.zeros(size))
