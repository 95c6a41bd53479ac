"""The best (Q, S) rule on a record of demand: what a rule could have cost, known afterwards.

A period goes as in :class:`~hpo_torchrl.envs.InventoryEnv`: decide on the inventory position, pay
for the order, meet the demand, pay for what is left or short; an order placed in period t can serve
the demand of period t + L. Before the first period S_i units of each item are on hand and none on
order. The first ``warm_up`` periods are simulated but not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpo_torchrl.core.checks import check_float
from hpo_torchrl.problems.inventory.optima.items import Vector
from hpo_torchrl.problems.inventory.optima.replay import (
    MOST_HELD,
    Record,
    check_record,
    per_item_vector,
)

__all__ = ["RecordedRule", "best_recorded_rule", "recorded_rule_cost"]

# Rules looked at in one search, of Q alone and of s and Q.
_MOST_RULES, _MOST_PAIRS = 2**12, 2**17


class RecordedRule(NamedTuple):
    """Order all items up to S[i] once they lack Q together; cost per period of all items."""

    Q: float
    S: tuple[float, ...]
    cost: float


def recorded_rule_cost(
    Q: float,
    S: float | Sequence[float],
    demand: Any,
    holding_cost: float | Sequence[float],
    shortage_cost: float | Sequence[float],
    fixed_cost: float,
    lead_time: int,
    *,
    procurement_cost: float | Sequence[float] = 0.0,
    lost_sales: bool = False,
    warm_up: int = 0,
) -> float:
    """Simulate a (Q, S) rule on a record.

    Args:
        Q: units that must be missing in all, ``sum_i (S_i - position_i) >= Q``, for an order.
        S: order-up-to levels, in units of inventory position: one for all or one per item.
        demand: units, ``(T, n)``.
        holding_cost: costs per unit on hand at the end of a period.
        shortage_cost: costs per unit short at the end of a period.
        fixed_cost: cost per order placed, whatever it contains.
        lead_time: whole periods from placing an order to its arrival.
        procurement_cost: costs per unit ordered.
        lost_sales: whether unmet demand is lost instead of backlogged.
        warm_up: first periods that are not counted.

    Returns:
        The average cost per period over all items.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or lengths differ.

    Examples:
        >>> recorded_rule_cost(4, 6, [[2], [2], [2], [2]], 1, 9, 10, 0)  # 4, 2, 4, 2 and an order
        5.5
    """
    costs = (holding_cost, shortage_cost, fixed_cost, lead_time, procurement_cost)
    record = check_record(demand, *costs, lost_sales, warm_up)
    check_float("Q", Q, minimum=0.0, strict=True)
    levels = per_item_vector("S", S, record.demand.shape[1], minimum=-float("inf"))
    return float(record.simulate(np.array([float(Q)]), levels[None])[0])


def best_recorded_rule(
    demand: Any,
    holding_cost: float | Sequence[float],
    shortage_cost: float | Sequence[float],
    fixed_cost: float,
    lead_time: int,
    *,
    procurement_cost: float | Sequence[float] = 0.0,
    lost_sales: bool = False,
    warm_up: int = 0,
) -> RecordedRule:
    r"""Find the (Q, S) rule that would have cost least on a record; for one item s = S - Q.

    *Backlogged demand.* When orders are placed depends on Q alone. For a given Q the best S_i is
    then a quantile of what the record takes from it,

    .. math::
        X_i(t) = \text{lacking after the decision in } t + D_i(t) + \dots + D_i(t + L),

    the smallest with a share of at least p_i / (h_i + p_i). Q is searched over whole units (where
    demand is not whole, over fiftieths of the mean total demand) up to a quarter of all demand: at
    least four cycles in the record. The result is exact up to 4,096 values of Q; of more, evenly
    spaced ones, and then those around the best. What is bought has no part in the search: it is
    the same for all rules in the long run.

    *Lost sales, one item.* All pairs of whole s and Q are simulated, Q as above and s up to the
    smaller of the largest demand of L + 1 periods, beyond which nothing is ever short, and the mean
    one plus c / h with the cost c of a known rule, beyond which holding alone costs more. The
    result is exact up to 131,072 pairs; of more, a grid of them, and then finer ones around the
    best.

    *Lost sales, several items.* A coordinate search from the best rule for backlogged demand: each
    of Q and S_1, ..., S_n is moved up and down by a step; the best single move, or all that help
    together, is made; where none helps, the step is halved, from half a period's mean demand down
    to a unit. The result is a local optimum.

    Args:
        demand: units, ``(T, n)``.
        holding_cost: see :func:`recorded_rule_cost`, like the arguments that follow.
        shortage_cost: see there.
        fixed_cost: see there.
        lead_time: see there.
        procurement_cost: see there.
        lost_sales: see there.
        warm_up: see there.

    Returns:
        ``(Q, S, cost)``, of which the cost is that of :func:`recorded_rule_cost`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, lengths differ, or nobody asked for anything.

    Examples:
        >>> best_recorded_rule([[2], [2], [2], [2], [2], [2], [2], [2]], 1, 9, 4, 0)
        RecordedRule(Q=3.0, S=(4.0,), cost=2.5)
    """
    costs = (holding_cost, shortage_cost, fixed_cost, lead_time, procurement_cost)
    record = check_record(demand, *costs, lost_sales, warm_up)
    if not record.demand.any():
        raise ValueError("demand must have an entry above 0: nobody asked for anything.")
    Q, S = _best_backlogged(record)
    if lost_sales and record.demand.shape[1] == 1:
        Q, S = _best_pair(record, Q, S)
    elif lost_sales:
        Q, S = _coordinate_search(record, Q, S)
    cost = float(record.simulate(np.array([Q]), S[None])[0])
    return RecordedRule(float(Q), tuple(S.tolist()), cost)


def _best_backlogged(record: Record) -> tuple[float, Vector]:
    """Search Q; the levels that go with it are quantiles."""
    low, high, best = 1, record.most, (np.inf, 1.0, np.zeros(record.demand.shape[1]))
    while True:
        stride = -(-(high - low + 1) // _MOST_RULES)
        places = np.arange(low, high + 1, stride)
        size = max(1, MOST_HELD // record.demand.size)
        for chunk in np.split(places, range(size, len(places), size)):
            Q = chunk * record.unit
            costs, levels = _backlogged(record, Q)
            at = int(costs.argmin())
            if costs[at] < best[0]:
                best = float(costs[at]), float(Q[at]), levels[at]
        if stride == 1:
            return best[1:]
        middle = round(best[1] / record.unit)
        low, high = max(1, middle - stride), min(record.most, middle + stride)


def _backlogged(record: Record, Q: NDArray[Any]) -> tuple[Vector, Vector]:
    """Return the cost of each Q, ``(m,)``, at its best levels, ``(m, n)``; without procurement."""
    D, L, skip = record.demand, record.lead_time, record.warm_up
    lacking, orders = np.zeros((len(Q), D.shape[1])), np.zeros(len(Q))
    taken = np.empty((len(D), *lacking.shape))
    # Until the first order arrives, the demand so far is what is taken.
    taken[:L] = D[:L].cumsum(axis=0)[:, None]
    windows = record.windows()
    for t, demand in enumerate(D):
        ordering = lacking.sum(axis=1) >= Q
        lacking[ordering] = 0.0
        if t >= skip:
            orders += ordering
        if t + L < len(D):
            taken[t + L] = lacking + windows[t]
        lacking += demand
    taken = taken[skip:]
    levels, costs = np.empty(lacking.shape), record.fixed_cost * orders
    for i, (h, p) in enumerate(zip(record.holding, record.shortage, strict=True)):
        x = taken[:, :, i]
        ratio = p / (h + p) if h + p > 0 else 1.0
        place = max(0, int(np.ceil(len(x) * ratio)) - 1)
        levels[:, i] = np.partition(x, place, axis=0)[place]
        rest = levels[:, i] - x
        costs += h * np.maximum(rest, 0.0).sum(axis=0) + p * np.maximum(-rest, 0.0).sum(axis=0)
    return costs / len(taken), levels


def _best_pair(record: Record, Q: float, S: Vector) -> tuple[float, Vector]:
    """Search s and Q of one item with lost sales on a grid, which shrinks around its best point."""
    known = float(record.simulate(np.array([Q]), S[None])[0])
    windows, h = record.windows()[max(0, record.warm_up - record.lead_time) :], record.holding[0]
    limit = float(record.windows().max())
    if h > 0:
        limit = min(limit, known / h + float(windows.mean()))
    low, high = np.array([0, 1]), np.array([int(np.ceil(limit / record.unit)), record.most])
    best = known, Q, S
    while True:
        stride = 1
        while np.prod((high - low) // stride + 1) > _MOST_PAIRS:
            stride *= 2
        axes = (np.arange(a, b + 1, stride) for a, b in zip(low, high, strict=True))
        pairs = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        tried = pairs[:, 1] * record.unit
        levels = pairs.sum(axis=1, keepdims=True) * record.unit
        costs = record.simulate(tried, levels)
        at = int(costs.argmin())
        if costs[at] < best[0]:
            best = float(costs[at]), float(tried[at]), levels[at]
        if stride == 1:
            return best[1:]
        low = np.maximum(low, pairs[at] - 2 * stride)
        high = np.minimum(high, pairs[at] + 2 * stride)


def _coordinate_search(record: Record, Q: float, S: Vector) -> tuple[float, Vector]:
    n = len(S)
    point = np.array([Q, *S])
    cost = record.simulate(point[:1], point[None, 1:])[0]
    units = np.full(n + 1, record.unit)
    sizes = np.array([record.demand.sum(axis=1).mean(), *record.demand.mean(axis=0)]) / 2
    steps = np.maximum(1.0, np.round(sizes / units))
    signs = np.concatenate([np.eye(n + 1), -np.eye(n + 1)])
    while True:
        moves = signs * steps * units
        tried = point + moves
        tried[:, 0] = np.maximum(tried[:, 0], record.unit)
        costs = record.simulate(tried[:, 0], tried[:, 1:])
        helpful = moves[costs < cost]
        if len(helpful):
            together = point + helpful.sum(axis=0)
            together[0] = max(together[0], record.unit)
            tried = np.vstack([tried, together])
            costs = np.append(costs, record.simulate(together[:1], together[None, 1:]))
            at = int(costs.argmin())
            point, cost = tried[at], costs[at]
        elif (steps > 1).any():
            steps = np.maximum(1.0, np.floor(steps / 2))
        else:
            return float(point[0]), point[1:]
