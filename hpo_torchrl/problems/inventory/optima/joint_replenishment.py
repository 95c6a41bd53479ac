"""Joint replenishment: the exact optimum of up to three items, and a lower bound for any number.

A period goes as in :class:`~hpo_torchrl.problems.inventory.Items`, whose fixed cost per order is
all that joins the items. Each item in an order may add a minor cost of its own.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hpo_torchrl.core.checks import check_float
from hpo_torchrl.core.reference import Optimum
from hpo_torchrl.problems.inventory.optima import minor_costs as minor_cost_grid
from hpo_torchrl.problems.inventory.optima import optimal_stopping
from hpo_torchrl.problems.inventory.optima.items import Items, Vector, vector, visit_probabilities
from hpo_torchrl.problems.inventory.optima.joint_rules import best_total_demand
from hpo_torchrl.problems.inventory.optima.s_S import find_s_S
from hpo_torchrl.problems.inventory.rules import TablePolicy

__all__ = ["joint_replenishment_lower_bound", "joint_replenishment_optimum"]

_MAX_ITEMS = 3
# Rounds of moving the fixed cost towards equal order frequencies; a handful is enough.
_MAX_ROUNDS = 12


def joint_replenishment_optimum(
    items: Items, *, minor_costs: float | Sequence[float] = 0.0, tolerance: float = 1e-6
) -> Optimum:
    """Find an optimal policy of one, two or three items, with bounds on the optimal cost.

    Solves the average-cost optimality equation on inventory positions x, with v the relative
    value, D the vector of Poisson demands and ``G_i`` the expected cost of a position that meets
    ``lead_time + 1`` periods of demand::

        g + v(x) = min_{y >= x} [K 1{y != x} + sum_i G_i(y_i) + E v(y - D)]

    An optimal policy orders up to one vector S from a set of positions below S, so this is a
    problem of optimal stopping between orders, solved by value iteration for a trial g, and by
    Newton's method for g. Any g and v bound the optimum (Odoni), here from below; the exact cost
    of the policy found bounds it from above. The grid is finite without an error: single-item
    problems, which share out g and K, bound S from above and prove where ordering is optimal.

    With minor costs ``k_i``, an order costs K and ``k_i`` for each item with ``y_i > x_i``. An
    order may then leave items out, and the equation is solved by value iteration, on a grid that
    grows until the bounds meet.

    Source: A. Odoni (1969), "On finding the maximal gain for Markov decision processes",
    Operations Research 17(5), 857-860, for the bounds; E. Ignall (1969), "Optimal continuous
    review policies for two product inventory systems with joint setup costs", Management Science
    15(5), 278-283, for the problem. The time is that of about 100 passes over the grid.

    Args:
        items: the items.
        minor_costs: what each item adds to the cost of an order that contains it, a number for all
            items or a sequence with one entry per item; at least 0.
        tolerance: width of the bounds to reach, as a fraction of the cost; at least 1e-9.

    Returns:
        The policy, its cost per period over all items, and a lower bound within ``tolerance``. With
        minor costs, the cost is itself a bound, far closer to that of the policy. Stock above the
        policy's table counts as the highest in it and is left as it is: from such positions, which
        the policy never enters by itself, this is optimal in the long run.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of range, lengths differ, there are more than three
            items, or the grid would have more than eight million positions (four with minor costs).

    Examples:
        >>> optimum = joint_replenishment_optimum(Items([10, 10], 1, 9, 2 * 64, 2))
        >>> round(optimum.cost / 2, 4), round(optimum.lower / 2, 4)
        (38.1397, 38.1397)
        >>> optimum.policy.order_quantity([[25, 25], [25, 40]]).tolist()
        [[37, 37], [0, 0]]

        Each item adds 10 to an order, which may be of one item alone:

        >>> optimum = joint_replenishment_optimum(Items([10, 10], 1, 9, 2 * 64, 2), minor_costs=10)
        >>> round(optimum.cost / 2, 4)
        40.606
        >>> optimum.policy.order_quantity([[25, 25], [20, 55]]).tolist()
        [[39, 39], [38, 0]]
    """
    n = items.mean.size
    minor = vector("minor_costs", minor_costs, n)
    tolerance = check_float("tolerance", tolerance, minimum=1e-9)
    if n > _MAX_ITEMS:
        raise ValueError(
            f"joint_replenishment_optimum takes at most {_MAX_ITEMS} items, got {n}; for more, "
            "joint_replenishment_lower_bound bounds the optimum from below, "
            "TotalDemandPolicy.optimum and PeriodicPolicy.optimum from above."
        )
    if n > 1 and minor.any():
        cost, lower, lowest, levels = minor_cost_grid.solve(items, minor, tolerance)
    else:
        items = replace(items, fixed_cost=items.fixed_cost + float(minor.sum()))
        allocated, single_costs = _allocate(items)
        start = best_total_demand(items)[2]
        cost, lower, S, lowest, orders = optimal_stopping.solve(
            items, allocated, single_costs, start, tolerance
        )
        # Below the lowest position at which it may wait, the policy orders.
        lowest, orders = lowest - 1, np.pad(orders, [(1, 0)] * n, constant_values=True)
        levels = np.where(orders[..., None], S, _positions(lowest, orders.shape))
    order = levels - _positions(lowest, levels.shape[:-1])
    return Optimum(cost, TablePolicy(lowest, order), lower)


def joint_replenishment_lower_bound(items: Items) -> tuple[float, tuple[float, ...]]:
    """Bound the optimal cost of any number of items from below, by sharing out the fixed cost.

    Charge each order of item i only ``k_i``, with ``sum_i k_i = K``: no order then costs more than
    before, and the items part::

        optimum >= sum_i c_i(k_i),   c_i(k) the optimal (s, S) cost of item i with fixed cost k

    The bound holds for any shares. ``c_i`` is concave, its slope is the frequency of orders, and
    the best shares make the items order equally often; they are approached by interpolating the
    squared time between orders, which is almost linear in k. Identical items share equally, so
    that their bound per item is the cost of one alone.

    Source: D. Atkins and P. Iyogun (1987), "A lower bound on a class of coordinated
    inventory/production problems", Operations Research Letters 6(2), 63-67.

    Args:
        items: the items.

    Returns:
        The bound per period over all items, and the parts ``k_i`` of the fixed cost that give it.

    Raises:
        ValueError: ``fixed_cost`` so far outweighs the other costs that :func:`optimal_s_S`
            refuses an item.

    Examples:
        >>> bound, fixed_costs = joint_replenishment_lower_bound(Items([10] * 50, 1, 9, 50 * 64, 2))
        >>> round(bound / 50, 4), fixed_costs[0]
        (37.0644, 64.0)
    """
    allocated, costs = _allocate(items)
    return float(costs.sum()), tuple(allocated.tolist())


def _positions(lowest: NDArray[np.int64], sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """Return all positions from the lowest up, ``(*sizes, n)``."""
    return lowest + np.moveaxis(np.indices(sizes), 0, -1)


def _allocate(every: Items) -> tuple[Vector, Vector]:
    """Shares ``k_i`` of the fixed cost for every item, and the items' costs alone with these."""
    items, counts, where = every.distinct()
    K, some = every.fixed_cost, -np.expm1(-items.mean)
    # Known per item: squared mean times between orders, by fraction of the fixed cost. Without a
    # fixed cost there is an order in every period with demand.
    known = [{0.0: square} for square in (some**-2).tolist()]
    # The best fractions of deterministic demand.
    fractions = items.mean * items.slope
    fractions /= counts @ fractions
    best, best_total, rounds_lost = (fractions, fractions), -math.inf, 0
    for _ in range(_MAX_ROUNDS):
        costs = np.zeros_like(fractions)
        for i, fraction in enumerate(fractions.tolist()):
            s, S, costs[i] = find_s_S(*items.row(i), fraction * K, items.lead_time)
            visits = visit_probabilities(float(items.mean[i]), S - s)
            known[i][fraction] = float(visits.sum() / some[i]) ** 2
        total = float(counts @ costs)
        rounds_lost = 0 if total > best_total * (1 + 1e-7) else rounds_lost + 1
        if total > best_total:
            best, best_total = (fractions, costs), total
        if rounds_lost == 2 or counts.size == 1 or K == 0.0:
            break
        fractions = _equal_frequencies(known, counts)
    return best[0][where] * K, best[1][where]


def _equal_frequencies(known: list[dict[float, float]], counts: Vector) -> Vector:
    """Fractions, 1 in total, at which the interpolated times between orders are equal."""
    curves = []
    for points in known:
        fractions = sorted(points)
        squares = np.maximum.accumulate([points[fraction] for fraction in fractions])
        # One more point extrapolates beyond the largest fraction seen.
        slope = max(squares[-1] - squares[0], 1e-12 * squares[0]) / max(fractions[-1], 1e-12)
        curves.append(([*squares, squares[-1] + slope], [*fractions, fractions[-1] + 1.0]))

    def fractions_at(square: float) -> Vector:
        return np.asarray([np.interp(square, *curve) for curve in curves])

    scale = max(squares[-1] for squares, _ in curves) / 2**60
    place = bisect_left(range(2**60), 1.0, key=lambda k: float(counts @ fractions_at(k * scale)))
    found = fractions_at(place * scale)
    return found / float(counts @ found)
