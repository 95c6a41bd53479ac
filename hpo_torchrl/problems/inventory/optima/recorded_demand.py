"""The best (Q, S) rule on a record of demand: what a rule could have cost, known afterwards."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from hpo_torchrl.core.checks import check_bool, check_float, check_int
from hpo_torchrl.problems.inventory.optima.items import Levels, Vector, vector
from hpo_torchrl.problems.inventory.ordering import Ordering
from hpo_torchrl.problems.inventory.record import check_record

# Rules tried in one search, of Q alone and of s and Q.
_MOST_RULES, _MOST_PAIRS = 2**12, 2**17
# Numbers that a simulation holds in memory at once.
_MOST_HELD = 2**22
# At least so many cycles must fit into a record: a longer one says nothing of how to go on.
_CYCLES = 4
# Lost sales: items up to which a grid is a start, and up to which the backlogged rule is one in
# these multiples too.
_FEW_ITEMS, _MANY_ITEMS = 4, 30
# With other orders: starts that are searched from, items up to which a grid is one, and its rules.
# A grid shrinks to 9 places of each of Q and S_1, ..., S_n at least: 9**4 = 6561.
_BEST_STARTS, _FEW_OTHERS, _MOST_OTHERS = 3, 3, 2**13
_SCALES_OF_Q, _SCALES_OF_S = (0.5, 1.0, 2.0), (0.4, 0.7, 1.0)


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
        lead_time: whole periods from placing an order to its arrival, one number or one per item.
        procurement_cost: costs per unit ordered; like h and p a number or one per item.
        lost_sales: whether unmet demand is lost instead of backlogged.
        warm_up: first periods, which are simulated but not counted.
        ordering: what is delivered of an order and what it costs, instead of all and the fixed
            cost; ``None`` is these.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or lengths differ.
    """

    demand: Any
    holding_cost: Any
    shortage_cost: Any
    fixed_cost: float
    lead_time: Any
    procurement_cost: Any = 0.0
    lost_sales: bool = False
    warm_up: int = 0
    ordering: Ordering | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        self.demand = demand = check_record("demand", self.demand, 2).numpy()
        many = isinstance(self.lead_time, (list, tuple, np.ndarray))
        each = [*self.lead_time] if many else [self.lead_time] * demand.shape[1]
        self.lead_times = np.array([check_int("lead_time", L, minimum=0) for L in each])
        check_int("warm_up", self.warm_up, minimum=0)
        if len(each) != demand.shape[1]:
            raise ValueError(
                f"lead_time must be a number or hold one entry per item: expected "
                f"{demand.shape[1]} entries, got {len(each)}."
            )
        if not max(self.warm_up, *each) < len(demand):
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
        record = env.record[slice(*env.train_periods)].double().cpu()
        rows = (env.holding_cost, env.shortage_cost, env.procurement_cost)
        holding, shortage, procurement = (row.double().tolist() for row in rows)
        warm_up = min(env.lead_time + env.order_interval, len(record) // 4)
        joint = (env.fixed_cost, env.lead_times.tolist())
        ordering = None if env.ordering.only_fixed_cost else env.ordering
        return cls(
            record, holding, shortage, *joint, procurement, env.lost_sales, warm_up, ordering
        )

    @property
    def unit(self) -> float:
        """The grid of a search: whole units where demand is whole."""
        # Beyond 2**50 a unit is hardly more than rounding.
        whole = bool((self.demand == np.round(self.demand)).all()) and self.demand.sum() < 2**50
        return 1.0 if whole else float(self.demand.sum(axis=1).mean()) / 50

    @property
    def most(self) -> int:
        """The largest Q to look at, in grid units."""
        return max(1, int(self.demand.sum() / _CYCLES / self.unit))

    def windows(self, lead_time: int | None = None) -> Vector:
        """Return the demand of L + 1 periods from each on, ``(T - L, n)``; L is the longest."""
        L = int(self.lead_times.max()) if lead_time is None else lead_time
        return sliding_window_view(self.demand, L + 1, axis=0).sum(axis=-1)

    def simulate(self, Q: Vector, S: Vector) -> Vector:
        """Return the cost per period of m rules, ``(m,)``, from Q ``(m,)`` and S ``(m, n)``."""
        on_hand, total = S.copy(), np.zeros(len(Q))
        # What arrives in period t is at t modulo the number of slots.
        slots, groups = int(self.lead_times.max()) + 1, self.groups()
        coming = np.zeros((slots, *S.shape))
        for t, demand in enumerate(self.demand):
            position = sum(coming, on_hand)
            missing = S - position
            ordering = missing.sum(axis=1) >= Q
            order = np.maximum(missing, 0.0) * ordering[:, None]
            if self.ordering is not None:
                order = self.delivered(order, position)
            for L, items in groups:
                coming[(t + L) % slots][:, items] = order[:, items]
            available = on_hand + coming[t % slots]
            coming[t % slots] = 0.0
            on_hand = available - demand
            if t >= self.warm_up:
                cost = np.maximum(on_hand, 0.0) @ self.holding_cost
                cost += np.maximum(-on_hand, 0.0) @ self.shortage_cost
                cost += order @ self.procurement_cost
                total += self._with_order(cost, order, ordering, available, demand)
            if self.lost_sales:
                np.maximum(on_hand, 0.0, out=on_hand)
        return total / (len(self.demand) - self.warm_up)

    def groups(self) -> list[tuple[int, Any]]:
        """Return the lead times that there are, with the items that each is of."""
        known = np.unique(self.lead_times).tolist()
        if len(known) == 1:
            return [(known[0], slice(None))]
        return [(L, self.lead_times == L) for L in known]

    def delivered(self, order: Vector, position: Vector) -> Vector:
        """Return what is delivered of orders ``(m, n)``, by the environment's own equation."""
        assert self.ordering is not None
        asked, before = torch.from_numpy(order), torch.from_numpy(position)
        return self.ordering.delivered(asked, before.unsqueeze(-1)).numpy()

    def _with_order(
        self, cost: Vector, order: Vector, ordering: Vector, available: Vector, demand: Vector
    ) -> Vector:
        """Return costs ``(m,)`` with what orders cost and, if it counts, less what sales bring."""
        if self.ordering is None:
            return cost + self.fixed_cost * ordering
        rows = (torch.from_numpy(row) for row in (cost, order, available))
        total, placed, stock = rows
        asked = torch.from_numpy(demand).expand_as(placed)
        some = (placed.sum(-1) > 0).double()
        return -self.ordering.reward(total, (placed, some, some.long() * 0), stock, asked).numpy()


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

    *Lost sales, several items.* All whole Q and S_1, ..., S_n are simulated, Q as above and S_i up
    to the largest demand of L + 1 periods plus the largest Q, beyond which nothing is ever short,
    if they are at most 131,072 rules: the result is exact. Else it is the best found, by coordinate
    searches from several starts: the best rule for backlogged demand, that one with smaller levels
    and smaller and larger Q, and (up to four items) the best of a grid. A search moves each of Q
    and S_1, ..., S_n up and down by a step; the best single move, or all that help together, is
    made; where none helps, the step is halved, from half a period's mean demand down to a unit.

    *Other orders* (minimum orders, packs, prices, limits): the same searches as with lost sales,
    backlogged or not, of rules of which the environment delivers what it does. An item that lacks
    less than its minimum is left out of an order. The result is the best found: grids have at most
    8,192 rules, and are for up to three items; the best three starts are searched from.

    *Never to order* is a rule too, with an infinite Q: where selling costs more than losing a sale,
    or an order more than a whole record of backlog.

    Raises:
        ValueError: demand is zero everywhere.
    """
    if not record.demand.any():
        raise ValueError("demand must have an entry above 0: it is zero everywhere.")
    rule = _best_backlogged(record)
    if record.lost_sales or record.ordering is not None:
        search = _best_pair if record.demand.shape[1] == 1 else _best_of_many
        rule = search(record, rule)
    never = np.array([np.inf, *np.zeros(len(rule) - 1)])
    rules = np.stack([rule, never])
    costs = _costs(record, rules)
    at = int(costs.argmin())
    return float(rules[at, 0]), rules[at, 1:], float(costs[at])


def _costs(record: RecordedItems, rules: Vector) -> Vector:
    """Return the cost per period of rules ``(m, 1 + n)``.

    A Q that lost sales cannot reach never orders: of such rules only the one that says so counts,
    or the stock of the start would be a gift. So would that of an item whose level is below its
    minimum order.
    """
    costs, Q = record.simulate(rules[:, 0], rules[:, 1:]), rules[:, 0]
    if not record.lost_sales:
        return costs
    levels = rules[:, 1:].clip(min=0.0)
    reached = levels.sum(axis=1) >= Q
    if record.ordering is not None:
        given = record.delivered(levels, np.zeros_like(levels))
        reached &= ((given > 0) | (levels == 0)).all(axis=1)
    return np.where(reached | np.isinf(Q), costs, np.inf)


def _grid_search(
    low: Levels, high: Levels, most: int, try_all: Callable[[Levels], Vector]
) -> Vector:
    """Find the best rule on a grid of whole points, the finer the closer to the best one.

    Args:
        low: the first point, ``(k,)``.
        high: the last point.
        most: points that a grid may have.
        try_all: from points ``(m, k)`` to cost, Q and S of a rule for each, ``(m, 2 + n)``.

    Returns:
        Cost, Q and S of the best rule, ``(2 + n,)``.
    """
    best, place = np.array([np.inf]), low
    while True:
        sizes = high - low
        fits = partial(_fits, sizes, most)
        stride = bisect_left(range(1, int(sizes.max()) + 2), True, key=fits) + 1
        axes = [np.arange(a, b + 1, stride) for a, b in zip(low, high, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(low))
        rules = try_all(points)
        at = int(rules[:, 0].argmin())
        if rules[at, 0] < best[0]:
            best, place = rules[at], points[at]
        if stride == 1:
            return best
        low, high = np.maximum(low, place - 2 * stride), np.minimum(high, place + 2 * stride)


def _fits(sizes: Levels, most: int, stride: int) -> bool:
    """Say whether a grid of these sizes has at most so many points with a stride."""
    return bool(np.prod(sizes // stride + 1.0) <= most)


def _best_backlogged(record: RecordedItems) -> Vector:
    """Search Q; the levels that go with it are quantiles."""

    def try_all(points: Levels) -> Vector:
        parts = -(-len(points) * record.demand.size // _MOST_HELD)
        Q = np.array_split(points[:, 0] * record.unit, parts)
        return np.concatenate([_backlogged(record, part) for part in Q])

    return _grid_search(np.array([1]), np.array([record.most]), _MOST_RULES, try_all)[1:]


def _backlogged(record: RecordedItems, Q: Vector) -> Vector:
    """Return for each Q the cost without procurement, Q and its best levels, ``(m, 2 + n)``."""
    D, h, p = record.demand, record.holding_cost, record.shortage_cost
    lacking = np.zeros((len(Q), D.shape[1]))
    ordering, taken = np.empty((len(D), len(Q))), np.empty((len(D), *lacking.shape))
    for t, demand in enumerate(D):
        ordering[t] = orders = lacking.sum(axis=1) >= Q
        lacking[orders] = 0.0
        taken[t] = lacking
        lacking += demand
    for L, mine in record.groups():
        window = record.windows(L)[:, None, mine]
        taken[L:, :, mine] = taken[: len(D) - L, :, mine] + window
        # Until the first order arrives, the demand so far is what is taken.
        taken[:L, :, mine] = D[:L, mine].cumsum(axis=0)[:, None]
    taken = taken[record.warm_up :]
    ratio = np.divide(p, h + p, out=np.ones_like(p), where=h + p > 0)
    place = np.maximum(np.ceil(len(taken) * ratio).astype(np.int64) - 1, 0)
    levels = np.take_along_axis(np.sort(taken, axis=0), place[None, None], axis=0)[0]
    rest = levels - taken
    costs = np.maximum(rest, 0.0).mean(axis=0) @ h + np.maximum(-rest, 0.0).mean(axis=0) @ p
    costs += record.fixed_cost * ordering[record.warm_up :].mean(axis=0)
    return np.column_stack([costs, Q, levels])


def _best_pair(record: RecordedItems, rule: Vector) -> Vector:
    """Search s and Q of one item with lost sales on a grid, which shrinks around its best point."""
    known, h = float(_costs(record, rule[None])[0]), record.holding_cost[0]
    windows = record.windows()
    limit = float(windows.max())
    if h > 0 and record.ordering is None:  # prices may pay for holding
        counted = windows[max(0, record.warm_up - int(record.lead_times[0])) :]
        limit = min(limit, known / h + float(counted.mean()))

    def try_all(points: Levels) -> Vector:
        rules = points @ np.array([[0, 1], [1, 1]]) * record.unit
        return np.column_stack([_costs(record, rules), rules])

    last = np.array([int(np.ceil(limit / record.unit)), record.most])
    most = _MOST_PAIRS if record.ordering is None else _MOST_OTHERS
    found = _grid_search(np.array([0, 1]), last, most, try_all)
    return found[1:] if found[0] < known else rule


def _best_of_many(record: RecordedItems, rule: Vector) -> Vector:
    """Search Q and the levels of several items with lost sales, all of them or from many starts."""
    n = rule.size - 1
    # An item that lacks less than Q may have to last until the next order arrives.
    levels = np.ceil(record.windows().max(axis=0) / record.unit) + record.most
    last = np.array([record.most, *levels], np.int64)

    def try_all(points: Levels) -> Vector:
        rules = points * record.unit
        parts = -(-rules.size // _MOST_HELD)
        costs = [_costs(record, part) for part in np.array_split(rules, parts)]
        return np.column_stack([np.concatenate(costs), rules])

    first = np.array([1, *np.zeros(n, np.int64)])
    starts = [rule]
    other = record.ordering is not None  # each of whose rules takes ten times as long
    few, most = (_FEW_OTHERS, _MOST_OTHERS) if other else (_FEW_ITEMS, _MOST_PAIRS)
    if n <= few:
        grid = _grid_search(first, last, most, try_all)
        if np.isfinite(grid[0]):  # else none of its rules orders each item
            starts.append(grid[1:])
        if not other and _fits(last - first, _MOST_PAIRS, 1):
            return starts[-1]
    if n <= _MANY_ITEMS:
        scaled = itertools.product(_SCALES_OF_Q, _SCALES_OF_S)
        starts += [np.array([max(record.unit, q * rule[0]), *(s * rule[1:])]) for q, s in scaled]
    if other:
        ranked = _costs(record, np.stack(starts)).argsort()
        starts = [starts[at] for at in ranked[:_BEST_STARTS]]
    found = np.stack([_coordinate_search(record, start) for start in starts])
    return found[_costs(record, found).argmin()]


def _coordinate_search(record: RecordedItems, rule: Vector) -> Vector:
    n = rule.size - 1
    rule = np.round(rule / record.unit) * record.unit
    cost = _costs(record, rule[None])[0]
    sizes = np.array([record.demand.sum(axis=1).mean(), *record.demand.mean(axis=0)]) / 2
    steps = np.maximum(1.0, np.round(sizes / record.unit))
    signs = np.concatenate([np.eye(n + 1), -np.eye(n + 1)])
    least = np.array([record.unit, *np.full(n, -np.inf)])
    while True:
        moves = signs * steps * record.unit
        tried = np.maximum(rule + moves, least)
        costs = _costs(record, tried)
        helpful = moves[costs < cost]
        if len(helpful):
            together = np.maximum(rule + helpful.sum(axis=0), least)[None]
            tried, costs = np.vstack([tried, together]), np.append(costs, _costs(record, together))
            rule, cost = tried[costs.argmin()], costs.min()
        elif (steps > 1).any():
            steps = np.maximum(1.0, np.floor(steps / 2))
        else:
            return rule
