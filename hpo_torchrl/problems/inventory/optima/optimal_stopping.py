"""The joint replenishment problem as a problem of optimal stopping, solved on a grid.

Let ordering be free to reach any level, lower ones included: this can only lower the optimum. Each
order then starts the system afresh at the cheapest level S, and what is left is when to stop the
fall from S. As positions only fall between orders, an order never has to lower one: the optimum
of the freer problem is one of the original.

Per unit of time a stopper gets g. With V the best value from a position, 0 if it stops at once::

    V(x) = min(0, H(x)),   H(x) = G(x) - g + E V(x - D)

and g is the optimal cost per period if K + min H = 0. That sum falls with g and is concave in it,
so Newton's method (the cost of the policy just found is the next g) comes down to the optimum.
Periods without any demand change nothing and are skipped: H becomes
``(G(x) - g) / P(D != 0) + E[V(x - D) | D != 0]``, where it is negative without a change in sign.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from hpo_torchrl.problems.inventory.optima.items import Items, Levels, Vector, falls

# Values that change by less than this fraction of the costs have settled.
_SETTLED = 1e-12


class PositionGrid:
    """Positions ``low <= x <= high`` of some items; values have one axis per item.

    Raises:
        ValueError: there are too many of them.
    """

    # A hundred megabytes or so, and about a minute.
    most = 2**23
    what = "the optimum"
    instead = "use joint_replenishment_lower_bound and TotalDemandPolicy.optimum, without a grid"

    def __init__(self, items: Items, low: Levels, high: Levels) -> None:
        self.sizes = sizes = (high - low + 1).tolist()
        if math.prod(sizes) > self.most:
            raise ValueError(
                f"{self.what} takes a grid of at most {self.most} inventory positions, but "
                f"the costs given need {' x '.join(map(str, sizes))}; lower fixed_cost or measure "
                f"demand in larger units, or {self.instead}."
            )
        self.none = math.exp(-float(items.mean.sum()))
        self.some = -math.expm1(-float(items.mean.sum()))
        self.falls, self.costs = list[Vector](), np.zeros(())
        for i, y in enumerate(map(np.arange, low, high + 1)):
            alone = items.alone(i)
            costs = alone.one_period_costs(y, items.lead_time + 1)[0]
            self.costs = np.add.outer(self.costs, costs)
            self.falls.append(falls(float(alone.mean[0]), y.size))

    def after(self, falls: list[Vector], values: Vector) -> Vector:
        """Return ``E[V(x - D) | D != 0]``, from the distributions of falls along the axes."""
        return (along_axes(falls, values) - self.none * values) / self.some


class _Stopping(PositionGrid):
    """The problem of when to stop; below the grid, the values of positions are 0."""

    def solve(self, values: Vector, g: float) -> tuple[Vector, Vector, float]:
        """Iterate ``V = min(0, H)`` until it settles.

        Returns:
            H, ``min(0, H)``, and the most by which the values that gave H exceed the latter.
        """
        scale = g / self.some
        # Positions fall by a unit at least each time, so the iteration ends by itself.
        for _ in range(sum(values.shape) + 2):
            old, H = values, (self.costs - g) / self.some + self.after(self.falls, values)
            values = np.minimum(H, 0.0)
            if float(np.abs(values - old).max()) <= _SETTLED * scale:
                break
        return H, values, float((old - values).max())

    def policy_cost(self, order: NDArray[np.bool_], fixed_cost: float) -> float:
        """Return the cost of starting at the top corner of ``order`` and ordering where it is true.

        By renewal-reward, as for an (s, S) policy: ``(K P(D != 0) + sum u G) / sum u`` with
        ``u(x)`` the probability that position x is ever visited between two orders.
        """
        corner = tuple(slice(size) for size in order.shape)
        rises = [fall[:size, :size].T for fall, size in zip(self.falls, order.shape, strict=True)]
        arrived = np.zeros(order.shape)
        arrived[(-1,) * order.ndim] = 1.0
        visits = arrived
        for _ in range(sum(order.shape)):
            arrived = self.after(rises, arrived) * ~order
            visits = visits + arrived
            if float(arrived.sum()) < 1e-17:
                break
        total = float((visits * self.costs[corner]).sum())
        return (fixed_cost * self.some + total) / float(visits.sum())


def solve(
    items: Items, allocated: Vector, single_costs: Vector, g: float, tolerance: float
) -> tuple[float, float, Levels, Levels, NDArray[np.bool_]]:
    """Solve the joint problem for a few items.

    Args:
        items: The items; their values span a grid with one axis each.
        allocated: A share ``k_i >= 0`` of the fixed cost for each item, adding up to K.
        single_costs: The optimal costs ``c_i(k_i)`` of the items alone with these.
        g: The cost of some policy.
        tolerance: The width to reach, as a fraction of the optimum.

    Returns:
        The cost of a policy; a lower bound on the optimum; the policy's order-up-to levels; the
        lowest position at which it may wait; and where it orders, from these up to those levels.
    """
    K = items.fixed_cost
    lowest, values_1d = _bounds(items, allocated, single_costs, g)
    sizes = np.asarray([v.size for v in values_1d])
    grid = _Stopping(items, lowest, lowest + sizes - 1)
    # The sum of the items' own values is at most V, and the iteration rises from it.
    values = functools.reduce(np.add.outer, values_1d)
    upper, lower = math.inf, -math.inf
    while True:
        H, values, excess = grid.solve(values, g)
        top = np.unravel_index(int(H.argmin()), H.shape)
        # Lowering g by P(D != 0) times the excess makes V a lower bound on the value; lowering it
        # as much raises min H at least by the excess, as no fall from S takes less than a period.
        shortfall = max(0.0, excess, -(K + float(H[top])))
        lower = max(lower, g - grid.some * shortfall)
        order = H[tuple(slice(i + 1) for i in top)] >= 0.0
        order[(-1,) * order.ndim] = False
        cost = grid.policy_cost(order, K)
        improved = cost < upper * (1 - _SETTLED)
        if cost < upper:
            upper, best_top, best_order = cost, top, order
        if upper - lower <= tolerance * upper or not improved:
            break
        g = cost
    return upper, min(lower, upper), lowest + np.asarray(best_top), lowest, best_order


def _bounds(
    items: Items, allocated: Vector, single_costs: Vector, g: float
) -> tuple[Levels, list[Vector]]:
    """The lowest positions at which waiting may be optimal, and each item's values from there up.

    Split g into ``g_i`` and let ``V_i``, ``H_i`` be the values of item i alone. Then
    ``V(x) >= sum_i V_i(x_i)`` and ``H(x) >= sum_i H_i(x_i)``; with ``-m_i`` the least value of
    ``k_i + H_i``, this proves that

    * S has ``k_i + H_i(S_i) <= sum of the other m_j``, since ``K + H(S) <= 0``;
    * ordering is optimal where ``H_i(x_i) >= sum of the other k_j + m_j``.

    It stays true as g comes down to the optimum, since V only rises.
    """
    n = allocated.size
    parts = g * single_costs / single_costs.sum()
    slack = 1e-9 * (g + items.fixed_cost)
    # Above these levels, H_i is higher than somewhere among them.
    least = [_single(items, i, part, part, part)[2].min() for i, part in enumerate(parts)]
    gains = -(allocated + least)
    lowest, values = [], []
    for i in range(n):
        others = np.arange(n) != i
        ceiling = float(gains[others].sum()) + slack
        needed = float((allocated + gains)[others].sum())
        below, above = parts[i] + max(0.0, needed), parts[i] + gains[i] + ceiling
        start, V, H = _single(items, i, parts[i], below, above)
        possible = np.flatnonzero(allocated[i] + H <= ceiling)
        # Where waiting costs too much at this position and all below.
        hopeless = int((np.minimum.accumulate(H) >= needed).sum())
        first = min(hopeless, int(possible[0]))
        lowest.append(start + first)
        values.append(V[first : possible[-1] + 1])
    return np.asarray(lowest), values


def _single(
    items: Items, i: int, g: float, cost_below: float, cost_above: float
) -> tuple[int, Vector, Vector]:
    """``V_i`` and ``H_i`` of item i alone, and the first level.

    The levels reach down to where ``G_i`` is at least ``cost_below`` from there on, and up to where
    it is at least ``cost_above``, both by ``G_i(y) >= G`` of the mean demand. ``cost_below`` is at
    least g, so that ``V_i`` is 0 further down.
    """
    alone = items.alone(i)
    horizon_mean = (items.lead_time + 1) * alone.mean
    low = np.floor(horizon_mean - cost_below / alone.shortage).astype(np.int64)
    high = np.ceil(horizon_mean + cost_above / alone.holding).astype(np.int64)
    grid = _Stopping(alone, low, high)
    _, V, _ = grid.solve(np.zeros(high[0] - low[0] + 1), g)
    # Per period, as the sum over items needs it: their periods without demand differ.
    return int(low[0]), V, grid.costs - g + along_axes(grid.falls, V)


def along_axes(matrices: list[Vector], values: Vector) -> Vector:
    """Apply one matrix to each axis; each product takes an axis from the front to the back."""
    for matrix in matrices:
        values = np.tensordot(values, matrix, axes=(0, 1))
    return values
