"""The mixed-integer program as a policy: solved anew in every hour, for the rest of the day."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.modules import RulePolicy
from hpo_torchrl.problems.unit_commitment.optimum import solve
from hpo_torchrl.problems.unit_commitment.schedule import Schedule


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
        common: hours for which scenarios share the commitment: 1, that of now, or ``None`` for the
            rest of the day, which is quicker and costs more.
        gap: relative gap at which a program may stop.
        time_limit: seconds for one.
        segments: tangents of the fuel cost.
        seed: of the scenarios.

    Attributes:
        seconds: time of each decision.

    Examples:
        >>> from hpo_torchrl.problems import UnitCommitmentEnv
        >>> from hpo_torchrl.problems.unit_commitment.rolling import RollingMILP
        >>> env = UnitCommitmentEnv(horizon=3, demand_error=0.05, wind_capacity=300, batch_size=1)
        >>> policy = RollingMILP(env, scenarios=4)
        >>> day = env.rollout(3, policy)
        >>> day["action", "discrete"].shape, len(policy.seconds)
        (torch.Size([1, 3, 10]), 3)
    """

    def __init__(
        self,
        env: Any,
        scenarios: int = 0,
        *,
        common: int | None = 1,
        gap: float = 1e-3,
        time_limit: float = 60.0,
        segments: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.more = ["power"] * env.ramped + ["content"] * (env.batteries is not None)
        self.in_keys = ["step", "hours", "demand", "wind", "error", *self.more]
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
        first = [
            [part[..., 0, :].reshape(-1, part.shape[-1]) for part in plan.actions] for plan in plans
        ]
        # Scenarios share what is decided now; the powers of units are only then their own.
        discrete = torch.as_tensor(np.stack([part[0] for part, _ in first]))
        continuous = torch.as_tensor(np.stack([part.mean(0) for _, part in first]))
        return (
            discrete.reshape(*batch, -1).to(state[1].device, torch.int64),
            continuous.reshape(*batch, -1).to(state[1]),
        )

    def plan(self, step: Tensor, hours: Tensor, *state: Tensor) -> Schedule:
        """Return the schedule of the rest of one day; the arguments are its state."""
        started = time.perf_counter()
        env, left = self.env, self.env.horizon - int(step)
        demand, wind, error = (part.double() for part in state[:3])
        demand, wind = demand[:left], wind[:left]
        foreseen = env.days.expected(demand, wind, error)
        demand, wind, need = (
            self.draw(demand, wind, error) if self.scenarios else (*foreseen, env.need(*foreseen))
        )
        given: dict[str, Any] = {f"{name}_cost": cost for name, cost in env.penalties.items()}
        for name, part in zip(self.more, state[3:], strict=True):
            given[name] = part.double().numpy()
        plan = solve(
            env.units.changed(initial_hours=hours.double().numpy()),
            demand.clamp_min(0.0).numpy(),
            wind.numpy(),
            need=need.numpy(),
            batteries=env.batteries,
            **given,
            **self.limits,
        )
        self.seconds.append(time.perf_counter() - started)
        return plan

    def draw(self, demand: Tensor, wind: Tensor, error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return demand, wind and needed capacity of scenarios, ``(S, T)`` each.

        Args:
            demand: its forecasts for the coming hours, ``(T,)``.
            wind: its forecasts, likewise.
            error: by how much the last ones were missed, ``(2,)``.
        """
        days, shape = self.env.days, (self.scenarios // 2, len(demand), 2)
        half = torch.randn(shape, generator=self.rng, dtype=error.dtype)
        errors = [error.expand(self.scenarios, 2)]
        for noise in torch.cat([half, -half]).unbind(1):
            errors.append(days.next_error(errors[-1], noise))
        path = torch.stack(errors, 1)
        # The need of an hour is foreseen in the hour before.
        foreseen = days.actual(demand, wind, days.error_kept * path[:, :-1])
        return *days.actual(demand, wind, path[:, 1:]), self.env.need(*foreseen)
