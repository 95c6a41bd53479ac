"""The best (Q, S) and (R, S) rules of joint replenishment, and the exact cost of any.

:class:`~hpo_torchrl.problems.inventory.rules.TotalDemandPolicy` and ``PeriodicPolicy`` give the
formulas and their sources. Searches return the number Q or R, the levels S and the average cost
per period over all items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from hpo_torchrl.problems.inventory.optima.items import Items, Levels, Vector, visit_probabilities

Found = tuple[int, Levels, float]

# The searches are linear in these.
_MAX_STEPS = 2**20


def best_periodic(every: Items) -> Found:
    """Raise R until the cost of the spread of demand alone exceeds the best cost found.

    The spread costs ``sum_i mu_i (h_i p_i / (h_i + p_i) R / 2 - (h_i + p_i) / (8 R))``. For a given
    R, ``S_i`` is the newsvendor level of a mixture of R Poisson demands.
    """
    items, counts, where = every.distinct()
    mean, L = items.mean, items.lead_time
    setup_mean = float(counts @ mean)
    spread = float(counts @ (mean * items.slope))
    lumps = float(counts @ (mean * (items.holding + items.shortage)))

    # The deterministic rule's cost limits R, and with it the levels to look at.
    R = _checked("R", round(math.sqrt(2 * items.fixed_cost / spread)), items)
    S = np.floor((L + 1 + R * items.critical_ratio) * mean).astype(np.int64)
    limit = periodic_cost(R, S, items, counts)
    last = math.ceil((limit + math.sqrt(limit**2 + spread * lumps / 4)) / spread)
    _checked("R", last, items)

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
    return best[0], best[1][where], best_cost


def periodic_cost(R: int, S: Levels, items: Items, counts: Vector) -> float:
    """Return c(R, S), item i occurring ``counts[i]`` times."""
    ages = range(items.lead_time + 1, items.lead_time + 1 + R)
    costs = np.zeros(S.size)
    for i in range(S.size):
        costs[i] = sum(float(items.one_period_cost(i, S[i : i + 1], age)[0]) for age in ages)
    setup = items.fixed_cost * -math.expm1(-R * float(counts @ items.mean))
    return (setup + float(counts @ costs)) / R


def best_total_demand(every: Items) -> Found:
    """Raise Q until the cost of the spread of the total demand alone exceeds the best cost found.

    With ``O = M + 1``, which bounds the mean by which a sum of demands overshoots a level (Lorden's
    inequality), that is ``(Q - O)^2 / (2 (Q + O))`` times the mean of ``h_i p_i / (h_i + p_i)``
    weighted by ``mu_i``. For a given Q, ``S_i`` is the newsvendor level of a mixture of demands.
    """
    items, counts, where = every.distinct()
    total_mean = float(counts @ items.mean)
    share = items.mean / total_mean
    spread = float(counts @ (share * items.slope))
    overshoot = total_mean + 1

    # The deterministic rule's cost limits Q, and with it the levels to look at.
    Q = _checked("Q", round(math.sqrt(2 * items.fixed_cost * total_mean / spread)), items)
    lead_mean = (items.lead_time + 1) * items.mean
    S = np.floor(lead_mean + Q * items.critical_ratio * share).astype(np.int64)
    limit = total_demand_cost(Q, S, items, counts)
    scale = 2 * limit / spread
    last = math.ceil(overshoot + (scale + math.sqrt(scale**2 + 8 * scale * overshoot)) / 2)
    _checked("Q", last, items)

    size = items.newsvendor_bound(lead_mean + last * share) + 1
    setup = items.fixed_cost * -math.expm1(-total_mean)
    visits = visit_probabilities(total_mean, last)
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
    return best[0], best[1][where], best_cost


def total_demand_cost(Q: int, S: Levels, items: Items, counts: Vector) -> float:
    """Return c(Q, S), item i occurring ``counts[i]`` times."""
    total_mean = float(counts @ items.mean)
    visits = visit_probabilities(total_mean, Q)
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


def _checked(name: str, value: int, items: Items) -> int:
    """Return a number of at least 1; refuse a search over so many that it would take minutes."""
    if value > _MAX_STEPS:
        raise ValueError(
            f"the best {name} must be found within {_MAX_STEPS}, which takes a lower fixed_cost "
            f"or higher other costs; got fixed_cost={items.fixed_cost!r}, which asks for {value}."
        )
    return max(1, value)
