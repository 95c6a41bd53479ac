"""Discrete choices: what may be chosen, the continuous action beside each, and their entropy."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchrl.data import Bounded, Categorical
from torchrl.envs import EnvBase

from hpo_torchrl.core.wrappers import plain

# Entry that says which discrete actions may be chosen; TorchRL's own name for it.
ACTION_MASK = "action_mask"
ACTION_KEYS = (("action", "discrete"), ("action", "continuous"))


class BranchBounds(NamedTuple):
    """Ends of the continuous action by discrete action, for a policy that is to stay between them.

    Attributes:
        low: lower ends; minus infinity where there is none. Of shape ``(M, n)``, ``(H, M, k)`` for
            H heads, or ``(M,)`` for ends of the sum over all coordinates.
        high: upper ends, of the same shape.
        of_total: whether they are ends of the sum.
    """

    low: Any
    high: Any
    of_total: bool = False


def all_fixed(bounds: BranchBounds | None) -> bool:
    """Whether every discrete action leaves a single continuous one."""
    if bounds is None or bounds.of_total:
        return False
    return torch.equal(torch.as_tensor(bounds.low), torch.as_tensor(bounds.high))


def action_sizes(env: EnvBase) -> tuple[int, int, int | None]:
    """Return the numbers of discrete actions, of coordinates and, if there are any, of heads.

    Raises:
        ValueError: the actions of the environment are no hybrid ones of those names and kinds.
    """
    spec = env.full_action_spec
    discrete, continuous = (spec.get(key, None) for key in ACTION_KEYS)
    kinds = isinstance(discrete, Categorical) and getattr(continuous, "dtype", None)
    if not (kinds and kinds.is_floating_point and continuous.shape[-1] > 0):
        found = [f"{key!r} ({_kind(spec[key])})" for key in spec.keys(True, True)]
        raise ValueError(
            "The environment must have the actions ('action', 'discrete'), a Categorical, and "
            f"('action', 'continuous'), real, alike in all of its members, got {', '.join(found)}. "
            "Give others these names by RenameTransform([], [], [old, ...], [new, ...]), and leave "
            "out transforms that change their kind."
        )
    heads = discrete.shape[len(continuous.shape) - 1 :]
    return int(discrete.space.n), continuous.shape[-1], heads[0] if heads else None


def _kind(spec: Any) -> str:
    return f"{type(spec).__name__} {tuple(spec.shape)}"


def action_bounds(env: EnvBase) -> tuple[Any, Any]:
    """Return the ends of the continuous action, each ``None``, one number, or one per coordinate.

    They are the attribute ``continuous_bounds`` of the environment, or else read off its spec.
    """
    if (known := getattr(plain(env), "continuous_bounds", None)) is not None:
        return known
    return spec_bounds(env.full_action_spec["action", "continuous"])


def spec_bounds(spec: Any) -> tuple[Any, Any]:
    """Read bounds off a spec, one number where all coordinates share them; ``None`` without any."""
    if not isinstance(spec, Bounded):
        return None, None
    found: list[Any] = []
    for end in (spec.space.low, spec.space.high):
        rows = end.reshape(-1, end.shape[-1])
        if not bool((rows == rows[0]).all()):
            raise ValueError(
                "HybridPolicy.for_env needs the same bounds for every instance of the batch, got "
                f"{end.tolist()}; give the environment an attribute continuous_bounds, or build "
                "the HybridNetwork yourself."
            )
        # The bounds of an unbounded spec are the largest numbers.
        own = [math.copysign(math.inf, x) if abs(x) >= 1e30 else x for x in rows[0].tolist()]
        shared = len(set(own)) == 1
        found.append((None if math.isinf(own[0]) else own[0]) if shared else own)
    return found[0], found[1]


def entropy_of(logits: Tensor) -> Tensor:
    """Return the entropy in nats, ``(*B,)``, of normalised log-probabilities ``(*B, M)``."""
    return -(logits.exp() * finite(logits)).sum(-1)


def finite(logits: Tensor) -> Tensor:
    """Return log-probabilities without -inf, which belongs to a masked action of probability 0.

    Clamped, it adds 0 to an entropy or a divergence, and to their gradients: 0 * -inf would be NaN.
    The end is one that a weight does not make infinite, and whose exponential is 0.
    """
    return logits.clamp_min(-1e6)


def divergence_of(before: Tensor, after: Tensor, ndim: int) -> Tensor:
    """Return the KL divergence in nats, ``(*B,)``, of one choice from another.

    Args:
        before: normalised log-probabilities ``(*B, M)`` or ``(*B, H, M)``, without -inf
            (see :func:`finite`).
        after: the other's.
        ndim: number of dimensions of B.
    """
    return over_heads((before.exp() * (before - after)).sum(-1), ndim)


def over_heads(value: Tensor, ndim: int) -> Tensor:
    """Sum over the heads of a choice what has one entry for each: ``(*B, H)`` to ``(*B,)``.

    Args:
        value: with heads ``(*B, H)``, else ``(*B,)``.
        ndim: number of dimensions of B.
    """
    return value.sum(-1) if value.ndim > ndim else value


def unsqueeze_like(value: Tensor, like: Tensor) -> Tensor:
    """Append dimensions of size 1 until a tensor broadcasts with one that begins alike."""
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def insert_like(value: Tensor, like: Tensor) -> Tensor:
    """Insert dimensions of size 1 before the last until there are as many as another has."""
    if value.ndim == 1:  # it broadcasts as it is
        return value
    *leading, last = value.shape
    return value.reshape(*leading, *(1,) * (like.ndim - value.ndim), last)
