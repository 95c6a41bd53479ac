"""The best (Q, S) rule on a record of demand: what a rule could have cost, known afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo_torchrl.core.checks import check_bool, check_float, check_int
from hpo_torchrl.problems.inventory.optima.items import Vector, vector

# Rules tried in one search, of Q alone and of s and Q.
_MOST_RULES, _MOST_PAIRS = 2**12, 2**17
# Numbers that a simulation holds in memory at once.
_MOST_HELD = 2**22
# At least so many cycles must fit into a record: a longer one says nothing of how to go on.
_CYCLES = 4


@dataclass(eq=False)
class RecordedItems:
    """A record of demand and what things cost: the problem that rules are tuned to.

    A period goes as in :class:`~hpo_torchrl.problems.InventoryEnv`: decide on the inventory
    position, pay for the order, meet the demand, pay for what is left or short; an order placed in
    period t can serve the demand of period t + L. Before the first period S_i units of each item
    are on hand and none on order.

    Args:
        demand: units, ``(T, n)``.
        holding_cost: costs per unit on hand at the end of a period.
        shortage_cost: costs per unit short at the end of a period.
        fixed_cost: cost per order placed, whatever it contains.
        lead_time: whole periods from placing an order to its arrival.
        procurement_cost: costs per unit ordered; like h and p a number or one per item.
        lost_sales: whether unmet demand is lost instead of backlogged.
        warm_up: first periods, which are simulated but not counted.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or lengths differ.
    """

    demand: Any
    holding_cost: Any
    shortage_cost: Any
    fixed_cost: float
    lead_time: int
    procurement_cost: Any = 0.0
    lost_sales: bool = False
    warm_up: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        self.demand = demand = np.array(self.demand, dtype=np.float64)
        if demand.ndim != 2 or demand.size == 0:
            raise ValueError(
                f"demand must have shape (T, n) = (periods, items), got {demand.shape}."
            )
        if not np.isfinite(demand).all() or (demand < 0).any():
            raise ValueError("demand must be finite and >= 0; it holds NaN, inf or negatives.")
        check_int("lead_time", self.lead_time, minimum=0)
        check_int("warm_up", self.warm_up, minimum=0)
        if not max(self.warm_up, self.lead_time) < len(demand):
            raise ValueError(
                f"demand must have more periods than warm_up={self.warm_up} and "
                f"lead_time={self.lead_time}, got {len(demand)}."
            )
        for name in ("holding_cost", "shortage_cost", "procurement_cost"):
            setattr(self, name, vector(name, getattr(self, name), demand.shape[1]))
        check_float("fixed_cost", self.fixed_cost, minimum=0.0)
        check_bool("lost_sales", self.lost_sales)

    @classmethod
    def of(cls, env: Any) -> RecordedItems:
        """Return the training periods of an environment's record.

        A lead time and an order interval, or a quarter of those periods if that is less, warm up.
        """
        record = env.record[slice(*env.train_periods)]
        rows = (env.holding_cost, env.shortage_cost, env.procurement_cost)
        holding, shortage, procurement = (row.double().tolist() for row in rows)
        return cls(
            record.double().cpu().numpy(),
            holding,
            shortage,
            env.fixed_cost,
            env.lead_time,
            procurement_cost=procurement,
            lost_sales=env.lost_sales,
            warm_up=min(env.lead_time + env.order_interval, len(record) // 4),
        )

    @property
    def unit(self) -> float:
        """The grid of a search: whole units where demand is whole."""
        whole = bool((self.demand == np.round(self.demand)).all())
        return 1.0 if whole else float(self.demand.sum(axis=1).mean()) / 50

    @property
    def most(self) -> int:
        """The largest Q to look at, in grid units."""
        return max(1, int(self.demand.sum() / _CYCLES / self.unit))

    def windows(self) -> Vector:
        """Return the demand of L + 1 periods from each on: ``(T - L, n)``."""
        total = np.concatenate([np.zeros((1, self.demand.shape[1])), self.demand.cumsum(axis=0)])
        return total[self.lead_time + 1 :] - total[: -self.lead_time - 1]

    def simulate(self, Q: Vector, S: Vector) -> Vector:
        """Return the cost per period of m rules, ``(m,)``, from Q ``(m,)`` and S ``(m, n)``."""
        L, size = self.lead_time, max(1, _MOST_HELD // S.shape[1] // (self.lead_time + 4))
        if len(Q) > size:
            parts = range(0, len(Q), size)
            return np.concatenate([self.simulate(Q[i : i + size], S[i : i + size]) for i in parts])
        on_hand, on_order, total = S.copy(), np.zeros(S.shape), np.zeros(len(Q))
        pipeline = np.zeros((max(L, 1), *S.shape))
        for t, demand in enumerate(self.demand):
            missing = S - on_hand - on_order
            ordering = missing.sum(axis=1) >= Q
            order = np.maximum(missing, 0.0) * ordering[:, None]
            if L == 0:
                on_hand += order
            on_hand -= demand
            if t >= self.warm_up:
                total += np.maximum(on_hand, 0.0) @ self.holding_cost
                total += np.maximum(-on_hand, 0.0) @ self.shortage_cost
                total += order @ self.procurement_cost + self.fixed_cost * ordering
            if self.lost_sales:
                np.maximum(on_hand, 0.0, out=on_hand)
            if L > 0:
                pipeline[t % L] = order
                arriving = pipeline[(t + 1) % L]
                on_hand += arriving
                on_order += order - arriving
        return total / (len(self.demand) - self.warm_up)


def best_rule(record: RecordedItems) -> tuple[float, Vector, float]:
    r"""Return Q, S and the cost per period of the rule that would have cost least.

    *Backlogged demand.* When orders are placed depends on Q alone. For a given Q the best S_i is
    then a quantile of what the record takes from it,

    .. math::
        X_i(t) = \text{lacking after the decision in } t + D_i(t) + \dots + D_i(t + L),

    the smallest with a fraction of at least p_i / (h_i + p_i). Q is searched over whole units
    (where demand is not whole, over fiftieths of the mean total demand) up to a quarter of all
    demand: at least four cycles in the record. The result is exact up to 4,096 values of Q; of
    more, evenly spaced ones, and then those around the best. Procurement is not part of the search:
    it is the same for all rules in the long run.

    *Lost sales, one item.* All pairs of whole s and Q are simulated, Q as above and s up to the
    smaller of the largest demand of L + 1 periods, beyond which nothing is ever short, and the mean
    one plus c / h with the cost c of a known rule, beyond which holding alone costs more. The
    result is exact up to 131,072 pairs; of more, a grid of them, and then finer ones around the
    best.

    *Lost sales, several items.* A coordinate search from the best rule for backlogged demand: each
    of Q and S_1, ..., S_n is moved up and down by a step; the best single move, or all that help
    together, is made; where none helps, the step is halved, from half a period's mean demand down
    to a unit. The result is a local optimum.

    Raises:
        ValueError: demand is zero everywhere.
    """
    if not record.demand.any():
        raise ValueError("demand must have an entry above 0: it is zero everywhere.")
    Q, S = _best_backlogged(record)
    if record.lost_sales:
        search = _best_pair if record.demand.shape[1] == 1 else _coordinate_search
        Q, S = search(record, Q, S)
    return float(Q), S, float(record.simulate(np.array([Q]), S[None])[0])


def _best_backlogged(record: RecordedItems) -> tuple[float, Vector]:
    """Search Q; the levels that go with it are quantiles."""
    low, high, best = 1, record.most, (np.inf, 1.0, np.zeros(record.demand.shape[1]))
    while True:
        stride = -(-(high - low + 1) // _MOST_RULES)
        places = np.arange(low, high + 1, stride)
        size = max(1, _MOST_HELD // record.demand.size)
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


def _backlogged(record: RecordedItems, Q: NDArray[Any]) -> tuple[Vector, Vector]:
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
    for i, (h, p) in enumerate(zip(record.holding_cost, record.shortage_cost, strict=True)):
        x = taken[:, :, i]
        ratio = p / (h + p) if h + p > 0 else 1.0
        place = max(0, int(np.ceil(len(x) * ratio)) - 1)
        levels[:, i] = np.partition(x, place, axis=0)[place]
        rest = levels[:, i] - x
        costs += h * np.maximum(rest, 0.0).sum(axis=0) + p * np.maximum(-rest, 0.0).sum(axis=0)
    return costs / len(taken), levels


def _best_pair(record: RecordedItems, Q: float, S: Vector) -> tuple[float, Vector]:
    """Search s and Q of one item with lost sales on a grid, which shrinks around its best point."""
    known = float(record.simulate(np.array([Q]), S[None])[0])
    windows = record.windows()[max(0, record.warm_up - record.lead_time) :]
    h = record.holding_cost[0]
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


def _coordinate_search(record: RecordedItems, Q: float, S: Vector) -> tuple[float, Vector]:
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
