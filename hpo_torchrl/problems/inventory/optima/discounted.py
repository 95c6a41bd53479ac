"""Joint replenishment with a discount: the exact optimum of one or two items, of any demand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import toeplitz

from hpo_torchrl.core.reference import Optimum
from hpo_torchrl.problems.inventory.optima.items import Vector
from hpo_torchrl.problems.inventory.rules import TablePolicy

MAX_ITEMS = 2
# Positions of each item on the first grid, below and above 0, and the most in all.
_FIRST, _MOST = 32, 2**21
_MAX_ITERATIONS = 20_000


def discounted_optimum(
    pmf: NDArray[np.float64],
    holding: Vector,
    shortage: Vector,
    unit_cost: Vector,
    fixed_cost: float,
    lead_time: int,
    discount: float,
    *,
    tolerance: float = 1e-6,
) -> Optimum:
    r"""Find an optimal policy from the empty system, with bounds on the optimal cost.

    With the inventory positions x, y after ordering, demand D, :math:`G_i(y)` the expected cost of
    a position that meets ``lead_time + 1`` periods of demand, and
    :math:`V(x) = W(x) - \sum_i c_i x_i`,

    .. math::
        W(x) &= \min_{y \ge x} \left[ K\,1\{y \ne x\} + J(y) \right] \\
        J(y) &= (1 - \gamma)\, c^\top y + \gamma\, c^\top \mu
            + \gamma^L \textstyle\sum_i G_i(y_i) + \gamma\, \mathbb E\, W(y - D)

    so that unit costs c are a part of J. Value iteration with the bounds of MacQueen, on a grid
    that grows until an order is placed all along its lower edges and none leads to an upper one:
    positions below the grid then are worth what those at its edge are, and nothing is cut off.

    Source: J. MacQueen (1966), "A modified dynamic programming method for Markovian decision
    problems", Journal of Mathematical Analysis and Applications 14(1), 38-43.

    Args:
        pmf: probabilities that an item's demand is 0, 1, 2, ..., ``(n, m)``, n = 1 or 2.
        holding: costs per unit on hand at the end of a period, ``(n,)``.
        shortage: costs per unit backlogged at the end of a period, ``(n,)``.
        unit_cost: costs per unit ordered, ``(n,)``.
        fixed_cost: K, cost per order placed.
        lead_time: whole periods from placing an order to its arrival.
        discount: gamma, below 1.
        tolerance: width of the bounds to reach, as a fraction of the cost.

    Returns:
        The policy, and ``1 - discount`` times its expected discounted cost over all items; the
        bound likewise.

    Raises:
        ValueError: the discount is not below 1, there are more than two items, or the grid would be
            too large.
    """
    if not 0.0 <= discount < 1.0:
        raise ValueError(f"discount must be in [0, 1), got {discount}.")
    n = len(pmf)
    if n > MAX_ITEMS:
        raise ValueError(f"discounted_optimum takes at most {MAX_ITEMS} items, got {n}.")
    below = above = np.full(n, _FIRST)
    while True:
        if (below + above + 1).prod() > _MOST:
            raise ValueError(f"discounted_optimum needs more than {_MOST} positions.")
        levels = [np.arange(-low, high + 1) for low, high in zip(below, above, strict=True)]
        costs = _costs(levels, pmf, holding, shortage, unit_cost, lead_time, discount)
        falls = [_falls(row, len(level)) for row, level in zip(pmf, levels, strict=True)]
        start = tuple(below)
        bounds, orders, reached = _iterate(costs, falls, fixed_cost, discount, start, tolerance)
        places = np.indices(orders.shape)
        at_edge = [not np.take(orders, 0, axis).all() for axis in range(n)]
        lifted = [orders & (to > at) for to, at in zip(reached, places, strict=True)]
        too_high = [
            bool((to[up] == len(level) - 1).any())
            for to, up, level in zip(reached, lifted, levels, strict=True)
        ]
        if not any(at_edge) and not any(too_high):
            break
        below, above = below * (1 + np.array(at_edge)), above * (1 + np.array(too_high))
    order = np.where(orders[..., None], np.stack(reached, -1) - np.moveaxis(places, 0, -1), 0)
    early = _before_the_first_arrival(pmf, holding, shortage, lead_time, discount)
    upper, lower = ((1 - discount) * (bound + early) for bound in bounds)
    return Optimum(upper, TablePolicy(-below, order), lower)


def _iterate(
    costs: NDArray[np.float64],
    falls: list[NDArray[np.float64]],
    fixed_cost: float,
    discount: float,
    start: tuple[int, ...],
    tolerance: float,
) -> tuple[tuple[float, float], NDArray[np.bool_], list[NDArray[np.intp]]]:
    """Return bounds on W at the start, where it is best to order, and up to which places."""
    W = np.zeros(costs.shape)
    for _ in range(_MAX_ITERATIONS):
        after = W
        for axis, fall in enumerate(falls):
            after = np.moveaxis(np.tensordot(fall, after, (1, axis)), 0, axis)
        J = costs + discount * after
        best = J
        for axis in range(J.ndim):  # the least of J among all positions that are not lower
            best = np.flip(np.minimum.accumulate(np.flip(best, axis), axis), axis)
        W, before = np.minimum(J, fixed_cost + best), W
        step = W - before
        low, high = (W[start] + discount / (1 - discount) * x for x in (step.min(), step.max()))
        if high - low <= tolerance * abs(low):
            break
    # Where the least of J lies: each position takes over that of its neighbour above, if better.
    best, places = J.copy(), np.indices(J.shape)
    for axis in range(J.ndim):
        row, where = np.moveaxis(best, axis, 0), np.moveaxis(places, axis + 1, 0)
        for at in reversed(range(len(row) - 1)):
            better = row[at + 1] < row[at]
            row[at] = np.where(better, row[at + 1], row[at])
            where[at] = np.where(better, where[at + 1], where[at])
    return (float(high), float(low)), fixed_cost + best < J, list(places)


def _costs(
    levels: list[NDArray[np.intp]],
    pmf: NDArray[np.float64],
    holding: Vector,
    shortage: Vector,
    unit_cost: Vector,
    lead_time: int,
    discount: float,
) -> NDArray[np.float64]:
    """Return J without what comes after, on the grid."""
    total: NDArray[np.float64] = np.zeros(())
    for level, row, h, p, c in zip(levels, pmf, holding, shortage, unit_cost, strict=True):
        own = discount**lead_time * _expected_cost(level, row, h, p, lead_time + 1)
        mean = row @ np.arange(row.size)
        own = own + (1 - discount) * c * level + discount * c * mean
        total = total[..., None] + own
    return total


def _expected_cost(
    level: NDArray[np.intp], pmf: Vector, h: float, p: float, periods: int
) -> NDArray[np.float64]:
    """Return the expected cost of levels after so many periods of demand."""
    many = np.ones(1)
    for _ in range(periods):
        many = np.convolve(many, pmf)
    left = level[:, None] - np.arange(many.size)
    return (h * np.maximum(left, 0) + p * np.maximum(-left, 0)) @ many


def _before_the_first_arrival(
    pmf: NDArray[np.float64], holding: Vector, shortage: Vector, lead_time: int, discount: float
) -> float:
    """Return what the periods cost that no order can serve."""
    rows = list(zip(pmf, holding, shortage, strict=True))
    nothing = np.zeros(1, dtype=np.intp)
    return sum(
        discount**t * float(_expected_cost(nothing, row, h, p, t + 1)[0])
        for t in range(lead_time)
        for row, h, p in rows
    )


def _falls(pmf: Vector, size: int) -> NDArray[np.float64]:
    """Return ``P(D = x - y)`` at row x, column y; what would fall below ends at the lowest."""
    fall = toeplitz(np.pad(pmf[:size], (0, max(0, size - pmf.size))), np.zeros(size))
    fall[:, 0] += 1.0 - fall.sum(1)
    return fall
