"""How a hybrid action is sampled from given random numbers, on plain tensors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpo_torchrl.core.categorical import over_heads
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.modules.continuous import ContinuousDistribution, Normal

_Shape = torch.Size | list[int] | tuple[int, ...]
NORMAL = Normal()


class Noise(NamedTuple):
    """The random numbers of a sample, drawn beforehand.

    Attributes:
        discrete: logarithms of draws from Exp(1), minus which are Gumbel noise, of the shape of
            the logits.
        continuous: noise of u, ``(*B, n)``; ``None`` where u is deterministic.
    """

    discrete: Tensor
    continuous: Tensor | None = None


class HybridDraw(NamedTuple):
    """An action as plain tensors, with what its log-probabilities follow from, without a graph.

    Off the graph on purpose: in a differentiable rollout a cached log-probability would carry a
    pathwise term through the state, and whoever scores it would count that term twice.

    Attributes:
        discrete: ``(*B,)`` or ``(*B, H)``.
        continuous: ``(*B, n)``, with the graph.
        logits: normalised, ``(*B, M)`` or ``(*B, H, M)``.
        loc: parameter of the chosen branch, if the distribution of u is scored by it.
        scale: the other one, broadcastable to it; ``None`` where u is deterministic.
    """

    discrete: Tensor
    continuous: Tensor
    logits: Tensor
    loc: Tensor | None = None
    scale: Tensor | None = None

    @torch.no_grad()
    def log_probs(
        self, noise: Tensor | None, distribution: ContinuousDistribution = NORMAL
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of both actions together and of the discrete one, ``(*B,)``.

        Many draws that are stacked are scored in the time of one.

        Args:
            noise: the noise of u; ``None`` for an action that was not sampled.
            distribution: the distribution of u.
        """
        chosen = self.logits.gather(-1, self.discrete.unsqueeze(-1)).squeeze(-1)
        chosen = over_heads(chosen, self.continuous.ndim - 1)
        if self.scale is None:
            return chosen, chosen
        heads = self.discrete.ndim == self.continuous.ndim
        value = branched(self.continuous, self.discrete, heads)
        index = self.discrete[..., None, None].expand(value.shape)
        if noise is None:
            assert self.loc is not None
            density = distribution.log_prob(self.loc, self.scale, value, index)
        else:
            noise = branched(noise, self.discrete, heads)
            density = distribution.log_prob_of_sample(self.loc, self.scale, noise, value, index)
        return chosen + flat(density.expand(value.shape), heads).sum(-1), chosen


def draw(
    distribution: ContinuousDistribution,
    logits: Tensor,
    loc: Tensor,
    scale: Tensor | None,
    noise: Noise | None,
    heads: bool,
) -> HybridDraw:
    """Choose an action: the one place where a policy of this library samples.

    Args:
        distribution: the distribution of u.
        logits: log-probabilities of the discrete actions, normalised and without a graph.
        loc: its parameter for every branch, ``(*B, M, n)`` or ``(*B, H, M, k)``.
        scale: the other one, or ``None``; 1 in the place of M if all branches share it.
        noise: the random numbers; ``None`` takes the most probable d and the mode of u.
        heads: whether there are heads.
    """
    # argmax of p / Exp(1) draws from the categorical without a host synchronisation.
    discrete = (logits if noise is None else logits - noise.discrete).argmax(-1)
    index = discrete[..., None, None].expand(*discrete.shape, 1, loc.shape[-1])
    loc = select(loc, index)
    if scale is None:
        return HybridDraw(discrete, flat(distribution.mode(loc, None, index), heads), logits)
    scale = select(scale, index)
    if noise is None or noise.continuous is None:
        value = distribution.mode(loc, scale, index)
        kept: tuple[str, ...] = ("loc", "scale")
    else:
        value = distribution.sample(loc, scale, branched(noise.continuous, discrete, heads), index)
        kept = distribution.scored_by
    return HybridDraw(
        discrete,
        flat(value, heads),
        logits,
        loc.detach() if "loc" in kept else None,
        # With all dimensions, so that the scales of several steps can be stacked.
        scale.detach().reshape(*(1,) * (loc.ndim - scale.ndim), *scale.shape),
    )


def sample_noise(
    randomness: Randomness, discrete: _Shape, continuous: _Shape | None, kind: str, like: Tensor
) -> Noise:
    """Draw the random numbers of a sample, of given shapes, first those of d."""
    place: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
    logs = randomness.exponential(discrete, **place).log_()
    if continuous is None:
        return Noise(logs)
    return Noise(logs, randomness.fill(kind, torch.empty(tuple(continuous), **place)))


def normalised(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return log-probabilities, minus infinity where the mask forbids."""
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf)
    return logits.log_softmax(-1)


def select(branches: Tensor, index: Tensor) -> Tensor:
    """Return the chosen branch, with 1 in the place of M; what all share is returned as it is."""
    if branches.shape[-2] == 1:
        return branches
    if index.ndim > branches.ndim or index.shape[:-2] != branches.shape[:-2]:
        branches = branches.expand(*index.shape[:-2], *branches.shape[-2:])
    return branches.gather(-2, index)


def check_mask(mask: Tensor) -> None:
    """Raise a ``ValueError`` if a row of a mask allows no discrete action."""
    if not bool(mask.any(-1).all()):
        raise ValueError(
            "mask must allow at least one discrete action in every row; a row allows none."
        )


def branched(value: Tensor, discrete: Tensor, heads: bool) -> Tensor:
    """Bring ``(*B, n)`` into the form of one branch, ``(*B, 1, n)`` or ``(*B, H, 1, k)``."""
    if heads:
        value = value.reshape(*value.shape[:-1], discrete.shape[-1], -1)
    return value.unsqueeze(-2)


def flat(value: Tensor, heads: bool) -> Tensor:
    """Undo :func:`branched`."""
    return value.squeeze(-2).flatten(-2) if heads else value.squeeze(-2)
