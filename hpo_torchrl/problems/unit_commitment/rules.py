"""Rules of unit commitment as policies."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hpo_torchrl.core.checks import check_int
from hpo_torchrl.modules import RulePolicy
from hpo_torchrl.problems.unit_commitment.views import UnitViews

# Hours beyond its minimum down time for which a unit may wait to be needed again; test days.
_PATIENCE, _DAYS = range(7), 256


class PriorityList(RulePolicy):
    """Commit units in the order of their cost at full power, until need is covered.

    Units that must stay on come first. A unit that is on stays on if the list would need it again
    within its minimum down time and ``patience`` more hours. Batteries stay idle.

    Source: A. J. Wood, B. F. Wollenberg and G. B. Sheblé (2013), "Power generation, operation, and
    control", 3rd edition, section 4.3.1.

    Args:
        env: the environment.
        patience: these hours.

    Examples:
        >>> from hpo_torchrl.problems import UnitCommitmentEnv
        >>> from hpo_torchrl.problems.unit_commitment.rules import PriorityList
        >>> env = UnitCommitmentEnv(batch_size=1)
        >>> cost = -env.rollout(24, PriorityList(env))["next", "reward"].sum()
        >>> bool(563_900 < cost < 566_000)
        True
    """

    in_keys = ["observation"]  # noqa: RUF012

    def __init__(self, env: Any, patience: int = 0) -> None:
        super().__init__()
        self.views, self.patience = env.views(), check_int("patience", patience, minimum=0)

    @classmethod
    def best(cls, env: Any) -> PriorityList:
        """Return the list whose patience is cheapest on simulated days."""
        costs = [_mean_cost(copy.deepcopy(env), cls(env, patience)) for patience in _PATIENCE]
        return cls(env, _PATIENCE[int(np.argmin(costs))])

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Commit the units."""
        views: UnitViews = self.views
        hours, missing = views.hours(state[0]), views.missing(state[0])
        discrete = views.listed(hours, missing, self.patience).long()
        power = views.cheapest(state[0], discrete)
        idle = (0, views.num_batteries)
        return F.pad(discrete, idle), F.pad(power, idle)


@torch.no_grad()
def _mean_cost(env: Any, rule: RulePolicy) -> float:
    """Return what a rule costs on a mean day, over the same days for each rule."""
    env.set_seed(0)
    number = 1 if env.days.certain else _DAYS
    state, total = env.morning((number,)), 0.0
    noise = env._draw(torch.randn, (env.horizon, number, 2))
    state["step"] = torch.zeros(number, 1, dtype=torch.int64, device=env.device)
    for hour in range(env.horizon):
        discrete, continuous = rule.decide(env.observe(state))
        action = {"discrete": discrete, "continuous": continuous}
        after, reward = env.dynamics(state, action, noise[hour])
        total -= float(reward.mean())
        state = {**after, "step": state["step"] + 1}
    return total
