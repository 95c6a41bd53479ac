"""The mixed-integer program on an environment's days: a policy, and the best in hindsight."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.modules import RulePolicy
from hpo_torchrl.problems.unit_commitment.milp import Schedule, solve


class RollingMILP(RulePolicy):
    r"""Solve the rest of the day in every hour, and commit its first hour.

    Without scenarios demand and wind are what is to be expected, given the last errors of the
    forecasts. With them it is a two-stage stochastic program: scenarios share the commitment of
    ``common`` hours; later commitments, and the dispatch of all hours, are their own. Scenarios are
    drawn from the process of the errors, each with its mirror image; each asks for its own reserve.

    Source: S. Takriti, J. R. Birge and E. Long (1996), "A stochastic model for the unit commitment
    problem", IEEE Transactions on Power Systems 11(3), 1497-1508.

    Args:
        env: the environment.
        scenarios: number of scenarios, even; 0 for the conditional mean.
        common: hours that all scenarios share, None for the rest of the day.
        gap: relative gap at which a program may stop.
        time_limit: seconds for one.
        segments: tangents of the fuel cost.
        seed: of the scenarios.

    Attributes:
        seconds: time of each decision.

    Examples:
        >>> from hpo_torchrl.problems import UnitCommitmentEnv
        >>> from hpo_torchrl.problems.unit_commitment.rolling import RollingMILP, foresight
        >>> env = UnitCommitmentEnv(horizon=3, demand_error=0.05, wind_capacity=300, batch_size=1)
        >>> day = env.rollout(3, RollingMILP(env, scenarios=4))
        >>> cost = -day["next", "reward"].sum()
        >>> bool(cost >= foresight(env, day)[0].bound)
        True
    """

    def __init__(
        self,
        env: Any,
        scenarios: int = 0,
        *,
        common: int | None = None,
        gap: float = 1e-3,
        time_limit: float = 60.0,
        segments: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.in_keys = ["step", "hours", "demand", "wind", "error"] + ["power"] * env.ramped
        self.env, self.scenarios = env, check_int("scenarios", scenarios, minimum=0)
        if scenarios % 2:
            raise ValueError(
                f"scenarios must be even, each with its mirror image, got {scenarios}."
            )
        self.limits: dict[str, Any] = {
            "common": None if common is None else check_int("common", common, minimum=1),
            "gap": check_float("gap", gap, minimum=0.0),
            "time_limit": check_float("time_limit", time_limit, minimum=0.0, strict=True),
            "segments": check_int("segments", segments, minimum=1),
        }
        self.rng = torch.Generator().manual_seed(check_int("seed", seed, minimum=0))
        self.seconds: list[float] = []

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Solve one program for each env instance."""
        batch = state[1].shape[:-1]
        flat = (part.reshape(-1, *part.shape[len(batch) :]).cpu() for part in state)
        plans = [self.plan(*instance) for instance in zip(*flat, strict=True)]
        on = np.stack([plan.on[..., 0, :].reshape(-1, plan.on.shape[-1])[0] for plan in plans])
        power = np.stack(
            [plan.power[..., 0, :].reshape(-1, on.shape[-1]).mean(0) for plan in plans]
        )
        hours = state[1]
        discrete = torch.as_tensor(on, dtype=torch.int64, device=hours.device)
        continuous = torch.as_tensor(power, dtype=hours.dtype, device=hours.device)
        return discrete.reshape(*batch, -1), continuous.reshape(*batch, -1)

    def plan(self, step: Tensor, hours: Tensor, *state: Tensor) -> Schedule:
        """Return the schedule of the rest of one day; the arguments are its state."""
        started = time.perf_counter()
        env, left = self.env, self.env.horizon - int(step)
        demand, wind, error = (part.double() for part in state[:3])
        demand, wind = demand[:left], wind[:left]
        if self.scenarios:
            day = _come(env, demand, wind, self.draw(error, left))
        else:
            expected = env.days.expected(demand, wind, error)
            day = *expected, env.need(*expected)
        plan = _solve(env, hours, day, state[3] if env.ramped else None, self.limits)
        self.seconds.append(time.perf_counter() - started)
        return plan

    def draw(self, error: Tensor, hours: int) -> Tensor:
        """Return errors of scenarios from the last hour's on, ``(S, hours + 1, 2)``."""
        half = torch.randn(self.scenarios // 2, hours, 2, generator=self.rng, dtype=error.dtype)
        errors = [error.expand(self.scenarios, 2)]
        for noise in torch.cat([half, -half]).unbind(1):
            errors.append(self.env.days.next_error(errors[-1], noise))
        return torch.stack(errors, 1)


def foresight(env: Any, days: TensorDictBase, **limits: Any) -> list[Schedule]:
    """Return the best schedules of days of which all is known beforehand.

    No policy can do better on these days, whatever it does not know: the mean of the bounds is a
    lower bound on its mean cost there.

    Args:
        env: the environment.
        days: a rollout of whole days, ``(*B, T)``, by any policy: what comes does not depend on it.
        limits: ``gap``, ``segments`` and ``time_limit`` of :func:`solve`.
    """
    flat = days.reshape(-1, days.shape[-1])
    found = []
    for day in flat.cpu().unbind(0):
        errors = torch.cat([day["error"][:1], day["next", "error"]]).double()
        demand, wind = (day[name][0].double() for name in ("demand", "wind"))
        power = day["power"][0] if env.ramped else None
        found.append(_solve(env, day["hours"][0], _come(env, demand, wind, errors), power, limits))
    return found


def _come(env: Any, demand: Tensor, wind: Tensor, errors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return demand, wind and needed capacity, ``(*S, T)``, where forecasts have these errors.

    Args:
        env: the environment.
        demand: its forecasts, ``(T,)``.
        wind: its forecasts, likewise.
        errors: from the hour before the first on, ``(*S, T + 1, 2)``.
    """
    days = env.days
    # The need of an hour is foreseen in the hour before.
    foreseen = days.actual(demand, wind, days.error_kept * errors[..., :-1, :])
    return *days.actual(demand, wind, errors[..., 1:, :]), env.need(*foreseen)


def _solve(
    env: Any, hours: Tensor, day: tuple[Tensor, ...], power: Tensor | None, limits: dict[str, Any]
) -> Schedule:
    """Solve a day, or what is left of it, from a state on."""
    demand, wind, need = (part.numpy() for part in day)
    return solve(
        env.units.changed(initial_hours=hours.double().numpy()),
        np.maximum(demand, 0.0),
        wind,
        need=need,
        unserved_cost=env.penalties["unserved"],
        surplus_cost=env.penalties["surplus"],
        reserve_cost=env.penalties["reserve"],
        power=None if power is None else power.double().numpy(),
        **limits,
    )
