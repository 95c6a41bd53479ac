"""Exact (s, S) policies of one item under Poisson demand and backlogging.

A period goes as in :class:`~hpo_torchrl.problems.inventory.Items`; an order is placed at or below
the reorder point ``s`` and lifts the position to the order-up-to level ``S``.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.core.reference import Optimum
from hpo_torchrl.problems.inventory.optima.items import (
    check_item,
    newsvendor_level,
    one_period_cost,
    visit_probabilities,
)
from hpo_torchrl.problems.inventory.rules import TotalDemandPolicy

__all__ = ["optimal_s_S", "s_S_cost"]

# The search is quadratic in S - s: beyond this reach it would take ten seconds and more.
_MAX_REACH = 2**16


def optimal_s_S(
    demand_mean: float, holding_cost: float, shortage_cost: float, fixed_cost: float, lead_time: int
) -> Optimum:
    """Find the (s, S) policy of least long-run average cost, optimal among all policies.

    Minimises the cost ``c(s, S)`` of :func:`s_S_cost`. With ``y*`` the newsvendor level of ``G``,
    the search starts from the best ``s`` for ``S = y*``, then raises ``S`` while
    ``G(S) <= c(s, S)``, raising ``s`` to the best one whenever the new ``S`` is an improvement.

    Source: Y.-S. Zheng and A. Federgruen (1991), "Finding optimal (s, S) policies is about as
    simple as evaluating a single policy", Operations Research 39(4), 654-665.

    Args:
        demand_mean: mean of the Poisson demand, in units per period; above 0.
        holding_cost: cost per unit on hand at the end of a period; above 0.
        shortage_cost: cost per unit backlogged at the end of a period; above 0.
        fixed_cost: cost per order placed; at least 0.
        lead_time: whole periods from placing an order to its arrival; at least 0.

    Returns:
        The optimum; its policy has ``S`` and ``Q = S - s`` in units of inventory position. Without
        a fixed cost, ``s = S - 1``.

    Raises:
        TypeError: an argument is not a number, or ``lead_time`` is not an integer.
        ValueError: an argument is out of range, or ``fixed_cost`` so far outweighs the other
            costs that ``S - s`` would run to tens of thousands of units.

    Examples:
        >>> optimum = optimal_s_S(10, 1, 9, 64, 2)
        >>> optimum.policy, round(optimum.cost, 4)
        (TotalDemandPolicy(Q=36, S=[62]), 37.0644)
    """
    mean, h, p, L = check_item(demand_mean, holding_cost, shortage_cost, lead_time)
    s, S, cost = find_s_S(mean, h, p, check_float("fixed_cost", fixed_cost, minimum=0.0), L)
    return Optimum(cost, TotalDemandPolicy(S - s, S), cost)


def find_s_S(
    mean: float, h: float, p: float, fixed_cost: float, lead_time: int
) -> tuple[int, int, float]:
    """Return s, S and the cost of :func:`optimal_s_S` for checked numbers."""
    horizon_mean, setup = (lead_time + 1) * mean, fixed_cost * -math.expm1(-mean)
    level, reach, G, best = newsvendor_level(horizon_mean, h, p), 32, np.zeros(1), 0.0
    # c(s, y*) falls with s until G(s) exceeds it, so high enough edges hide no better s nor S.
    while min(G[0], G[-1]) <= best:
        reach *= 2
        if reach > _MAX_REACH:
            raise ValueError(
                f"the optimal s and S must lie within {_MAX_REACH} units of the newsvendor level, "
                "which takes a lower fixed_cost or higher other costs; got "
                f"demand_mean={mean!r}, holding_cost={h!r}, shortage_cost={p!r}, "
                f"fixed_cost={fixed_cost!r}"
            )
        G = one_period_cost(np.arange(level - reach, level + reach + 1), horizon_mean, h, p)
        visits = visit_probabilities(mean, 2 * reach)
        total_visits = np.cumsum(visits)
        by_depth = setup + np.cumsum(visits[:reach] * G[reach:0:-1])
        by_depth /= total_visits[:reach]
        best = float(by_depth.min())
    backwards = visits[::-1].copy()

    def cost(s: int, S: int) -> float:
        return float((setup + backwards[s - S :] @ G[s + 1 : S + 1]) / total_visits[S - s - 1])

    # Indices into G, whose minimum is in the middle.
    best_S, s = reach, reach - 1 - int(by_depth.argmin())
    # Where so little demand has no measurable probability, c(s, y*) is flat in s, and only the
    # lowest of such s is safe to start from: it stays below those that larger S ask for.
    while setup > 0 and G[s] < best:
        s -= 1
    best = cost(s, best_S)
    for S in itertools.count(best_S + 1):
        if G[S] > best:
            break
        if cost(s, S) < best:
            best_S = S
            # Without a fixed cost the two sides tie at s + 1 = S, up to rounding.
            while s + 1 < S and cost(s, S) <= G[s + 1]:
                s += 1
            best = cost(s, S)
    return level - reach + s, level - reach + best_S, best


def s_S_cost(
    s: int,
    S: int,
    demand_mean: float,
    holding_cost: float,
    shortage_cost: float,
    fixed_cost: float,
    lead_time: int,
) -> float:
    """Compute the exact long-run average cost per period of a given (s, S) policy.

    By renewal-reward over the cycle between two orders, with ``n = S - s``::

        c(s, S) = (K P(D > 0) + sum_{j<n} u(j) G(S - j)) / sum_{j<n} u(j)
        G(y)    = E[h (y - X)^+ + p (X - y)^+]
        u(0)    = 1,   u(j) = sum_{i=1..j} P(D = i | D > 0) u(j - i)

    where ``D`` is the Poisson demand of one period, ``X`` that of ``lead_time + 1`` periods, and
    ``u(j)`` the probability that the demand since the last order ever totals exactly ``j``.

    Source: Y.-S. Zheng and A. Federgruen (1991), Operations Research 39(4), 654-665, with
    ``u(j) = m(j) / m(0)`` for their expected number ``m(j)`` of periods spent at ``S - j``.

    Args:
        s: reorder point, in units of inventory position: order when at or below it.
        S: order-up-to level, in units of inventory position; above ``s``.
        demand_mean: as for :func:`optimal_s_S`, like what follows; here h and p may be 0.
        holding_cost: see there.
        shortage_cost: see there.
        fixed_cost: see there.
        lead_time: see there.

    Returns:
        The average cost per period.

    Raises:
        TypeError: an argument is not a number, or ``s``, ``S`` or ``lead_time`` no integer.
        ValueError: an argument is out of range.

    Examples:
        >>> round(s_S_cost(26, 62, 10, 1, 9, 64, 2), 4)
        37.0644
    """
    lowest = -(2**53)
    s, S = check_int("s", s, minimum=lowest), check_int("S", S, minimum=lowest)
    if s >= S:
        raise ValueError(f"s must be below S; got s={s!r}, S={S!r}")
    mean, h, p, L = check_item(demand_mean, holding_cost, shortage_cost, lead_time, free=True)
    setup = check_float("fixed_cost", fixed_cost, minimum=0.0) * -math.expm1(-mean)
    visits = visit_probabilities(mean, S - s)
    G = one_period_cost(np.arange(S, s, -1), (L + 1) * mean, h, p)
    return float((setup + visits @ G) / visits.sum())
