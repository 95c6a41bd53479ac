"""What the best policy of a storage problem costs, or bounds on it."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.modules import RulePolicy
from hpo_torchrl.problems.storage.hindsight import Site, hindsight_cost
from hpo_torchrl.problems.storage.relaxation import relaxed_cost
from hpo_torchrl.problems.storage.rules import PlanPolicy, PriceThresholds
from hpo_torchrl.problems.storage.sites import fleet_of, stores_of

# Steps of all episodes of a test up to which each is solved in hindsight: some seconds.
_STEPS = 60_000


def storage_reference(env: Any, test: Test) -> Reference:
    """Return the optimum of one battery, or bounds on that of many.

    In the long run one battery has its optimal policy, run on the test itself: the same starts and
    noise, so that gaps hardly err. More have the plan of the fleet as one, run on the test, as an
    upper bound, and as a lower bound of the expected cost the larger of two: of the fleet as one
    battery, and of each battery by itself at prices that stand for the others (a Lagrangian
    relaxation). Of an episode the least cost in hindsight bounds that of any policy on the test;
    where prices are known beforehand and have no impact, it is the optimum.

    Args:
        env: the problem.
        test: the test to compare with.

    Returns:
        The reference, per battery and step; all ``None`` where nothing is known.
    """
    thresholds = PriceThresholds.best(env)
    baselines = {"price thresholds": test.run(thresholds).mean}
    known: dict[str, Any] = {"objective": test.objective, "discount": test.discount}
    details: dict[str, Any] = {"thresholds": [thresholds.buy, thresholds.sell]}
    if test.objective == "return" and env.horizon == test.num_steps:
        bound, exact = _hindsight(env, test)
        upper = min(baselines.values())
        costs = {"optimal_cost": bound} if exact else {"lower_bound": bound, "upper_bound": upper}
        return Reference(**costs, baselines=baselines, policy=None, paired=True, **known)
    if test.objective != "average":
        return Reference()
    with contextlib.suppress(ValueError):  # a cycle too long for a table
        policy = PlanPolicy.best(env)
        cost = test.run(policy).mean
        details["plan"] = {"bound": policy.plan.cost, "cost": cost}
        if env.num_batteries == 1:
            return Reference(cost, baselines=baselines, policy=policy, details=details, **known)
        details["lagrangian_bound"] = relaxed_cost(env)
        return Reference(
            lower_bound=max(policy.plan.cost, details["lagrangian_bound"]),
            upper_bound=min(cost, *baselines.values()),
            baselines=baselines | {"plan of the fleet": cost},
            policy=policy,
            details=details,
            **known,
        )
    return Reference(baselines=baselines, details=details, **known)


class _Watcher(RulePolicy):
    """Idle, and keep what is seen: a test's own starts and prices."""

    in_keys = ["content", "deviation", "hour"]  # noqa: RUF012

    def __init__(self, env: Any) -> None:
        super().__init__()
        self.env = env
        self.contents: list[Tensor] = []
        self.prices: list[Tensor] = []

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Idle."""
        content, deviation, hour = state
        self.contents.append(content)
        self.prices.append(self.env.of_hour(self.env.price_by_step, hour) + deviation)
        discrete = torch.zeros(content.shape, dtype=torch.int64, device=content.device)
        return discrete if self.env.num_heads else discrete.amax(-1), torch.zeros_like(content)


def _hindsight(env: Any, test: Test) -> tuple[float | None, bool]:
    """Return the mean cost of a test's episodes in hindsight, and whether it is the optimum."""
    if env.batch_size.numel() * env.horizon > _STEPS and env.prices.shock:
        return None, False
    watcher = _Watcher(env)
    test.run(watcher)
    prices = torch.cat(watcher.prices, -1).reshape(-1, env.horizon)
    contents = watcher.contents[0].reshape(-1, env.num_batteries)
    rows = torch.cat([prices, contents], -1).double().cpu().numpy()
    episodes, count = np.unique(rows, axis=0, return_counts=True)
    alone = env.num_heads == env.num_batteries or env.num_batteries == 1
    exact = alone and not env.prices.shock and not env.price_impact and len(episodes) == 1
    stores, copies = (stores_of(env), 1) if exact else ([fleet_of(env)], env.num_batteries)
    costs = []
    for row in episodes:
        first = row[env.horizon :] if copies == 1 else row[env.horizon :].mean(keepdims=True)
        price = row[: env.horizon]
        costs.append(hindsight_cost(stores, Site.of(env), price, first, copies=copies, whole=exact))
    mean = float(np.average(costs, weights=count))
    return mean / (env.horizon * env.cost_units), exact
