"""The hybrid policy: TorchRL's probabilistic modules around a hybrid network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from tensordict.nn import InteractionType, ProbabilisticTensorDictSequential
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.envs import EnvBase

from hpo_torchrl.core.categorical import ACTION_MASK
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.modules.continuous import ContinuousDistribution
from hpo_torchrl.modules.distribution import HybridDistribution
from hpo_torchrl.modules.network import HybridNetwork
from hpo_torchrl.modules.sampler import HybridParameters, HybridSampler, is_stochastic
from hpo_torchrl.modules.sampling import NORMAL, HybridDraw, Noise, draw, normalised


class HybridAction(NamedTuple):
    """A sampled action as plain tensors; the log-probabilities carry no graph."""

    discrete: Tensor
    continuous: Tensor
    log_prob: Tensor | None
    discrete_log_prob: Tensor | None


class HybridPolicy(ProbabilisticTensorDictSequential):
    r"""A policy over hybrid actions: pi(d | s) categorical, then u | s, d (normal by default).

    It is an ordinary ``ProbabilisticTensorDictSequential``: it runs in ``env.rollout`` and in
    TorchRL collectors, obeys ``set_exploration_type``, has ``get_dist``, and feeds
    ``ClipPPOLoss`` its joint log-probability ``"action_log_prob"``.

    **A network of your own** is any module from an observation ``(*B, k)`` to
    ``(logits, loc, scale)``, of the shapes that :class:`HybridDistribution` asks for; ``scale`` may
    be ``None``. Besides, these attributes are read, if there are any:

    * ``num_heads``: number of discrete choices in a step; without it there is one.
    * ``stochastic``: whether the answer has a scale; without it, it has.
    * ``distribution``: the distribution of u, a :class:`ContinuousDistribution`; else a normal.
    * ``discrete``: the submodule behind the logits alone. Its parameters are the group
      ``"discrete"`` of :meth:`parameter_groups`, which has a learning-rate multiplier and a
      gradient norm of its own. Without it, groups are found by calling the network once: what
      moves only the logits is ``"discrete"``, all else ``"continuous"``.
    * ``logits(observation)``: the logits alone, for losses that need no more.

    Args:
        network: the network, for example a :class:`HybridNetwork`.
        observation_key: entry that the network reads.
        mask_key: entry with the discrete actions that may be chosen, bool ``(*B, M)``.
        return_log_prob: whether log-probabilities are written.
        default_interaction_type: what is done outside ``set_exploration_type``.

    Attributes:
        num_seeds: number S of seeds of a policy made by :func:`replicate`, else ``None``.
        members: the policy of each seed then.

    Examples:
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy
        >>> env = InventoryEnv(num_items=3, batch_size=4)
        >>> policy = HybridPolicy.for_env(env)
        >>> rollout = env.rollout(5, policy)
        >>> rollout["action", "continuous"].shape, rollout["next", "reward"].requires_grad
        (torch.Size([4, 5, 3]), True)
    """

    num_seeds: int | None = None
    members: tuple[HybridPolicy, ...] = ()
    _observation_size: int | None = None

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
            HybridParameters(network, observation_key),
            HybridSampler(
                mask_key=mask_key,
                stochastic=is_stochastic(network),
                heads=_has_heads(network),
                distribution=getattr(network, "distribution", NORMAL),
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
        network: Any = HybridNetwork,
        observation_key: str = "observation",
        mask_key: str | None = None,
        return_log_prob: bool = True,
        **arguments: Any,
    ) -> HybridPolicy:
        """Build the policy of an environment from its specs.

        Args:
            env: environment with actions ``("action", "discrete")`` and
                ``("action", "continuous")``.
            network: the network, or a class (or another callable) that makes it. It is called with
                ``observation_dim``, ``num_discrete``, ``continuous_dim``, ``continuous_bounds``,
                ``branch_bounds``, ``num_heads``, ``action_scale``, ``device`` and ``dtype``, and
                with ``arguments``.
            observation_key: entry that the network reads.
            mask_key: entry with the discrete actions that may be chosen; by default the
                environment's ``"action_mask"``, if it has one.
            return_log_prob: whether log-probabilities are written.
            arguments: further arguments of the network, by default of :class:`HybridNetwork`.

        Raises:
            TypeError: ``network`` is neither, or arguments are given for one that is made already.
        """
        observation = env.observation_spec[observation_key]
        continuous = env.full_action_spec["action", "continuous"]
        discrete = env.full_action_spec["action", "discrete"]
        heads = discrete.shape[len(continuous.shape) - 1 :]
        if mask_key is None and ACTION_MASK in env.observation_spec.keys():  # noqa: SIM118
            mask_key = ACTION_MASK
        if isinstance(network, nn.Module):
            if arguments:
                raise TypeError(
                    f"network is a module already, so {', '.join(sorted(arguments))} cannot be "
                    "given to it; give its class instead, or leave the arguments out."
                )
        elif not callable(network):
            raise TypeError(f"network must be a module or a callable, got {network!r}.")
        else:
            network = network(
                observation_dim=observation.shape[-1],
                num_discrete=discrete.space.n,
                continuous_dim=continuous.shape[-1],
                continuous_bounds=getattr(env, "continuous_bounds", None) or _bounds(continuous),
                branch_bounds=getattr(env, "branch_bounds", None),
                num_heads=heads[0] if heads else None,
                action_scale=getattr(env, "action_scale", None),
                device=observation.device,
                dtype=observation.dtype,
                **arguments,
            )
        policy = cls(
            network,
            observation_key=observation_key,
            mask_key=mask_key,
            return_log_prob=return_log_prob,
        )
        policy._observation_size = observation.shape[-1]
        return policy

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
        """Whether the continuous action is sampled."""
        return is_stochastic(self.network)

    @property
    def acts_randomly(self) -> bool:
        """Whether actions are sampled now, given ``set_exploration_type`` and the default."""
        return self[-1].acts_randomly

    @property
    def continuous_distribution(self) -> ContinuousDistribution:
        """The distribution of u."""
        return getattr(self.network, "distribution", NORMAL)

    @property
    def randomness(self) -> Randomness:
        """Where random numbers come from; torch's global generator by default."""
        return self[-1].randomness

    @randomness.setter
    def randomness(self, value: Randomness) -> None:
        self[-1].randomness = value

    def parameter_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Parameters by name, by component: ``"discrete"``, and ``"continuous"`` for all else."""
        named = dict(self.named_parameters())
        part = getattr(self.network, "discrete", None)
        if isinstance(part, nn.Module):
            discrete = {id(p) for p in part.parameters()}
        else:
            discrete = self._only_discrete(named)
        groups = {
            "discrete": {name: p for name, p in named.items() if id(p) in discrete},
            "continuous": {name: p for name, p in named.items() if id(p) not in discrete},
        }
        return {component: parameters for component, parameters in groups.items() if parameters}

    def _only_discrete(self, named: Mapping[str, nn.Parameter]) -> set[int]:
        """Find the parameters that gradients of the logits reach, and those of u do not."""
        size = self._observation_size
        if size is None:
            return set()
        learned = [p for p in named.values() if p.requires_grad]
        example = torch.zeros(self.num_seeds or 1, size).to(learned[0]) if learned else None
        if example is None:
            return set()
        with torch.enable_grad():
            logits, loc, scale = self.network(example)
        reached = []
        for outputs in ([logits], [loc, scale]):
            total = sum(value.sum() for value in outputs if value is not None)
            found: Any = [None] * len(learned)
            if isinstance(total, Tensor) and total.requires_grad:
                found = torch.autograd.grad(total, learned, retain_graph=True, allow_unused=True)
            pairs = zip(learned, found, strict=True)
            reached.append({id(p) for p, gradient in pairs if gradient is not None})
        return reached[0] - reached[1]

    def distribution(self, observation: Tensor, mask: Tensor | None = None) -> HybridDistribution:
        """Return the action distribution at ``observation``, on plain tensors."""
        logits, loc, scale = self.network(observation)
        return HybridDistribution(
            logits,
            loc,
            scale,
            mask,
            heads=_has_heads(self.network),
            distribution=self.continuous_distribution,
        )

    def mask_of(self, entries: Mapping[str, Tensor]) -> Tensor | None:
        """Return the mask that the policy reads, out of a step's entries; ``None`` without one."""
        return None if self.mask_key is None else entries[self.mask_key]

    def discrete_logits(self, tensordict: TensorDictBase) -> Tensor:
        """Return log pi(. | s), normalised and masked, ``(*B, M)``, without the continuous net."""
        observation, network = tensordict.get(self.observation_key), self.network
        told: Any = _agreeing(network, "logits")
        logits = network(observation)[0] if told is None else told(observation)
        return normalised(logits, self.mask_of(tensordict))

    def mean_action(self, tensordict: TensorDictBase, discrete: Tensor) -> Tensor:
        """Return u of the given discrete actions without sampling, ``(*B, n)``.

        That is the mode of the branch, for a normal its mean; the discrete net is not evaluated.
        """
        observation, network = tensordict.get(self.observation_key), self.network
        told: Any = _agreeing(network, "branches")
        loc, scale = network(observation)[1:] if told is None else told(observation)
        dist = HybridDistribution(
            loc.detach()[..., 0],
            loc,
            scale,
            validate_args=False,
            heads=_has_heads(network),
            distribution=self.continuous_distribution,
        )
        return dist.mode_of(discrete)

    def act(self, observation: Tensor, mask: Tensor | None = None) -> HybridAction:
        """Sample an action on plain tensors: the arithmetic and random numbers of the module.

        Raises:
            ValueError: a row of the mask allows nothing, or the network's answer is of another
                shape.
        """
        dist = self.distribution(observation, mask)
        noise = dist.sample_noise((), self.randomness) if self.acts_randomly else None
        found = dist.draw(noise)
        scores: tuple[Any, Any] = (None, None)
        if self.return_log_prob:
            own = None if noise is None else noise.continuous
            scores = found.log_probs(own, dist.distribution)
        return HybridAction(found.discrete, found.continuous, *scores)

    def sampler(self) -> Callable[[Tensor, Tensor | None, Noise | None], HybridDraw]:
        """Return a function that samples as :meth:`act` does, with given random numbers.

        It takes the observation, the mask (which is not checked) and the noise, see
        :func:`~hpo_torchrl.modules.distribution.draw`. It is for the parameters of now: what does
        not depend on the observation is computed once.
        """
        network, heads = self.network, _has_heads(self.network)
        distribution = self.continuous_distribution
        own: Any = _agreeing(network, "sampler")
        parameters = network if own is None else own()

        def sample(observation: Tensor, mask: Tensor | None, noise: Noise | None) -> HybridDraw:
            logits, loc, scale = parameters(observation)
            logits = normalised(logits.detach(), mask)
            return draw(distribution, logits, loc, scale, noise, heads)

        return sample

    def check_env(self, env: EnvBase) -> None:
        """Raise a ``ValueError`` if the policy's branches or dimensions are not the environment's.

        Args:
            env: the environment that the policy is meant for.
        """
        spec = env.observation_spec[self.observation_key]
        number = env.full_action_spec["action", "discrete"].space.n
        dimension = env.full_action_spec["action", "continuous"].shape[-1]
        heads = getattr(self.network, "num_heads", None)
        shape = (number, dimension) if heads is None else (heads, number, dimension // heads)
        example = torch.zeros(self.num_seeds or 1, spec.shape[-1]).to(spec.dtype).to(spec.device)
        with torch.no_grad():
            logits, loc, scale = self.network(example)
            # A distribution may have parameters of its own; its actions have the last word.
            loc = self.continuous_distribution.mode(loc, scale)
        if logits.shape[-1] != number or tuple(loc.shape[-len(shape) :]) != shape:
            raise ValueError(
                f"The policy has {logits.shape[-1]} discrete actions and branches of shape "
                f"{tuple(loc.shape[-len(shape) :])}, but the environment asks for {number} "
                f"discrete actions and branches of shape {shape} (discrete actions, continuous "
                "dimension). Build it with HybridPolicy.for_env(env) or correct the network's "
                "outputs."
            )
        self._observation_size = spec.shape[-1]


def _agreeing(network: nn.Module, name: str) -> Callable | None:
    """Return a method of a network, unless a subclass has overridden ``forward`` beside it."""
    family = type(network).__mro__
    owner, other = (next((c for c in family if at in vars(c)), None) for at in (name, "forward"))
    agrees = owner is not None and other is not None and issubclass(owner, other)
    return getattr(network, name) if agrees else None


def _has_heads(network: nn.Module) -> bool:
    return getattr(network, "num_heads", None) is not None


def _bounds(spec: Any) -> tuple[Any, Any]:
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
        values = [value if abs(value) < 1e30 else None for value in rows[0].tolist()]
        found.append(values)
    if all(value is None for value in (*found[0], *found[1])):
        return None, None
    if all(len(set(values)) == 1 for values in found):
        return found[0][0], found[1][0]
    infinite = float("inf")
    low = [-infinite if value is None else value for value in found[0]]
    return low, [infinite if value is None else value for value in found[1]]
