"""Exact (s, S) inventory policies under Poisson demand and backlogging.

A period goes: the inventory position is seen and, at or below the reorder point ``s``, an order
lifts it to the order-up-to level ``S``; the order placed ``lead_time`` periods ago arrives; demand
occurs; holding or shortage cost is charged on the net inventory left. An order can thus first
serve the demand of ``lead_time`` periods later (the same period if ``lead_time`` is 0), so the
position after ordering meets ``lead_time + 1`` periods of demand before its cost is charged.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc, gammaincc, gammaln

__all__ = ["SSPolicy", "optimal_s_S", "s_S_cost"]

# The search is quadratic in S - s: beyond this reach it would take ten seconds and more.
_MAX_REACH = 2**16


class SSPolicy(NamedTuple):
    """An (s, S) policy: reorder point, order-up-to level, long-run average cost per period."""

    s: int
    S: int
    cost: float


def optimal_s_S(
    demand_mean: float,
    holding_cost: float,
    shortage_cost: float,
    fixed_cost: float,
    lead_time: int,
) -> SSPolicy:
    """Find the (s, S) policy of least long-run average cost, optimal among all policies.

    Minimises the cost ``c(s, S)`` of :func:`s_S_cost`. With ``y*`` the newsvendor level of ``G``,
    the search starts from the best ``s`` for ``S = y*``, then raises ``S`` while
    ``G(S) <= c(s, S)``, raising ``s`` to the best one whenever the new ``S`` is an improvement.

    Source: Y.-S. Zheng and A. Federgruen (1991), "Finding optimal (s, S) policies is about as
    simple as evaluating a single policy", Operations Research 39(4), 654-665.

    Args:
        demand_mean: Mean of the Poisson demand, in units per period; above 0.
        holding_cost: Cost per unit on hand at the end of a period; above 0.
        shortage_cost: Cost per unit backlogged at the end of a period; above 0.
        fixed_cost: Cost per order placed; at least 0.
        lead_time: Whole periods from placing an order to its arrival; at least 0.

    Returns:
        ``(s, S, cost)``: order up to ``S`` units when the inventory position is at or below ``s``
        units; ``cost`` is the average per period. Without a fixed cost, ``s = S - 1``.

    Raises:
        TypeError: If an argument is not a number, or ``lead_time`` is not an integer.
        ValueError: If an argument is out of range, or ``fixed_cost`` so far outweighs the other
            costs that ``S - s`` would run to tens of thousands of units.

    Example:
        >>> s, S, cost = optimal_s_S(10, 1, 9, 64, 2)
        >>> s, S, round(cost, 4)
        (26, 62, 37.0644)
    """
    mean, horizon_mean = _demand_means(demand_mean, lead_time)
    h = _number("holding_cost", holding_cost, positive=True)
    p = _number("shortage_cost", shortage_cost, positive=True)
    setup = _number("fixed_cost", fixed_cost) * -math.expm1(-mean)

    # The upper tail keeps its relative accuracy where the critical ratio p / (h + p) rounds to 1.
    newsvendor = bisect_left(
        range(2**53), True, key=lambda y: bool(gammainc(y + 1, horizon_mean) <= h / (h + p))
    )

    reach = 64
    while reach <= _MAX_REACH:
        lowest = newsvendor - reach
        G = _one_period_cost(np.arange(lowest, newsvendor + reach + 1), horizon_mean, h, p)
        found = _search(G, _visit_probabilities(mean, 2 * reach), setup)
        if found is not None:
            s, S, cost = found
            return SSPolicy(lowest + s, lowest + S, cost)
        reach *= 2
    raise ValueError(
        f"the optimal s and S must lie within {_MAX_REACH} units of the newsvendor level, which "
        f"takes a lower fixed_cost or higher other costs; got demand_mean={demand_mean!r}, "
        f"holding_cost={holding_cost!r}, shortage_cost={shortage_cost!r}, fixed_cost={fixed_cost!r}"
    )


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
        s: Reorder point, in units of inventory position: order when at or below it.
        S: Order-up-to level, in units of inventory position; above ``s``.
        demand_mean: Mean of the Poisson demand, in units per period; above 0.
        holding_cost: Cost per unit on hand at the end of a period; at least 0.
        shortage_cost: Cost per unit backlogged at the end of a period; at least 0.
        fixed_cost: Cost per order placed; at least 0.
        lead_time: Whole periods from placing an order to its arrival; at least 0.

    Returns:
        The average cost per period.

    Raises:
        TypeError: If an argument is not a number, or ``s``, ``S`` or ``lead_time`` no integer.
        ValueError: If an argument is out of range.

    Example:
        >>> round(s_S_cost(26, 62, 10, 1, 9, 64, 2), 4)
        37.0644
    """
    s, S = _integer("s", s), _integer("S", S)
    if s >= S:
        raise ValueError(f"s must be below S; got s={s!r}, S={S!r}")
    mean, horizon_mean = _demand_means(demand_mean, lead_time)
    h = _number("holding_cost", holding_cost)
    p = _number("shortage_cost", shortage_cost)
    setup = _number("fixed_cost", fixed_cost) * -math.expm1(-mean)
    visits = _visit_probabilities(mean, S - s)
    G = _one_period_cost(np.arange(S, s, -1), horizon_mean, h, p)
    return float((setup + visits @ G) / visits.sum())


