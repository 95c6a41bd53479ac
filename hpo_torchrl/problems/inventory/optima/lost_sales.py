"""The exact optimum of one item whose unmet demand is lost, with lead times up to two periods.

A period goes: the stock on hand and in the pipeline is seen and an order is placed; the order of
``lead_time`` periods ago arrives; Poisson demand occurs, and what exceeds the stock is lost; the
stock left costs holding, the sales lost cost shortage. An order can thus first serve the demand of
``lead_time`` periods later, as in :class:`~hpo_torchrl.problems.inventory.Items`. Lost sales do
not lower the inventory position, which therefore does not tell all: the state has
``max(lead_time, 1)`` numbers.

States are kept whose stock, on hand and on order, is at most some X. An order beyond X is taken to
be free, and to leave a stock as low and as favourable as it can: no policy costs less than the
optimum of this problem. If its policy nevertheless never orders beyond X, it is optimal.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc, gammaln

from hpo_torchrl.core.checks import check_float
from hpo_torchrl.core.reference import Optimum
from hpo_torchrl.problems.inventory.optima.items import (
    Levels,
    Vector,
    check_item,
    one_period_cost,
)
from hpo_torchrl.problems.inventory.optima.order_cost import OrderCost, check_order_costs
from hpo_torchrl.problems.inventory.rules import TablePolicy

__all__ = ["lost_sales_optimum"]

# Largest stock by lead time, for some ten seconds.
_MAX_STOCK = (2048, 2048, 288)
_LONGEST_LEAD_TIME = 2
# Demands less likely than this are lost in rounding.
_NEGLIGIBLE = 1e-18
_MAX_ROUNDS = 1000


def lost_sales_optimum(
    demand_mean: float,
    holding_cost: float,
    shortage_cost: float,
    order_cost: OrderCost,
    lead_time: int = 1,
    *,
    tolerance: float = 1e-6,
) -> Optimum:
    """Find an optimal policy of an item with lost sales, with bounds on the optimal cost.

    With x on hand, z arriving next period (``lead_time`` 2), q ordered, D the Poisson demand and
    ``G(y) = E[h (y - D)^+ + p (D - y)^+]``, solves the average-cost optimality equation of the lead
    time::

        0:  g + v(x)    = min_q [c(q) + G(x + q) + E v((x + q - D)^+)]
        1:  g + v(x)    = min_q [c(q) + G(x) + E v((x - D)^+ + q)]
        2:  g + v(x, z) = min_q [c(q) + E G((x - D)^+ + z) + E v((x - D)^+ + z, q)]

    by modified policy iteration. For two periods the cost of the next one is charged, which leaves
    the average as it is. The least and the largest difference of the two sides over the states that
    the policy visits bound the optimum (Odoni), the least one over all states where it is to hold
    for every policy.

    Source: P. Zipkin (2008), "Old and new methods for lost-sales inventory systems", Operations
    Research 56(5), 1256-1263, for the problem; A. Odoni (1969), "On finding the maximal gain for
    Markov decision processes", Operations Research 17(5), 857-860, for the bounds; M. Puterman and
    M. Shin (1978), "Modified policy iteration algorithms for discounted Markov decision problems",
    Management Science 24(11), 1127-1137, for the method.

    Args:
        demand_mean: mean of the Poisson demand, in units per period; at least 0.001.
        holding_cost: cost per unit on hand at the end of a period; above 0.
        shortage_cost: cost per unit of demand lost; above 0.
        order_cost: from quantities ``0, 1, 2, ...``, an int64 array ``(m,)``, to the cost of an
            order of each, ``(m,)``: at least 0, finite for 0, and ``inf`` for what is not allowed.
        lead_time: whole periods from placing an order to its arrival: 0, 1 or 2.
        tolerance: width of the bounds to reach, as a fraction of the cost; at least 1e-9.

    Returns:
        The policy, its cost per period, and a lower bound within ``tolerance`` of it.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, ``order_cost`` returns another shape, NaN or a
            negative cost, or the optimum would take too large a stock.

    Examples:
        >>> optimum = lost_sales_optimum(10, 1, 9, lambda q: 64.0 * (q > 0), lead_time=1)
        >>> round(optimum.cost, 3), round(optimum.lower, 3)
        (36.024, 36.024)
        >>> optimum.policy.order_quantity([[5], [16], [17]]).flatten().tolist()
        [41, 34, 0]
    """
    mean, h, p, L = check_item(demand_mean, holding_cost, shortage_cost, lead_time, least_mean=1e-3)
    if L > _LONGEST_LEAD_TIME:
        raise ValueError(
            f"lead_time must be 0, 1 or 2 with lost sales, whose state grows with it; got {L}."
        )
    tolerance = check_float("tolerance", tolerance, minimum=1e-9)
    costs = check_order_costs(order_cost, _MAX_STOCK[L] + 1)
    stock = _first_stock(mean, h, costs, L)
    while stock <= _MAX_STOCK[L]:
        grid = _Grid(mean, h, p, costs[: stock + 1], L)
        found = grid.solve(tolerance) if grid.rises else None
        if found is not None:
            cost, lower, order = found
            policy = TablePolicy(np.zeros(max(L, 1)), order[..., None], owed=False)
            return Optimum(cost, policy, lower)
        stock += max(stock // 2, 1)
    raise ValueError(
        f"the optimum must hold at most {_MAX_STOCK[L]} units of stock, and the proof that it does "
        "takes some more; lower the order costs or measure demand in larger units; got "
        f"demand_mean={demand_mean!r}, holding_cost={holding_cost!r}, "
        f"shortage_cost={shortage_cost!r}, lead_time={L}, and order_cost of 1 and "
        f"{costs.size - 1} units: {costs[1]:g} and {costs[-1]:g}."
    )


def _first_stock(mean: float, h: float, costs: Vector, lead_time: int) -> int:
    """A stock that is likely to do: that of the best order size for deterministic demand."""
    size = np.arange(1, costs.size)
    best = int((costs[1:] * mean / size + h * size / 2).argmin())
    cost = costs[best + 1] if np.isfinite(costs[best + 1]) else 0.0
    # More than is ordered by as much as costs an order to hold.
    needed = (lead_time + 1) * mean + best + math.sqrt(2 * mean * cost / h)
    return min(math.ceil(needed + 5 * math.sqrt(needed) + 8), costs.size - 1)


class _Grid:
    """The problem with a stock of at most X units, ``costs`` being those of ordering 0 to X.

    Values have shape ``(X + 1,)``, or ``(X + 1, X + 1)`` for a lead time of two periods, where
    those of states with more than X units in total stay 0. All states beyond X share one value.
    """

    def __init__(self, mean: float, h: float, p: float, costs: Vector, lead_time: int) -> None:
        self.mean, self.costs, self.lead_time = mean, costs, lead_time
        self.X = X = costs.size - 1
        levels = np.arange(X + 1)
        G = one_period_cost(levels, mean, h, p)
        # More stock than X only costs more.
        self.rises = bool(G.argmin() < X)
        demand = np.arange(int(mean + 12 * math.sqrt(mean)) + 20)
        pmf = np.exp(demand * math.log(mean) - mean - gammaln(demand + 1.0))
        self.pmf = pmf[: np.argmax(gammainc(demand + 1.0, mean) < _NEGLIGIBLE) + 1]
        # Row x: the distribution of (x - D)^+.
        self.left = np.maximum(levels[:, None] - np.arange(self.pmf.size), 0)
        self.fall = np.zeros((X + 1, X + 1))
        np.add.at(self.fall, (levels[:, None], self.left), self.pmf)
        total = levels[:, None] + levels
        self.capped = np.minimum(total, X)
        if lead_time == 2:
            self.charge = self.fall @ G[self.capped]
            # With more than X in total, more than X - D is on hand when the cost is charged.
            self.beyond = float(self.fall[X] @ np.minimum.accumulate(G[::-1])[::-1])
        else:
            self.charge, self.beyond = G, float(G[X])
        # By stock after ordering without a lead time, else by what is on hand and ordered.
        size = levels - levels[:, None] if lead_time == 0 else levels + np.zeros_like(total)
        allowed = size >= 0 if lead_time == 0 else total <= X
        self.ordering = np.where(allowed, costs[np.maximum(size, 0)], np.inf)
        self.total = total if lead_time == 2 else levels
        self.inside = self.total <= X
        # The states in the order of their stock, and where each amount of it begins.
        self.by_total = np.argsort(np.where(self.inside, self.total, X + 1).ravel(), kind="stable")
        self.by_total = self.by_total[: self.inside.sum()]
        self.starts = np.searchsorted(self.total.ravel()[self.by_total], levels)

    def solve(self, tolerance: float) -> tuple[float, float, Levels] | None:
        """Find the policy and its bounds; None if X is too small to show that it is optimal.

        Returns:
            What the policy costs at most, what no policy can go below, and the orders.
        """
        v, outside = np.zeros(self.total.shape), 0.0
        # Enough to sell all stock several times over.
        steps = min(10 + math.ceil(4 * self.X / self.mean), 5000)
        for _ in range(_MAX_ROUNDS):
            new, quantity = self._improve(v)
            after = self._after_beyond(v, outside)
            free = after + (self.charge if self.lead_time else self.beyond)
            leaves = self.inside & (free < new)
            new = np.where(leaves, free, new)
            change = np.where(self.inside, new - v, 0.0)[self.inside]
            change_outside = self.beyond + after - outside
            low = min(float(change.min()), change_outside)
            if max(float(change.max()), change_outside) - low <= tolerance / 50 * low:
                break
            v, outside = self._follow(new, self.beyond + after, quantity, leaves, steps)
        else:
            return None
        visited = self._visited(quantity)
        if bool((leaves & visited).any()) or self.total[visited].max() == self.X:
            return None
        return float((new - v)[visited].max()), low, np.where(leaves, 0, quantity)

    def _improve(self, v: Vector) -> tuple[Vector, Levels]:
        """The right side of the optimality equation, and the best orders; none beyond X."""
        if self.lead_time == 0:
            values = self.ordering + (self.charge + self.fall @ v)
            best = values.argmin(axis=1)
            return values.min(axis=1), best - np.arange(best.size)
        if self.lead_time == 1:
            values = self.ordering + self.fall @ v[self.capped]
            return self.charge + values.min(axis=1), values.argmin(axis=1)
        new, quantity = np.zeros(v.shape), np.zeros(v.shape, dtype=np.int64)
        for z in range(self.X + 1):
            n = self.X + 1 - z
            values = self.ordering[z:, :n] + self.fall[:n, :n] @ v[z:, :n]
            quantity[:n, z] = values.argmin(axis=1)
            new[:n, z] = self.charge[:n, z] + values.min(axis=1)
        return new, quantity

    def _after_beyond(self, v: Vector, outside: float) -> float:
        """Value after an order beyond X: that of the best state with more stock than X - D."""
        least = np.minimum.reduceat(v.ravel()[self.by_total], self.starts)
        least = np.minimum(np.minimum.accumulate(least[::-1])[::-1], outside)
        return float(self.fall[self.X] @ least)

    def _follow(
        self, v: Vector, outside: float, quantity: Levels, leaves: NDArray[np.bool_], steps: int
    ) -> tuple[Vector, float]:
        """Values of following a policy for some periods, less the first state's."""
        at = np.nonzero(self.inside & ~leaves)
        q = quantity[at]
        if self.lead_time == 0:
            costs, target = self.charge[at[0] + q], self.left[at[0] + q]
        else:
            costs, target = self.charge[at], self.left[at[0]]
            if self.lead_time == 1:
                target = target + q[:, None]
            else:
                target = (target + at[1][:, None]) * v.shape[1] + q[:, None]
        costs = costs + self.costs[q]
        gone = np.nonzero(leaves)
        gone_costs = self.charge[gone] if self.lead_time else self.beyond
        for _ in range(steps):
            after = self._after_beyond(v, outside)
            new = np.zeros(v.shape)
            new[at] = costs + v.ravel()[target] @ self.pmf
            new[gone] = gone_costs + after
            v, outside = new, self.beyond + after
        first = v.flat[0]
        return np.where(self.inside, v - first, 0.0), outside - first

    def _visited(self, quantity: Levels) -> NDArray[np.bool_]:
        """States with no more stock than a policy that starts with none ever has."""
        most, after = -1, int(quantity.flat[0])
        while after > most:
            most = after
            visited = self.total <= most
            after = int((self.total + quantity)[visited].max())
        return visited
