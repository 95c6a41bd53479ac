"""The hybrid policy: TorchRL's probabilistic modules around a hybrid network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import (
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModuleBase,
)
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.envs import EnvBase

from hpo_torchrl.core.categorical import ACTION_MASK
from hpo_torchrl.modules.distribution import (
    HybridDistribution,
    HybridDraw,
    Source,
    branch,
    draw_from,
)
from hpo_torchrl.modules.layers import hooked
from hpo_torchrl.modules.network import HybridNetwork

DISCRETE_LOG_PROB = "discrete_log_prob"
_PARAMETERS = ("logits", "loc", "scale")


class HybridAction(NamedTuple):
    """A sampled action as plain tensors; the log-probabilities carry no graph."""

    discrete: Tensor
    continuous: Tensor
    log_prob: Tensor | None
    discrete_log_prob: Tensor | None


def log_probs_of(
    dist: HybridDistribution, action: TensorDictBase | Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return what :meth:`HybridDraw.log_probs` does, of an action that was not drawn here."""
    discrete, continuous = action["discrete"], action["continuous"]
    with torch.no_grad():
        option = dist.log_prob_discrete(discrete)
        return option + dist.log_prob_continuous(discrete, continuous), option


class _HybridParameters(TensorDictModuleBase):
    """Write logits, loc and (for a stochastic u) scale of the network's answer."""

    def __init__(self, network: nn.Module, observation_key: str) -> None:
        super().__init__()
        self.network = network
        self.in_keys = [observation_key]
        self.out_keys = list(_PARAMETERS[: 3 if _is_stochastic(network) else 2])

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        answer = self.network(tensordict.get(self.in_keys[0]))
        for key, value in zip(_PARAMETERS, answer, strict=True):
            if value is not None:
                tensordict.set(key, value)
        return tensordict


class HybridSampler(ProbabilisticTensorDictModule):
    """Sample a hybrid action from ``logits``, ``loc`` and ``scale``, and write it in one go.

    ``RANDOM`` samples d and reparameterises u, ``DETERMINISTIC`` (and ``MODE``) takes the most
    probable option and the mean of its branch. Written are ``("action", "discrete")``,
    ``("action", "continuous")`` and, with ``return_log_prob``, the joint ``"action_log_prob"``
    and ``"discrete_log_prob"``, each ``(*B,)`` and without a graph.

    Args:
        mask_key: entry with the options that may be chosen, bool ``(*B, M)``; ``None`` allows all.
        stochastic: whether ``scale`` is read; without it u is deterministic.
        heads: whether there are several discrete choices, see :class:`HybridDistribution`.
        return_log_prob: whether log-probabilities are written.
        default_interaction_type: what is done outside ``set_exploration_type``.
    """

    def __init__(
        self,
        *,
        mask_key: str | None = None,
        stochastic: bool = True,
        heads: bool = False,
        return_log_prob: bool = True,
        default_interaction_type: InteractionType = InteractionType.RANDOM,
    ) -> None:
        in_keys = {key: key for key in _PARAMETERS[: 3 if stochastic else 2]}
        if mask_key is not None:
            in_keys["mask"] = mask_key
        super().__init__(
            in_keys=in_keys,
            out_keys=["action"],
            distribution_class=HybridDistribution,
            distribution_kwargs={"heads": heads},
            return_log_prob=return_log_prob,
            default_interaction_type=default_interaction_type,
        )

    @property
    def out_keys(self) -> list:
        """What is written."""
        return [*super().out_keys, *([DISCRETE_LOG_PROB] if self.return_log_prob else [])]

    @out_keys.setter
    def out_keys(self, value: list) -> None:
        self._out_keys = value

    def forward(
        self,
        tensordict: TensorDictBase,
        tensordict_out: TensorDictBase | None = None,
        _requires_sample: bool = True,
    ) -> TensorDictBase:
        """Sample the action of ``tensordict`` (or score the one it holds) and write it."""
        out = tensordict if tensordict_out is None else tensordict_out
        dist = self.get_dist(tensordict)
        if not _requires_sample:
            log_probs: tuple[Any, Any] = log_probs_of(dist, tensordict.get("action"))
        else:
            draw = self.draw(dist)
            action = {"discrete": draw.discrete, "continuous": draw.continuous}
            out.set("action", TensorDict(action, batch_size=draw.continuous.shape[:-1]))
            log_probs = draw.log_probs() if self.return_log_prob else (None, None)
        if self.return_log_prob:
            out.set("action_log_prob", log_probs[0])
            out.set(DISCRETE_LOG_PROB, log_probs[1])
        return out

    def draw(self, dist: HybridDistribution, source: Source | None = None) -> HybridDraw:
        """Choose an action of ``dist`` as the exploration type says, on plain tensors."""
        kind = interaction_type() or self.default_interaction_type
        if kind is InteractionType.RANDOM:
            return dist.draw(source=source)
        action = self._dist_sample(dist, interaction_type=kind)
        discrete, continuous = action["discrete"], action["continuous"]
        logits = dist.logits.detach()
        scale = dist.branch(discrete)[1]
        if scale is None:
            return HybridDraw(discrete, continuous, logits)
        mean = torch.zeros_like(continuous)
        return HybridDraw(discrete, continuous, logits, mean, scale.detach())