def _search(
    G: NDArray[np.float64], visits: NDArray[np.float64], setup: float
) -> tuple[int, int, float] | None:
    """Indices of s and S in ``G``, whose minimum is in the middle, and their cost.

    None if the search would leave ``G``.
    """
    total_visits = np.cumsum(visits)
    backwards = visits[::-1].copy()

    def cost(s: int, S: int) -> float:
        return float((setup + backwards[s - S :] @ G[s + 1 : S + 1]) / total_visits[S - s - 1])

    best_S = G.size // 2
    by_depth = setup + np.cumsum(visits[:best_S] * G[best_S:0:-1])
    by_depth /= total_visits[:best_S]
    # c(s, y*) falls with s until G(s) exceeds it, so a high enough edge hides no better s.
    if G[0] <= by_depth.min():
        return None
    s = best_S - 1 - int(by_depth.argmin())
    # Where so little demand has no measurable probability, c(s, y*) is flat in s, and only the
    # lowest of such s is safe to start from: it stays below those that larger S ask for.
    while setup > 0 and G[s] < by_depth.min():
        s -= 1
    best = cost(s, best_S)
    for S in range(best_S + 1, G.size):
        if G[S] > best:
            return s, best_S, best
        if cost(s, S) < best:
            best_S = S
            # Without a fixed cost the two sides tie at s + 1 = S, up to rounding.
            while s + 1 < S and cost(s, S) <= G[s + 1]:
                s += 1
            best = cost(s, S)
    return None


def _one_period_cost(y: NDArray[np.int64], mean: float, h: float, p: float) -> NDArray[np.float64]:
    """``G(y) = E[h (y - X)^+ + p (X - y)^+]`` for ``X`` Poisson with the given mean."""
    # P(X <= k) = gammaincc(k + 1, mean) and P(X > k) = gammainc(k + 1, mean). Taking each part
    # from its own tail spares the cancellation of p (mean - y) + (h + p) E(y - X)^+ at large p.
    k = np.maximum(y, 0)
    on_hand = k * gammaincc(k + 1, mean) - mean * gammaincc(k, mean)
    backlog = mean * gammainc(k, mean) - k * gammainc(k + 1, mean) + (k - y)
    return np.asarray(h * on_hand + p * backlog, dtype=np.float64)


def _visit_probabilities(mean: float, n: int) -> NDArray[np.float64]:
    """``u(0), ..., u(n - 1)``: the probability that cumulative demand ever equals ``j``."""
    # Skipping the periods without demand keeps the recursion regular as P(D = 0) nears 1.
    i = np.arange(1, n)
    pmf = np.exp(i * math.log(mean) - mean - gammaln(i + 1.0)) / -math.expm1(-mean)
    # Only what underflows is cut off, so truncation costs no accuracy.
    backwards = np.trim_zeros(pmf, "b")[::-1].copy()
    u = np.ones(n)
    for j in range(1, n):
        width = min(j, backwards.size)
        u[j] = u[j - width : j] @ backwards[backwards.size - width :]
    return u


def _demand_means(demand_mean: float, lead_time: int) -> tuple[float, float]:
    """Mean demand of one period, and of the ``lead_time + 1`` periods a position has to cover."""
    mean = _number("demand_mean", demand_mean, positive=True)
    periods = _integer("lead_time", lead_time) + 1
    if periods < 1:
        raise ValueError(f"lead_time must be an integer >= 0; got {lead_time!r}")
    return mean, periods * mean


def _number(name: str, value: Any, *, positive: bool = False) -> float:
    expected = f"{name} must be a finite number {'> 0' if positive else '>= 0'}; got {value!r}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(expected)
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(expected)
    return float(value)


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    return int(value)
