"""The joint distribution of a hybrid action."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import Distribution

from hpo_torchrl.core.categorical import entropy_of
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.modules.continuous import ContinuousDistribution
from hpo_torchrl.modules.sampling import (
    NORMAL,
    HybridDraw,
    Noise,
    branched,
    check_mask,
    draw,
    flat,
    normalised,
    sample_noise,
    select,
)

_Shape = torch.Size | list[int] | tuple[int, ...]


class HybridDistribution(Distribution):
    r"""Categorical discrete action d, then a vector u from that action's branch.

    .. math::
        d \sim \mathrm{Cat}(\text{logits}), \qquad
        u \mid d \sim p(\cdot;\ \text{loc}_d, \text{scale}_d)

    with the normal distribution :math:`\mathcal N(\text{loc}_d, \mathrm{diag}(\text{scale}_d^2))`
    unless another one is given. A sample is a tensordict with ``"discrete"``, int64 of shape
    ``(*B,)``, and ``"continuous"``, float of shape ``(*B, n)``. :meth:`rsample` reparameterises u,
    so that gradients reach ``loc`` and ``scale`` of the sampled branch; nothing flows through d.

    With ``heads`` a step has H choices at once, independent given the state: logits are
    ``(*B, H, M)``, and each head's branches hold its own k = n / H coordinates, ``(*B, H, M, k)``.
    ``"discrete"`` is then ``(*B, H)``; log-probabilities and entropies are sums over the heads.

    A coordinate of scale 0 is deterministic: it adds nothing to log-probabilities and entropies,
    which are then those of the remaining coordinates.

    Args:
        logits: unnormalised log-probabilities of the M discrete actions, ``(*B, M)`` or
            ``(*B, H, M)``.
        loc: location of u for every branch, ``(*B, M, n)`` or ``(*B, H, M, k)``.
        scale: scale of u, broadcastable to ``loc``; ``None`` is 0 everywhere.
        mask: discrete actions that may be chosen, bool of the logits' shape; ``None`` allows all.
        heads: whether there are heads.
        distribution: the distribution of u, see :class:`ContinuousDistribution`.
        validate_args: check values besides shapes; by default where that is free of a host
            synchronisation, that is on the CPU.

    Raises:
        ValueError: shapes disagree, a scale is negative or NaN, or a row of the mask allows no
            discrete action.

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
        distribution: ContinuousDistribution = NORMAL,
    ) -> None:
        if loc.shape[:-1] != logits.shape:
            raise ValueError(
                "loc must have one branch per discrete action: logits of shape "
                f"{tuple(logits.shape)} ask for loc of shape {(*logits.shape, 'n')}, got "
                f"{tuple(loc.shape)}. Give the continuous network (number of discrete actions) x "
                "(continuous dimension) outputs."
            )
        self.loc = loc
        self.scale = None if scale is None else _expand_scale(scale, loc)
        self.heads, self.distribution = heads, distribution
        batch = logits.shape[: -2 if heads else -1]
        dimension = loc.shape[-1] * (logits.shape[-2] if heads else 1)
        super().__init__(batch, torch.Size([dimension]), validate_args=False)
        if mask is not None and (mask.dtype != torch.bool or mask.shape != logits.shape):
            raise ValueError(
                f"mask must be bool of shape {tuple(logits.shape)}, got {mask.dtype} of shape "
                f"{tuple(mask.shape)}."
            )
        if logits.device.type == "cpu" if validate_args is None else validate_args:
            if self.scale is not None and not bool((self.scale >= 0).all()):
                least = self.scale.min().item()
                raise ValueError(f"scale must be >= 0, got a minimum of {least:g}.")
            if mask is not None:
                check_mask(mask)
        self.logits = normalised(logits, mask)

    @property
    def num_discrete(self) -> int:
        """Number M of discrete actions."""
        return self.logits.shape[-1]

    @property
    def probs(self) -> Tensor:
        """Probability of each discrete action, ``(*B, M)``."""
        return self.logits.exp()

    def rsample(self, sample_shape: _Shape = torch.Size()) -> TensorDict:  # noqa: B008
        """Sample d and reparameterise u: gradients flow through ``"continuous"``."""
        draw = self.draw(self.sample_noise(sample_shape))
        return self._action(draw.discrete, draw.continuous)

    def sample(self, sample_shape: _Shape = torch.Size()) -> TensorDict:  # noqa: B008
        """Sample d and u without a graph."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def sample_noise(
        self,
        sample_shape: _Shape = torch.Size(),  # noqa: B008
        randomness: Randomness | None = None,
    ) -> Noise:
        """Draw the random numbers of a sample; from torch's global generator by default."""
        batch = (*sample_shape, *self.batch_shape)
        return sample_noise(
            randomness or Randomness(),
            (*sample_shape, *self.logits.shape),
            None if self.scale is None else (*batch, *self.event_shape),
            self.distribution.noise,
            self.loc,
        )

    def draw(self, noise: Noise | None) -> HybridDraw:
        """Sample with given random numbers, on plain tensors; see :func:`draw`."""
        return draw(
            self.distribution, self.logits.detach(), self.loc, self.scale, noise, self.heads
        )

    @property
    def deterministic_sample(self) -> TensorDict:
        """The most probable discrete action and the mode of its branch, with the graph of u."""
        draw = self.draw(None)
        return self._action(draw.discrete, draw.continuous)

    @property
    def mode(self) -> TensorDict:
        """Same as :attr:`deterministic_sample`."""
        return self.deterministic_sample

    @property
    def mean(self) -> TensorDict:
        """Same as :attr:`deterministic_sample`: discrete actions have no mean."""
        return self.deterministic_sample

    def actions(self, noise: Tensor | None = None) -> Tensor:
        """Return u of every branch, of the shape of ``loc``.

        Args:
            noise: noise of u, ``(*B, n)``, the same for all branches; ``None`` is the mode.
        """
        if noise is None or self.scale is None:
            return self.distribution.mode(self.loc, self.scale)
        if self.heads:
            noise = noise.unflatten(-1, (self.logits.shape[-2], -1))
        return self.distribution.sample(self.loc, self.scale, noise.unsqueeze(-2))

    def branch(self, discrete: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return ``loc`` and ``scale`` of the given discrete actions, each ``(*B, n)``."""
        loc, scale, _ = self._select(discrete)
        own = flat(loc, self.heads)
        return own, None if scale is None else flat(scale, self.heads).expand(own.shape)

    def mode_of(self, discrete: Tensor) -> Tensor:
        """Return the mode of u given the discrete actions, ``(*B, n)``."""
        return flat(self.distribution.mode(*self._select(discrete)), self.heads)

    def log_prob(self, action: TensorDictBase | Mapping[str, Tensor]) -> Tensor:
        """Return the joint log-probability log pi(d) + log p(u; branch d), ``(*B,)``."""
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
        """Return log p(u; branch d) over the coordinates of positive scale, ``(*B,)``."""
        loc, scale, index = self._select(discrete)
        if scale is None:
            return torch.zeros_like(continuous[..., 0])
        value = branched(continuous, discrete, self.heads)
        return flat(self.distribution.log_prob(loc, scale, value, index), self.heads).sum(-1)

    def entropy(self) -> Tensor:
        """Return H(d) + sum_d pi(d) H(u | d) over the coordinates of positive scale, ``(*B,)``."""
        if self.scale is None:
            return self.entropy_discrete()
        branches = self.distribution.entropy(self.loc, self.scale).sum(-1)
        return self.entropy_discrete() + self._over_heads((self.probs * branches).sum(-1))

    def entropy_discrete(self) -> Tensor:
        """Return H(d) in nats, ``(*B,)``."""
        return self._over_heads(entropy_of(self.logits))

    def _select(self, discrete: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        index = discrete[..., None, None].expand(*discrete.shape, 1, self.loc.shape[-1])
        scale = None if self.scale is None else select(self.scale, index)
        return select(self.loc, index), scale, index

    def _over_heads(self, value: Tensor) -> Tensor:
        return value.sum(-1) if self.heads else value

    def _action(self, discrete: Tensor, continuous: Tensor) -> TensorDict:
        return TensorDict(
            {"discrete": discrete, "continuous": continuous}, batch_size=continuous.shape[:-1]
        )


def _expand_scale(scale: Tensor | float, loc: Tensor) -> Tensor:
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
