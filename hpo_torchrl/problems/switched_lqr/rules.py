"""Rules of switched linear control as policies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_int
from hpo_torchrl.modules import RulePolicy
from hpo_torchrl.problems.switched_lqr.optimum import fixed_mode_cost, fixed_mode_gains


class FixedModePolicy(RulePolicy):
    """Stay in one mode of a switched linear system and feed back linearly, u = -K x.

    Args:
        mode: the mode.
        gains: K with 0, 1, ..., T - 1 steps gone, ``(T, m, n)``.
    """

    in_keys = ["x", "step"]  # noqa: RUF012

    def __init__(self, mode: int, gains: Any) -> None:
        super().__init__()
        self.mode = check_int("mode", mode, minimum=0)
        self.register_buffer("gains", torch.as_tensor(gains))

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Feed back by the gain of the step."""
        x, step = state
        gain = self.gains.to(x)[step.squeeze(-1).clamp_max(len(self.gains) - 1)]
        u = -(gain @ x.unsqueeze(-1)).squeeze(-1)
        return torch.full(x.shape[:-1], self.mode, device=x.device), u


def fixed_mode_rule(env) -> FixedModePolicy:
    """Stay in the mode that is cheapest on average, with its time-varying Riccati feedback.

    Process noise, which the feedback need not know of, has no say in the choice of the mode.
    """
    A, B, Q, R = (matrix.cpu() for matrix in (env.A, env.B, env.Q, env.R))
    # Initial states are uniform in a cube: their mean cost is proportional to the trace.
    axes = torch.eye(env.A.shape[-1], dtype=torch.float64)
    mode = int(fixed_mode_cost(A, B, Q, R, env.horizon, axes).sum(-1).argmin())
    gains = fixed_mode_gains(A, B, Q, R, env.horizon, mode)
    return FixedModePolicy(mode, gains).to(env.device)
