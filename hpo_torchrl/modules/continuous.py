"""The distribution of the continuous action."""

from __future__ import annotations

import abc
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpo_torchrl.core.checks import check_choice
from hpo_torchrl.modules.action_range import ActionRange

# Which branch each row is of, of the shape of the row; ``None`` is all branches in order.
Index = Tensor | None


class ContinuousDistribution(nn.Module, abc.ABC):
    r"""The distribution of u given the discrete action: what a new one has to say.

    It has two parameters for every branch and coordinate, ``loc`` and ``scale``, of whatever
    meaning, made from a network's raw outputs by :meth:`parameters`. All methods act on each
    coordinate by itself. They are called on all branches, ``(*B, M, n)`` (with heads
    ``(*B, H, M, k)``), or on the chosen one of each row with 1 in the place of M; ``index`` then
    says which it is (for :class:`ActionRange`), else it is ``None``. ``scale`` may have 1 in the
    place of M too, where all branches share it. A subclass writes :meth:`sample`,
    :meth:`log_prob` and :meth:`entropy` and overrides, where they differ, the other methods.

    Args:
        action_range: the range of the action; by default all numbers, in units of 1.

    Attributes:
        noise: kind of noise that a sample is made of, a method of
            :class:`~hpo_torchrl.core.randomness.Randomness`.
        outputs: raw outputs of the network for each branch and coordinate.

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

    def __init__(self, action_range: ActionRange | None = None) -> None:
        super().__init__()
        self.range = action_range or ActionRange((None, None), torch.ones(1))

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

    @abc.abstractmethod
    def sample(self, loc: Tensor, scale: Tensor, noise: Tensor, index: Index = None) -> Tensor:
        """Return a sample made of noise, differentiable in the parameters."""

    @abc.abstractmethod
    def log_prob(self, loc: Tensor, scale: Tensor, value: Tensor, index: Index = None) -> Tensor:
        """Return the log-density of a value."""

    @abc.abstractmethod
    def entropy(self, loc: Tensor, scale: Tensor) -> Tensor:
        """Return the entropy in nats of every branch."""

    def mode(self, loc: Tensor, scale: Tensor | None, index: Index = None) -> Tensor:
        """Return the action of a policy that does not sample; ``scale`` may be ``None``."""
        return loc

    def log_prob_of_sample(
        self, loc: Tensor, scale: Tensor, noise: Tensor, value: Tensor, index: Index = None
    ) -> Tensor:
        """Return the log-density of a sample, given the noise it was made of."""
        return self.log_prob(loc, scale, value, index)


class Normal(ContinuousDistribution):
    r"""The normal distribution: :math:`u = \mathrm{loc} + \mathrm{scale}\,\varepsilon`.

    Its mean is in the range of the action; samples may leave it. A coordinate of scale 0 is
    deterministic and adds nothing to log-densities and entropies. Where the range is a single point
    the scale is 0.
    """

    def spread(self, deviation: Tensor) -> Tensor:
        """Return ``scale`` of a standard deviation in action scales; 0 where u has one value."""
        scale, fixed = super().spread(deviation), self.range.fixed()
        return scale if fixed is None else torch.where(fixed, 0.0, scale)

    def sample(self, loc: Tensor, scale: Tensor, noise: Tensor, index: Index = None) -> Tensor:
        """Return ``loc + scale * noise``."""
        return torch.addcmul(loc, scale, noise)

    def log_prob(self, loc: Tensor, scale: Tensor, value: Tensor, index: Index = None) -> Tensor:
        """Return log N(value; loc, scale^2)."""
        return _log_density((value - loc) / scale.masked_fill(scale == 0, 1.0), scale)

    def log_prob_of_sample(
        self, loc: Tensor, scale: Tensor, noise: Tensor, value: Tensor, index: Index = None
    ) -> Tensor:
        """Return the same of ``loc + scale * noise``, without rounding of the difference."""
        return _log_density(noise, scale)

    def entropy(self, loc: Tensor, scale: Tensor) -> Tensor:
        """Return log scale + log(2 pi e) / 2."""
        zero = scale == 0
        nats = scale.masked_fill(zero, 1.0).log() + 0.5 * math.log(2 * math.pi * math.e)
        return nats.masked_fill(zero, 0.0)


class SquashedNormal(Normal):
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

    def spread(self, deviation: Tensor) -> Tensor:
        """Return the deviation itself: it is that of z."""
        return deviation

    def parameters_of(self, raw: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the raw outputs themselves: they are the means of z."""
        return raw, scale

    def sample(self, loc: Tensor, scale: Tensor, noise: Tensor, index: Index = None) -> Tensor:
        """Return g(loc + scale * noise)."""
        return self.range(super().sample(loc, scale, noise), index)

    def mode(self, loc: Tensor, scale: Tensor | None, index: Index = None) -> Tensor:
        """Return g(loc), the median of u."""
        return self.range(loc, index)

    def log_prob(self, loc: Tensor, scale: Tensor, value: Tensor, index: Index = None) -> Tensor:
        """Return the log-density; of a value at an end of the range, that of the nearest inside."""
        z = self.range.inverse(value, index)
        return self._squashed(super().log_prob(loc, scale, z), z, scale, index)

    def log_prob_of_sample(
        self, loc: Tensor, scale: Tensor, noise: Tensor, value: Tensor, index: Index = None
    ) -> Tensor:
        """Return the same of g(loc + scale * noise), without inverting g."""
        z = super().sample(loc, scale, noise)
        return self._squashed(_log_density(noise, scale), z, scale, index)

    def entropy(self, loc: Tensor, scale: Tensor) -> Tensor:
        """Return H(z) + E[log g'(z)], by Gauss-Hermite quadrature with 32 nodes."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(32)
        total = super().entropy(loc, scale)
        for node, weight in zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True):
            total = total + weight * self.range.log_slope(loc + scale * node)
        return self._unless_fixed(total, scale, None)

    def _squashed(self, density: Tensor, z: Tensor, scale: Tensor, index: Index) -> Tensor:
        return self._unless_fixed(density - self.range.log_slope(z, index), scale, index)

    def _unless_fixed(self, value: Tensor, scale: Tensor, index: Index) -> Tensor:
        fixed, zero = self.range.fixed(index), scale == 0
        return value.masked_fill(zero if fixed is None else zero | fixed, 0.0)


def _log_density(noise: Tensor, scale: Tensor) -> Tensor:
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
    if isinstance(chosen, str):
        chosen = DISTRIBUTIONS[check_choice("distribution", chosen, DISTRIBUTIONS)]
    if isinstance(chosen, ContinuousDistribution):
        return chosen
    made = chosen(action_range) if callable(chosen) else None
    if not isinstance(made, ContinuousDistribution):
        raise TypeError(
            f"distribution must be one of {', '.join(map(repr, DISTRIBUTIONS))}, a subclass of "
            f"ContinuousDistribution or an object of one, got {chosen!r}."
        )
    return made
