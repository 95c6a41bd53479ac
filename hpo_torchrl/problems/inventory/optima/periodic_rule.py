"""Joint replenishment at fixed intervals, at its exact cost.

A period goes as in :mod:`hpo_torchrl.problems.inventory.optima.s_S`, for every item: an order
placed now is there
before the demand of ``lead_time`` periods later, so a position after ordering meets
``lead_time + 1`` periods of demand before its cost is charged. One fixed cost is paid per order,
whatever it contains; an order that would contain nothing is not placed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hpo_torchrl.core.checks import check_int
from hpo_torchrl.problems.inventory.optima.items import (
    Items,
    Levels,
    Vector,
    check_items,
    check_levels,
    check_reach,
)

__all__ = ["PeriodicRule", "best_periodic_rule", "periodic_rule_cost"]


class PeriodicRule(NamedTuple):
    """Order every R periods, item i up to S[i]; cost per period of all items."""

    R: int
    S: tuple[int, ...]
    cost: float


def best_periodic_rule(
    demand_mean: float | Sequence[float],
    holding_cost: float | Sequence[float],
    shortage_cost: float | Sequence[float],
    fixed_cost: float,
    lead_time: int,
) -> PeriodicRule:
    """Find the rule "order all items every R periods, item i up to S_i" of least average cost.

    Minimises the cost of :func:`periodic_rule_cost` over R and S. For a given R, ``S_i`` is the
    newsvendor level of a mixture of R Poisson demands. R is raised until the cost of the spread of
    that mixture alone, ``sum_i mu_i (h_i p_i / (h_i + p_i) R / 2 - (h_i + p_i) / (8 R))``, exceeds
    the best cost found.

    Source: D. Atkins and P. Iyogun (1988), "Periodic versus 'can-order' policies for coordinated
    multi-item inventory systems", Management Science 34(6), 791-796, with a common interval.

    Args:
        demand_mean: Means of the items' Poisson demands, in units per period; above 0.
        holding_cost: Costs per unit on hand at the end of a period; above 0.
        shortage_cost: Costs per unit backlogged at the end of a period; above 0. Each of the three
            is a number for all items or a sequence with one entry per item.
        fixed_cost: Cost per order placed, whatever it contains; at least 0.
        lead_time: Whole periods from placing an order to its arrival; at least 0.

    Returns:
        ``(R, S, cost)``: periods between orders, order-up-to levels in units, average cost per
        period over all items.

    Raises:
        TypeError: If an argument is not a number, or ``lead_time`` is not an integer.
        ValueError: If an argument is out of range, lengths differ, or ``fixed_cost`` so far
            outweighs the other costs that R would run to a million periods.

    Example:
        >>> rule = best_periodic_rule([10, 10], 1, 9, 2 * 64, 2)
        >>> rule.R, rule.S, round(rule.cost / 2, 4)
        (4, (63, 63), 38.8823)
    """
    every = check_items(demand_mean, holding_cost, shortage_cost, fixed_cost, lead_time)
    items, counts, where = every.distinct()
    mean, L = items.mean, items.lead_time
    setup_mean = float(counts @ mean)
    spread = float(counts @ (mean * items.slope))
    lumps = float(counts @ (mean * (items.holding + items.shortage)))

    # The deterministic rule's cost limits R, and with it the levels to look at.
    R = max(1, round(math.sqrt(2 * items.fixed_cost / spread)))
    check_reach("R", R, items)
    S = np.floor((L + 1 + R * items.critical_ratio) * mean).astype(np.int64)
    limit = _periodic_cost(R, S, items, counts)
    last = math.ceil((limit + math.sqrt(limit**2 + spread * lumps / 4)) / spread)
    check_reach("R", last, items)

    size = items.newsvendor_bound((L + last) * mean) + 1
    table = np.zeros((mean.size, size))
    best, best_cost = (1, S), math.inf
    for R in range(1, last + 1):
        if spread * R / 2 - lumps / (8 * R) > min(limit, best_cost):
            break
        table += items.one_period_costs(size, L + R)
        setup = items.fixed_cost * -math.expm1(-R * setup_mean)
        cost = (setup + float(counts @ table.min(axis=1))) / R
        if cost < best_cost:
            best, best_cost = (R, table.argmin(axis=1)), cost
    return PeriodicRule(best[0], tuple(best[1][where].tolist()), best_cost)


def periodic_rule_cost(
    R: int,
    S: int | Sequence[int],
    demand_mean: float | Sequence[float],
    holding_cost: float | Sequence[float],
    shortage_cost: float | Sequence[float],
    fixed_cost: float,
    lead_time: int,
) -> float:
    """Compute the exact average cost per period of ordering every R periods, item i up to S_i.

    With ``M`` the sum of the means ``mu_i``, ``X_i(m)`` the Poisson demand of ``m`` periods::

        c(R, S) = (K (1 - exp(-R M)) + sum_{t<R} sum_i G_i(S_i, L + 1 + t)) / R
        G_i(y, m) = E[h_i (y - X_i(m))^+ + p_i (X_i(m) - y)^+]

    Args:
        R: Periods between two orders; at least 1.
        S: Order-up-to levels, in units of inventory position: one for all or one per item.
        demand_mean: As for :func:`best_periodic_rule`, like the arguments that follow.
        holding_cost: See there.
        shortage_cost: See there.
        fixed_cost: See there.
        lead_time: See there.

    Returns:
        The average cost per period over all items.

    Raises:
        TypeError: If an argument is not a number, or ``R``, ``S`` or ``lead_time`` no integer.
        ValueError: If an argument is out of range, or lengths differ.

    Example:
        >>> round(periodic_rule_cost(4, 63, [10, 10], 1, 9, 2 * 64, 2) / 2, 4)
        38.8823
    """
    items = check_items(demand_mean, holding_cost, shortage_cost, fixed_cost, lead_time)
    R = check_int("R", R, minimum=1)
    levels = check_levels("S", S, items.mean.size)
    return _periodic_cost(R, levels, items, np.ones(items.mean.size))


def _periodic_cost(R: int, S: Levels, items: Items, counts: Vector) -> float:
    ages = range(items.lead_time + 1, items.lead_time + 1 + R)
    costs = np.zeros(S.size)
    for i in range(S.size):
        costs[i] = sum(float(items.one_period_cost(i, S[i : i + 1], age)[0]) for age in ages)
    setup = items.fixed_cost * -math.expm1(-R * float(counts @ items.mean))
    return (setup + float(counts @ costs)) / R
