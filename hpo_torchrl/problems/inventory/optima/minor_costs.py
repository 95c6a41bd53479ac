"""Joint replenishment with a cost for each item ordered, solved on a grid by value iteration.

With ``G(y)`` the cost of positions y over all items, D the demands and ``k_i`` the items' costs::

    g + v(x) = min_{y >= x} [K 1{y != x} + sum_{i: y_i > x_i} k_i + G(y) + E v(y - D)]

The minimum is taken item by item, each time over all levels above. A position below the grid is
worth what the lowest is: no policy gets cheaper by starting lower, as G falls up to there. A level
above the grid is taken for the highest, and demand may leave this item at the best of all positions
that are no lower than they should be. Either can only lower the optimum, so that the least change
of v in an iteration bounds it from below (Odoni). The largest change, among the positions that the
policy found visits, bounds the cost of this policy.

Periods without demand change nothing and are skipped. As orders then come at rather regular turns,
values would swing for long; they are moved only part of the way, which dampens that.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc

from hpo_torchrl.problems.inventory.optima.items import Items, Levels, Vector
from hpo_torchrl.problems.inventory.optima.optimal_stopping import PositionGrid, along_axes
from hpo_torchrl.problems.inventory.optima.s_S import find_s_S

_MAX_ITERATIONS = 20_000
# How much of the way to their new level the values move.
_STEP = 0.6
# A fall below the grid less likely than this is lost in rounding.
_NEVER = 1e-12


def solve(items: Items, minor: Vector, tolerance: float) -> tuple[float, float, Levels, Levels]:
    """Solve the joint problem for a few items.

    Args:
        items: The items; their values span a grid with one axis each.
        minor: What each item adds to the cost of an order that contains it, ``(n,)``.
        tolerance: The width of the bounds to reach, as a fraction of the optimum.

    Returns:
        The most that the policy costs; a lower bound on the optimum; the lowest positions of the
        grid, where every item is ordered; and the positions after ordering, from these up to the
        highest that the policy enters, ``(*sizes, n)``.

    Raises:
        ValueError: The grid would have more than four million positions.
    """
    low, high = _first_grid(items, minor)
    while True:
        grid = _Grid(items, minor, low, high)
        upper, lower, levels = grid.solve(tolerance)
        bottom_binds, top_binds = grid.binds(levels)
        if not (bottom_binds.any() or top_binds.any()):
            if upper - lower <= tolerance * upper:
                return upper, min(lower, upper), low, low + levels
            top_binds[:] = True
        step = (high - low) // 4 + 1
        low, high = low - bottom_binds * step, high + top_binds * step


def _first_grid(items: Items, minor: Vector) -> tuple[Levels, Levels]:
    """From below the reorder points of items that bear the whole cost up to what they order."""
    low, high = [], []
    for i, k in enumerate(minor.tolist()):
        mean, h, p = items.row(i)
        s, S, _ = find_s_S(mean, h, p, items.fixed_cost + k, items.lead_time)
        demand = np.arange(math.ceil(mean + 12 * math.sqrt(mean)) + 20)
        low.append(s - math.ceil(mean) - int(np.argmax(gammainc(demand + 1.0, mean) <= _NEVER)))
        high.append(S + 1)
    return np.asarray(low), np.asarray(high)


class _Grid(PositionGrid):
    """Positions; a fall below the lowest ends there."""

    # With these, an iteration takes about a second.
    most, what, instead = 2**22, "the optimum with minor_costs", "lower minor_costs"

    def __init__(self, items: Items, minor: Vector, low: Levels, high: Levels) -> None:
        super().__init__(items, low, high)
        self.major, self.minor = items.fixed_cost, minor.tolist()
        self.below = [
            gammainc(np.arange(size) + 1.0, float(mean))
            for mean, size in zip(items.mean, self.sizes, strict=True)
        ]
        for fall, below in zip(self.falls, self.below, strict=True):
            fall[:, 0] += below
        # Sets of items whose level may lie above the grid, larger ones last.
        axes = range(len(self.sizes))
        self.tops = [c for size in axes for c in itertools.combinations(axes, size + 1)]

    def solve(self, tolerance: float) -> tuple[float, float, Levels]:
        """Iterate until all values change by as much.

        Returns:
            The most that the policy costs, a lower bound on the optimum, and places after ordering,
            for all places up to the highest that the policy enters: ``(*sizes, n)``.
        """
        v = np.zeros_like(self.costs)
        for _ in range(_MAX_ITERATIONS):
            H = self._waiting(v)
            new = np.minimum(H, self.major + self._cheapest(H))
            change = new - v
            least = float(change.min())
            if float(change.max()) - least <= tolerance / 50 * least:
                break
            v += _STEP * (change - change.flat[0])
        levels = self._levels(H)
        box = self._entered(levels)
        return self.some * float(change[box].max()), self.some * least, levels[box]

    def binds(self, levels: Levels) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """For each item, whether a policy may fall below the grid, and whether it meets its top."""
        n = levels.shape[-1]
        lowest = levels.reshape(-1, n).min(axis=0)
        falls_out = [below[x] > _NEVER for below, x in zip(self.below, lowest, strict=True)]
        return np.asarray(falls_out), np.asarray(levels.shape[:-1]) == self.costs.shape

    def _waiting(self, v: Vector) -> Vector:
        """``G + E v(y - D)`` by level y, and a lower bound on it for the levels above the grid."""
        H = self._after(v, v, self.falls)
        for at_top in self.tops:
            better, falls = v, list(self.falls)
            for axis in at_top:
                better = _least_above(better, axis)
                falls[axis] = falls[axis][-1:]
            top = tuple(np.s_[-1:] if axis in at_top else np.s_[:] for axis in range(v.ndim))
            H[top] = self._after(better, better[top], falls)
        return H + self.costs / self.some

    def _after(self, v: Vector, idle: Vector, falls: list[Vector]) -> Vector:
        return (along_axes(falls, v) - self.none * idle) / self.some

    def _cheapest(self, H: Vector) -> Vector:
        """Least value after ordering any items or none, without the fixed cost."""
        for axis, k in enumerate(self.minor):
            H = np.minimum(H, k + _least_above(H, axis))
        return H

    def _levels(self, H: Vector) -> Levels:
        """Places after the cheapest order, ``(*sizes, n)``."""
        places: list[Levels] = list(np.indices(H.shape))
        levels, best = list(places), H
        for axis, k in enumerate(self.minor):
            least = _least_above(best, axis)
            # The nearest place above at which the least value is met.
            at = np.where(best == least, places[axis], H.shape[axis])
            at = _least_above(at, axis)
            orders = k + least < best
            # The orders of the items before may depend on where this one ends.
            levels = [
                np.where(orders, np.take_along_axis(level, at, axis), level) for level in levels
            ]
            best = np.minimum(best, k + least)
        orders = self.major + best < H
        return np.stack(
            [np.where(orders, level, x) for level, x in zip(levels, places, strict=True)], axis=-1
        )

    def _entered(self, levels: Levels) -> tuple[slice, ...]:
        """All places up to the highest that a policy enters when it starts from the lowest."""
        n = levels.shape[-1]
        most, after = np.full(n, -1), levels[(0,) * n]
        while (after > most).any():
            most = after
            box = tuple(slice(place + 1) for place in most)
            after = levels[box].reshape(-1, n).max(axis=0)
        return box


def _least_above(values: NDArray, axis: int) -> NDArray:
    """The least of a value and all further along the axis."""
    return np.flip(np.minimum.accumulate(np.flip(values, axis), axis=axis), axis)
