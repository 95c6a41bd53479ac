"""The network behind a hybrid policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import MLP

from hpo_torchrl.core.checks import check_bool, check_choice, check_float, check_sizes
from hpo_torchrl.core.pieces import BranchBounds
from hpo_torchrl.modules.layers import ACTIVATIONS, bare, mlp

# Of the softplus that keeps an action on its side of a bound.
_SHARPNESS = 4.0
# Where an untrained policy acts, in action scales from the bound: rather too much than too little.
_START = 1.3


class HybridNetwork(nn.Module):
    r"""Map an observation to the parameters of a :class:`HybridDistribution`.

    Two separate nets by default, so that the gradient of the discrete choice and the gradient of
    the continuous action meet in no parameter: ``discrete`` gives M logits, ``continuous`` one
    mean per option and coordinate. A raw output z becomes the mean of a coordinate by the range
    of that action, with its ``action_scale`` c as the unit:

    ==============  ===========================================
    range           mean
    ==============  ===========================================
    unbounded       c z
    [low, inf)      low + c softplus(4 (z + 1.3)) / 4
    (-inf, high]    high - c softplus(4 (z + 1.3)) / 4
    [low, high]     low + (high - low) sigmoid(z)
    ==============  ===========================================

    Where the ends differ by option (``branch_bounds``) each branch keeps to its own, and a branch
    whose ends are equal is that value. Of ends of the *sum* over coordinates, coordinates that
    are [0, inf) by themselves are scaled to a sum of low + (high - low) T / (T + T_0), or low + T
    without an upper end, with T their own sum and T_0 that of an untrained policy.

    The softplus is a sharp one, so that an action of natural size is linear in z: what is linear
    in the observation (order up to a level) stays within reach of the linear skip.

    Args:
        observation_dim: length of the observation.
        num_discrete: number M of options.
        continuous_dim: dimension n of the continuous action.
        continuous_bounds: ``(low, high)``; ``None`` is unbounded.
        branch_bounds: ends by option, instead; see :class:`DifferentiableEnv`.
        num_heads: number H of discrete choices, each with its own k = n / H coordinates.
        action_scale: unit of each continuous action, ``(n,)``; defaults to ones.
        hidden: width of each hidden layer.
        activation: ``"tanh"``, ``"relu"``, ``"elu"`` or ``"silu"``.
        shared_trunk: compute all hidden layers once for both heads.
        linear_skip: add a linear map of the observation to the continuous head. Many optimal
            controls are nearly linear (order up to a level, linear feedback).
        scale: standard deviation of u in units of ``action_scale``; 0 makes u deterministic.
        learn_scale: make the standard deviation a parameter, one per option and coordinate.

    Raises:
        ValueError: an argument is out of range.
    """

    action_scale: Tensor
    log_scale: Tensor

    def __init__(
        self,
        observation_dim: int,
        num_discrete: int,
        continuous_dim: int,
        *,
        continuous_bounds: tuple[float | None, float | None] = (None, None),
        branch_bounds: BranchBounds | None = None,
        num_heads: int | None = None,
        action_scale: Tensor | None = None,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        shared_trunk: bool = False,
        linear_skip: bool = True,
        scale: float = 0.0,
        learn_scale: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_choice("activation", activation, ACTIVATIONS)
        check_float("scale", scale, minimum=0.0)
        for name, flag in (
            ("shared_trunk", shared_trunk),
            ("linear_skip", linear_skip),
            ("learn_scale", learn_scale),
        ):
            check_bool(name, flag)
        if learn_scale and scale == 0:
            raise ValueError("learn_scale=True needs scale > 0 as its start, got scale=0.")
        hidden = check_sizes("hidden", hidden)
        self.num_discrete, self.continuous_dim = num_discrete, continuous_dim
        self.low, self.high = continuous_bounds
        place: dict[str, Any] = {"device": device, "dtype": dtype}

        def net(inputs: int, outputs: int, cells: Sequence[int], gain: float) -> MLP:
            return mlp(inputs, outputs, cells, activation, gain, **place)

        self.num_heads = num_heads
        outputs = num_discrete * continuous_dim
        if shared_trunk and hidden:
            self.trunk: nn.Module = nn.Sequential(
                net(observation_dim, hidden[-1], hidden[:-1], math.sqrt(2)),
                ACTIVATIONS[activation](),
            )
            head_inputs, head_cells = hidden[-1], []
        else:
            self.trunk, head_inputs, head_cells = nn.Identity(), observation_dim, hidden
        # The discrete head starts exactly uniform: every option is tried before any is preferred.
        self.discrete = net(head_inputs, num_discrete * (num_heads or 1), head_cells, 0.0)
        self.continuous = net(head_inputs, outputs, head_cells, 0.01)
        self.skip = (
            nn.Linear(observation_dim, outputs, bias=False, **place) if linear_skip else None
        )
        if self.skip is not None:
            nn.init.zeros_(self.skip.weight)
        unit = torch.ones(continuous_dim, **place) if action_scale is None else action_scale
        self.register_buffer("action_scale", unit.to(**place).clone())
        self.range = None if branch_bounds is None else BranchRange(branch_bounds, **place)
        log_scale = torch.full(self._branches, math.log(scale or 1.0), **place)
        self.stochastic = scale > 0
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        elif self.stochastic:
            self.register_buffer("log_scale", log_scale)
        self._looked_at: tuple[Tensor, int, bool] = (log_scale, log_scale._version, True)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits ``(*B, M)``, loc ``(*B, M, n)`` and scale (same shape, or ``None``)."""
        features = self.trunk(observation)
        loc, scale = self._loc(observation, features), self.scale()
        return self._logits(features), loc, None if scale is None else scale.expand_as(loc)

    def sampler(self) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]:
        """Return a function that computes what :meth:`forward` does, as fast as can be.

        Its logits are off the graph, which no sample needs, and what does not depend on the
        observation is computed once: it is for a rollout with the parameters of now.
        """
        trunk, discrete, continuous = map(bare, (self.trunk, self.discrete, self.continuous))
        skip = None if self.skip is None else bare(self.skip)
        branches, unit, scale = self._branches, self._unit, self.scale()
        if scale is not None and self._one_for_all():
            scale = scale[..., :1, :]

        def sample(observation: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            features = trunk(observation)
            with torch.no_grad():
                logits = self._into_heads(discrete(features))
            raw = continuous(features)
            if skip is not None:
                raw = raw + skip(observation)
            loc = self._into_range(raw.reshape(*raw.shape[:-1], *branches), unit)
            if scale is None or scale.shape[-2] == 1:
                return logits, loc, scale
            return logits, loc, scale.expand_as(loc)

        return sample

    def _one_for_all(self) -> bool:
        """Whether all options share one scale, as they do unless it is learned.

        Looked at again only when it has changed, so that a rollout waits for no number.
        """
        held = self.log_scale
        if held.requires_grad or held.is_inference() or held.device.type != "cpu":
            return False
        if held is not self._looked_at[0] or held._version != self._looked_at[1]:
            shared = bool((held == held[..., :1, :]).all())
            self._looked_at = held, held._version, shared
        return self._looked_at[2]

    def unbounded(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what :meth:`forward` does, but for means on which :meth:`bounded` is to be called.

        The logits are off the graph, which no sample needs.
        """
        features = self.trunk(observation)
        with torch.no_grad():
            logits = self._logits(features)
        raw, scale = self._raw(observation, features), self.scale()
        if self.range is not None:  # the ends differ by option
            raw = self._into_range(raw, self._unit)
        return logits, raw, None if scale is None else scale.expand_as(raw)

    def bounded(self, chosen: Tensor) -> Tensor:
        """Map the chosen branch's raw outputs ``(*B, n)`` to means: for one instead of for all."""
        return chosen if self.range is not None else self._into_range(chosen, self.action_scale)

    def loc(self, observation: Tensor) -> Tensor:
        """Return the means alone, ``(*B, M, n)`` or ``(*B, H, M, k)``."""
        return self._loc(observation, self.trunk(observation))

    def _loc(self, observation: Tensor, features: Tensor) -> Tensor:
        return self._into_range(self._raw(observation, features), self._unit)

    def _raw(self, observation: Tensor, features: Tensor) -> Tensor:
        raw = self.continuous(features)
        if self.skip is not None:
            raw = raw + self.skip(observation)
        return raw.unflatten(-1, self._branches)

    def scale(self) -> Tensor | None:
        """Return the standard deviation of every branch, ``(M, n)`` or ``(H, M, k)``, if any."""
        return self.log_scale.exp() * self._unit if self.stochastic else None

    def logits(self, observation: Tensor) -> Tensor:
        """Return the logits alone, ``(*B, M)`` or ``(*B, H, M)``."""
        return self._logits(self.trunk(observation))

    @property
    def _branches(self) -> tuple[int, ...]:
        """Shape of the branches: ``(M, n)``, or ``(H, M, k)``."""
        if self.num_heads is None:
            return self.num_discrete, self.continuous_dim
        return self.num_heads, self.num_discrete, self.continuous_dim // self.num_heads

    @property
    def _unit(self) -> Tensor:
        """The unit of each coordinate, broadcastable to the branches."""
        if self.num_heads is None:
            return self.action_scale
        return self.action_scale.unflatten(0, (self.num_heads, 1, -1))

    def _logits(self, features: Tensor) -> Tensor:
        return self._into_heads(self.discrete(features))

    def _into_heads(self, logits: Tensor) -> Tensor:
        return logits if self.num_heads is None else logits.unflatten(-1, (self.num_heads, -1))

    def _into_range(self, raw: Tensor, unit: Tensor) -> Tensor:
        if self.range is not None:
            return self.range(raw, unit)
        if self.low is None and self.high is None:
            return unit * raw
        if self.low is not None and self.high is not None:
            return self.low + (self.high - self.low) * torch.sigmoid(raw)
        size = unit * F.softplus(raw + _START, beta=_SHARPNESS)
        if self.low is None:
            return -size + (self.high or 0.0)
        return size + self.low if self.low else size


class BranchRange(nn.Module):
    """Map raw outputs to continuous actions between the ends of each option.

    Args:
        bounds: the ends.
        place: device and dtype.
    """

    low: Tensor
    high: Tensor
    has_low: Tensor
    has_high: Tensor

    def __init__(self, bounds: BranchBounds, **place: Any) -> None:
        super().__init__()
        low, high = (torch.as_tensor(end).to(**place) for end in bounds[:2])
        self.of_total = bounds.of_total
        for name, mask in (("has_low", low.isfinite()), ("has_high", high.isfinite())):
            self.register_buffer(name, mask)
        # Ends at infinity are 0 here: what is not selected below must still be finite.
        self.register_buffer("low", low.nan_to_num(posinf=0.0, neginf=0.0))
        self.register_buffer("high", high.nan_to_num(posinf=0.0, neginf=0.0))

    def forward(self, raw: Tensor, unit: Tensor) -> Tensor:
        """Return the actions, of the shape of ``raw``.

        Args:
            raw: ``(*B, M, n)`` or ``(*B, H, M, k)``.
            unit: broadcastable to it.
        """
        size = unit * F.softplus(raw + _START, beta=_SHARPNESS)
        if self.of_total:
            total = size.sum(-1)
            width, middle = self.high - self.low, _START * unit.sum(-1)
            aim = torch.where(self.has_high, width * total / (total + middle), total) + self.low
            return size * (aim / total).unsqueeze(-1)
        inside = self.low + (self.high - self.low) * torch.sigmoid(raw)
        one_sided = torch.where(self.has_low, self.low + size, self.high - size)
        bounded = torch.where(self.has_low & self.has_high, inside, one_sided)
        return torch.where(self.has_low | self.has_high, bounded, unit * raw)
