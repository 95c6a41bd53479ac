"""The joint distribution of a hybrid action."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import Distribution

from hpo_torchrl.core.categorical import entropy_of, over_heads

_Shape = torch.Size | list[int] | tuple[int, ...]


class Source(Protocol):
    """Where a sample's random numbers come from: each method fills a tensor and returns it."""

    def exponential_(self, values: Tensor) -> Tensor:
        """Draw from Exp(1)."""

    def normal_(self, values: Tensor) -> Tensor:
        """Draw from the standard normal distribution."""


class HybridDraw(NamedTuple):
    """A sample as plain tensors, and what its log-probabilities follow from, without a graph.

    Off the graph on purpose: in a differentiable rollout a cached log-probability would carry a
    pathwise term through the state, and whoever scores it would count that term twice. The scale
    is broadcastable to the noise.
    """

    discrete: Tensor
    continuous: Tensor
    logits: Tensor
    noise: Tensor | None = None
    scale: Tensor | None = None

    @torch.no_grad()
    def log_probs(self) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of both actions together and of the option, ``(*B,)``.

        Of many draws that are stacked it takes the time of one.
        """
        option = self.logits.gather(-1, self.discrete.unsqueeze(-1)).squeeze(-1)
        option = over_heads(option, self.continuous.ndim - 1)
        if self.noise is None or self.scale is None:
            return option, option
        return option + _log_density(self.noise, self.scale), option


class HybridDistribution(Distribution):
    r"""Categorical option, then a normal vector from that option's branch.

    .. math::
        d \sim \mathrm{Cat}(\text{logits}), \qquad
        u \mid d \sim \mathcal N(\text{loc}_d, \mathrm{diag}(\text{scale}_d^2))

    A sample is a tensordict with ``"discrete"``, int64 of shape ``(*B,)``, and ``"continuous"``,
    float of shape ``(*B, n)``. :meth:`rsample` reparameterises u, so that gradients reach ``loc``
    and ``scale`` of the sampled branch; nothing flows through d.

    With ``heads`` a step has H choices at once, independent given the state: logits are
    ``(*B, H, M)``, and each head's branches hold its own k = n / H coordinates, ``(*B, H, M, k)``.
    ``"discrete"`` is then ``(*B, H)``; log-probabilities and entropies are sums over the heads.

    A coordinate of scale 0 is deterministic: its sample is ``loc``, and it adds nothing to
    log-probabilities and entropies, which are then those of the remaining coordinates.

    Args:
        logits: unnormalised log-probabilities of the M options, ``(*B, M)`` or ``(*B, H, M)``.
        loc: mean of u for every option, ``(*B, M, n)`` or ``(*B, H, M, k)``.
        scale: standard deviation of u, broadcastable to ``loc``; ``None`` is 0 everywhere.
        mask: options that may be chosen, bool of the logits' shape; ``None`` allows all.
        heads: whether there are heads.
        validate_args: check values besides shapes; by default where that is free of a host
            synchronisation, that is on the CPU.

    Raises:
        ValueError: shapes disagree, a scale is negative or NaN, or a row of the mask allows no
            option.

    Examples:
        >>> import torch
        >>> from hpo_torchrl.modules import HybridDistribution
        >>> dist = HybridDistribution(torch.zeros(4, 2), torch.zeros(4, 2, 3), torch.tensor(0.5))
        >>> action = dist.rsample()
        >>> action["discrete"].shape, action["continuous"].shape, dist.log_prob(action).shape
        (torch.Size([4]), torch.Size([4, 3]), torch.Size([4]))
    """

    has_rsample = True
    arg_constraints: dict = {}  # noqa: RUF012 (torch declares it so)

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor | float | None = None,
        mask: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        heads: bool = False,
    ) -> None:
        if loc.shape[:-1] != logits.shape:
            raise ValueError(
                f"loc must have one branch per option: logits of shape {tuple(logits.shape)} ask "
                f"for loc of shape {(*logits.shape, 'n')}, got {tuple(loc.shape)}. Give the "
                "continuous network (number of options) x (continuous dimension) outputs."
            )
        self.loc = loc
        self.scale = None if scale is None else expand_scale(scale, loc)
        self.heads = heads
        batch = logits.shape[: -2 if heads else -1]
        dimension = loc.shape[-1] * (logits.shape[-2] if heads else 1)
        super().__init__(batch, torch.Size([dimension]), validate_args=False)
        if mask is not None and (mask.dtype != torch.bool or mask.shape != logits.shape):
            raise ValueError(
                f"mask must be bool of shape {tuple(logits.shape)}, got {mask.dtype} of shape "
                f"{tuple(mask.shape)}."
            )
        if logits.device.type == "cpu" if validate_args is None else validate_args:
            self._validate(mask)
        if mask is not None:
            logits = logits.masked_fill(~mask, -math.inf)
        self.logits = logits.log_softmax(-1)

    @property
    def num_discrete(self) -> int:
        """Number M of options."""
        return self.logits.shape[-1]

    @property
    def probs(self) -> Tensor:
        """Probability of each option, ``(*B, M)``."""
        return self.logits.exp()

    def rsample(self, sample_shape: _Shape = torch.Size()) -> TensorDict:  # noqa: B008
        """Sample d and reparameterise u: gradients flow through ``"continuous"``."""
        return self._action(*self.draw(sample_shape)[:2])

    def draw(
        self,
        sample_shape: _Shape = torch.Size(),  # noqa: B008
        source: Source | None = None,
    ) -> HybridDraw:
        """Sample as :meth:`rsample` does, on plain tensors, with what scores the sample.

        Args:
            sample_shape: shape of the sample before the batch.
            source: where random numbers come from; torch's global generator by default.
        """
        return draw_from(
            self.logits.detach(),
            self.loc,
            self.scale,
            heads=self.heads,
            sample_shape=sample_shape,
            source=source,
        )

    def sample(self, sample_shape: _Shape = torch.Size()) -> TensorDict:  # noqa: B008
        """Sample d and u without a graph."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    @property
    def deterministic_sample(self) -> TensorDict:
        """The most probable option and the mean of its branch; gradients flow to ``loc``."""
        discrete = self.logits.argmax(-1)
        return self._action(discrete, self.branch(discrete)[0])

    @property
    def mode(self) -> TensorDict:
        """Same as :attr:`deterministic_sample`."""
        return self.deterministic_sample

    @property
    def mean(self) -> TensorDict:
        """Same as :attr:`deterministic_sample`: options have no mean."""
        return self.deterministic_sample

    def branch(self, discrete: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return ``loc`` and ``scale`` of the given options, each ``(*B, n)``."""
        return branch(discrete, self.loc, self.scale, self.heads)

    def log_prob(self, action: TensorDictBase | Mapping[str, Tensor]) -> Tensor:
        """Return the joint log-probability log pi(d) + log N(u; branch d), ``(*B,)``."""
        discrete = action["discrete"]
        return self.log_prob_discrete(discrete) + self.log_prob_continuous(
            discrete, action["continuous"]
        )

    def log_prob_discrete(self, discrete: Tensor) -> Tensor:
        """Return log pi(d), ``(*B,)``."""
        logits = self.logits
        if discrete.ndim >= logits.ndim:
            logits = logits.expand(*discrete.shape, self.num_discrete)
        return self._over_heads(logits.gather(-1, discrete.unsqueeze(-1)).squeeze(-1))

    def log_prob_continuous(self, discrete: Tensor, continuous: Tensor) -> Tensor:
        """Return log N(u; branch d) over the coordinates of positive scale, ``(*B,)``."""
        loc, scale = self.branch(discrete)
        if scale is None:
            return torch.zeros_like(loc[..., 0])
        return _log_density((continuous - loc) / scale.masked_fill(scale == 0, 1.0), scale)

    def entropy(self) -> Tensor:
        """Return H(d) + sum_d pi(d) H(u | d) over the coordinates of positive scale, ``(*B,)``."""
        if self.scale is None:
            return self.entropy_discrete()
        positive = self.scale > 0
        nats = self.scale.masked_fill(~positive, 1.0).log() + 0.5 * math.log(2 * math.pi * math.e)
        branches = nats.masked_fill(~positive, 0.0).sum(-1)
        return self.entropy_discrete() + self._over_heads((self.probs * branches).sum(-1))

    def entropy_discrete(self) -> Tensor:
        """Return H(d) in nats, ``(*B,)``."""
        return self._over_heads(entropy_of(self.logits))

    def _over_heads(self, value: Tensor) -> Tensor:
        return value.sum(-1) if self.heads else value

    def _action(self, discrete: Tensor, continuous: Tensor) -> TensorDict:
        return TensorDict(
            {"discrete": discrete, "continuous": continuous}, batch_size=continuous.shape[:-1]
        )

    def _validate(self, mask: Tensor | None) -> None:
        if self.scale is not None and not bool((self.scale >= 0).all()):
            raise ValueError(f"scale must be >= 0, got a minimum of {self.scale.min().item():g}.")
        if mask is not None:
            check_mask(mask)


def draw_from(
    logits: Tensor,
    loc: Tensor,
    scale: Tensor | None,
    *,
    heads: bool = False,
    sample_shape: _Shape = torch.Size(),  # noqa: B008
    clock: Tensor | None = None,
    noise: Tensor | None = None,
    finish: Callable[[Tensor], Tensor] | None = None,
    source: Source | None = None,
) -> HybridDraw:
    """Sample as :meth:`HybridDistribution.draw` does, without the object and its checks.

    Args:
        logits: log-probabilities of the options, normalised and without a graph.
        loc: see :class:`HybridDistribution`.
        scale: of the shape of ``loc``, or ``None``.
        heads: see :class:`HybridDistribution`.
        sample_shape: samples of each.
        clock: logarithms of exponential draws, of the shape of the samples' logits, and
        noise: normal draws, of the shape of the samples; drawn unless both are given.
        finish: what makes a mean of the chosen branch of ``loc``; by default it is one.
        source: where what is drawn comes from; see :meth:`HybridDistribution.draw`.
    """
    # argmax of p / Exp(1) draws from the categorical without a host synchronisation.
    if clock is None:
        shape = (*sample_shape, *logits.shape)
        clock = torch.empty(shape, dtype=loc.dtype, device=loc.device)
        clock = clock.exponential_() if source is None else source.exponential_(clock)
        clock = clock.log_()
    discrete = (logits - clock).argmax(-1)
    mean, deviation = branch(discrete, loc, scale, heads)
    mean = mean if finish is None else finish(mean)
    if deviation is None:
        return HybridDraw(discrete, mean, logits)
    if noise is None:
        noise = torch.randn_like(mean) if source is None else source.normal_(torch.empty_like(mean))
    return HybridDraw(discrete, mean + deviation * noise, logits, noise, deviation.detach())


def branch(
    discrete: Tensor, loc: Tensor, scale: Tensor | None, heads: bool
) -> tuple[Tensor, Tensor | None]:
    """Return what :meth:`HybridDistribution.branch` does.

    A scale that all options and states share may be given once, ``(1, n)`` or ``(H, 1, k)``; it is
    returned once too, broadcastable to the mean.
    """
    index = discrete[..., None, None].expand(*discrete.shape, 1, loc.shape[-1])
    mean = _select(loc, index, heads)
    if scale is None:
        return mean, None
    if scale.ndim == 2 + heads and scale.shape[-2] == 1:
        return mean, scale.reshape(*(1,) * (mean.ndim - 1), -1)
    return mean, _select(scale, index, heads)


def _select(branches: Tensor, index: Tensor, heads: bool) -> Tensor:
    if index.ndim > branches.ndim:  # several samples of each
        branches = branches.expand(*index.shape[:-2], *branches.shape[-2:])
    chosen = branches.gather(-2, index).squeeze(-2)
    return chosen.flatten(-2) if heads else chosen


def _log_density(noise: Tensor, scale: Tensor) -> Tensor:
    """Log-density of ``scale * noise`` over the coordinates of positive scale, ``(*B,)``."""
    zero = scale == 0
    density = -0.5 * noise.square() - scale.masked_fill(zero, 1.0).log()
    return (density - 0.5 * math.log(2 * math.pi)).masked_fill(zero, 0.0).sum(-1)


def check_mask(mask: Tensor) -> None:
    """Raise a ``ValueError`` if a row of a mask allows no option."""
    if not bool(mask.any(-1).all()):
        raise ValueError("mask must allow at least one option in every row; a row allows none.")


def expand_scale(scale: Tensor | float, loc: Tensor) -> Tensor:
    """Return a scale in the shape of ``loc``."""
    if isinstance(scale, Tensor) and scale.shape == loc.shape and scale.dtype == loc.dtype:
        return scale
    scale = torch.as_tensor(scale).to(loc)
    try:
        return scale.expand_as(loc)
    except RuntimeError as error:
        raise ValueError(
            f"scale must be broadcastable to loc of shape {tuple(loc.shape)}, got "
            f"{tuple(scale.shape)}."
        ) from error