class HybridPolicy(ProbabilisticTensorDictSequential):
    r"""A policy over hybrid actions: pi(d | s) categorical, u | s, d normal (or deterministic).

    It is an ordinary ``ProbabilisticTensorDictSequential``: it runs in ``env.rollout`` and in
    TorchRL collectors, obeys ``set_exploration_type``, has ``get_dist``, and feeds
    ``ClipPPOLoss`` its joint log-probability ``"action_log_prob"``.

    Args:
        network: module from the observation to ``(logits, loc, scale)``, for example a
            :class:`HybridNetwork`; ``scale`` may be ``None``.
        observation_key: entry that the network reads.
        mask_key: entry with the options that may be chosen, bool ``(*B, M)``.
        return_log_prob: whether log-probabilities are written.
        default_interaction_type: what is done outside ``set_exploration_type``.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(num_items=3, batch_size=4)
        >>> policy = HybridPolicy.for_env(env)
        >>> rollout = env.rollout(5, policy)
        >>> rollout["action", "continuous"].shape, rollout["next", "reward"].requires_grad
        (torch.Size([4, 5, 3]), True)
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        observation_key: str = "observation",
        mask_key: str | None = None,
        return_log_prob: bool = True,
        default_interaction_type: InteractionType = InteractionType.RANDOM,
    ) -> None:
        super().__init__(
            _HybridParameters(network, observation_key),
            HybridSampler(
                mask_key=mask_key,
                stochastic=_is_stochastic(network),
                heads=_has_heads(network),
                return_log_prob=return_log_prob,
                default_interaction_type=default_interaction_type,
            ),
        )
        self.observation_key, self.mask_key = observation_key, mask_key

    @classmethod
    def for_env(
        cls,
        env: EnvBase,
        *,
        observation_key: str = "observation",
        mask_key: str | None = None,
        return_log_prob: bool = True,
        network: Callable[..., nn.Module] = HybridNetwork,
        **arguments,
    ) -> HybridPolicy:
        """Build the policy of an environment from its specs.

        Args:
            env: environment with actions ``("action", "discrete")`` and
                ``("action", "continuous")``.
            observation_key: entry that the network reads.
            mask_key: entry with the options that may be chosen; by default the environment's
                ``"action_mask"``, if it has one.
            return_log_prob: whether log-probabilities are written.
            network: makes the network, with the arguments of :class:`HybridNetwork`.
            arguments: further arguments of the network.
        """
        observation = env.observation_spec[observation_key]
        continuous = env.full_action_spec["action", "continuous"]
        discrete = env.full_action_spec["action", "discrete"]
        heads = discrete.shape[len(continuous.shape) - 1 :]
        if mask_key is None and ACTION_MASK in env.observation_spec.keys():  # noqa: SIM118
            mask_key = ACTION_MASK
        net = network(
            observation.shape[-1],
            discrete.space.n,
            continuous.shape[-1],
            continuous_bounds=getattr(env, "continuous_bounds", None) or _bounds(continuous),
            branch_bounds=getattr(env, "branch_bounds", None),
            num_heads=heads[0] if heads else None,
            action_scale=getattr(env, "action_scale", None),
            device=observation.device,
            dtype=observation.dtype,
            **arguments,
        )
        return cls(
            net,
            observation_key=observation_key,
            mask_key=mask_key,
            return_log_prob=return_log_prob,
        )

    @property
    def network(self) -> nn.Module:
        """The network behind the policy."""
        return self[0].network

    @property
    def return_log_prob(self) -> bool:
        """Whether log-probabilities are written."""
        return self[-1].return_log_prob

    @property
    def stochastic(self) -> bool:
        """Whether the continuous action is drawn around its mean."""
        return _is_stochastic(self.network)

    @property
    def is_plain(self) -> bool:
        """Whether calling the policy does what :meth:`act` does, and nothing else."""
        modules = (self, self[0], self[-1])
        return type(self).forward is HybridPolicy.forward and not any(map(hooked, modules))

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Parameters by name, by component: ``"discrete"``, and ``"continuous"`` for all else."""
        discrete = {id(p) for p in getattr(self.network, "discrete", nn.Identity()).parameters()}
        named = dict(self.named_parameters())
        groups = {
            "discrete": {name: p for name, p in named.items() if id(p) in discrete},
            "continuous": {name: p for name, p in named.items() if id(p) not in discrete},
        }
        return {component: parameters for component, parameters in groups.items() if parameters}

    def distribution(self, observation: Tensor, mask: Tensor | None = None) -> HybridDistribution:
        """Return the action distribution at ``observation``, on plain tensors."""
        logits, loc, scale = self.network(observation)
        return HybridDistribution(logits, loc, scale, mask, heads=_has_heads(self.network))

    def mask_of(self, entries: Mapping[str, Tensor]) -> Tensor | None:
        """Return the mask that the policy reads, out of a step's entries; ``None`` without one."""
        return None if self.mask_key is None else entries[self.mask_key]

    def discrete_logits(self, tensordict: TensorDictBase) -> Tensor:
        """Return log pi(. | s), normalised and masked, ``(*B, M)``, without the continuous net."""
        observation = tensordict.get(self.observation_key)
        network: Any = self.network
        # A subclass may say what its logits are; one with another forward need not have said it.
        told = isinstance(network, HybridNetwork) and (
            known(network) or type(network).logits is not HybridNetwork.logits
        )
        if not told:
            mask = None if self.mask_key is None else tensordict.get(self.mask_key)
            return self.distribution(observation, mask).logits
        logits = network.logits(observation)
        if self.mask_key is not None:
            logits = logits.masked_fill(~tensordict.get(self.mask_key), -math.inf)
        return logits.log_softmax(-1)

    def mean_action(self, tensordict: TensorDictBase, discrete: Tensor) -> Tensor:
        """Return the mean of u of the given options, ``(*B, n)``, without the discrete net."""
        observation = tensordict.get(self.observation_key)
        net: Any = self.network
        loc = net.loc(observation) if known(net) else net(observation)[1]
        return branch(discrete, loc, None, _has_heads(self.network))[0]

    def act(self, observation: Tensor, mask: Tensor | None = None) -> HybridAction:
        """Sample an action on plain tensors: the arithmetic and random numbers of the module."""
        draw = self.sampler()(observation, mask)
        scores = draw.log_probs() if self.return_log_prob else (None, None)
        return HybridAction(draw.discrete, draw.continuous, *scores)

    def sampler(
        self, source: Source | None = None
    ) -> Callable[[Tensor, Tensor | None], HybridDraw]:
        """Return a function that samples as :meth:`act` does and leaves the scores for later.

        It takes the observation and the mask. What stays the same in a rollout is found once, so
        it is for the parameters and the exploration type of now.

        Args:
            source: where random numbers come from; see :meth:`HybridDistribution.draw`.
        """
        network: Any = self.network
        sampler = self[-1]
        kind = interaction_type() or sampler.default_interaction_type
        heads = _has_heads(network)
        usual = known(network)
        parameters = network.sampler() if usual else network

        def sample(observation: Tensor, mask: Tensor | None = None) -> HybridDraw:
            logits, loc, scale = parameters(observation)
            if usual and mask is None and kind is InteractionType.RANDOM:
                # Right by construction: neither object nor checks are needed.
                return draw_from(logits.log_softmax(-1), loc, scale, heads=heads, source=source)
            # A mask is always checked, and so are parameters of a network of another kind.
            check = False if usual and mask is None else None
            dist = HybridDistribution(logits, loc, scale, mask, check, heads=heads)
            return sampler.draw(dist, source)

        return sample

    def check_env(self, env: EnvBase) -> None:
        """Raise a ``ValueError`` if the policy's branches or dimensions are not the environment's.

        Args:
            env: the environment that the policy is meant for.
        """
        spec = env.observation_spec[self.observation_key]
        options = env.full_action_spec["action", "discrete"].space.n
        dimension = env.full_action_spec["action", "continuous"].shape[-1]
        heads = getattr(self.network, "num_heads", None)
        shape = (options, dimension) if heads is None else (heads, options, dimension // heads)
        with torch.no_grad():
            logits, loc, _ = self.network(
                torch.zeros(1, spec.shape[-1]).to(spec.dtype).to(spec.device)
            )
        if logits.shape[-1] != options or tuple(loc.shape[-len(shape) :]) != shape:
            raise ValueError(
                f"The policy has {logits.shape[-1]} options and branches of shape "
                f"{tuple(loc.shape[-len(shape) :])}, but the environment asks for {options} "
                f"options and branches of shape {shape} (options, continuous dimension). Build "
                "it with HybridPolicy.for_env(env) or correct the network's outputs."
            )


def known(network: nn.Module) -> bool:
    """Whether calling a network is what :class:`HybridNetwork` does, and nothing else."""
    own, usual = type(network), vars(HybridNetwork).items()
    methods = (name for name, value in usual if callable(value) and name != "__init__")
    return (
        isinstance(network, HybridNetwork)
        and all(getattr(own, name) is getattr(HybridNetwork, name) for name in methods)
        and not hooked(network)
    )


def _is_stochastic(network: nn.Module) -> bool:
    return getattr(network, "stochastic", True)


def _has_heads(network: nn.Module) -> bool:
    return getattr(network, "num_heads", None) is not None


def _bounds(spec) -> tuple[float | None, float | None]:
    """Read finite, uniform bounds off a spec; anything else counts as unbounded."""
    if not isinstance(spec, Bounded):
        return None, None
    low, high = spec.space.low, spec.space.high
    limit = 1e30
    lower, upper = low.flatten()[0].item(), high.flatten()[0].item()
    uniform = bool((low == lower).all()) and bool((high == upper).all())
    if not uniform:
        raise ValueError(
            "HybridPolicy.for_env needs the same bounds for every continuous action, got "
            f"low={low.tolist()} and high={high.tolist()}; give the environment an attribute "
            "continuous_bounds, or build the HybridNetwork yourself."
        )
    return lower if lower > -limit else None, upper if upper < limit else None


__all__ = ["HybridAction", "HybridPolicy", "HybridSampler"]
