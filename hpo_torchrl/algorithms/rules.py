"""Rules that need no training, as algorithms: lines to beat, run and reported like any other."""

from __future__ import annotations

import abc
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.envs import EnvBase

from hpo_torchrl.algorithms.base import Algorithm
from hpo_torchrl.envs import InventoryEnv, RecordedInventoryEnv, SwitchedLQREnv
from hpo_torchrl.modules import (
    FixedModePolicy,
    HybridPolicy,
    OrderUpToPolicy,
    PeriodicPolicy,
    TotalDemandPolicy,
)
from hpo_torchrl.oracles import (
    RecordedRule,
    best_periodic_rule,
    best_recorded_rule,
    best_total_demand_rule,
    fixed_mode_cost,
    fixed_mode_gains,
)


class _NoCollector:
    """Stands for a collector where nothing is collected."""

    frames = 0

    def shutdown(self) -> None:
        """Nothing is open."""


class Rule(Algorithm):
    """A rule of operations research or control: its best parameters, computed, and no training.

    Args:
        env: the environment that the rule is for.
        policy: not used; it is taken so that every algorithm is built alike.
        critic: not used.

    Raises:
        ValueError: the rule is for another environment, or the instance is beyond its formulas.
    """

    learns = False

    def __init__(
        self, env: EnvBase, policy: HybridPolicy | None = None, critic: Any = None
    ) -> None:
        self.env, self.collector = env, _NoCollector()
        self.policy = self.make_policy(env)

    @abc.abstractmethod
    def make_policy(self, env: EnvBase) -> Any:
        """Compute the rule's best parameters for an environment."""

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Do nothing: a rule does not learn."""
        return {}

    def anneal(self, progress: float) -> None:
        """Do nothing."""

    def components(self) -> dict[str, Any]:
        """Return the rule."""
        return {"policy": self.policy}


class SSRule(Rule):
    """(s, S) for one item; for more, order all up to S_i once they lack Q in all.

    Source: Zheng & Federgruen (1991); :func:`~hpo_torchrl.oracles.best_total_demand_rule`. On
    recorded demand the rule that is best in the training periods: :func:`recorded_rule`.

    Examples:
        >>> from hpo_torchrl.algorithms import SSRule
        >>> from hpo_torchrl.envs import InventoryEnv
        >>> rule = SSRule(InventoryEnv(batch_size=4)).policy
        >>> rule.Q, rule.S.tolist()
        (36.0, [62.0])
    """

    def make_policy(self, env: EnvBase) -> nn.Module:
        """Find Q and S."""
        if isinstance(env, RecordedInventoryEnv):
            recorded = recorded_rule(env)
            return TotalDemandPolicy(recorded.Q, recorded.S)
        rule = best_total_demand_rule(*inventory_costs(env, "s_S"))
        return TotalDemandPolicy(rule.Q, rule.S)


class RSRule(Rule):
    """(R, S): order all items every R periods, each up to S_i."""

    def make_policy(self, env: EnvBase) -> nn.Module:
        """Find R and S."""
        rule = best_periodic_rule(*inventory_costs(env, "R_S"))
        return PeriodicPolicy(rule.R, rule.S)


class OrderUpToRule(Rule):
    """Order up to S_i in every period: optimal without a fixed cost, blind to one.

    S_i is the newsvendor level, the smallest with P(demand of L + 1 periods <= S) >= p / (h + p).
    """

    def make_policy(self, env: EnvBase) -> nn.Module:
        """Find S."""
        from scipy.stats import poisson  # almost a second, for this rule alone

        mean, holding, shortage, _, lead_time = inventory_costs(env, "order_up_to")
        levels = [
            poisson.ppf(p / (h + p), (lead_time + 1) * mu)
            for mu, h, p in zip(mean, holding, shortage, strict=True)
        ]
        return OrderUpToPolicy(levels)


class FixedModeRule(Rule):
    """Stay in the mode that is cheapest on average, with its time-varying Riccati feedback.

    Process noise, which the feedback need not know of, has no say in the choice of the mode.
    """

    def make_policy(self, env: EnvBase) -> nn.Module:
        """Choose the mode by its mean cost, and compute its gains."""
        if not isinstance(env, SwitchedLQREnv):
            raise ValueError(
                f"algorithm=fixed_mode is for a switched LQR, got {type(env).__name__}; choose "
                "env=switched_lqr, or another algorithm."
            )
        A, B, Q, R = (matrix.cpu() for matrix in (env.A, env.B, env.Q, env.R))
        # Initial states are uniform in a cube: their mean cost is proportional to the trace.
        axes = torch.eye(env.A.shape[-1], dtype=torch.float64)
        mode = int(fixed_mode_cost(A, B, Q, R, env.horizon, axes).sum(-1).argmin())
        gains = fixed_mode_gains(A, B, Q, R, env.horizon, mode)
        return FixedModePolicy(mode, gains).to(env.device)


def recorded_rule(env: RecordedInventoryEnv) -> RecordedRule:
    """Return the (Q, S) rule that would have cost least in the training periods of a record.

    A lead time and an order interval, or a quarter of those periods if that is less, are to warm
    up; see :func:`~hpo_torchrl.oracles.best_recorded_rule`.
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


def inventory_costs(
    env: EnvBase, algorithm: str
) -> tuple[list[float], list[float], list[float], float, int]:
    """Return mean, h, p (one per item), K and L of an environment, as the oracles take them.

    Raises:
        ValueError: the environment is no :class:`InventoryEnv` with backlogged Poisson demand and
            positive costs.
    """
    if not isinstance(env, InventoryEnv) or not env.solvable:
        what = type(env).__name__
        if isinstance(env, InventoryEnv):
            what += f" with demand={env.demand!r}, lost_sales={env.lost_sales}"
        raise ValueError(
            f"algorithm={algorithm} needs env=inventory with backlogged Poisson demand and "
            f"positive holding and shortage costs, got {what}; choose another algorithm."
        )
    mean, holding, shortage = (
        row.double().tolist() for row in (env.demand_mean, env.holding_cost, env.shortage_cost)
    )
    return mean, holding, shortage, env.fixed_cost, env.lead_time


__all__ = ["FixedModeRule", "OrderUpToRule", "RSRule", "Rule", "SSRule", "recorded_rule"]
