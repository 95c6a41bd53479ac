"""All discrete actions of an environment, and the ends of the continuous action beside each."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor


def joint_actions(env: Any) -> Tensor:
    """Return every combination of discrete actions, ``(C, H)``; H is 1 without heads."""
    every = range(env.num_discrete)
    return torch.tensor([*itertools.product(every, repeat=env.num_heads or 1)], device=env.device)


def ends_of(env: Any, joint: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends of each coordinate beside discrete actions, infinite where there is none.

    Args:
        env: the environment.
        joint: combinations of discrete actions, ``(C, H)``.

    Returns:
        Lower and upper ends, each ``(C, n)``, in float64. Of ends of the sum over coordinates, each
        coordinate has those of the sum.
    """
    count, n, bounds = len(joint), env.continuous_dim, env.branch_bounds
    ends = env.continuous_bounds if bounds is None else bounds[:2]
    found = []
    for end, none in zip(ends, (-torch.inf, torch.inf), strict=True):
        end = torch.as_tensor(none if end is None else end, dtype=torch.float64, device=env.device)
        if bounds is None:
            end = end.expand(count, n)
        elif bounds.of_total:
            end = end[joint[:, 0]].unsqueeze(-1).expand(-1, n)
        elif env.num_heads is None:
            end = end[joint[:, 0]]
        else:  # (H, M, k): each head has its own coordinates
            end = torch.cat([own[rows] for own, rows in zip(end, joint.T, strict=True)], -1)
        found.append(end)
    return found[0], found[1]
