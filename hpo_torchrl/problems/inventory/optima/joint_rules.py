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
    spread = float(counts @ (mean * items.slope))
    lumps = float(counts @ (mean * (items.holding + items.shortage)))

    # The deterministic rule's cost limits R, and with it the levels to look at.
    R = _checked("R", math.sqrt(2 * items.fixed_cost / spread), items)
    S = np.floor((L + 1 + R * items.critical_ratio) * mean).astype(np.int64)
    limit = periodic_cost(R, S, items, counts)
    last = (limit + math.sqrt(limit**2 + spread * lumps / 4)) / spread
    last = _checked("R", math.ceil(last), items)
    levels = np.arange(items.newsvendor_bound((L + last) * mean) + 1)
    table, best = np.zeros((mean.size, levels.size)), (1, S, math.inf)
    for R in range(1, last + 1):
        if spread * R / 2 - lumps / (8 * R) > best[2]:
            break
        table += items.one_period_costs(levels, L + R)
        cost = (_setup(items, R * counts) + float(counts @ table.min(axis=1))) / R
        if cost < best[2]:
            best = R, table.argmin(axis=1), cost
    return best[0], best[1][where], best[2]


def periodic_cost(R: int, S: Levels, items: Items, counts: Vector) -> float:
    """Return c(R, S), item i occurring ``counts[i]`` times."""
    ages = range(items.lead_time + 1, items.lead_time + 1 + R)
    costs = sum(items.one_period_costs(S[:, None], age)[:, 0] for age in ages)
    return (_setup(items, R * counts) + float(counts @ costs)) / R


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
    Q = _checked("Q", math.sqrt(2 * items.fixed_cost * total_mean / spread), items)
    lead_mean = (items.lead_time + 1) * items.mean
    S = np.floor(lead_mean + Q * items.critical_ratio * share).astype(np.int64)
    limit = total_demand_cost(Q, S, items, counts)
    scale = 2 * limit / spread
    last = overshoot + (scale + math.sqrt(scale**2 + 8 * scale * overshoot)) / 2
    last = _checked("Q", math.ceil(last), items)

    size = items.newsvendor_bound(lead_mean + last * share) + 1
    table, periods, best = np.zeros((share.size, size)), 0.0, (1, S, math.inf)
    for j, (visit, costs) in enumerate(_by_total_demand(items, total_mean, size, last)):
        if spread * max(j - overshoot, 0.0) ** 2 / (2 * (j + overshoot)) > best[2]:
            break
        table += visit * costs
        periods += visit
        cost = (_setup(items, counts) + float(counts @ table.min(axis=1))) / periods
        if cost < best[2]:
            best = j + 1, table.argmin(axis=1), cost
    return best[0], best[1][where], best[2]


def total_demand_cost(Q: int, S: Levels, items: Items, counts: Vector) -> float:
    """Return c(Q, S), item i occurring ``counts[i]`` times."""
    levels, rows = np.maximum(S, 0), np.arange(S.size)
    costs, periods = np.zeros(S.size), 0.0
    stages = _by_total_demand(items, float(counts @ items.mean), int(levels.max()) + 1, Q)
    for visit, table in stages:
        # Below 0 nothing is ever on hand: each unit less is a unit short.
        costs += visit * (table[rows, levels] + items.shortage * (levels - S))
        periods += visit
    return (_setup(items, counts) + float(counts @ costs)) / periods


def _by_total_demand(
    items: Items, total_mean: float, size: int, num: int
) -> Iterator[tuple[float, Vector]]:
    """``u(j)``, and ``g_i(j, y)`` at ``y = 0, ..., size - 1``, for j below num; the same array."""
    costs = items.one_period_costs(np.arange(size), items.lead_time + 1)
    share = items.mean[:, None] / total_mean
    for visit in visit_probabilities(total_mean, num).tolist():
        yield visit, costs
        costs[:, 1:] += share * (costs[:, :-1] - costs[:, 1:])
        costs[:, 0] += share[:, 0] * items.shortage


def _setup(items: Items, counts: Vector) -> float:
    """Return the fixed cost, if anything is demanded of so many of each item."""
    return items.fixed_cost * -math.expm1(-float(counts @ items.mean))


def _checked(name: str, value: float, items: Items) -> int:
    """Return a number of at least 1; refuse a search over so many that it would take minutes."""
    if value > _MAX_STEPS:
        raise ValueError(
            f"the best {name} must be found within {_MAX_STEPS}, which takes a lower fixed_cost "
            f"or higher other costs; got fixed_cost={items.fixed_cost!r}, which asks for {value:g}."
        )
    return max(1, round(value))
