"""Joint replenishment by total demand, the (Q, S) rule, at its exact cost.

A period goes as in :mod:`hpo_torchrl.problems.inventory.optima.s_S`, for every item: an order
placed now is there
before the demand of ``lead_time`` periods later, so a position after ordering meets
``lead_time + 1`` periods of demand before its cost is charged. One fixed cost is paid per order,
whatever it contains; an order that would contain nothing is not placed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
from hpo_torchrl.problems.inventory.optima.s_S import _visit_probabilities

__all__ = ["TotalDemandRule", "best_total_demand_rule", "total_demand_rule_cost"]


class TotalDemandRule(NamedTuple):
    """Order when Q units have been demanded, item i up to S[i]; cost per period of all items."""

    Q: int
    S: tuple[int, ...]
    cost: float


def best_total_demand_rule(
    demand_mean: float | Sequence[float],
    holding_cost: float | Sequence[float],
    shortage_cost: float | Sequence[float],
    fixed_cost: float,
    lead_time: int,
) -> TotalDemandRule:
    """Find the (Q, S) rule of least cost: at Q units demanded in total, order item i up to S_i.

    Minimises the cost of :func:`total_demand_rule_cost` over Q and S; for one item, this is the
    optimal (s, S) policy with ``s = S - Q``. For a given Q, ``S_i`` is the newsvendor level of a
    mixture of demands. Q is raised until the cost of the spread of the total demand alone exceeds
    the best cost found: with ``O = M + 1``, which bounds the mean by which a sum of demands
    overshoots a level (Lorden's inequality), that is ``(Q - O)^2 / (2 (Q + O))`` times the mean
    of ``h_i p_i / (h_i + p_i)`` weighted by ``mu_i``.

    Source: B. Renberg and R. Planche (1967), "Un modèle pour la gestion simultanée des n articles
    d'un stock", Revue française d'informatique et de recherche opérationnelle 1(6), 47-59;
    P. Pantumsinchai (1992), "A comparison of three joint ordering inventory policies", Decision
    Sciences 23(1), 111-127.

    Args:
        demand_mean: Means of the items' Poisson demands, in units per period; above 0.
        holding_cost: Costs per unit on hand at the end of a period; above 0.
        shortage_cost: Costs per unit backlogged at the end of a period; above 0. Each of the three
            is a number for all items or a sequence with one entry per item.
        fixed_cost: Cost per order placed, whatever it contains; at least 0.
        lead_time: Whole periods from placing an order to its arrival; at least 0.

    Returns:
        ``(Q, S, cost)``: units of total demand since the last order at which the next is placed,
        order-up-to levels in units, average cost per period over all items.

    Raises:
        TypeError: If an argument is not a number, or ``lead_time`` is not an integer.
        ValueError: If an argument is out of range, lengths differ, or ``fixed_cost`` so far
            outweighs the other costs that Q would run to a million units.

    Example:
        >>> rule = best_total_demand_rule([10, 10], 1, 9, 2 * 64, 2)
        >>> rule.Q, rule.S, round(rule.cost / 2, 4)
        (69, (62, 62), 38.2508)
    """
    return _best_total_demand_rule(
        check_items(demand_mean, holding_cost, shortage_cost, fixed_cost, lead_time)
    )


def _best_total_demand_rule(every: Items) -> TotalDemandRule:
    items, counts, where = every.distinct()
    total_mean = float(counts @ items.mean)
    share = items.mean / total_mean
    spread = float(counts @ (share * items.slope))
    overshoot = total_mean + 1

    # The deterministic rule's cost limits Q, and with it the levels to look at.
    Q = max(1, round(math.sqrt(2 * items.fixed_cost * total_mean / spread)))
    check_reach("Q", Q, items)
    lead_mean = (items.lead_time + 1) * items.mean
    S = np.floor(lead_mean + Q * items.critical_ratio * share).astype(np.int64)
    limit = _total_demand_cost(Q, S, items, counts)
    scale = 2 * limit / spread
    last = math.ceil(overshoot + (scale + math.sqrt(scale**2 + 8 * scale * overshoot)) / 2)
    check_reach("Q", last, items)

    size = items.newsvendor_bound(lead_mean + last * share) + 1
    setup = items.fixed_cost * -math.expm1(-total_mean)
    visits = _visit_probabilities(total_mean, last)
    rows = np.arange(share.size)
    table, periods = np.zeros((share.size, size)), 0.0
    best, best_cost = (1, S), math.inf
    for j, costs in enumerate(_costs_by_total_demand(items, share, size, last)):
        reached = j - overshoot
        if reached > 0 and spread * reached**2 / (2 * (j + overshoot)) > min(limit, best_cost):
            break
        if visits[j] == 0.0:
            continue
        table += visits[j] * costs
        periods += float(visits[j])
        levels = table.argmin(axis=1)
        cost = (setup + float(counts @ table[rows, levels])) / periods
        if cost < best_cost:
            best, best_cost = (j + 1, levels), cost
    return TotalDemandRule(best[0], tuple(best[1][where].tolist()), best_cost)


def total_demand_rule_cost(
    Q: int,
    S: int | Sequence[int],
    demand_mean: float | Sequence[float],
    holding_cost: float | Sequence[float],
    shortage_cost: float | Sequence[float],
    fixed_cost: float,
    lead_time: int,
) -> float:
    """Compute the exact average cost per period of a given (Q, S) rule.

    By renewal-reward over the cycle between two orders. With ``D`` the total demand of a period,
    Poisson of mean ``M = sum_i mu_i``, and ``u(j)`` the probability that the total demand since
    the last order ever equals ``j`` (as in :func:`s_S_cost`), of which item i then has a binomial
    part::

        c(Q, S) = (K P(D > 0) + sum_{j<Q} u(j) sum_i g_i(j, S_i)) / sum_{j<Q} u(j)
        g_i(j, y) = E[G_i(y - B_i(j))],   B_i(j) ~ Binomial(j, mu_i / M)
        g_i(0, y) = G_i(y),   g_i(j + 1, y) = g_i(j, y) + mu_i / M (g_i(j, y - 1) - g_i(j, y))

    ``G_i`` is the expected cost of a position that meets ``lead_time + 1`` periods of demand.

    Source: as for :func:`best_total_demand_rule`.

    Args:
        Q: Units of total demand since the last order at which the next is placed; at least 1.
        S: Order-up-to levels, in units of inventory position: one for all or one per item.
        demand_mean: As for :func:`best_total_demand_rule`, like the arguments that follow.
        holding_cost: See there.
        shortage_cost: See there.
        fixed_cost: See there.
        lead_time: See there.

    Returns:
        The average cost per period over all items.

    Raises:
        TypeError: If an argument is not a number, or ``Q``, ``S`` or ``lead_time`` no integer.
        ValueError: If an argument is out of range, or lengths differ.

    Example:
        >>> round(total_demand_rule_cost(36, 62, 10, 1, 9, 64, 2), 4)  # one item: s = 26, S = 62
        37.0644
    """
    items = check_items(demand_mean, holding_cost, shortage_cost, fixed_cost, lead_time)
    Q = check_int("Q", Q, minimum=1)
    levels = check_levels("S", S, items.mean.size)
    return _total_demand_cost(Q, levels, items, np.ones(items.mean.size))


def _total_demand_cost(Q: int, S: Levels, items: Items, counts: Vector) -> float:
    total_mean = float(counts @ items.mean)
    visits = _visit_probabilities(total_mean, Q)
    levels, rows = np.maximum(S, 0), np.arange(S.size)
    costs = np.zeros(S.size)
    tables = _costs_by_total_demand(items, items.mean / total_mean, int(levels.max()) + 1, Q)
    for visit, table in zip(visits, tables, strict=True):
        # Below 0 nothing is ever on hand: each unit less is a unit short.
        costs += visit * (table[rows, levels] + items.shortage * (levels - S))
    setup = items.fixed_cost * -math.expm1(-total_mean)
    return (setup + float(counts @ costs)) / float(visits.sum())


def _costs_by_total_demand(items: Items, share: Vector, size: int, num: int) -> Iterator[Vector]:
    """``g_i(j, y)`` at ``y = 0, ..., size - 1`` for ``j = 0, ..., num - 1``; updated in place."""
    costs = items.one_period_costs(size, items.lead_time + 1)
    column = share[:, None]
    for _ in range(num):
        yield costs
        change = costs[:, :-1] - costs[:, 1:]
        change *= column
        costs[:, 1:] += change
        costs[:, 0] += share * items.shortage
