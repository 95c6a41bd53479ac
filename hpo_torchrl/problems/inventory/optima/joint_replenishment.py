"""Joint replenishment: the exact optimum of up to three items, and a lower bound for any number.

A period goes as in :mod:`hpo_torchrl.problems.inventory.optima.s_S`, for every item: the inventory
positions are seen
and an order may lift them; the order placed ``lead_time`` periods ago arrives; Poisson demands
occur; holding and shortage costs are charged. An order costs ``fixed_cost`` whatever it contains:
this is all that joins the items. Each item in it may add a minor cost of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hpo_torchrl.core.checks import check_float, per_item
from hpo_torchrl.problems.inventory.optima import minor_costs as _minor_costs
from hpo_torchrl.problems.inventory.optima.items import Items, Levels, Vector, check_items
from hpo_torchrl.problems.inventory.optima.optimal_stopping import solve
from hpo_torchrl.problems.inventory.optima.s_S import _visit_probabilities, optimal_s_S
from hpo_torchrl.problems.inventory.optima.total_demand_rule import _best_total_demand_rule

__all__ = [
    "CostAllocation",
    "JointReplenishmentOptimum",
    "joint_replenishment_lower_bound",
    "joint_replenishment_optimum",
]

_MAX_ITEMS = 3
# Rounds of moving the fixed cost towards equal order frequencies; a handful is enough.
_MAX_ROUNDS = 12


class CostAllocation(NamedTuple):
    """A lower bound per period over all items, and the shares of the fixed cost that give it."""

    cost: float
    fixed_costs: tuple[float, ...]


class JointReplenishmentOptimum(NamedTuple):
    """An optimal policy of n items, and certified bounds on the optimal cost.

    Attributes:
        cost: Exact average cost per period of this policy over all items: an upper bound.
        lower: What no policy can go below.
        S: Order-up-to levels, one per item.
        lowest: Lowest inventory position per item at which waiting may pay: below, order.
        order: Where to order, at the inventory positions ``lowest, ..., S``: booleans with one
            axis per item, of shape ``S - lowest + 1``.
        levels: With minor costs, the positions after ordering from each of these, int64, of shape
            ``(*(S - lowest + 1), n)``; S are then the highest of them, and below ``lowest`` an item
            is ordered as at it. None where all orders are up to S.
    """

    cost: float
    lower: float
    S: tuple[int, ...]
    lowest: tuple[int, ...]
    order: NDArray[np.bool_]
    levels: Levels | None = None

    @property
    def upper(self) -> float:
        """The cost of the policy, above which the optimum cannot lie."""
        return self.cost

    def order_up_to(self, position: Any) -> Levels:
        """Return the inventory positions after ordering.

        Stock above S counts as S when deciding, and is left as it is. From such positions, which
        the policy never enters by itself, this is optimal in the long run.

        Args:
            position: Inventory positions (on hand, less backlog, plus what is in the pipeline) in
                whole units, ``(*B, n)``.

        Returns:
            int64, ``(*B, n)``: equal to ``position`` where nothing is ordered.

        Raises:
            ValueError: The last axis is not n, or a position is not a whole number.
        """
        x = np.asarray(position)
        n = len(self.S)
        if x.ndim == 0 or x.shape[-1] != n:
            raise ValueError(f"position must have shape (*B, {n}), got {x.shape}.")
        if not np.all(np.isfinite(x) & (x == np.floor(x))):
            raise ValueError(f"position must hold whole numbers of units, got {position!r}.")
        x = x.astype(np.int64)
        S, lowest = np.asarray(self.S), np.asarray(self.lowest)
        place = np.minimum(x, S) - lowest
        at = tuple(np.moveaxis(np.maximum(place, 0), -1, 0))
        if self.levels is not None:
            return np.where(self.levels[at] > np.clip(x, lowest, S), self.levels[at], x)
        inside = self.order[at]
        orders = inside | (place < 0).any(axis=-1)
        return np.where(orders[..., None], np.maximum(x, S), x)


def joint_replenishment_optimum(
    demand_mean: float | Sequence[float],
    holding_cost: float | Sequence[float],
    shortage_cost: float | Sequence[float],
    fixed_cost: float,
    lead_time: int,
    *,
    minor_costs: float | Sequence[float] = 0.0,
    tolerance: float = 1e-6,
) -> JointReplenishmentOptimum:
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
        demand_mean: Means of the items' Poisson demands, in units per period; above 0.
        holding_cost: Costs per unit on hand at the end of a period; above 0.
        shortage_cost: Costs per unit backlogged at the end of a period; above 0. Each of the three
            is a number for all items or a sequence with one entry per item.
        fixed_cost: Cost per order placed, whatever it contains; at least 0.
        lead_time: Whole periods from placing an order to its arrival; at least 0.
        minor_costs: What each item adds to the cost of an order that contains it, a number for all
            items or a sequence with one entry per item; at least 0.
        tolerance: Width of the bounds to reach, as a fraction of the cost; at least 1e-9.

    Returns:
        The policy, its cost per period over all items, and a lower bound within ``tolerance``. With
        minor costs, the cost is itself a bound, far closer to that of the policy.

    Raises:
        TypeError: If an argument is not a number, or ``lead_time`` is not an integer.
        ValueError: If an argument is out of range, lengths differ, there are more than three
            items, or the grid would have more than eight million positions (four with minor costs).

    Example:
        >>> optimum = joint_replenishment_optimum([10, 10], 1, 9, 2 * 64, 2)
        >>> round(optimum.cost / 2, 4), round(optimum.lower / 2, 4), optimum.S
        (38.1397, 38.1397, (62, 62))
        >>> optimum.order_up_to([[25, 25], [25, 40]]).tolist()
        [[62, 62], [25, 40]]

        Each item adds 10 to an order, which may be of one item alone:

        >>> optimum = joint_replenishment_optimum([10, 10], 1, 9, 2 * 64, 2, minor_costs=10)
        >>> round(optimum.cost / 2, 4), optimum.order_up_to([[25, 25], [20, 55]]).tolist()
        (40.606, [[64, 64], [58, 55]])
    """
    items = check_items(demand_mean, holding_cost, shortage_cost, fixed_cost, lead_time)
    n = items.mean.size
    place: dict[str, Any] = {"dtype": torch.float64, "device": None}
    minor = per_item("minor_costs", minor_costs, n, **place).numpy()
    tolerance = check_float("tolerance", tolerance, minimum=1e-9)
    if n > _MAX_ITEMS:
        raise ValueError(
            f"joint_replenishment_optimum takes at most {_MAX_ITEMS} items, got {n}; for more, "
            "joint_replenishment_lower_bound bounds the optimum from below, best_total_demand_rule "
            "and best_periodic_rule from above."
        )
    if n == 1:
        items, minor = replace(items, fixed_cost=items.fixed_cost + float(minor[0])), 0 * minor
    if minor.any():
        cost, lower, S, lowest, levels = _minor_costs.solve(items, minor, tolerance)
        x = lowest + np.moveaxis(np.indices(levels.shape[:-1]), 0, -1)
        order = np.asarray((levels > x).any(axis=-1))
        bounds = tuple(S.tolist()), tuple(lowest.tolist())
        return JointReplenishmentOptimum(cost, lower, *bounds, order, levels)
    allocated, single_costs = _allocate(items)
    start = _best_total_demand_rule(items).cost
    cost, lower, S, lowest, order = solve(items, allocated, single_costs, start, tolerance)
    return JointReplenishmentOptimum(cost, lower, tuple(S.tolist()), tuple(lowest.tolist()), order)


