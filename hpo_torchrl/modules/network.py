"""The network behind a hybrid policy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hpo_torchrl.core.categorical import BranchBounds, insert_like, unsqueeze_like
from hpo_torchrl.core.checks import check_float, check_heads, check_int, check_sizes, checked
from hpo_torchrl.modules.action_range import ActionRange, Bounds
from hpo_torchrl.modules.continuous import make_distribution
from hpo_torchrl.modules.layers import ACTIVATIONS, Direction, ScheduledGains, direct, mlp
from hpo_torchrl.modules.scales import ObservationScale


class HybridNetwork(nn.Module):
    r"""Map an observation to the parameters of a :class:`HybridDistribution`.

    Two separate nets by default, so that the gradient of the discrete choice and the gradient of
    the continuous action meet in no parameter: ``discrete`` gives M logits, ``continuous`` one
    mean per discrete action and coordinate. A raw output z becomes the mean of a coordinate by the
    range of that action, with its ``action_scale`` c as the unit:

    ==============  ===========================================
    range           mean
    ==============  ===========================================
    unbounded       c z
    [low, inf)      low + c softplus(4 (z + 1.3)) / 4
    (-inf, high]    high - c softplus(4 (z + 1.3)) / 4
    [low, high]     low + (high - low) sigmoid(z)
    ==============  ===========================================

    Between two ends the gradient beyond abs(z) = 3 falls more slowly than the slope of the sigmoid,
    so that an action at an end can leave it; see :mod:`hpo_torchrl.modules.action_range`.

    Where the ends differ by discrete action (``branch_bounds``) each branch keeps to its own, and a
    branch whose ends are equal is that value. With ends of the *sum* over coordinates, coordinates
    that are [0, inf) by themselves are scaled to a sum of low + (high - low) T / (T + T_0), or
    low + T without an upper end, with T their own sum and T_0 that of an untrained policy.

    The logits are the outputs of ``discrete``, divided by ``temperature``, plus ``preference``: two
    buffers that an algorithm may set, 1 and 0 by default.

    The softplus is a sharp one, so that an action of natural size is linear in z: what is linear
    in the observation (order up to a level) stays within reach of the linear skip.

    Args:
        observation_dim: length of the observation.
        reads: number of leading entries of the observation that the policy reads; ``None`` is all.
            What follows is for the critic alone (an asymmetric critic).
        num_discrete: number M of discrete actions.
        continuous_dim: dimension n of the continuous action.
        continuous_bounds: ``(low, high)``, each one number, one per coordinate, or ``None``.
        branch_bounds: ends by discrete action, instead; see :class:`DifferentiableEnv`.
        num_heads: number H of discrete choices, each with its own k = n / H coordinates.
        action_scale: unit of each continuous action, ``(n,)``; defaults to ones.
        hidden: width of each hidden layer.
        activation: ``"tanh"``, ``"relu"``, ``"elu"`` or ``"silu"``.
        shared_trunk: compute all hidden layers once for both heads.
        linear_skip: add a linear map of the observation to the continuous head. Many optimal
            controls are nearly linear (order up to a level, linear feedback).
        products: number of products in the continuous head of what the net says and linear maps
            of the observation, so that the gains of a control may depend on the state
            (:class:`ScheduledGains`); with any, the first layer of both nets multiplies too
            (:class:`Products`). For problems that are linear-quadratic while the discrete actions
            stay the same; 0 has none.
        homogeneous: number of leading entries of the observation with which raw outputs scale by
            their form, and of whose direction alone the logits are (:class:`Direction`); 0 has no
            such form.
        scale: standard deviation of u in units of ``action_scale`` (of z for a squashed normal);
            0 makes u deterministic.
        learn_scale: make the standard deviation a parameter, one per branch and coordinate.
        control: what gives the raw outputs z from the observation: widths of the hidden layers of
            the continuous net, if they are not ``hidden`` (``[]`` makes it linear); or a module in
            the place of it and of its linear skip, to ``(*B, M n)``: a structured policy.
        choice: the same of the discrete net: a module in its place, to logits ``(*B, M)``.
        distribution: the distribution of u: ``"normal"``, ``"squashed_normal"`` (every sample
            keeps to the range), or a :class:`ContinuousDistribution` of your own, as a class
            (called with the :class:`ActionRange`) or an object.

    Raises:
        ValueError: an argument is out of range.
        TypeError: the distribution is none.
    """

    log_scale: Tensor
    temperature: Tensor
    preference: Tensor
    seed_buffers = ("temperature", "preference")

    @checked
    def __init__(
        self,
        observation_dim: int,
        num_discrete: int,
        continuous_dim: int,
        *,
        continuous_bounds: Bounds = (None, None),
        branch_bounds: BranchBounds | None = None,
        num_heads: int | None = None,
        action_scale: Tensor | None = None,
        hidden: int | Sequence[int] = (64, 64),
        activation: str = "relu",
        shared_trunk: bool = False,
        linear_skip: bool = True,
        products: int = 0,
        homogeneous: int = 0,
        scale: float = 0.0,
        learn_scale: bool = False,
        control: nn.Module | Sequence[int] | None = None,
        choice: nn.Module | None = None,
        distribution: Any = "normal",
        reads: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_float("scale", scale, minimum=0.0)
        sizes = {"num_discrete": num_discrete, "continuous_dim": continuous_dim}
        for name, size in (sizes | {"observation_dim": observation_dim}).items():
            check_int(name, size, minimum=1)
        check_heads(num_heads, continuous_dim)
        if learn_scale and scale == 0:
            raise ValueError("learn_scale=True needs scale > 0 as its start, got scale=0.")
        self.num_discrete, self.continuous_dim = num_discrete, continuous_dim
        self.num_heads = num_heads
        # Shape of the branches: (M, n), or (H, M, k).
        branches = (num_discrete, continuous_dim // (num_heads or 1))
        self._branches = branches if num_heads is None else (num_heads, *branches)
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        multiplies = check_int("products", products, minimum=0) > 0
        net: Any = functools.partial(mlp, activation=activation, products=multiplies, **place)
        unit = torch.ones(continuous_dim, **place) if action_scale is None else action_scale
        ends = ActionRange(continuous_bounds, unit, branch_bounds, num_heads, **place)
        self.distribution = make_distribution(distribution, ends)
        if reads is not None and check_int("reads", reads, minimum=1) > observation_dim:
            raise ValueError(
                f"reads must be at most observation_dim={observation_dim}, got {reads}; null reads "
                "all of the observation."
            )
        self.observations = ObservationScale(observation_dim, reads, **place)
        self.direction = Direction(check_int("homogeneous", homogeneous, minimum=0))
        outputs = num_discrete * continuous_dim * self.distribution.outputs
        self.trunk: nn.Module = nn.Identity()
        seen = observation_dim if reads is None else reads
        inputs, cells = seen, check_sizes("hidden", hidden)
        if shared_trunk and cells:
            shared = net(inputs, cells[-1], cells[:-1], gain=math.sqrt(2))
            self.trunk = nn.Sequential(shared, ACTIVATIONS[activation]())
            inputs, cells = cells[-1], []
        # The discrete head starts exactly uniform: every action is tried before any is preferred.
        number = num_discrete * (num_heads or 1)
        self.discrete = net(inputs, number, cells, gain=0.0) if choice is None else choice
        self.register_buffer("temperature", torch.ones((), **place))
        self.register_buffer("preference", torch.zeros(number, **place))
        if shared_trunk and (control is not None or choice is not None):
            raise ValueError("A net of its own shares no layers; set shared_trunk=False.")
        self.skip: nn.Module | None = None
        self.gains: nn.Module | None = None
        if isinstance(control, nn.Module):
            self.continuous, linear_skip = control, False
        else:
            own = cells if control is None else check_sizes("control", control)
            self.continuous = net(inputs, outputs + products, own, gain=0.01)
            if products:
                self.gains = ScheduledGains(seen, outputs, products, **place)
        if linear_skip:
            self.skip = nn.Linear(seen, outputs, bias=False, **place)
            nn.init.zeros_(self.skip.weight)
        # A distribution with outputs of its own for its scale needs none of these.
        self.stochastic = scale > 0 or self.distribution.outputs > 1
        self._deviates = scale > 0
        if scale > 0:  # one for all branches, unless it is learned
            shape = (*self._branches[:-2], num_discrete if learn_scale else 1, branches[-1])
            log_scale = torch.full(shape, math.log(scale), **place)
            if learn_scale:
                self.log_scale = nn.Parameter(log_scale)
            else:
                self.register_buffer("log_scale", log_scale)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return logits ``(*B, M)``, loc ``(*B, M, n)`` and scale (same shape, or ``None``)."""
        size, observation = self.direction(self.observations(observation))
        features = self.trunk(observation)
        raw = self._raw(self.continuous, self.skip, features, observation, size)
        loc, scale = self._parameters_of(raw, self.scale())
        scale = None if scale is None else scale.expand_as(loc)
        return self._in_heads(self.discrete(features)), loc, scale

    def sampler(self) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]:
        """Return a function that computes what :meth:`forward` does, many times in a row.

        Its logits are off the graph, which no sample needs, its scale is only broadcastable, and
        what does not depend on the observation is computed once: it is for a rollout with the
        parameters of now.
        """
        trunk, discrete, continuous = map(direct, (self.trunk, self.discrete, self.continuous))
        skip = None if self.skip is None else direct(self.skip)
        scale, parameters_of, in_heads = self.scale(), self._parameters_of, self._in_heads
        observations, direction = direct(self.observations), direct(self.direction)

        def parameters(observation: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            size, observation = direction(observations(observation))
            features = trunk(observation)
            with torch.no_grad():
                logits = in_heads(discrete(features))
            raw = self._raw(continuous, skip, features, observation, size)
            return logits, *parameters_of(raw, scale)

        return parameters

    def branches(self, observation: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the parameters of u alone, those of every branch."""
        size, observation = self.direction(self.observations(observation))
        features = self.trunk(observation)
        raw = self._raw(self.continuous, self.skip, features, observation, size)
        return self._parameters_of(raw, self.scale())

    def logits(self, observation: Tensor) -> Tensor:
        """Return the logits alone, ``(*B, M)`` or ``(*B, H, M)``."""
        return self._in_heads(
            self.discrete(self.trunk(self.direction(self.observations(observation))[1]))
        )

    def size_of(self, observation: Tensor) -> Tensor:
        """Return the size of the state that a homogeneous form scales with, ``(*B, 1)``."""
        return self.direction(self.observations(observation))[0]

    @property
    def action_scale(self) -> Tensor:
        """The unit of each continuous action, ``(n,)``."""
        return self.distribution.range.unit.flatten()

    def scale(self) -> Tensor | None:
        """Return the scale of u, ``(M, n)`` or ``(H, M, k)``, or 1 for M if all branches share it.

        With seeds a learned one is ``(S, M, n)``. Without a standard deviation it is ``None``.
        """
        return self.distribution.spread(self.log_scale.exp()) if self._deviates else None

    def _parameters_of(self, raw: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
        raw = raw.reshape(*raw.shape[:-1], *self._branches[:-1], -1)
        if scale is not None and scale.ndim > len(self._branches):
            # The axis of seeds comes before the batch.
            batch = (1,) * (raw.ndim - scale.ndim)
            scale = scale.reshape(len(scale), *batch, *scale.shape[1:])
        return self.distribution.parameters_of(raw, scale)

    def _in_heads(self, outputs: Tensor) -> Tensor:
        outputs = outputs / unsqueeze_like(self.temperature, outputs)
        outputs = outputs + insert_like(self.preference, outputs)
        if self.num_heads is None:
            return outputs
        return outputs.reshape(*outputs.shape[:-1], self.num_heads, -1)

    def _raw(
        self,
        continuous: Callable[[Tensor], Tensor],
        skip: Callable[[Tensor], Tensor] | None,
        features: Tensor,
        observation: Tensor,
        size: Tensor | float,
    ) -> Tensor:
        raw = continuous(features)
        if self.gains is not None:
            raw = self.gains(raw, observation)
        if skip is not None:
            raw = raw + skip(observation)
        return size * raw if self.direction.entries else raw
