"""What the cheapest schedule of a test's days costs, or what no schedule goes below."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpo_torchrl.core.reference import Reference, Test
from hpo_torchrl.modules import RulePolicy
from hpo_torchrl.problems.unit_commitment.operation import Operation, operate
from hpo_torchrl.problems.unit_commitment.optimum import lower_bound, solve
from hpo_torchrl.problems.unit_commitment.rules import PriorityList
from hpo_torchrl.problems.unit_commitment.schedule import Schedule

# Seconds that a reference may take; relative gap below which a schedule counts as the optimum, and
# at which the bound of one day among many will do.
_SECONDS, _EXACT, _FAIR = 45.0, 1e-5, 1e-3


class DaySchedule(RulePolicy):
    """Replay a schedule, hour by hour of the day.

    Args:
        schedule: of a day without scenarios.
        env: the environment, for its types.

    Examples:
        >>> from hpo_torchrl.problems import UnitCommitmentEnv
        >>> from hpo_torchrl.problems.unit_commitment import solve
        >>> from hpo_torchrl.problems.unit_commitment.reference import DaySchedule
        >>> env = UnitCommitmentEnv(horizon=6, batch_size=1)
        >>> best = solve(env.units, env.days.demand[0], reserve=env.reserve)
        >>> day = env.rollout(6, DaySchedule(best, env))
        >>> cost = -float(day["next", "reward"].sum())
        >>> abs(cost / best.cost - 1) < 1e-6
        True
    """

    in_keys = ["step"]  # noqa: RUF012

    def __init__(self, schedule: Schedule, env: Any) -> None:
        super().__init__()
        discrete, continuous = schedule.actions
        self.discrete = torch.as_tensor(discrete, device=env.device).long()
        self.continuous = torch.as_tensor(continuous, device=env.device, dtype=env.float_dtype)

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Take the hour's row of the schedule."""
        hour = state[0].squeeze(-1).clamp_max(len(self.discrete) - 1)
        return self.discrete[hour], self.continuous[hour]


def unit_commitment_reference(env: Any, test: Test) -> Reference:
    """Return what is known of the best schedule for the days of a test, per hour, within a minute.

    Of a day that is certain: the schedule that the mixed-integer program finds, replayed in the
    simulator, and its certified bound. Where ramps bind, the simulator may not be able to follow it
    (economic dispatch does not look ahead, and no wind is curtailed to keep a unit up); the upper
    bound is then the cost of the replay or of the priority list.

    Of days that are drawn: a lower bound by perfect information, the mean over the very days of the
    test of what no schedule goes below that knows the whole day at its beginning. Demand and wind
    are those that came, and so is the need of capacity in each hour: it follows from forecasts and
    their errors, which no decision changes. Every run of the simulator, whatever it knows, is
    therefore a solution of the program, at its own cost.

    Penalties are those of the simulator; the priority list is the baseline.
    """
    rule = PriorityList.best(env)
    baselines = {"priority list": test.run(rule).mean}
    if test.objective != "return":  # with which whole days are measured
        known: dict[str, Any] = {"objective": test.objective, "discount": test.discount}
        return Reference(baselines=baselines, policy=rule, **known)
    of: dict[str, Any] = {"baselines": baselines, "objective": "return", "paired": True}
    days = operate(test, rule)
    if not env.days.certain:
        bound = float(perfect_information(env, days).mean()) / env.horizon
        return Reference(lower_bound=bound, policy=rule, **of)
    best = solve(env.units, **program_of(env, days, 0), gap=_EXACT / 2, time_limit=_SECONDS)
    schedule = DaySchedule(best, env)
    bound, cost = best.bound / env.horizon, best.cost / env.horizon
    replayed = test.run(schedule).mean
    if replayed > cost * (1 + _EXACT):  # more than rounding
        cost = replayed
    if cost - bound <= _EXACT * abs(cost):
        return Reference(optimal_cost=cost, policy=schedule, **of)
    listed = baselines["priority list"]
    policy = schedule if cost <= listed else rule
    return Reference(lower_bound=bound, upper_bound=min(cost, listed), policy=policy, **of)


def perfect_information(env: Any, days: Operation, seconds: float = _SECONDS) -> np.ndarray:
    """Return a cost in $ for each day, ``(N,)``, that no schedule goes below, though it knows all.

    Args:
        env: the environment.
        days: the days; those that are alike are solved once.
        seconds: time for all of them; a day whose share is short has a looser bound.
    """
    table = np.concatenate([days.demand, days.wind, days.need, days.before], -1)
    _, first, kind = np.unique(table, axis=0, return_index=True, return_inverse=True)
    end, bounds = time.perf_counter() + seconds, np.empty(len(first))
    for at, day in enumerate(first):
        left = max((end - time.perf_counter()) / (len(first) - at), 0.01)
        bounds[at] = lower_bound(
            env.units, **program_of(env, days, day), gap=_FAIR, time_limit=left
        )
    return bounds[kind.reshape(-1)]


def program_of(env: Any, days: Operation, i: int) -> dict[str, Any]:
    """Return a day, and what the simulator charges, as :func:`solve` takes them."""
    return {
        "demand": days.demand[i],
        "wind": days.wind[i],
        "need": days.need[i],
        "power": days.before[i] if env.ramped else None,
        "batteries": env.batteries,
        **{f"{name}_cost": penalty for name, penalty in env.penalties.items()},
    }
