r"""A lower bound on the cost of many batteries behind one connection, by Lagrangian relaxation.

The total power :math:`P` of the batteries is replaced by a variable :math:`X` of its own in what
the batteries share, and P = X is asked for on average only, at a price :math:`\lambda`:

.. math::
    \min \sum_i c_i(p_i) + g(X) \;\ge\;
    \sum_i \min \left( c_i(p_i) + \lambda p_i \right) + \min_X \left( g(X) - \lambda X \right)

Each battery is then a problem by itself, whose price is raised by the multiplier. Any multiplier
gives a bound; the best one is searched for. At each step of the cycle it is linear in the
deviation, :math:`\lambda_t(y) = a_t + b_t y`, so that values stay convex in y, as
:mod:`~hpo_torchrl.problems.storage.optimum` needs.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from scipy.optimize import minimize

from hpo_torchrl.problems.storage.optimum import COARSE, Market, Plan, Store, normal_loss, solve
from hpo_torchrl.problems.storage.sites import market_of, stores_of

_ROUNDS = 30  # of the search for multipliers
_TURNS = 20  # cycles after which a policy's states are where they will be
_TYPES = 8  # kinds of batteries up to which the search is done: one solution for each


def relaxed_cost(env: Any, *, rounds: int = _ROUNDS) -> float:
    """Return a lower bound on the long-run average cost per battery and step.

    Args:
        env: the problem, without a horizon.
        rounds: of the search for multipliers, on a coarse lattice; the bound is then found on a
            fine one.

    Raises:
        ValueError: the batteries are of too many kinds.

    Examples:
        >>> from hpo_torchrl.problems import StorageEnv
        >>> from hpo_torchrl.problems.storage.relaxation import relaxed_cost
        >>> env = StorageEnv(2, price=[20.0, 60.0], price_shock=0.0, running_cost=0.0)
        >>> free = StorageEnv(2, price=[20.0, 60.0], price_shock=0.0, running_cost=0.0,
        ...                   price_impact=0.0)
        >>> relaxed_cost(free) < relaxed_cost(env) < 0
        True
    """
    kinds, market = Counter(stores_of(env)), market_of(env)
    if len(kinds) > _TYPES:
        raise ValueError(
            f"The relaxation solves up to {_TYPES} kinds of batteries, got {len(kinds)}; give more "
            "of them the same numbers."
        )
    dual = _Dual(kinds, market)
    found = minimize(
        dual.negated,
        np.zeros(2 * len(market.price)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": rounds, "maxfun": 2 * rounds},
    )
    return float(dual.value(found.x))


class _Dual:
    """The bound as a function of the multipliers: a and b times the deviation's spread.

    Args:
        kinds: the batteries, and how many there are of each.
        market: without multipliers.
    """

    def __init__(self, kinds: Counter[Store], market: Market) -> None:
        self.kinds, self.market = kinds, market
        self.number = sum(kinds.values())
        self.spread = market.shock / np.sqrt(1 - market.kept**2)
        # The shared power stays within what all batteries have, per battery.
        ratings = np.array([[s.charge_rating, s.discharge_rating] for s in kinds.elements()])
        self.high, self.low = ratings.mean(0) * (1, -1)

    def negated(self, multipliers: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the negated bound on a coarse lattice, and its gradient."""
        plans = self._plans(multipliers, lattice=COARSE[0], nodes=COARSE[1])
        shared, slope = self._shared(multipliers)
        powers = sum(count * _moments(plan, self.market) for plan, count in plans) / self.number
        unit = max(self.spread, 1e-12)
        grad = (powers - slope) * np.array([[1.0], [1.0 / unit]]) * self.market.hours
        bound = sum(count * plan.cost for plan, count in plans) / self.number + shared
        return -bound, -grad.ravel() / len(self.market.price)

    def value(self, multipliers: np.ndarray) -> float:
        """Return the bound on the fine lattice."""
        plans = self._plans(multipliers)
        own = sum(count * plan.cost for plan, count in plans) / self.number
        return own + self._shared(multipliers)[0]

    def _plans(self, multipliers: np.ndarray, **how: Any) -> list[tuple[Plan, int]]:
        a, b = self._lines(multipliers)
        alone = self.market._replace(
            price=self.market.price + a,
            slope=self.market.slope + b,
            impact=0.0,
            limit=np.full_like(self.market.limit, np.inf),
        )
        return [(solve(store, alone, **how), count) for store, count in self.kinds.items()]

    def _lines(self, multipliers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b = multipliers.reshape(2, -1)
        return a, b / max(self.spread, 1e-12)

    def _shared(self, multipliers: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the mean of the least shared cost, and the power there with its product with y.

        That cost is concave in the multiplier, hence in y, so that chords between points are below
        it, and a mean over chords errs downwards.
        """
        market, (a, b) = self.market, self._lines(multipliers)
        y, weight, beyond = self._points()
        rate = a[:, None] + b[:, None] * y
        X = self._least(rate)
        cost = market.impact * X**2 - rate * X
        for sign, limit in zip((1, -1), market.limit, strict=True):
            cost = cost + market.excess_cost * (sign * X - limit[:, None]).clip(0)
        most = max(self.high, -self.low)
        loss = abs(b).max() * most * beyond
        mean = market.hours * ((cost @ weight).mean() - loss)
        return mean, np.stack([X @ weight, (X * y) @ weight])

    def _points(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Return points of y, weights of their hats, and the mean distance beyond the last."""
        if self.spread == 0:
            return np.zeros(1), np.ones(1), 0.0
        z = np.linspace(-8.0, 8.0, 801)
        over = normal_loss(z)
        slopes = np.concatenate([[-1.0], np.diff(over) / np.diff(z), [0.0]])
        return self.spread * z, np.diff(slopes), 2 * self.spread * over[-1]

    def _least(self, rate: np.ndarray) -> np.ndarray:
        """Return the power at which the shared cost, less its price, is least."""
        market = self.market
        import_, export = (limit[:, None] for limit in market.limit)
        tried = [np.full_like(rate, self.low), np.full_like(rate, self.high)]
        tried += [np.broadcast_to(x, rate.shape) for x in (import_, -export)]
        if market.impact:
            pushes = (0.0, market.excess_cost, -market.excess_cost)
            tried += [(rate + push) / (2 * market.impact) for push in pushes]
        X = np.stack([np.clip(x, self.low, self.high) for x in tried])
        cost = market.impact * X**2 - rate * X
        cost = cost + market.excess_cost * ((X - import_).clip(0) + (-X - export).clip(0))
        return np.take_along_axis(X, cost.argmin(0)[None], 0)[0]


def _moments(plan: Plan, market: Market) -> np.ndarray:
    """Return E[p] and E[p y] of a plan at each step of the cycle in the long run, ``(2, T)``."""
    power = plan.power[plan.best + int(np.flatnonzero(plan.power == 0)[0])]
    size = len(plan.contents)
    share = np.full(plan.best.shape[1:], 1.0 / power[0].size)
    rows = np.arange(len(plan.nodes))[:, None] * size
    target = (rows + np.arange(size) + plan.best).reshape(len(power), -1)
    means = np.empty((2, len(power)))
    for _ in range(_TURNS):
        for t in range(len(power)):
            means[:, t] = (share * power[t]).sum(), (share * power[t] * plan.nodes[:, None]).sum()
            moved = np.bincount(target[t], share.ravel(), share.size).reshape(share.shape)
            share = plan.chance.T @ moved
    return means