def joint_replenishment_lower_bound(
    demand_mean: float | Sequence[float],
    holding_cost: float | Sequence[float],
    shortage_cost: float | Sequence[float],
    fixed_cost: float,
    lead_time: int,
) -> CostAllocation:
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
        demand_mean: Means of the items' Poisson demands, in units per period; above 0.
        holding_cost: Costs per unit on hand at the end of a period; above 0.
        shortage_cost: Costs per unit backlogged at the end of a period; above 0. Each of the three
            is a number for all items or a sequence with one entry per item.
        fixed_cost: Cost per order placed, whatever it contains; at least 0.
        lead_time: Whole periods from placing an order to its arrival; at least 0.

    Returns:
        ``(cost, fixed_costs)``: the bound per period over all items, and the shares ``k_i``.

    Raises:
        TypeError: If an argument is not a number, or ``lead_time`` is not an integer.
        ValueError: If an argument is out of range, lengths differ, or ``fixed_cost`` so far
            outweighs the other costs that :func:`optimal_s_S` refuses an item.

    Example:
        >>> bound = joint_replenishment_lower_bound([10] * 50, 1, 9, 50 * 64, 2)
        >>> round(bound.cost / 50, 4), bound.fixed_costs[0]
        (37.0644, 64.0)
    """
    items = check_items(demand_mean, holding_cost, shortage_cost, fixed_cost, lead_time)
    allocated, costs = _allocate(items)
    return CostAllocation(float(costs.sum()), tuple(allocated.tolist()))


def _allocate(every: Items) -> tuple[Vector, Vector]:
    """Shares ``k_i`` of the fixed cost for every item, and the items' costs alone with these."""
    items, counts, where = every.distinct()
    K = every.fixed_cost
    # Known per item: squared mean times between orders, by fraction of the fixed cost. Without a
    # fixed cost there is an order in every period with demand.
    known = [{0.0: math.expm1(-mean) ** -2} for mean in items.mean.tolist()]
    # The best fractions of deterministic demand.
    fractions = items.mean * items.slope
    fractions /= counts @ fractions
    best, best_total, rounds_lost = (fractions, fractions), -math.inf, 0
    for _ in range(_MAX_ROUNDS):
        costs = np.zeros_like(fractions)
        for i, fraction in enumerate(fractions.tolist()):
            costs[i], known[i][fraction] = _alone(items, i, fraction * K)
        total = float(counts @ costs)
        rounds_lost = 0 if total > best_total * (1 + 1e-7) else rounds_lost + 1
        if total > best_total:
            best, best_total = (fractions, costs), total
        if rounds_lost == 2 or counts.size == 1 or K == 0.0:
            break
        fractions = _equal_frequencies(known, counts)
    return best[0][where] * K, best[1][where]


def _alone(items: Items, i: int, fixed_cost: float) -> tuple[float, float]:
    """The optimal cost of item i alone, and its squared mean time between orders."""
    mean, h, p = float(items.mean[i]), float(items.holding[i]), float(items.shortage[i])
    s, S, cost = optimal_s_S(mean, h, p, fixed_cost, items.lead_time)
    cycle = float(_visit_probabilities(mean, S - s).sum()) / -math.expm1(-mean)
    return cost, cycle**2


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

    low, high = 0.0, max(squares[-1] for squares, _ in curves)
    for _ in range(60):
        middle = (low + high) / 2
        if float(counts @ fractions_at(middle)) < 1.0:
            low = middle
        else:
            high = middle
    found = fractions_at(high)
    return found / float(counts @ found)
