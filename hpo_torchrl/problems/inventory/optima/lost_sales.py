"""The exact optimum of one item whose unmet demand is lost, with lead times up to two periods.

A period goes: the stock on hand and in the pipeline is seen and an order is placed; the order of
``lead_time`` periods ago arrives; Poisson demand occurs, and what exceeds the stock is lost; the
stock left costs holding, the sales lost cost shortage. An order can thus first serve the demand of
``lead_time`` periods later, as in :class:`~hpo_torchrl.problems.inventory.Items`. Lost sales do
not lower the inventory position, which therefore does not tell all: the state has
``max(lead_time, 1)`` numbers.
"""

from __future__ import annotations

import math

import numpy as np

from hpo_torchrl.core.checks import check_float
from hpo_torchrl.core.reference import Optimum
from hpo_torchrl.problems.inventory.optima.items import Vector, check_item, one_period_cost
from hpo_torchrl.problems.inventory.optima.order_cost import (
    OrderCost,
    StockGrid,
    check_order_costs,
)
from hpo_torchrl.problems.inventory.rules import TablePolicy

# Largest stock by lead time, for some ten seconds.
_MAX_STOCK = (2048, 2048, 288)


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

    by modified policy iteration on a :class:`StockGrid`. For two periods the cost of the next one
    is charged, which leaves the average as it is. The least and the largest difference of the two
    sides over the states that the policy visits bound the optimum, the least one over all states
    where it is to hold for every policy.

    Source: P. Zipkin (2008), "Old and new methods for lost-sales inventory systems", Operations
    Research 56(5), 1256-1263, for the problem.

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
    if len(_MAX_STOCK) <= L:
        raise ValueError(
            f"lead_time must be 0, 1 or 2 with lost sales, whose state grows with it; got {L}."
        )
    tolerance = check_float("tolerance", tolerance, minimum=1e-9)
    costs = check_order_costs(order_cost, _MAX_STOCK[L] + 1)
    stock = _first_stock(mean, h, costs, L)
    while max(stock, mean) <= _MAX_STOCK[L]:
        G = one_period_cost(np.arange(stock + 1), mean, h, p)
        found = StockGrid(mean, G, costs[: stock + 1], L).solve(tolerance)
        if found is not None:
            cost, lower, order, _ = found
            table = order.reshape([stock + 1] * max(L, 1) + [1])
            return Optimum(cost, TablePolicy(np.zeros(max(L, 1)), table, owed=False), lower)
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
