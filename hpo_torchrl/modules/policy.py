"""The hybrid policy: TorchRL's probabilistic modules around a hybrid network; and rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.modules import set_recurrent_mode

from hpo_torchrl.core.categorical import ACTION_MASK, action_bounds, action_sizes
from hpo_torchrl.core.checks import checked
from hpo_torchrl.core.data import Key
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.core.wrappers import check_action_kept, plain, spec_of
from hpo_torchrl.modules.continuous import ContinuousDistribution
from hpo_torchrl.modules.layers import homogeneous_entries
from hpo_torchrl.modules.network import HybridNetwork
from hpo_torchrl.modules.sampler import HybridAction, HybridParameters, HybridSampler
from hpo_torchrl.modules.sampling import (
    HybridDistribution,
    HybridDraw,
    Noise,
    chosen_branch,
    draw,
    flat,
    normalised,
)
from hpo_torchrl.modules.scales import scales_of


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

    **A memory** is a module in front of the network, such as TorchRL's ``GRUModule``, whose first
    output the network reads. Its hidden state travels in the tensordict from step to step, with the
    graph in a differentiable rollout, and begins anew where an episode does; the environment needs
    the transforms ``InitTracker`` and ``memory.make_tensordict_primer()`` for it. Losses compute it
    anew from the observations of a batch ``(*B, T)``, whose last axis is time, and from the hidden
    state at its start: gradients pass through all steps.

    Args:
        network: the network, for example a :class:`HybridNetwork`.
        observation_key: entry that the network reads; ``None`` is ``"observation"``, and of a
            memory its first output.
        mask_key: entry with the discrete actions that may be chosen, bool ``(*B, M)``.
        memory: a memory, or any module that prepares what the network reads.
        sampler: further arguments, of :class:`HybridSampler`: ``return_log_prob`` and
            ``default_interaction_type``.

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

        With a memory:

        >>> from torchrl.envs import Compose, InitTracker, TransformedEnv
        >>> from torchrl.modules import GRUModule
        >>> gru = GRUModule(
        ...     input_size=env.observation_spec["observation"].shape[-1],
        ...     hidden_size=8,
        ...     in_keys=["observation", "recurrent_state"],
        ...     out_keys=["features", ("next", "recurrent_state")],
        ... )
        >>> env = TransformedEnv(env, Compose(InitTracker(), gru.make_tensordict_primer()))
        >>> policy = HybridPolicy.for_env(env, memory=gru)
        >>> env.rollout(5, policy)["recurrent_state"].shape
        torch.Size([4, 5, 1, 8])
    """

    num_seeds: int | None = None
    members: tuple[HybridPolicy, ...] = ()
    _observation_size: int | None = None

    @checked
    def __init__(
        self,
        network: nn.Module,
        *,
        observation_key: Key | None = None,
        mask_key: Key | None = None,
        memory: TensorDictModuleBase | None = None,
        **sampler: Any,
    ) -> None:
        observation_key = _read_key(observation_key, memory)
        parameters = HybridParameters(network, observation_key)
        before = [] if memory is None else [memory]
        super().__init__(*before, parameters, HybridSampler(network, mask_key, **sampler))
        self.observation_key, self.mask_key = observation_key, mask_key
        self.stochastic = "scale" in parameters.out_keys
        self.return_log_prob: bool = self[-1].return_log_prob
        # The arguments of a distribution: whether there are heads, and the distribution of u.
        self._kind: dict[str, Any] = self[-1].distribution_kwargs

    @classmethod
    @checked
    def for_env(
        cls,
        env: EnvBase,
        *,
        network: Any = HybridNetwork,
        observation_key: Key | None = None,
        mask_key: Key | None = None,
        memory: TensorDictModuleBase | None = None,
        return_log_prob: bool = True,
        find_scales: bool = True,
        homogeneous: bool = False,
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
            observation_key: entry that the network reads; by default ``"observation"``, or the
                first output of a memory.
            mask_key: entry with the discrete actions that may be chosen; by default the
                environment's ``"action_mask"``, if it has one.
            memory: a module in front of the network, such as a ``GRUModule``.
            return_log_prob: whether log-probabilities are written.
            find_scales: whether a simulation may correct the unit of the actions and, in a
                :class:`HybridNetwork`, that of the observation; see :func:`scales_of`.
            homogeneous: whether the network uses that an environment's inputs scale with its state,
                where its ``homogeneous_entries`` say so; see :class:`HybridNetwork`.
            arguments: further arguments of the network, by default of :class:`HybridNetwork`.

        Raises:
            TypeError: ``network`` is neither, or arguments are given for one that is made already.
            ValueError: the environment does not show what the policy reads.
        """
        observation = _read(env, observation_key, memory)
        if mask_key is None and ACTION_MASK in env.observation_spec.keys():  # noqa: SIM118
            mask_key = ACTION_MASK
        if isinstance(network, nn.Module) and arguments:
            raise TypeError(
                f"network is a module already, so {', '.join(sorted(arguments))} cannot be "
                "given to it; give its class instead, or leave the arguments out."
            )
        if not callable(network):
            raise TypeError(f"network must be a module or a callable, got {network!r}.")
        if not isinstance(network, nn.Module):
            number, dimension, heads = action_sizes(env)
            check_action_kept(env)
            source, found = plain(env), scales_of(env) if find_scales else None
            if homogeneous and (entries := homogeneous_entries(env)):
                arguments["homogeneous"] = entries
            scale = getattr(source, "action_scale", None)
            network = network(
                observation_dim=observation.shape[-1],
                num_discrete=number,
                continuous_dim=dimension,
                continuous_bounds=action_bounds(env),
                branch_bounds=getattr(source, "branch_bounds", None),
                num_heads=heads,
                action_scale=scale if found is None else found.action,
                device=observation.device,
                dtype=observation.dtype,
                **arguments,
            )
            if find_scales and isinstance(network, HybridNetwork) and memory is None:
                network.observations.use(found, _read_key(observation_key, memory))
        keys: dict[str, Any] = {"observation_key": observation_key, "mask_key": mask_key}
        policy = cls(network, memory=memory, return_log_prob=return_log_prob, **keys)
        policy._observation_size = observation.shape[-1]
        return policy

    @property
    def network(self) -> nn.Module:
        """The network behind the policy."""
        return self[-2].network

    @property
    def memory(self) -> Any:
        """The module in front of the network; ``None`` without one."""
        return self[0] if len(self.module) > 2 else None

    @property
    def acts_randomly(self) -> bool:
        """Whether actions are sampled now, given ``set_exploration_type`` and the default."""
        return self[-1].acts_randomly

    @property
    def continuous_distribution(self) -> ContinuousDistribution:
        """The distribution of u."""
        return self._kind["distribution"]

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
            discrete = self._only_discrete([p for p in named.values() if p.requires_grad])
        groups: dict[str, dict[str, nn.Parameter]] = {"discrete": {}, "continuous": {}}
        for name, parameter in named.items():
            groups["discrete" if id(parameter) in discrete else "continuous"][name] = parameter
        return {component: parameters for component, parameters in groups.items() if parameters}

    def _only_discrete(self, learned: list[nn.Parameter]) -> set[int]:
        """Find the parameters that gradients of the logits reach, and those of u do not."""
        if self._observation_size is None or not learned:
            return set()
        with torch.enable_grad():
            answer = self.network(self._example(self._observation_size, learned[0]))
        reached = []
        for outputs in (answer[:1], answer[1:]):
            sums = [part.sum() for part in outputs if part is not None and part.requires_grad]
            found: Any = [None] * len(learned)
            if sums:
                found = torch.autograd.grad(sums, learned, retain_graph=True, allow_unused=True)
            pairs = zip(learned, found, strict=True)
            reached.append({id(p) for p, gradient in pairs if gradient is not None})
        return reached[0] - reached[1]

    def _example(self, size: int, like: Any) -> Tensor:
        """One observation for each seed, of the dtype and device of a tensor or a spec."""
        return torch.zeros(self.num_seeds or 1, size, dtype=like.dtype, device=like.device)

    def distribution(self, observation: Tensor, mask: Tensor | None = None) -> HybridDistribution:
        """Return the action distribution at ``observation``, on plain tensors."""
        logits, loc, scale = self.network(observation)
        return HybridDistribution(logits, loc, scale, mask, **self._kind)

    def mask_of(self, entries: Mapping[Any, Tensor]) -> Tensor | None:
        """Return the mask that the policy reads, out of a step's entries; ``None`` without one."""
        return None if self.mask_key is None else entries[self.mask_key]

    def discrete_logits(self, tensordict: TensorDictBase) -> Tensor:
        """Return log pi(. | s), normalised and masked, ``(*B, M)``, without the continuous net."""
        logits = self._shortcut("logits", lambda seen: self.network(seen)[0])
        return normalised(logits(self._seen(tensordict)), self.mask_of(tensordict))

    def mean_action(self, tensordict: TensorDictBase, discrete: Tensor) -> Tensor:
        """Return u of the given discrete actions without sampling, ``(*B, n)``.

        That is the mode of the branch, for a normal its mean; the discrete net is not evaluated.
        """
        branches = self._shortcut("branches", lambda seen: self.network(seen)[1:])
        loc, scale = branches(self._seen(tensordict))
        mode = self.continuous_distribution.mode(*chosen_branch(loc, scale, discrete))
        return flat(mode, self._kind["heads"])

    def _seen(self, tensordict: TensorDictBase) -> Tensor:
        """Return what the network reads; a memory goes through the last axis, time, anew."""
        if (memory := self.memory) is not None:
            with set_recurrent_mode(True):
                tensordict = memory(tensordict.select(*memory.in_keys))
        return tensordict.get(self.observation_key)

    def act(self, observation: Tensor, mask: Tensor | None = None) -> HybridAction:
        """Sample an action on plain tensors: the arithmetic and random numbers of the module.

        Raises:
            ValueError: a row of the mask allows nothing, or the network's answer is of another
                shape.
        """
        return self[-1].act(self.distribution(observation, mask))

    def sampler(self) -> Callable[[Tensor, Tensor | None, Noise | None], HybridDraw]:
        """Return a function that samples as :meth:`act` does, with given random numbers.

        It takes the observation, the mask (which is not checked) and the noise, see
        :func:`~hpo_torchrl.modules.sampling.draw`. It is for the parameters of now: what does
        not depend on the observation is computed once.
        """
        distribution, heads = self.continuous_distribution, self._kind["heads"]
        parameters = self._shortcut("sampler", lambda: self.network)()

        def sample(observation: Tensor, mask: Tensor | None, noise: Noise | None) -> HybridDraw:
            logits, loc, scale = parameters(observation)
            logits = normalised(logits.detach(), mask)
            return draw(distribution, logits, loc, scale, noise, heads)

        return sample

    def _shortcut(self, name: str, otherwise: Callable) -> Callable:
        """Return a network's method, unless a subclass has overridden ``forward`` beside it."""
        family = type(self.network).__mro__
        owner, other = (
            next((c for c in family if at in vars(c)), None) for at in (name, "forward")
        )
        agrees = owner is not None and other is not None and issubclass(owner, other)
        return getattr(self.network, name) if agrees else otherwise

    def check_env(self, env: EnvBase) -> None:
        """Raise a ``ValueError`` if the policy's branches or dimensions are not the environment's.

        Args:
            env: the environment that the policy is meant for.
        """
        spec = _read(env, self.observation_key, self.memory)
        number, dimension, heads = action_sizes(env)
        shape = (number, dimension) if heads is None else (heads, number, dimension // heads)
        with torch.no_grad():
            # A distribution may have parameters of its own; its actions have the last word.
            _, *parameters = self.network(self._example(spec.shape[-1], spec))
            found = tuple(self.continuous_distribution.mode(*parameters).shape[1:])
        if found != shape:
            raise ValueError(
                f"The policy has {found[-2]} discrete actions and branches of shape {found}, but "
                f"the environment asks for {number} discrete actions and branches of shape "
                f"{shape} (discrete actions, continuous dimension). Build it with "
                "HybridPolicy.for_env(env) or correct the network's outputs."
            )
        self._observation_size = spec.shape[-1]


class RulePolicy(TensorDictModuleBase):
    """A rule: reads the state, writes ``("action", "discrete")`` and ``("action", "continuous")``.

    Rules are heuristics to compare with, and starting points.
    """

    out_keys = [("action", "discrete"), ("action", "continuous")]  # noqa: RUF012

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Decide for every env instance of the batch."""
        discrete, continuous = self.decide(*(tensordict.get(key) for key in self.in_keys))
        action = {"discrete": discrete, "continuous": continuous}
        return tensordict.set("action", TensorDict(action, batch_size=tensordict.batch_size))

    def decide(self, *state: Tensor) -> tuple[Tensor, Tensor]:
        """Return discrete actions ``(*B,)`` and continuous actions ``(*B, n)``."""
        raise NotImplementedError


def _read_key(key: Key | None, memory: TensorDictModuleBase | None) -> Key:
    """Return the entry that the network reads."""
    if key is not None:
        return key
    return "observation" if memory is None else memory.out_keys[0]


def _read(env: EnvBase, key: Key | None, memory: TensorDictModuleBase | None) -> Any:
    """Return the spec of what the network reads, or an example of it.

    Raises:
        ValueError: the environment does not show what is read.
    """
    key = _read_key(key, memory)
    if memory is None:
        return spec_of(env, "observation_key", key)
    shown = env.observation_spec.keys(True, True)
    if missing := [entry for entry in memory.in_keys if entry not in shown]:
        raise ValueError(
            f"The memory {type(memory).__name__} reads {', '.join(map(repr, missing))}, which the "
            "environment does not show. For a recurrent module write env = TransformedEnv(env, "
            "Compose(InitTracker(), memory.make_tensordict_primer()))."
        )
    with torch.no_grad():
        seen = memory(env.observation_spec.zero()).get(key)
    if seen.ndim != len(env.batch_size) + 1:
        raise ValueError(
            f"The memory {type(memory).__name__} must make a vector for each of the instances "
            f"{tuple(env.batch_size)}, got {key!r} of shape {tuple(seen.shape)}."
        )
    return seen
