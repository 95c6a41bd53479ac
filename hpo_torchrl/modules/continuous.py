"""The distribution of the continuous action, and the range that it keeps to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpo_torchrl.core.checks import check_choice
from hpo_torchrl.core.pieces import BranchBounds

Bound = float | Sequence[float] | Tensor | None
Bounds = tuple[Bound, Bound]

# Sharpness of the softplus that keeps an action on its side of a bound.
_SHARPNESS = 4.0
# Where an untrained policy acts, in action scales from the bound: rather too much than too little.
_START = 1.3


class ActionRange(nn.Module):
    """Map raw outputs z of a network to continuous actions u in their range.

    The table of the maps is in :class:`HybridNetwork`. All of them act on every coordinate by
    itself, except where ``branch_bounds`` limits the sum over coordinates.

    Args:
        bounds: ``(low, high)``, each one number, one per coordinate, or ``None`` (unbounded).
        unit: natural size of each coordinate, ``(n,)``.
        branch_bounds: ends by discrete action, instead of ``bounds``.
        num_heads: number H of discrete choices, each with its own n / H coordinates.
        place: device and dtype.

    Raises:
        ValueError: a lower end is above the upper one.
    """

    unit: Tensor
    low: Any
    high: Any

    def __init__(
        self,
        bounds: Bounds,
        unit: Tensor,
        branch_bounds: BranchBounds | None = None,
        num_heads: int | None = None,
        **place: Any,
    ) -> None:
        super().__init__()
        unit = unit.to(**place).clone()
        self.register_buffer("unit", unit if num_heads is None else unit.view(num_heads, 1, -1))
        self.of_total = branch_bounds is not None and branch_bounds.of_total
        low, high = bounds if branch_bounds is None else branch_bounds[:2]
        if all(end is None or isinstance(end, (int, float)) for end in (low, high)):
            # Numbers: no masks are needed, and one map serves all coordinates.
            self.kind: str | None = _KINDS[low is not None, high is not None]
            self.low, self.high = low, high
            return
        self.kind = None
        ends = []
        for end, infinite in ((low, -math.inf), (high, math.inf)):
            end = torch.as_tensor(infinite if end is None else end).to(**place)
            if branch_bounds is None:
                end = end.expand(unit.shape).reshape(self.unit.shape)
            ends.append(end)
        if bool((ends[0] > ends[1]).any()):
            raise ValueError(f"The range of an action must have low <= high, got {low} and {high}.")
        for name, end in zip(("low", "high"), ends, strict=True):
            self.register_buffer(f"has_{name}", end.isfinite())
            # Ends at infinity are 0 here: what is not selected below must still be finite.
            self.register_buffer(name, end.nan_to_num(posinf=0.0, neginf=0.0))

    @property
    def per_branch(self) -> bool:
        """Whether the ends differ by discrete action."""
        return self.kind is None and self.low.ndim > 0 and self.low.shape[-2:-1] not in ((), (1,))

    def forward(self, raw: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the actions, of the shape of ``raw``.

        Args:
            raw: ``(*B, M, n)`` or ``(*B, H, M, k)``; of one branch each, with 1 in the place of M.
            index: which branch that is, of the shape of ``raw``; ``None`` is all in order.
        """
        if self.of_total:
            return self._of_total(raw, index)
        return self._mapped(_VALUES, raw, index)

    def inverse(self, value: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the raw outputs of actions; finite also where an action is at an end."""
        return self._mapped(_INVERSES, value, index)

    def log_slope(self, raw: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the logarithm of the slope du/dz; 0 where both ends are equal."""
        return self._mapped(_LOG_SLOPES, raw, index)

    def fixed(self, index: Tensor | None = None) -> Tensor | None:
        """Return which actions have both ends equal; ``None`` if none has."""
        if self.kind is not None:
            return None
        low, high, has_low, has_high = self._ends(index)
        return has_low & has_high & (low == high)

    def _mapped(self, maps: dict[str, Callable], value: Tensor, index: Tensor | None) -> Tensor:
        if self.kind is not None:
            return maps[self.kind](value, self.low, self.high, self.unit)
        low, high, has_low, has_high = self._ends(index)
        found = {kind: maps[kind](value, low, high, self.unit) for kind in _KINDS.values()}
        one = torch.where(has_low, found["above"], found["below"])
        some = torch.where(has_low & has_high, found["between"], one)
        return torch.where(has_low | has_high, some, found["free"])

    def _of_total(self, raw: Tensor, index: Tensor | None) -> Tensor:
        size = _softplus(raw, self.unit)
        total = size.sum(-1)
        low, high, _, has_high = self._ends(None if index is None else index[..., 0])
        width, middle = high - low, _START * self.unit.sum(-1)
        aim = torch.where(has_high, width * total / (total + middle), total) + low
        return size * (aim / total).unsqueeze(-1)

    def _ends(self, index: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ends = (self.low, self.high, self.has_low, self.has_high)
        if index is None or not (self.of_total or self.per_branch):
            return ends
        if self.of_total:
            found = [end.expand(*index.shape[:-1], -1).gather(-1, index) for end in ends]
        else:
            size = index.shape[-1]
            wide = [end.expand(*index.shape[:-2], end.shape[-2], size) for end in ends]
            found = [end.gather(-2, index) for end in wide]
        return found[0], found[1], found[2], found[3]


_KINDS = {
    (False, False): "free",
    (True, False): "above",
    (False, True): "below",
    (True, True): "between",
}


def _softplus(raw: Tensor, unit: Tensor) -> Tensor:
    return unit * F.softplus(raw + _START, beta=_SHARPNESS)


def _inverse_softplus(size: Tensor, unit: Tensor) -> Tensor:
    size = (size / unit).clamp_min(torch.finfo(size.dtype).tiny)
    return size + torch.log(-torch.expm1(-_SHARPNESS * size)) / _SHARPNESS - _START


def _softplus_log_slope(raw: Tensor, unit: Tensor) -> Tensor:
    return F.logsigmoid(_SHARPNESS * (raw + _START)) + unit.log()


def _logit(value: Tensor, low: Any, high: Any) -> Tensor:
    width = high - low
    if isinstance(width, Tensor):
        width = width.masked_fill(width == 0, 1.0)
    smallest = torch.finfo(value.dtype).eps / 2
    return ((value - low) / width).clamp(smallest, 1 - smallest).logit()


def _sigmoid_log_slope(raw: Tensor, low: Any, high: Any) -> Tensor:
    width = high - low
    if isinstance(width, Tensor):
        size: Any = width.masked_fill(width == 0, 1.0).log()
    else:
        size = math.log(width) if width else 0.0
    return F.logsigmoid(raw) + F.logsigmoid(-raw) + size


def _above(raw: Tensor, low: Any, high: Any, unit: Tensor) -> Tensor:
    size = _softplus(raw, unit)
    return size if isinstance(low, (int, float)) and low == 0 else size + low


_VALUES: dict[str, Callable] = {
    "free": lambda z, low, high, unit: unit * z,
    "above": _above,
    "below": lambda z, low, high, unit: -_softplus(z, unit) + high,
    "between": lambda z, low, high, unit: low + (high - low) * torch.sigmoid(z),
}
_INVERSES: dict[str, Callable] = {
    "free": lambda u, low, high, unit: u / unit,
    "above": lambda u, low, high, unit: _inverse_softplus(u - low, unit),
    "below": lambda u, low, high, unit: _inverse_softplus(high - u, unit),
    "between": lambda u, low, high, unit: _logit(u, low, high),
}
_LOG_SLOPES: dict[str, Callable] = {
    "free": lambda z, low, high, unit: unit.log().expand_as(z),
    "above": lambda z, low, high, unit: _softplus_log_slope(z, unit),
    "below": lambda z, low, high, unit: _softplus_log_slope(z, unit),
    "between": lambda z, low, high, unit: _sigmoid_log_slope(z, low, high),
}


class ContinuousDistribution(nn.Module):
    r"""The distribution of u given the discrete action: what a new one has to say.

    It has two parameters for every branch and coordinate, ``loc`` and ``scale``, of whatever
    meaning, made from a network's raw outputs by :meth:`parameters`. All methods act on each
    coordinate by itself. They are called on all branches, ``(*B, M, n)`` (with heads
    ``(*B, H, M, k)``), or on the chosen one of each row with 1 in the place of M; ``index`` then
    says which it is (for :class:`ActionRange`), else it is ``None``. ``scale`` may have 1 in the
    place of M too, where all branches share it. A subclass overrides :meth:`sample`,
    :meth:`log_prob`, :meth:`entropy` and, where they differ from these, the other methods.

    Args:
        action_range: the range of the action; by default all numbers, in units of 1.

    Attributes:
        noise: kind of noise that a sample is made of, a method of
            :class:`~hpo_torchrl.core.randomness.Randomness`.
        outputs: raw outputs of the network for each branch and coordinate.
        scored_by: parameters that :meth:`log_prob_of_sample` reads.

    Examples:
        A triangular distribution of the half width ``scale``:

        >>> import torch
        >>> from hpo_torchrl.modules import ContinuousDistribution, HybridNetwork
        >>> class Triangular(ContinuousDistribution):
        ...     noise = "uniform"
        ...     def sample(self, loc, scale, noise, index=None):
        ...         low = (2 * noise).sqrt() - 1
        ...         return loc + scale * torch.where(noise < 0.5, low, 1 - (2 - 2 * noise).sqrt())
        ...     def log_prob(self, loc, scale, value, index=None):
        ...         return ((1 - ((value - loc) / scale).abs()) / scale).log()
        ...     def entropy(self, loc, scale):
        ...         return 0.5 + scale.log()
        >>> network = HybridNetwork(3, 2, 2, scale=0.5, distribution=Triangular)
    """

    noise = "normal"
    outputs = 1
    scored_by: tuple[str, ...] = ("loc", "scale")

    def __init__(self, action_range: ActionRange | None = None) -> None:
        super().__init__()
        self.range = (
            ActionRange((None, None), torch.ones(1)) if action_range is None else action_range
        )

    def spread(self, deviation: Tensor) -> Tensor:
        """Return ``scale`` of a standard deviation in action scales: once in a rollout."""
        return self.range.unit * deviation

    def parameters_of(self, raw: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return ``loc`` and ``scale`` of a network's raw outputs.

        Args:
            raw: ``(*B, M, n)`` or ``(*B, H, M, k)``; the last size times :attr:`outputs`.
            scale: what :meth:`spread` returned, or ``None`` without a standard deviation.
        """
        return self.range(raw), scale

    def sample(
        self, loc: Tensor, scale: Tensor, noise: Tensor, index: Tensor | None = None
    ) -> Tensor:
        """Return a sample made of noise, differentiable in the parameters."""
        raise NotImplementedError(f"{type(self).__name__} must say how it samples.")

    def log_prob(
        self, loc: Tensor, scale: Tensor, value: Tensor, index: Tensor | None = None
    ) -> Tensor:
        """Return the log-density of a value."""
        raise NotImplementedError(f"{type(self).__name__} must say its log-density.")

    def entropy(self, loc: Tensor, scale: Tensor) -> Tensor:
        """Return the entropy in nats of every branch."""
        raise NotImplementedError(f"{type(self).__name__} must say its entropy.")

    def mode(self, loc: Tensor, scale: Tensor | None, index: Tensor | None = None) -> Tensor:
        """Return the action of a policy that does not sample; ``scale`` may be ``None``."""
        return loc

    def log_prob_of_sample(
        self,
        loc: Tensor | None,
        scale: Tensor,
        noise: Tensor,
        value: Tensor,
        index: Tensor | None = None,
    ) -> Tensor:
        """Return the log-density of a sample, given the noise it was made of.

        A parameter that is not in :attr:`scored_by` may be ``None``.
        """
        assert loc is not None
        return self.log_prob(loc, scale, value, index)


class Normal(ContinuousDistribution):
    r"""The normal distribution: :math:`u = \mathrm{loc} + \mathrm{scale}\,\varepsilon`.

    Its mean is in the range of the action; samples may leave it. A coordinate of scale 0 is
    deterministic and adds nothing to log-densities and entropies.
    """

    scored_by = ("scale",)

    def sample(
        self, loc: Tensor, scale: Tensor, noise: Tensor, index: Tensor | None = None
    ) -> Tensor:
        """Return ``loc + scale * noise``."""
        return torch.addcmul(loc, scale, noise)

    def log_prob(
        self, loc: Tensor, scale: Tensor, value: Tensor, index: Tensor | None = None
    ) -> Tensor:
        """Return log N(value; loc, scale^2)."""
        return _normal_log_density((value - loc) / scale.masked_fill(scale == 0, 1.0), scale)

    def log_prob_of_sample(
        self,
        loc: Tensor | None,
        scale: Tensor,
        noise: Tensor,
        value: Tensor,
        index: Tensor | None = None,
    ) -> Tensor:
        """Return the same of ``loc + scale * noise``, without rounding of the difference."""
        return _normal_log_density(noise, scale)

    def entropy(self, loc: Tensor, scale: Tensor) -> Tensor:
        """Return log scale + log(2 pi e) / 2."""
        positive = scale > 0
        nats = scale.masked_fill(~positive, 1.0).log() + 0.5 * math.log(2 * math.pi * math.e)
        return nats.masked_fill(~positive, 0.0)


class SquashedNormal(ContinuousDistribution):
    r"""A normal raw output, squashed into the range: :math:`u = g(z),\ z \sim N(loc, scale^2)`.

    g is the map of :class:`ActionRange`, so that every sample keeps to the range. With the
    change of variables the log-density is :math:`\log N(z) - \log g'(z)`. ``scale`` is the standard
    deviation of z. Where the range is a single point u is deterministic and adds nothing.

    Raises:
        ValueError: the range limits the sum over coordinates, which are then not independent.
    """

    def __init__(self, action_range: ActionRange | None = None) -> None:
        super().__init__(action_range)
        if self.range.of_total:
            raise ValueError(
                "distribution='squashed_normal' needs bounds of each coordinate, but the branches "
                "of this environment limit the sum over coordinates; use distribution='normal'."
            )
        nodes, weights = np.polynomial.hermite_e.hermegauss(32)
        place = {"dtype": self.range.unit.dtype, "device": self.range.unit.device}
        self.register_buffer("_nodes", torch.as_tensor(nodes).to(**place), persistent=False)
        weights = torch.as_tensor(weights / weights.sum()).to(**place)
        self.register_buffer("_weights", weights, persistent=False)

    def spread(self, deviation: Tensor) -> Tensor:
        """Return the deviation itself: it is that of z."""
        return deviation

    def parameters_of(self, raw: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the raw outputs themselves: they are the means of z."""
        return raw, scale

    def sample(
        self, loc: Tensor, scale: Tensor, noise: Tensor, index: Tensor | None = None
    ) -> Tensor:
        """Return g(loc + scale * noise)."""
        return self.range(torch.addcmul(loc, scale, noise), index)

    def mode(self, loc: Tensor, scale: Tensor | None, index: Tensor | None = None) -> Tensor:
        """Return g(loc), the median of u."""
        return self.range(loc, index)

    def log_prob(
        self, loc: Tensor, scale: Tensor, value: Tensor, index: Tensor | None = None
    ) -> Tensor:
        """Return the log-density; of a value at an end of the range, that of the nearest inside."""
        z = self.range.inverse(value, index)
        noise = (z - loc) / scale.masked_fill(scale == 0, 1.0)
        return self._log_density(z, scale, noise, index)

    def log_prob_of_sample(
        self,
        loc: Tensor | None,
        scale: Tensor,
        noise: Tensor,
        value: Tensor,
        index: Tensor | None = None,
    ) -> Tensor:
        """Return the same of g(loc + scale * noise), without inverting g."""
        assert loc is not None
        return self._log_density(torch.addcmul(loc, scale, noise), scale, noise, index)

    def entropy(self, loc: Tensor, scale: Tensor) -> Tensor:
        """Return H(z) + E[log g'(z)], by Gauss-Hermite quadrature with 32 nodes."""
        total = 0.5 * math.log(2 * math.pi * math.e) + scale.masked_fill(scale == 0, 1.0).log()
        for node, weight in zip(self._nodes.unbind(), self._weights.unbind(), strict=True):
            total = total + weight * self.range.log_slope(loc + scale * node)
        return self._unless_fixed(total, scale, None)

    def _log_density(self, z: Tensor, scale: Tensor, noise: Tensor, index: Tensor | None) -> Tensor:
        density = _normal_log_density(noise, scale) - self.range.log_slope(z, index)
        return self._unless_fixed(density, scale, index)

    def _unless_fixed(self, value: Tensor, scale: Tensor, index: Tensor | None) -> Tensor:
        fixed = self.range.fixed(index)
        zero = scale == 0
        return value.masked_fill(zero if fixed is None else zero | fixed, 0.0)


def _normal_log_density(noise: Tensor, scale: Tensor) -> Tensor:
    """Log-density of ``scale * noise`` where the scale is positive, else 0."""
    zero = scale == 0
    density = -0.5 * noise.square() - scale.masked_fill(zero, 1.0).log()
    return (density - 0.5 * math.log(2 * math.pi)).masked_fill(zero, 0.0)


DISTRIBUTIONS = {"normal": Normal, "squashed_normal": SquashedNormal}


def make_distribution(chosen: Any, action_range: ActionRange) -> ContinuousDistribution:
    """Return the distribution that is chosen by name, by a class (or another callable), or itself.

    Raises:
        ValueError: the name is not known.
        TypeError: it is nothing of these.
    """
    if isinstance(chosen, ContinuousDistribution):
        return chosen
    if isinstance(chosen, str):
        return DISTRIBUTIONS[check_choice("distribution", chosen, DISTRIBUTIONS)](action_range)
    made = chosen(action_range) if callable(chosen) else None
    if not isinstance(made, ContinuousDistribution):
        raise TypeError(
            f"distribution must be one of {', '.join(map(repr, DISTRIBUTIONS))}, a subclass of "
            f"ContinuousDistribution or an object of one, got {chosen!r}."
        )
    return made
