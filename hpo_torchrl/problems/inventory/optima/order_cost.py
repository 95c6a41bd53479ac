"""The exact optimum of one item whose orders cost any function of their size.

A period goes as in :class:`~hpo_torchrl.problems.inventory.Items`, but an order of ``q`` units
costs ``c(q)``: quantity discounts, minimum quantities, full truckloads. No (s, S) policy need be
optimal then, and the optimality equation on inventory positions is solved as it stands.

Positions have no end, the grid has, so two problems are solved on it. In one, falling below the
grid costs nothing and leads to wherever is best, and so does ordering beyond it, but for a period
of its holding cost and a start from its end: no policy costs less than the optimum of this one. In
the other, no order leaves the grid and a fall below it ends at its lowest position, which happens
next to never: its optimum is the exact cost of a policy. The grid grows until the two meet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc

from hpo_torchrl.core.checks import check_float
from hpo_torchrl.core.reference import Optimum
from hpo_torchrl.problems.inventory.optima.items import (
    Levels,
    Vector,
    check_item,
    falls,
    one_period_cost,
)
from hpo_torchrl.problems.inventory.rules import TablePolicy

__all__ = ["OrderCost", "order_cost_optimum"]

OrderCost = Callable[[Levels], Any]

# Positions on either side of the mean demand to cover; the last takes some ten seconds.
_FIRST_REACH, _MAX_REACH = 64, 1024
# A fall below the grid less frequent than this is lost in rounding.
_NEVER = 1e-12
# So often per period both problems start afresh. Some policies on the way have two sets of
# positions that never reach each other, and their values would have no solution.
_RESTART = 1e-11
# Values that change by less than this fraction have settled.
_SETTLED = 1e-12
# Rounds of improving a policy; some ten are enough.
_MAX_ROUNDS = 100


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

    Solves the average-cost optimality equation on inventory positions x by policy iteration, with
    v the relative value, D the Poisson demand of a period and ``G(y)`` the expected cost of a
    position that meets ``lead_time + 1`` periods of demand, as in :func:`s_S_cost`::

        g + v(x) = min_{q >= 0} [c(q) + G(x + q) + E v(x + q - D)]

    Any v bounds the optimum (Odoni) by the least difference of the two sides over all positions,
    here those of a problem that can only be cheaper.

    Source: R. Howard (1960), "Dynamic programming and Markov processes", MIT Press; A. Odoni
    (1969), "On finding the maximal gain for Markov decision processes", Operations Research 17(5),
    857-860.

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
        lower, cost, escape, order = _solve(costs, G, mean)
        # G must rise on both sides, and above the cost: what lies beyond is dearer still.
        enough = min(G[0], G[-1]) > cost and 0 < G.argmin() < G.size - 1
        if enough and escape <= _NEVER and cost - lower <= tolerance * cost:
            return Optimum(cost, TablePolicy(positions[:1], order[:, None]), min(lower, cost))
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


def _solve(costs: Vector, G: Vector, mean: float) -> tuple[float, float, float, Levels]:
    """Solve the two problems on a grid of as many positions as there are costs.

    Returns:
        A lower bound on the optimum; the cost of a policy; how often per period its position falls
        below the grid; and what it orders, by position.
    """
    n = costs.size
    fall = falls(mean, n)
    below = gammainc(np.arange(n) + 1.0, mean)
    quantity = np.arange(n) - np.arange(n)[:, None]
    ordering = np.where(quantity >= 0, costs[np.maximum(quantity, 0)], np.inf)

    # One more position, where everything is free, and one more level, beyond the highest.
    free = np.zeros((n + 1, n + 1))
    free[:n, :n] = ordering
    moves = np.zeros((n + 1, n + 1))
    moves[:n, :n], moves[:n, n] = fall, below

    def land(v: Vector) -> Vector:
        # From beyond, a fall ends no lower than from the highest level: at best, at the least v.
        least = np.minimum.accumulate(v[n - 1 :: -1])[::-1]
        nearest = np.where(v[:n] == least, np.arange(n), n)
        target = np.minimum.accumulate(nearest[::-1])[::-1]
        row = np.zeros(n + 1)
        np.add.at(row, target, fall[-1])
        row[n] = below[-1]
        return row

    start = np.append(np.arange(n), G.argmin())
    lower, values = _policy_iteration(free, np.append(G, G[-1]), moves, start, land)

    clamped = fall.copy()
    clamped[:, 0] += below
    start = values[:n, :n].argmin(axis=1)
    _, values = _policy_iteration(ordering, G, clamped, start)
    choice = values.argmin(axis=1)
    chain, newsvendor = clamped[choice], int(G.argmin())
    cost, _ = _evaluate(ordering[np.arange(n), choice] + G[choice], chain, newsvendor)
    escape, _ = _evaluate(below[choice], chain, newsvendor)
    return lower, cost, escape, choice - np.arange(n)


def _policy_iteration(
    ordering: Vector,
    level_costs: Vector,
    moves: Vector,
    choice: NDArray[np.intp],
    land: Callable[[Vector], Vector] | None = None,
) -> tuple[float, Vector]:
    """Improve a policy until nothing is left to improve, with rare restarts.

    They are at the newsvendor level, which any policy often passes that is any good: values
    relative to that of a position never met would be lost in rounding.

    Args:
        ordering: Cost of the order from each state to each level, ``(states, levels)``.
        level_costs: What a level costs in the period, ``(levels,)``.
        moves: The distribution of the next state by level, ``(levels, states)``.
        choice: A level for each state.
        land: From values to the row of ``moves`` that is best for the last level.

    Returns:
        A lower bound on the optimal cost, and the values of all choices.
    """
    states, newsvendor = np.arange(choice.size), int(level_costs.argmin())
    for _ in range(_MAX_ROUNDS):
        costs = ordering[states, choice] + level_costs[choice]
        _, v = _evaluate(costs, moves[choice], newsvendor, _RESTART)
        moved = False
        if land is not None:
            # The bound needs the free state to be the best, and restarts to lead to as good a
            # one: they do, but for rounding.
            v[-1] = v.min()
            v -= v[-1]
            row = land(v)
            moved = bool((row != moves[-1]).any())
            moves[-1] = row
        # Restarts lead to a value of 0, so they show as a loss of weight alone.
        values = ordering + (level_costs + (1 - _RESTART) * (moves @ v))
        least, now = values.min(axis=1), values[states, choice]
        # Improve positions that are never met as well, as the bound is over all of them.
        better = least < now - _SETTLED * np.abs(now)
        if not (moved or better.any()):
            break
        choice = np.where(better, values.argmin(axis=1), choice)
    return float((least - v).min()), values


def _evaluate(
    costs: Vector, moves: Vector, reference: int, restart: float = 0.0
) -> tuple[float, Vector]:
    """The average cost of a chain, and the values of its states relative to the reference's."""
    system = np.eye(costs.size) - (1 - restart) * moves
    system[:, reference] = 1.0
    v = np.asarray(np.linalg.solve(system, costs), dtype=np.float64)
    g = float(v[reference])
    v[reference] = 0.0
    return g, v
