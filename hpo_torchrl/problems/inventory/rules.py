"""Rules of inventory control as policies: built from numbers, or the best for a problem.

A problem is an environment, :class:`~hpo_torchrl.problems.inventory.Items` (exact costs) or a
:class:`~hpo_torchrl.problems.inventory.RecordedItems` (simulated costs).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.core.reference import Optimum
from hpo_torchrl.modules import RulePolicy
from hpo_torchrl.problems.inventory.optima import joint_rules, recorded_demand
from hpo_torchrl.problems.inventory.optima.items import Items, Levels, newsvendor_level
from hpo_torchrl.problems.inventory.optima.recorded_demand import RecordedItems
from hpo_torchrl.problems.inventory.ordering import Ordering


class OrderUpToPolicy(RulePolicy):
    """Order every period, each item up to its level S: the base-stock rule.

    Args:
        S: order-up-to level of each item, in units of inventory position.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.problems.inventory.rules import OrderUpToPolicy
        >>> env = InventoryEnv(num_items=2, batch_size=4)
        >>> env.rollout(3, OrderUpToPolicy([38, 38]))["action", "discrete"].all().item()
        True
        >>> OrderUpToPolicy.best(env).S.tolist()
        [37.0, 37.0]
    """

    in_keys = ["inventory"]  # noqa: RUF012

    def __init__(self, S: Any) -> None:
        super().__init__()
        self.register_buffer("S", torch.as_tensor(S, dtype=torch.float64).reshape(-1))

    @classmethod
    def best(cls, env: Any) -> OrderUpToPolicy:
        """Return the newsvendor levels: optimal without a fixed cost, blind to one.

        S_i is the smallest level with P(demand of L + 1 periods <= S) >= p / (h + p).
        """
        items = Items.of(env, "order_up_to")
        rows = zip((items.lead_time + 1) * items.mean, items.holding, items.shortage, strict=True)
        return cls([newsvendor_level(*row) for row in rows]).to(env.device)

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Order what is missing to S."""
        position = state[0].sum(-1)
        return self.orders(position, state), (self.S.to(position) - position).clamp_min(0.0)

    def orders(self, position: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """Say which env instances order, int64 ``(*B,)``."""
        return torch.ones(position.shape[:-1], dtype=torch.int64, device=position.device)

    def levels(self, num_items: int) -> Levels:
        """Return S as whole units, ``(n,)``; one level stands for all items.

        Raises:
            ValueError: a level is not a whole number, or there are not as many levels as items.
        """
        S = self.S.cpu().numpy()
        if S.size not in (1, num_items):
            raise ValueError(f"S must hold one level per item: expected {num_items}, got {S.size}.")
        return np.broadcast_to(whole("S", S), (num_items,))


class TotalDemandPolicy(OrderUpToPolicy):
    """Order all items up to S as soon as they lack ``Q`` together: (s, S) of a joint fixed cost.

    For one item this is the (s, S) rule with s = S - Q, optimal among all policies.

    Source: B. Renberg and R. Planche (1967), "Un modèle pour la gestion simultanée des n articles
    d'un stock", Revue française d'informatique et de recherche opérationnelle 1(6), 47-59;
    P. Pantumsinchai (1992), "A comparison of three joint ordering inventory policies", Decision
    Sciences 23(1), 111-127.

    Args:
        Q: units that must be missing in all, ``sum_i (S_i - position_i) >= Q``; above 0, and
            infinite for never.
        S: order-up-to level of each item.

    Examples:
        >>> from hpo_torchrl.problems.inventory.optima.items import Items
        >>> from hpo_torchrl.problems.inventory.optima.recorded_demand import RecordedItems
        >>> found = TotalDemandPolicy.optimum(Items([10, 10], 1, 9, 2 * 64, 2))
        >>> found.policy.Q, found.policy.S.tolist(), round(found.cost / 2, 4)
        (69.0, [62.0, 62.0], 38.2508)
        >>> round(TotalDemandPolicy(36, 62).cost(Items(10, 1, 9, 64, 2)), 4)  # s = 26, S = 62
        37.0644
        >>> TotalDemandPolicy.optimum(RecordedItems([[2]] * 8, 1, 9, 4, 0))
        Optimum(cost=2.5, policy=TotalDemandPolicy(Q=3, S=[4]), lower=None)
    """

    def __init__(self, Q: float, S: Any) -> None:
        super().__init__(S)
        self.ordering: Ordering | None = None
        self.Q = math.inf if math.inf == Q else check_float("Q", Q, minimum=0.0, strict=True)

    @classmethod
    def best(cls, env: Any) -> TotalDemandPolicy:
        """Return the best rule of an environment: of the training periods of its record, if any."""
        problem = RecordedItems.of(env) if env.recorded else Items.of(env, "s_S")
        rule = cls.optimum(problem).policy.to(env.device)
        rule.ordering = None if env.ordering.simple else env.ordering
        return rule

    @classmethod
    def optimum(cls, problem: Items | RecordedItems) -> Optimum:
        """Return the rule of least :meth:`cost`; exact on items, the best found on a record.

        Raises:
            ValueError: the fixed cost so far outweighs the other costs that Q would run to a
                million units, or the demand of a record is zero everywhere.
        """
        recorded = isinstance(problem, RecordedItems)
        search: Any = recorded_demand.best_rule if recorded else joint_rules.best_total_demand
        Q, S, cost = search(problem)
        return Optimum(cost, cls(Q, S))

    def cost(self, problem: Items | RecordedItems) -> float:
        r"""Return the average cost per period over all items.

        On items, by renewal-reward over the cycle between two orders. With ``D`` the total demand
        of a period, Poisson of mean ``M = sum_i mu_i``, and ``u(j)`` the probability that the total
        demand since the last order ever equals ``j`` (as in :func:`s_S_cost`), of which item i then
        has a binomial part::

            c(Q, S) = (K P(D > 0) + sum_{j<Q} u(j) sum_i g_i(j, S_i)) / sum_{j<Q} u(j)
            g_i(j, y) = E[G_i(y - B_i(j))],   B_i(j) ~ Binomial(j, mu_i / M)
            g_i(0, y) = G_i(y),   g_i(j + 1, y) = g_i(j, y) + mu_i / M (g_i(j, y - 1) - g_i(j, y))

        ``G_i`` is the expected cost of a position that meets ``lead_time + 1`` periods of demand.
        On a record, by simulation.

        Raises:
            ValueError: Q or S is not whole on items, or there are not as many levels as items.
        """
        if isinstance(problem, RecordedItems):
            levels = np.broadcast_to(self.S.cpu().numpy(), problem.demand.shape[1:])
            return float(problem.simulate(np.array([self.Q]), levels[None])[0])
        Q, n = int(whole("Q", self.Q)), problem.mean.size
        return joint_rules.total_demand_cost(Q, self.levels(n), problem, np.ones(n))

    def orders(self, position: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """Order where at least Q is missing."""
        return ((self.S.to(position) - position).sum(-1) >= self.Q).long()

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Order what is missing to S; where pieces are to be picked, pick those that it lies in."""
        order, quantity = super().decide(*state)
        if self.ordering is None:
            return order, quantity
        discrete, continuous = self.ordering.encoded(order.unsqueeze(-1) * quantity).values()
        return discrete, continuous

    def __repr__(self) -> str:
        """Return the numbers."""
        return f"TotalDemandPolicy(Q={self.Q:g}, S=[{', '.join(f'{S:g}' for S in self.S)}])"


class PeriodicPolicy(OrderUpToPolicy):
    """Order all items up to S every ``R`` periods: (R, S).

    Source: D. Atkins and P. Iyogun (1988), "Periodic versus 'can-order' policies for coordinated
    multi-item inventory systems", Management Science 34(6), 791-796, with a common interval.

    Args:
        R: periods between orders; at least 1.
        S: order-up-to level of each item.

    Examples:
        >>> from hpo_torchrl.problems.inventory.optima.items import Items
        >>> found = PeriodicPolicy.optimum(Items([10, 10], 1, 9, 2 * 64, 2))
        >>> found.policy.R, found.policy.S.tolist(), round(found.cost / 2, 4)
        (4, [63.0, 63.0], 38.8823)
        >>> round(PeriodicPolicy(4, 63).cost(Items([10, 10], 1, 9, 2 * 64, 2)) / 2, 4)
        38.8823
    """

    in_keys = ["inventory", "step"]  # noqa: RUF012

    def __init__(self, R: int, S: Any) -> None:
        super().__init__(S)
        self.R = check_int("R", R, minimum=1)

    @classmethod
    def best(cls, env: Any) -> PeriodicPolicy:
        """Return the best rule of an environment."""
        return cls.optimum(Items.of(env, "R_S")).policy.to(env.device)

    @classmethod
    def optimum(cls, items: Items) -> Optimum:
        """Return the rule of least :meth:`cost`.

        Raises:
            ValueError: the fixed cost so far outweighs the other costs that R would run to a
                million periods.
        """
        R, S, cost = joint_rules.best_periodic(items)
        return Optimum(cost, cls(R, S))

    def cost(self, items: Items) -> float:
        """Return the exact average cost per period over all items.

        With ``M`` the sum of the means ``mu_i``, ``X_i(m)`` the Poisson demand of ``m`` periods::

            c(R, S) = (K (1 - exp(-R M)) + sum_{t<R} sum_i G_i(S_i, L + 1 + t)) / R
            G_i(y, m) = E[h_i (y - X_i(m))^+ + p_i (X_i(m) - y)^+]

        Raises:
            ValueError: S is not whole, or there are not as many levels as items.
        """
        n = items.mean.size
        return joint_rules.periodic_cost(self.R, self.levels(n), items, np.ones(n))

    def orders(self, position: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """Order in every R-th period of an episode."""
        return (state[1].squeeze(-1) % self.R == 0).long()


class TablePolicy(RulePolicy):
    """Order what a table says for a stock in whole units: the policy of an exact optimum.

    The stock has k numbers: the inventory position of each item (k = n), or, for a single item with
    lost sales and a lead time of two periods, the units on hand and those that arrive next period.
    Stock above the table counts as the highest in it. Below the table the policy never gets; there,
    an item that is ordered gets what is missing to the lowest stock as well.

    Args:
        lowest: the stock that the table begins with, ``(k,)``.
        order: units to order of each item, int64, one axis per number of the stock and a last one
            for the items: ``(*sizes, n)``.
        owed: whether unmet demand is owed, so that stock may be negative.
    """

    in_keys = ["inventory"]  # noqa: RUF012

    def __init__(self, lowest: Any, order: Any, *, owed: bool = True) -> None:
        super().__init__()
        self.owed = owed
        self.register_buffer("lowest", torch.as_tensor(lowest, dtype=torch.int64).reshape(-1))
        self.register_buffer("order", torch.as_tensor(np.ascontiguousarray(order)))

    def order_quantity(self, stock: Any) -> Tensor:
        """Return what to order.

        Args:
            stock: whole units, ``(*B, k)``.

        Returns:
            int64, ``(*B, n)``.

        Raises:
            ValueError: the last axis has another length, or a number is not whole, or is negative
                where nothing is owed.
        """
        x = torch.as_tensor(stock, device=self.lowest.device)
        k = self.lowest.numel()
        if x.ndim == 0 or x.shape[-1] != k:
            raise ValueError(f"stock must have shape (*B, {k}), got {tuple(x.shape)}.")
        x = torch.as_tensor(whole("stock", x.cpu().numpy()), device=x.device)
        if not self.owed and bool((x < 0).any()):
            raise ValueError(
                f"stock must be >= 0, as unmet demand is lost rather than owed; got {x.min()}."
            )
        place = x - self.lowest
        highest = torch.tensor(self.order.shape[:-1], device=x.device) - 1
        order = self.order[torch.minimum(place.clamp_min(0), highest).unbind(-1)]
        if k != order.shape[-1]:
            return order
        return order + (-place).clamp_min(0) * (order > 0)

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Order by the table; the discrete action says whether anything is ordered."""
        (inventory,) = state
        by_item = self.lowest.numel() == inventory.shape[-2]
        order = self.order_quantity(inventory.sum(-1) if by_item else inventory.flatten(-2))
        return (order > 0).any(-1).long(), order.to(inventory.dtype)


def whole(name: str, value: Any) -> Levels:
    """Return whole numbers as int64.

    Raises:
        ValueError: a number is not whole.
    """
    x = np.asarray(value)
    if not np.all(np.isfinite(x) & (x == np.floor(x))):
        raise ValueError(f"{name} must hold whole numbers of units, got {value!r}; round it first.")
    return x.astype(np.int64)
