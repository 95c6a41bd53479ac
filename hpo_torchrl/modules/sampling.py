"""The joint distribution of a hybrid action, and how it is sampled from given random numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import Distribution

from hpo_torchrl.core.categorical import entropy_of, over_heads
from hpo_torchrl.core.checks import check_bool, shown
from hpo_torchrl.core.finite import NonFiniteError, traced, vmapped
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.modules.continuous import ContinuousDistribution, Normal

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
        loc: parameter of the chosen branch; ``None`` where u is deterministic.
        scale: the other one, broadcastable to it; likewise.
    """

    discrete: Tensor
    continuous: Tensor
    logits: Tensor
    loc: Tensor | None = None
    scale: Tensor | None = None

    def log_probs(
        self, noise: Tensor | None, distribution: ContinuousDistribution = NORMAL
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of both actions together and of the discrete one, ``(*B,)``.

        Many draws that are stacked are scored in the time of one.

        Args:
            noise: the noise of u; ``None`` for an action that was not sampled.
            distribution: the distribution of u.
        """
        with torch.no_grad():  # as a decorator it cannot be compiled
            chosen = self.logits.gather(-1, self.discrete.unsqueeze(-1)).squeeze(-1)
            chosen = over_heads(chosen, self.continuous.ndim - 1)
            if self.loc is None or self.scale is None:
                return chosen, chosen
            heads = self.discrete.ndim == self.continuous.ndim
            value = branched(self.continuous, self.discrete, heads)
            index = index_of(self.discrete, value)
            if noise is None:
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
    loc, scale, index = chosen_branch(loc, scale, discrete)
    if scale is None:
        return HybridDraw(discrete, flat(distribution.mode(loc, None, index), heads), logits)
    if noise is None or noise.continuous is None:
        value = distribution.mode(loc, scale, index)
    else:
        value = distribution.sample(loc, scale, branched(noise.continuous, discrete, heads), index)
    # With all dimensions, so that the scales of several steps can be stacked.
    scale = scale.detach().reshape(*(1,) * (loc.ndim - scale.ndim), *scale.shape)
    return HybridDraw(discrete, flat(value, heads), logits, loc.detach(), scale)


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
            synchronisation, that is on the CPU, and where nothing is being compiled or vmapped.

    Raises:
        ValueError: shapes disagree, a scale is negative or NaN, or a row of the mask allows no
            discrete action.
        NonFiniteError: logits or loc are not finite (a ``ValueError`` too). Minus infinity as a
            logit forbids its discrete action, unless it forbids all.

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
        check_bool("heads", heads)
        for name, value in {"logits": logits, "loc": loc, "mask": mask}.items():
            if not isinstance(value, Tensor) and (value is not None or name != "mask"):
                raise TypeError(f"{name} must be a tensor, got {shown(value)}.")
        if loc.shape[:-1] != logits.shape:
            raise ValueError(
                "loc must have one branch per discrete action: logits of shape "
                f"{tuple(logits.shape)} ask for loc of shape {(*logits.shape, 'n')}, got "
                f"{tuple(loc.shape)}. Give the continuous network (number of discrete actions) x "
                "(continuous dimension) outputs."
            )
        self.loc = loc
        self.scale: Tensor | None = None
        if scale is not None:
            try:
                self.scale = torch.as_tensor(scale).to(loc).expand_as(loc)
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f"scale must be broadcastable to loc of shape {tuple(loc.shape)}, got "
                    f"{shown(scale)}."
                ) from error
        self.heads, self.distribution = heads, distribution
        batch = logits.shape[: -2 if heads else -1]
        dimension = loc.shape[-1] * (logits.shape[-2] if heads else 1)
        super().__init__(batch, torch.Size([dimension]), validate_args=False)
        if mask is not None and (mask.dtype != torch.bool or mask.shape != logits.shape):
            raise ValueError(
                f"mask must be bool of shape {tuple(logits.shape)}, got {mask.dtype} of shape "
                f"{tuple(mask.shape)}."
            )
        self.logits = normalised(logits, mask)
        if validate_args is None:
            validate_args = logits.device.type == "cpu" and not (
                torch.compiler.is_compiling() or vmapped(loc) or traced()
            )
        if validate_args:
            if self.scale is not None and not bool((self.scale >= 0).all()):
                least = self.scale.min().item()
                raise ValueError(f"scale must be >= 0, got a minimum of {least:g}.")
            if mask is not None:
                check_mask(mask)
            # Normalised, a row is NaN where a logit was NaN or infinite, and its argmax is 0.
            for name, value in {"logits": self.logits.exp(), "loc": loc}.items():
                if not bool(value.isfinite().all()):
                    raise NonFiniteError(
                        f"{name} must be finite, got NaN or infinity; check the network's weights "
                        "and what it observes."
                    )

    @property
    def num_discrete(self) -> int:
        """Number M of discrete actions."""
        return self.logits.shape[-1]

    @property
    def probs(self) -> Tensor:
        """Probability of each discrete action, ``(*B, M)``."""
        return self.logits.exp()

    def rsample(self, sample_shape: Sequence[int] = ()) -> TensorDict:
        """Sample d and reparameterise u: gradients flow through ``"continuous"``."""
        return _action(self.draw(self.sample_noise(sample_shape)))

    def sample_noise(
        self,
        sample_shape: Sequence[int] = (),
        randomness: Randomness | None = None,
        axis: int = 0,
    ) -> Noise:
        """Draw the random numbers of a sample; from torch's global generator by default.

        Args:
            sample_shape: shape before that of the distribution.
            randomness: where they come from.
            axis: see :meth:`Randomness.fill`.
        """
        randomness = randomness or Randomness()

        def empty(*shape: int) -> Tensor:
            # Made from the parameters: under vmap each of its members then has numbers of its own.
            return self.loc.new_empty((*sample_shape, *shape))

        logs = randomness.fill("exponential", empty(*self.logits.shape), axis).log_()
        if self.scale is None:
            return Noise(logs)
        own = empty(*self.batch_shape, *self.event_shape)
        return Noise(logs, randomness.fill(self.distribution.noise, own, axis))

    def draw(self, noise: Noise | None) -> HybridDraw:
        """Sample with given random numbers, on plain tensors; see :func:`draw`."""
        return draw(
            self.distribution, self.logits.detach(), self.loc, self.scale, noise, self.heads
        )

    @property
    def deterministic_sample(self) -> TensorDict:
        """The most probable discrete action and the mode of its branch, with the graph of u."""
        return _action(self.draw(None))

    # Discrete actions have no mean.
    mode = mean = deterministic_sample

    def actions(self, noise: Tensor | None = None) -> Tensor:
        """Return u of every branch, of the shape of ``loc``.

        Args:
            noise: noise of u, ``(*B, n)``, the same for all branches; ``None`` is the mode.
        """
        if noise is None or self.scale is None:
            return self.distribution.mode(self.loc, self.scale)
        noise = branched(noise, self.logits[..., 0], self.heads)
        return self.distribution.sample(self.loc, self.scale, noise)

    def mode_of(self, discrete: Tensor) -> Tensor:
        """Return the mode of u given the discrete actions, ``(*B, n)``."""
        chosen = chosen_branch(self.loc, self.scale, discrete)
        return flat(self.distribution.mode(*chosen), self.heads)

    def log_prob(self, action: TensorDictBase | Mapping[str, Tensor]) -> Any:
        """Return the joint log-probability log pi(d) + log p(u; branch d), ``(*B,)``.

        Args:
            action: ``"discrete"`` and ``"continuous"``; or data that hold them in ``"action"``, of
                which a tensordict with the log-probabilities of both parts is returned,
                ``(*B, 1)`` each. TorchRL's ``A2CLoss`` asks for the latter and adds them up.
        """
        own: Any = action if "discrete" in action.keys() else action["action"]  # noqa: SIM118
        discrete, continuous = own["discrete"], own["continuous"]
        parts = {
            "discrete": self.log_prob_discrete(discrete),
            "continuous": self.log_prob_continuous(discrete, continuous),
        }
        if own is action:
            return parts["discrete"] + parts["continuous"]
        batch = parts["discrete"].shape
        return TensorDict({key: one.unsqueeze(-1) for key, one in parts.items()}, batch)

    def log_prob_discrete(self, discrete: Tensor) -> Tensor:
        """Return log pi(d), ``(*B,)``."""
        logits = self.logits.expand(*discrete.shape, self.num_discrete)
        return self._over_heads(logits.gather(-1, discrete.unsqueeze(-1)).squeeze(-1))

    def log_prob_continuous(self, discrete: Tensor, continuous: Tensor) -> Tensor:
        """Return log p(u; branch d) over the coordinates of positive scale, ``(*B,)``."""
        loc, scale, index = chosen_branch(self.loc, self.scale, discrete)
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

    def _over_heads(self, value: Tensor) -> Tensor:
        return value.sum(-1) if self.heads else value


def _action(draw: HybridDraw) -> TensorDict:
    action = {"discrete": draw.discrete, "continuous": draw.continuous}
    return TensorDict(action, batch_size=draw.continuous.shape[:-1])


def normalised(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Return log-probabilities, minus infinity where the mask forbids."""
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf)
    return logits.log_softmax(-1)


def chosen_branch(
    loc: Tensor, scale: Tensor | None, discrete: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return both parameters of the chosen branch, with 1 in the place of M, and its index."""
    index = index_of(discrete, loc)
    return _select(loc, index), None if scale is None else _select(scale, index), index


def index_of(discrete: Tensor, like: Tensor) -> Tensor:
    """Return the index of the chosen branch for every coordinate: ``(*B, 1, n)``."""
    return discrete[..., None, None].expand(*discrete.shape, 1, like.shape[-1])


def _select(branches: Tensor, index: Tensor) -> Tensor:
    """Return the chosen branch; what all branches share is returned as it is."""
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
