"""The exact optimum of one item whose orders cost any function of their size.

A period goes as in :class:`~hpo_torchrl.problems.inventory.Items`, but an order of ``q`` units
costs ``c(q)``: quantity discounts, minimum quantities, full truckloads. No (s, S) policy need be
optimal then, and the optimality equation on inventory positions is solved as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import gammainc, gammaln

from hpo_torchrl.core.checks import check_float
from hpo_torchrl.core.reference import Optimum
from hpo_torchrl.problems.inventory.optima.items import Levels, Vector, check_item, one_period_cost
from hpo_torchrl.problems.inventory.rules import TablePolicy

OrderCost = Callable[[Levels], Any]

# Positions on either side of the mean demand to cover; the last takes some ten seconds.
_FIRST_REACH, _MAX_REACH = 16, 1024
# A fall below the grid less frequent than this is lost in rounding, as is a demand less likely.
_NEVER, _NEGLIGIBLE = 1e-12, 1e-18
# Stocks from which a fall below the grid is more likely than this are left out of the table.
_RARELY = 1e-8
# Changes of this fraction of the values are rounding errors.
_ROUNDING = 1e-15
_MAX_ROUNDS = 1000
# The tolerance of positions, which are solved to more digits than they need.
_EXACT = 5e-9


def order_cost_optimum(
    demand_mean: float,
    holding_cost: float,
    shortage_cost: float,
    order_cost: OrderCost,
    lead_time: int = 2,
    *,
    tolerance: float = 1e-6,
) -> Optimum:
    """Find an optimal policy for order costs of any form, with bounds on the optimal cost.

    Solves the average-cost optimality equation on inventory positions x by modified policy
    iteration, with v the relative value, D the Poisson demand of a period and ``G(y)`` the expected
    cost of a position that meets ``lead_time + 1`` periods of demand, as in :func:`s_S_cost`::

        g + v(x) = min_{q >= 0} [c(q) + G(x + q) + E v(x + q - D)]

    Any v bounds the optimum (Odoni) by the least difference of the two sides over all positions,
    here those of a problem that can only be cheaper; see :class:`StockGrid` for the sources.

    Args:
        demand_mean: mean of the Poisson demand, in units per period; at least 0.001.
        holding_cost: cost per unit on hand at the end of a period; above 0.
        shortage_cost: cost per unit backlogged at the end of a period; above 0.
        order_cost: from quantities ``0, 1, 2, ...``, an int64 array ``(m,)``, to the cost of an
            order of each, ``(m,)``: at least 0, finite for 0, and ``inf`` for what is not allowed.
        lead_time: whole periods from placing an order to its arrival; at least 0.
        tolerance: width of the bounds to reach, as a fraction of the cost; at least 1e-9.

    Returns:
        The policy, its cost per period, and a lower bound within ``tolerance`` of it.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, ``order_cost`` returns another shape, NaN or a
            negative cost, or the optimum would take a grid of more than two thousand positions.

    Examples:
        No fewer than 60 units at a time, for 64 an order:

        >>> def at_least_60(q):
        ...     return np.where((q > 0) & (q < 60), np.inf, 64.0 * (q > 0))
        >>> optimum = order_cost_optimum(10, 1, 9, at_least_60)
        >>> round(optimum.cost, 4), round(optimum.lower, 4)
        (40.0194, 40.0194)
        >>> optimum.policy.order_quantity([[25], [24], [4], [-10]]).flatten().tolist()
        [0, 60, 60, 74]
    """
    # Values grow as the inverse of the mean, and their rounding errors would outgrow the cost.
    mean, h, p, L = check_item(demand_mean, holding_cost, shortage_cost, lead_time, least_mean=1e-3)
    horizon_mean = (L + 1) * mean
    tolerance = check_float("tolerance", tolerance, minimum=1e-9)
    reach = _FIRST_REACH
    while reach <= _MAX_REACH:
        positions = round(horizon_mean) + np.arange(-reach, reach + 1)
        costs = check_order_costs(order_cost, positions.size)
        G = one_period_cost(positions, horizon_mean, h, p)
        found = StockGrid(mean, G, costs, owed=True).solve(min(tolerance, _EXACT))
        # To stay below the grid must be dearer than to come back.
        if found is not None and G[0] > found[0]:
            cost, lower, order, first = found
            table = TablePolicy(positions[first], order[first:, None])
            return Optimum(cost, table, min(lower, cost))
        reach *= 2
    raise ValueError(
        f"the optimum must be found within {_MAX_REACH} units of the mean demand of lead_time + 1 "
        "periods, which takes lower order costs, higher other costs, or demand in larger units; "
        f"got demand_mean={demand_mean!r}, holding_cost={holding_cost!r}, "
        f"shortage_cost={shortage_cost!r}, and order_cost of 1 and {positions.size - 1} units: "
        f"{costs[1]:g} and {costs[-1]:g}."
    )


def check_order_costs(order_cost: OrderCost, size: int) -> Vector:
    """Return the checked costs of ordering ``0, ..., size - 1`` units.

    Raises:
        TypeError: ``order_cost`` is not a function.
        ValueError: It returns another shape, NaN or a negative cost, or no finite one for 0 units.
    """
    if not callable(order_cost):
        raise TypeError(
            "order_cost must be a function from an array of quantities to their costs, got "
            f"{order_cost!r} of type {type(order_cost).__name__}; for a fixed cost, give "
            "lambda q: 64.0 * (q > 0)."
        )
    costs = np.asarray(order_cost(np.arange(size)), dtype=np.float64)
    if costs.shape != (size,):
        raise ValueError(
            f"order_cost must return one cost per quantity, of shape ({size},), got {costs.shape}."
        )
    bad = np.flatnonzero(~(costs >= 0.0))
    if bad.size:
        raise ValueError(
            "order_cost must return costs >= 0 (inf where an order is not allowed), got "
            f"{costs[bad[0]]} for {bad[0]} units."
        )
    if costs[0] == np.inf:
        raise ValueError(
            "order_cost must be finite for 0 units, as not ordering is always possible; got inf."
        )
    return costs


class StockGrid:
    """One item whose stock, on hand and on order, is on a grid ``0, ..., X``.

    An order beyond X is taken to be free, and to leave a stock as low and as favourable as it can.
    Where demand is owed, a fall below the grid costs nothing and leads to wherever is best. No
    policy costs less than the optimum of this problem. If its policy nevertheless never orders
    beyond X, and next to never falls below the grid, it is optimal.

    Values are a vector: those of the states on the grid (for a lead time of two periods pairs, on
    hand and arriving next period, of which those with more than X in total stay 0), then that of
    all states below the grid, and that of all beyond it.

    Source: M. Puterman and M. Shin (1978), "Modified policy iteration algorithms for discounted
    Markov decision problems", Management Science 24(11), 1127-1137, for the method; A. Odoni
    (1969), "On finding the maximal gain for Markov decision processes", Operations Research 17(5),
    857-860, for the bounds.

    Args:
        mean: mean of the Poisson demand.
        G: what a level costs in a period, ``(X + 1,)``, convex.
        costs: of ordering 0 to X units.
        lead_time: that of lost sales; positions of owed demand need none.
        owed: whether unmet demand is owed, and lowers the stock.
    """

    def __init__(
        self, mean: float, G: Vector, costs: Vector, lead_time: int = 0, *, owed: bool = False
    ) -> None:
        self.costs, self.lead_time, self.owed = costs, lead_time, owed
        self.X = X = costs.size - 1
        # Enough to sell all stock several times over.
        self.steps = min(10 + math.ceil(4 * X / mean), 5000)
        # Only then does less or more than the grid holds cost more.
        self.turns = not (owed and G.argmin() == 0) and bool(G.argmin() < X)
        demand = np.arange(int(mean + 12 * math.sqrt(mean)) + 20)
        pmf = np.exp(demand * math.log(mean) - mean - gammaln(demand + 1.0))
        self.pmf = pmf[: np.argmax(gammainc(demand + 1.0, mean) < _NEGLIGIBLE) + 1]
        # Row x: what demand leaves of a stock of x (X + 1 is below the grid), and its distribution.
        levels = np.arange(X + 1)
        left = levels[:, None] - np.arange(self.pmf.size)
        self.left = np.where(left < 0, X + 1 if owed else 0, left)
        self.fall = np.zeros((X + 1, X + 2))
        np.add.at(self.fall, (levels[:, None], self.left), self.pmf)
        total = levels[:, None] + levels
        self.capped = np.minimum(total, X)
        # States by what is on hand, and for two periods by what arrives in the next one.
        self.arriving = X + 1 if lead_time == 2 else 1
        self.total = total[:, : self.arriving].ravel()
        self.charge, self.beyond = G, float(G[X])
        if lead_time == 2:
            self.charge = (self.fall[:, :-1] @ G[self.capped]).ravel()
            # With more than X in total, more than X - D is on hand when the cost is charged.
            self.beyond = float(self.fall[X, :-1] @ np.minimum.accumulate(G[::-1])[::-1])
        # By stock after ordering without a lead time, else by what is on hand and ordered.
        size = np.where(total <= X, levels, -1) if lead_time else levels - levels[:, None]
        self.ordering = np.where(size >= 0, costs[size], np.inf)
        self.inside = self.total <= X
        self.known = np.append(self.inside, [owed, True])
        # The states in the order of their stock, and where each amount of it begins.
        self.by_total = np.argsort(self.total, kind="stable")[: self.inside.sum()]
        self.starts = np.searchsorted(self.total[self.by_total], levels)

    def solve(self, tolerance: float) -> tuple[float, float, Levels, int] | None:
        """Find the policy and its bounds; None if the grid is too small to show it is optimal.

        Returns:
            The most that the policy costs, the least of any policy, the orders, and the lowest
            stock from which the policy next to never falls below the grid.
        """
        v = np.zeros(self.total.size + 2)
        for _ in range(_MAX_ROUNDS if self.turns else 0):
            new, quantity = self._improve(v)
            change = new - v
            low, high = float(change[self.known].min()), float(change[self.known].max())
            if high - low <= max(tolerance / 50 * low, _ROUNDING * float(np.abs(v).max())):
                break
            v = self._follow(new, quantity)
        else:
            return None
        # States with no more stock than a policy that starts with none ever has.
        most, after = -1, max(int(quantity[0]), 0)
        while after > most:
            most, visited = after, self.total <= after
            after = int((self.total + quantity)[visited].max())
        if most == self.X or bool((quantity[visited] < 0).any()):
            return None
        cost, orders = float(change[:-2][visited].max()), np.maximum(quantity, 0)
        if not self.owed:
            return cost, low, orders, 0
        # How likely each stock falls out of the grid within the steps.
        target, falls = self.left[np.arange(self.X + 1) + orders], np.zeros(self.X + 1)
        for _ in range(self.steps):
            falls = np.append(falls, 1.0)[target] @ self.pmf
        if falls[self.charge.argmin()] > _NEVER * self.steps:
            return None
        # Lower down, the policy counts on falling out.
        return cost, low, orders, int(np.flatnonzero(falls > _RARELY).max(initial=-1)) + 1

    def _improve(self, v: Vector) -> tuple[Vector, Levels]:
        """The right side of the optimality equation, and the best orders; -1 is beyond X."""
        X, below, shape = self.X, 0.0, (self.X + 1, self.arriving)
        if self.lead_time == 0:
            levels = self.charge + self.fall @ v[:-1]
            values, below = self.ordering + levels, float(levels.min())
            new, quantity = values.min(axis=1), values.argmin(axis=1) - np.arange(X + 1)
        else:
            best, orders = np.zeros(shape), np.zeros(shape, dtype=np.int64)
            after = v[self.capped] if self.lead_time == 1 else v[:-2].reshape(shape)
            for z in range(self.arriving):
                n = X + 1 - z
                values = self.ordering[z:, :n] + self.fall[:n, :n] @ after[z:, :n]
                best[:n, z], orders[:n, z] = values.min(axis=1), values.argmin(axis=1)
            new, quantity = self.charge * self.inside + best.ravel(), orders.ravel()
        gone = self._after_beyond(v)
        free = gone + (self.charge if self.lead_time else self.beyond)
        leaves = self.inside & (free < new)
        new = np.append(np.where(leaves, free, new), [below, self.beyond + gone])
        return new, np.where(leaves, -1, quantity)

    def _after_beyond(self, v: Vector) -> float:
        """Value after an order beyond X: that of the best state with more stock than X - D."""
        least = np.minimum.reduceat(v[self.by_total], self.starts)
        least = np.minimum(np.minimum.accumulate(least[::-1])[::-1], v[-1])
        return float(self.fall[self.X] @ np.append(least, v[-2]))

    def _follow(self, v: Vector, quantity: Levels) -> Vector:
        """Values of following a policy for some periods, less the first state's."""
        leaves, at = self.inside & (quantity < 0), np.flatnonzero(self.inside & (quantity >= 0))
        q = quantity[at]
        costs = self.costs[q]
        if self.lead_time == 0:
            # Below the grid the best level is free.
            level = np.append(at + q, (self.charge + self.fall @ v[:-1]).argmin())
            at, costs = np.append(at, self.X + 1), np.append(costs, 0.0) + self.charge[level]
            target = self.left[level]
        else:
            on_hand, arriving = np.divmod(at, self.arriving)
            costs = costs + self.charge[at]
            target = (self.left[on_hand] + arriving[:, None]) * self.arriving + q[:, None]
        free = self.charge[leaves] if self.lead_time else self.beyond
        for _ in range(self.steps):
            after = self._after_beyond(v)
            new = np.zeros(v.size)
            new[at] = costs + v[target] @ self.pmf
            new[:-2][leaves] = free + after
            new[-1] = self.beyond + after
            v = new
        return np.where(self.known, v - v[0], 0.0)
