"""Rules of inventory control as policies, with the best numbers of an environment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpo_torchrl.core.checks import check_int
from hpo_torchrl.modules import RulePolicy
from hpo_torchrl.problems.inventory.optima.periodic_rule import best_periodic_rule
from hpo_torchrl.problems.inventory.optima.recorded_demand import RecordedRule, best_recorded_rule
from hpo_torchrl.problems.inventory.optima.total_demand_rule import best_total_demand_rule


class OrderUpToPolicy(RulePolicy):
    """Order every period, each item up to its level S: the base-stock rule.

    Args:
        S: order-up-to level of each item, in units of inventory position.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.problems import OrderUpToPolicy
        >>> env = InventoryEnv(num_items=2, batch_size=4)
        >>> env.rollout(3, OrderUpToPolicy([38, 38]))["action", "discrete"].all().item()
        True
    """

    in_keys = ["inventory"]  # noqa: RUF012

    def __init__(self, S: Sequence[float] | Tensor) -> None:
        super().__init__()
        self.register_buffer("S", torch.as_tensor(S, dtype=torch.float64))

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Order what is missing to S."""
        position = state[0].sum(-1)
        return self.orders(position, state), (self.S.to(position) - position).clamp_min(0.0)

    def orders(self, position: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """Say which systems order, int64 ``(*B,)``."""
        return torch.ones(position.shape[:-1], dtype=torch.int64, device=position.device)


class TotalDemandPolicy(OrderUpToPolicy):
    """Order all items up to S as soon as they lack ``Q`` together: (s, S) of a joint fixed cost.

    For one item this is the (s, S) rule with s = S - Q.

    Args:
        Q: units that must be missing in all.
        S: order-up-to level of each item.
    """

    def __init__(self, Q: float, S: Sequence[float] | Tensor) -> None:
        super().__init__(S)
        self.Q = float(Q)

    def orders(self, position: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """Order where at least Q is missing."""
        return ((self.S.to(position) - position).sum(-1) >= self.Q).long()


class PeriodicPolicy(OrderUpToPolicy):
    """Order all items up to S every ``R`` periods: (R, S).

    Args:
        R: periods between orders.
        S: order-up-to level of each item.
    """

    in_keys = ["inventory", "step"]  # noqa: RUF012

    def __init__(self, R: int, S: Sequence[float] | Tensor) -> None:
        super().__init__(S)
        self.R = check_int("R", R, minimum=1)

    def orders(self, position: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """Order in every R-th period of an episode."""
        return (state[1].squeeze(-1) % self.R == 0).long()


def s_S_rule(env) -> nn.Module:
    """(s, S) for one item; for more, order all up to S_i once they lack Q in all."""
    rule = best_total_demand_rule(*inventory_costs(env, "s_S"))
    return TotalDemandPolicy(rule.Q, rule.S)


def R_S_rule(env) -> nn.Module:
    """(R, S): order all items every R periods, each up to S_i."""
    rule = best_periodic_rule(*inventory_costs(env, "R_S"))
    return PeriodicPolicy(rule.R, rule.S)


def order_up_to_rule(env) -> nn.Module:
    """Order up to S_i in every period: optimal without a fixed cost, blind to one.

    S_i is the newsvendor level, the smallest with P(demand of L + 1 periods <= S) >= p / (h + p).
    """
    from scipy.stats import poisson  # almost a second, for this rule alone

    mean, holding, shortage, _, lead_time = inventory_costs(env, "order_up_to")
    levels = [
        poisson.ppf(p / (h + p), (lead_time + 1) * mu)
        for mu, h, p in zip(mean, holding, shortage, strict=True)
    ]
    return OrderUpToPolicy(levels)


def recorded_rule(env) -> RecordedRule:
    """Return the (Q, S) rule that would have cost least in the training periods of a record.

    A lead time and an order interval, or a quarter of those periods if that is less, are to warm
    up; see :func:`~hpo_torchrl.problems.inventory.best_recorded_rule`.
    """
    record = env.record[slice(*env.train_periods)]
    holding, shortage, procurement = (
        row.double().tolist() for row in (env.holding_cost, env.shortage_cost, env.procurement_cost)
    )
    return best_recorded_rule(
        record.double().cpu().numpy(),
        holding,
        shortage,
        env.fixed_cost,
        env.lead_time,
        procurement_cost=procurement,
        lost_sales=env.lost_sales,
        warm_up=min(env.lead_time + env.order_interval, len(record) // 4),
    )


def recorded_policy(env) -> TotalDemandPolicy:
    """Return :func:`recorded_rule` as a policy."""
    rule = recorded_rule(env)
    return TotalDemandPolicy(rule.Q, rule.S).to(env.device)


def inventory_costs(
    env, algorithm: str
) -> tuple[list[float], list[float], list[float], float, int]:
    """Return mean, h, p (one per item), K and L of an environment, as the oracles take them.

    Raises:
        ValueError: the environment is not one with backlogged Poisson demand and
            positive costs.
    """
    if not env.solvable:
        what = f"{type(env).__name__} with demand={env.demand!r}, lost_sales={env.lost_sales}"
        raise ValueError(
            f"algorithm={algorithm} needs env=inventory with backlogged Poisson demand and "
            f"positive holding and shortage costs, got {what}; choose another algorithm."
        )
    mean, holding, shortage = (
        row.double().tolist() for row in (env.demand_mean, env.holding_cost, env.shortage_cost)
    )
    return mean, holding, shortage, env.fixed_cost, env.lead_time
