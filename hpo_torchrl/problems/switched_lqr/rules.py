"""The rule of switched linear control as a policy: one mode, never left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpo_torchrl.core.checks import check_int
from hpo_torchrl.modules import RulePolicy
from hpo_torchrl.problems.switched_lqr.system import System


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

    @classmethod
    def best(cls, env: Any) -> FixedModePolicy:
        """Return the mode that is cheapest on average, with its time-varying Riccati feedback.

        Process noise, which the feedback need not know of, does not enter the choice of the mode.
        """
        system = System.of(env.A, env.B, env.Q, env.R)
        P, gains = _fixed_modes(system, env.horizon)
        # Initial states are uniform in a cube: their mean cost is proportional to the trace.
        mode = int(P.diagonal(dim1=-2, dim2=-1).sum(-1).argmin())
        return cls(mode, gains[:, mode]).to(env.device)

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Feed back by the gain of the step."""
        x, step = state
        gain = self.gains.to(x)[step.squeeze(-1).clamp_max(len(self.gains) - 1)]
        u = -(gain @ x.unsqueeze(-1)).squeeze(-1)
        return torch.full(x.shape[:-1], self.mode, device=x.device), u


def fixed_mode_cost(A: Any, B: Any, Q: Any, R: Any, horizon: int, x0: Any) -> Tensor:
    """Return the least total cost of staying in one mode, for each mode: a baseline.

    Args:
        A: matrices, like the next three as for :func:`switched_lqr_optimum`.
        B: see there.
        Q: see there.
        R: see there.
        horizon: steps T.
        x0: initial states, ``(*B, n)``.

    Returns:
        Undiscounted costs in float64, ``(M, *B)``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes disagree, or an argument is not finite or out of range.
    """
    system = System.of(A, B, Q, R)
    x = system.states("x0", x0)
    P, _ = _fixed_modes(system, check_int("horizon", horizon, minimum=1))
    return torch.einsum("...i,mij,...j->m...", x, P, x)


def _fixed_modes(system: System, horizon: int) -> tuple[Tensor, Tensor]:
    """Return the cost-to-go of every mode, ``(M, n, n)``, and its gains, ``(T, M, m, n)``."""
    P, modes, gains = torch.zeros_like(system.A), torch.arange(system.num_modes), []
    for _ in range(horizon):
        gains.append(system.gain(P, modes))
        P = system.riccati(P, modes)
    return P, torch.stack(gains[::-1])
