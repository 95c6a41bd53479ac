"""What losses of hybrid policies share: keys, networks, advantages, critic and entropy terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import LossModule, ValueEstimators, distance_loss
from torchrl.objectives.utils import dispatch_value_estimator
from torchrl.objectives.value import ValueEstimatorBase
from torchrl.objectives.value.functional import reward2go

from hpo_torchrl.core.categorical import entropy_of, over_heads
from hpo_torchrl.core.checks import check_choice, check_float

BASELINES = ("leave_one_out",)
_REDUCTIONS = ("none", "mean", "sum")
_DISTANCES = ("l1", "l2", "smooth_l1")


class HybridLossModule(LossModule):
    """A TorchRL loss with a hybrid actor and, optionally, a critic: the base of all losses here.

    A subclass writes :attr:`own_keys` and ``forward``, from :meth:`advantages`, :meth:`logits`,
    :meth:`log_prob`, :meth:`values`, :meth:`shared_terms` and :meth:`reduce`.

    A policy of S seeds (``policy.num_seeds``) takes data ``(S, *B, T)``. Every mean and every
    deviation is then one seed's own: a reduced term is ``(S,)``, and the sum over the seeds has for
    each of them the gradient of its loss alone.

    Args:
        actor_network: a :class:`HybridPolicy`, or any module whose ``get_dist`` returns a
            :class:`HybridDistribution`.
        critic_network: maps the observation to ``"state_value"``; ``None`` uses Monte-Carlo
            returns.
        entropy_coeff: weight of the entropy of the discrete choice; ``None`` drops the term.
        entropy_in_advantage_units: multiply that weight by the batch's standard deviation of the
            advantage, so that one setting serves every reward scale.
        critic_coeff: weight of the critic's loss; ``None`` drops the term.
        loss_critic_type: ``"l2"``, ``"l1"`` or ``"smooth_l1"``.
        baseline: what is subtracted from Monte-Carlo returns: ``None``, or ``"leave_one_out"``, the
            mean return of the batch's other rollouts from the same step (Kool, van Hoof & Welling
            2019); it does not depend on this rollout's discrete actions, so it adds no bias.
        functional: whether parameters are kept as a ``TensorDictParams`` (TorchRL's default);
            ``False`` keeps ordinary modules, for data-parallel wrappers.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        device: device of the coefficients; defaults to the actor's.

    Raises:
        ValueError: an argument is out of range or unknown.

    Examples:
        >>> from hpo_torchrl.modules import HybridPolicy, make_value_network
        >>> from hpo_torchrl.objectives import HybridLossModule
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> class ScoreFunctionLoss(HybridLossModule):
        ...     own_keys = ("loss_objective",)
        ...     def forward(self, tensordict):
        ...         data = self.advantages(tensordict)
        ...         logits = self.logits(data)
        ...         terms, metrics = self.shared_terms(data, logits)
        ...         terms["loss_objective"] = -self.log_prob(data, logits) * self.advantage(data)
        ...         return self.reduce(terms, metrics, data)
        >>> env = InventoryEnv(batch_size=8, initial_state="random")
        >>> policy, critic = HybridPolicy.for_env(env), make_value_network(env)
        >>> loss = ScoreFunctionLoss(policy, critic)
        >>> sorted(loss(env.rollout(5, policy)).keys())[1:]
        ['explained_variance', 'loss_critic', 'loss_entropy', 'loss_objective']
    """

    @dataclass
    class _AcceptedKeys:
        """The configurable entries of the input, with their defaults.

        Attributes:
            discrete_action: the discrete actions taken, int64 ``(*B, T)``, with heads
                ``(*B, T, H)``.
            sample_log_prob: their log-probabilities when sampled, summed over heads; where absent,
                today's are used.
            advantage: the advantage; where absent, the value estimator computes it.
            action_value: estimates of Q for every discrete action, float ``(*B, T, M)``; optional.
            value_target: the critic's target.
            value: the critic's output.
            critic_value: the critic's values of these states, with a graph to its parameters alone,
                for who has computed them already; optional.
            reward: the reward, in ``"next"``.
            done: end of an episode, in ``"next"``.
            terminated: end of an episode with no value beyond it, in ``"next"``.
        """

        discrete_action: NestedKey = ("action", "discrete")
        sample_log_prob: NestedKey = "discrete_log_prob"
        advantage: NestedKey = "advantage"
        action_value: NestedKey = "action_value"
        value_target: NestedKey = "value_target"
        value: NestedKey = "state_value"
        critic_value: NestedKey = "critic_value"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    default_value_estimator = ValueEstimators.GAE
    SUPPORTED_VALUE_ESTIMATORS = (
        ValueEstimators.TD0,
        ValueEstimators.TD1,
        ValueEstimators.TDLambda,
        ValueEstimators.GAE,
    )
    _schedulable_buffers = frozenset({"entropy_coeff", "critic_coeff"})

    own_keys: Sequence[str] = ()
    """Entries that a subclass returns besides those of :meth:`shared_terms`."""

    actor_network: ProbabilisticTensorDictSequential
    critic_network: TensorDictModule | None
    actor_network_params: TensorDictParams | None
    critic_network_params: TensorDictParams | None
    target_actor_network_params: TensorDictParams | None
    target_critic_network_params: TensorDictParams | None

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModule | None = None,
        *,
        entropy_coeff: float | None = 0.0,
        entropy_in_advantage_units: bool = True,
        critic_coeff: float | None = 1.0,
        loss_critic_type: str = "l2",
        baseline: str | None = None,
        functional: bool = True,
        reduction: str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._functional = functional
        self._in_keys: list[NestedKey] = []
        self._out_keys: list[NestedKey] = []
        super().__init__()
        self.num_seeds: int | None = getattr(actor_network, "num_seeds", None)
        for name, network in (("actor_network", actor_network), ("critic_network", critic_network)):
            if functional and network is not None:
                self.convert_to_functional(network, name)
            else:
                setattr(self, name, network)
                setattr(self, f"{name}_params", None)
                setattr(self, f"target_{name}_params", None)
        self.reduction = check_choice("reduction", reduction or "mean", _REDUCTIONS)
        self.baseline = None if baseline is None else check_choice("baseline", baseline, BASELINES)
        if baseline is not None and critic_network is not None:
            raise ValueError(
                f"baseline={baseline!r} takes the place of a critic; leave critic_network out."
            )
        self.entropy_in_advantage_units = entropy_in_advantage_units
        self.loss_critic_type = check_choice("loss_critic_type", loss_critic_type, _DISTANCES)
        self._monte_carlo_gamma = 1.0
        self._device = device
        if device is None:
            self._device = next((p.device for p in actor_network.parameters()), None)
        self.add_coefficient("entropy_coeff", entropy_coeff)
        self.add_coefficient("critic_coeff", None if critic_network is None else critic_coeff)

    def add_coefficient(
        self, name: str, value: float | Tensor | None, *, strict: bool = False
    ) -> None:
        """Check a coefficient, a number >= 0 (> 0 if strict) or ``None``; make it a buffer."""
        if value is not None:
            number = value.item() if isinstance(value, Tensor) else value
            check_float(name, number, minimum=0.0, strict=strict)
        self.register_coeff_buffer(name, value, device=self._device)

    # -- keys ----------------------------------------------------------------------------------

    @property
    def functional(self) -> bool:
        """Whether parameters are kept apart from their modules."""
        return self._functional

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries that the loss reads."""
        if not self._in_keys:
            self._set_in_keys()
        return self._in_keys

    @in_keys.setter
    def in_keys(self, value: list[NestedKey]) -> None:
        self._in_keys = value

    def _set_in_keys(self) -> None:
        keys, networks = self.tensor_keys, list(self.actor_network.in_keys)
        if self.critic_network is not None:
            networks += [key for key in self.critic_network.in_keys if key not in networks]
        after = [*networks, keys.reward, keys.done, keys.terminated]
        after = [("next", key) if isinstance(key, str) else ("next", *key) for key in after]
        self._in_keys = [*networks, keys.discrete_action, keys.sample_log_prob, *after]

    @property
    def out_keys(self) -> list[NestedKey]:
        """Entries that the loss returns: its terms and its metrics."""
        if not self._out_keys:
            critic = ["loss_critic", "explained_variance"] if self.critic_coeff is not None else []
            bonus = ["loss_entropy"] if self.entropy_coeff is not None else []
            self._out_keys = [*self.own_keys, *critic, *bonus, "entropy"]
        return self._out_keys

    @out_keys.setter
    def out_keys(self, value: list[NestedKey]) -> None:
        self._out_keys = value

    def entry(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        """Return an entry of the data.

        Raises:
            KeyError: it is missing; the message names it, what is there, and the fix.
        """
        value = tensordict.get(key, None)
        if value is None:
            found = sorted(map(str, tensordict.keys(include_nested=True, leaves_only=True)))
            raise KeyError(
                f"{type(self).__name__} needs the entry {key!r}, which the data does not hold. Its "
                f"entries are {', '.join(found)}. Collect it with differentiable_rollout, or name "
                "your own entry by set_keys."
            )
        return value

    # -- advantages ----------------------------------------------------------------------------

    def _forward_value_estimator_keys(self, **kwargs) -> None:
        if self._value_estimator is not None:
            self._value_estimator.set_keys(**self._value_estimator_keys())
        self._set_in_keys()

    def _value_estimator_keys(self) -> dict[str, NestedKey]:
        names = ("advantage", "value_target", "value", "reward", "done", "terminated")
        return {name: getattr(self.tensor_keys, name) for name in (*names, "sample_log_prob")}

    def make_value_estimator(
        self,
        value_type: ValueEstimators | ValueEstimatorBase | type | None = None,
        **hyperparams,
    ) -> HybridLossModule:
        """Choose how advantages are estimated; GAE by default.

        Args:
            value_type: a ``ValueEstimators`` entry, a value-estimator class or an instance.
            hyperparams: its arguments, for example ``gamma`` and ``lmbda``.

        Raises:
            ValueError: the loss has no critic and something else than ``gamma`` is given.
        """
        if self.critic_network is None:
            if value_type is not None or set(hyperparams) - {"gamma"}:
                raise ValueError(
                    f"{type(self).__name__} without a critic_network uses Monte-Carlo returns: "
                    f"make_value_estimator takes only gamma, got {value_type=}, {hyperparams}."
                )
            gamma = float(hyperparams.get("gamma", 1.0))
            self._monte_carlo_gamma = check_float("gamma", gamma, minimum=0.0, maximum=1.0)
            return self
        value_type, hyperparams = self._prepare_value_estimator_kwargs(value_type, **hyperparams)
        if value_type is not None:
            dispatch_value_estimator(
                self,
                value_type,
                supported=self.SUPPORTED_VALUE_ESTIMATORS,
                tensor_keys=self._value_estimator_keys(),
                **hyperparams,
            )
        return self

    @property
    def discount(self) -> float:
        """Discount of the value estimator, which the bootstrap of the pathwise term shares."""
        if self.critic_network is None:
            return self._monte_carlo_gamma
        return float(self.value_estimator.gamma)

    def advantages(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return a detached copy with advantages and value targets, computed where absent.

        Only ``critic_value``, if the data hold it, keeps its graph.

        Raises:
            KeyError: an entry is missing.
        """
        keys, data = self.tensor_keys, tensordict.detach()
        if (known := tensordict.get(keys.critic_value, None)) is not None:
            data.set(keys.critic_value, known)
        if data.get(keys.advantage, None) is not None:
            return data
        data = data.copy()
        reward, done, _ = (
            self.entry(data, ("next", key)) for key in (keys.reward, keys.done, keys.terminated)
        )
        if self.critic_network is None:
            returns = reward2go(reward, done, self.discount)
            if self.baseline == "leave_one_out":
                returns = leave_one_out(returns)
            return data.set(keys.advantage, returns)
        for key in self.critic_network.in_keys:
            self.entry(data, key)
            self.entry(data, ("next", key))
        # Always by parameters: left to itself, the estimator would unfreeze what the user froze.
        params = self._weights("critic_network").detach()
        with torch.no_grad():
            self.value_estimator(data, params=params, target_params=params)
        return data

    def advantage(self, data: TensorDictBase) -> Tensor:
        """Return the advantages of :meth:`advantages`, ``(*B, T)``."""
        return self.entry(data, self.tensor_keys.advantage).squeeze(-1)

    # -- networks ------------------------------------------------------------------------------

    def logits(self, data: TensorDictBase, *, detach: bool = False) -> Tensor:
        """Return log pi(. | s), normalised and masked: ``(*B, T, M)``, with heads ``(..., H, M)``.

        Args:
            data: holds what the actor reads; gradients flow through it where it has a graph.
            detach: stop gradients to the actor's parameters.
        """
        return self._run("actor_network", _logits_of, data, detach)

    def log_prob(self, data: TensorDictBase, logits: Tensor | None = None) -> Tensor:
        """Return log pi(d | s) of the discrete actions taken, summed over heads: ``(*B, T)``.

        Args:
            data: holds the discrete actions and what the actor reads.
            logits: what :meth:`logits` returns, if it is known already.

        Raises:
            ValueError: the discrete actions do not have the shape of the policy's choices.
        """
        logits = self.logits(data) if logits is None else logits
        discrete = self.entry(data, self.tensor_keys.discrete_action)
        if discrete.shape != logits.shape[:-1]:
            raise ValueError(
                f"The discrete actions {self.tensor_keys.discrete_action!r} must have the shape of "
                f"the policy's choices {tuple(logits.shape[:-1])}, got {tuple(discrete.shape)}; "
                "with heads both end in the number of heads."
            )
        chosen = logits.gather(-1, discrete.unsqueeze(-1)).squeeze(-1)
        return over_heads(chosen, len(self._shape(data)))

    def entropy(self, data: TensorDictBase, logits: Tensor) -> Tensor:
        """Return the entropy of the discrete choice in nats, summed over heads: ``(*B, T)``."""
        return over_heads(entropy_of(logits), len(self._shape(data)))

    def values(self, data: TensorDictBase, *, detach: bool = False) -> Tensor:
        """Return the critic's values, ``(*B, T, 1)``.

        Args:
            data: holds what the critic reads; gradients flow through it where it has a graph.
            detach: stop gradients to the critic's parameters.
        """
        place = self.tensor_keys.value
        return self._run(
            "critic_network", lambda critic, given: critic(given).get(place), data, detach
        )

    def _run(
        self,
        name: str,
        function: Callable[[Any, TensorDictBase], Tensor],
        data: TensorDictBase,
        detach: bool,
    ) -> Tensor:
        """Apply ``function`` to a network whose parameters, detached or not, are in place."""
        network: Any = getattr(self, name)
        for key in network.in_keys:
            self.entry(data, key)
        given = data.select(*network.in_keys)
        if not self.functional and not detach:  # the parameters are in place
            return function(network, given)
        params = self._weights(name)
        params = params.detach() if detach else params
        # Not preserved: a module that keeps its parameters' requires_grad would attach them again.
        with params.to_module(network, preserve_module_state=False):
            return function(network, given)

    def _weights(self, name: str) -> TensorDictBase:
        params = getattr(self, f"{name}_params")
        return TensorDict.from_module(getattr(self, name)) if params is None else params

    def actor_parameters(self) -> list[Tensor]:
        """Return the actor's parameters that are trained."""
        leaves = self._weights("actor_network").values(True, True)
        return [parameter for parameter in leaves if parameter.requires_grad]

    # -- terms ---------------------------------------------------------------------------------

    def shared_terms(
        self, data: TensorDictBase, logits: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the terms ``(*B, T)`` and the metrics that all losses have: critic and entropy.

        Args:
            data: what :meth:`advantages` returns.
            logits: what :meth:`logits` returns of it.
        """
        terms, metrics = {}, {}
        if self.critic_coeff is not None:
            target = self.entry(data, self.tensor_keys.value_target)
            value = data.get(self.tensor_keys.critic_value, None)
            if value is None or not value.requires_grad:
                value = self.values(data)
            distance = distance_loss(value, target, loss_function=self.loss_critic_type)
            terms["loss_critic"] = self.critic_coeff * distance.squeeze(-1)
            spread = self._variance(target.squeeze(-1), data).clamp_min(1e-12)
            residual = self._variance((target - value.detach()).squeeze(-1), data)
            metrics["explained_variance"] = 1.0 - residual / spread
        entropy = self.entropy(data, logits)
        if self.entropy_coeff is not None:
            unit: Tensor | float = 1.0
            if self.entropy_in_advantage_units:
                unit = unsqueeze_like(self._variance(self.advantage(data), data).sqrt(), entropy)
            terms["loss_entropy"] = -self.entropy_coeff * unit * entropy
        return terms, metrics | {"entropy": self.mean(entropy, data)}

    def reduce(
        self, terms: Mapping[str, Tensor], metrics: Mapping[str, Tensor], data: TensorDictBase
    ) -> TensorDict:
        """Return :attr:`out_keys`: the terms reduced, with their graph, and the metrics without.

        Args:
            terms: each step's share of every term, ``(*B, T)``.
            metrics: diagnostics, reduced already (:meth:`mean`).
            data: what :meth:`advantages` returns; TorchRL's loss mask in it is honoured.

        Raises:
            ValueError: a term does not have one entry for each step.
        """
        shape = self._shape(data)
        for name, term in terms.items():
            if term.shape != shape:
                raise ValueError(
                    f"{name} must have one entry for each step, shape {tuple(shape)}, got "
                    f"{tuple(term.shape)}. Use log_prob and entropy of HybridLossModule, which sum "
                    "over heads, and advantage, which has no last dimension of 1."
                )
        out = {name: self._reduced(term, data, self.reduction) for name, term in terms.items()}
        out |= {name: metric.detach() for name, metric in metrics.items()}
        return TensorDict({key: out[key] for key in self.out_keys})

    def mean(self, value: Tensor, data: TensorDictBase) -> Tensor:
        """Return the mean over the steps that count, a scalar or ``(S,)``."""
        return self._reduced(value, data, "mean")

    def _reduced(self, value: Tensor, data: TensorDictBase, reduction: str) -> Tensor:
        if self.num_seeds is None or reduction == "none":
            return self._reduce_loss(value, data, reduction=reduction)
        own = zip(value, data.unbind(0), strict=True) if self._is_masked(data) else None
        if own is not None:
            return torch.stack([self._reduce_loss(*row, reduction=reduction) for row in own])
        rows = value.flatten(1)
        return rows.mean(1) if reduction == "mean" else rows.sum(1)

    def _is_masked(self, data: TensorDictBase) -> bool:
        return any(data.get(key, None) is not None for key in self._loss_mask_keys())

    def _variance(self, value: Tensor, data: TensorDictBase) -> Tensor:
        """Population variance over the steps that count; 0 for a single one."""
        mean = unsqueeze_like(self.mean(value, data), value)
        return self.mean((value - mean) ** 2, data)

    def _shape(self, data: TensorDictBase) -> torch.Size:
        advantage = data.get(self.tensor_keys.advantage, None)
        return data.batch_size if advantage is None else advantage.squeeze(-1).shape


def _logits_of(actor: Any, data: TensorDictBase) -> Tensor:
    return (
        actor.discrete_logits(data)
        if hasattr(actor, "discrete_logits")
        else actor.get_dist(data).logits
    )


def values_where(
    values: Callable[[TensorDictBase], Tensor], where: Tensor, data: TensorDictBase
) -> Tensor:
    """Return a critic's values where they are asked for and 0 elsewhere, ``(*B, T)``.

    The critic sees only the time steps at which any is asked for.

    Args:
        values: evaluates the critic, ``(*B, t)`` to ``(*B, t, 1)``.
        where: bool ``(*B, T)``.
        data: what the critic reads, ``(*B, T)``.
    """
    steps = where.reshape(-1, where.shape[-1]).any(0).nonzero().squeeze(-1)
    zero = torch.zeros(where.shape, device=where.device)
    if not len(steps):
        return zero
    value = values(data[..., steps]).squeeze(-1)
    value = torch.where(where[..., steps], value, 0.0)
    return zero.to(value.dtype).index_copy(-1, steps, value)


def leave_one_out(returns: Tensor) -> Tensor:
    """Return returns ``(*B, T, 1)`` less the mean of the other rollouts' at the same step."""
    rows = returns.reshape(-1, *returns.shape[-2:])
    if len(rows) < 2:
        raise ValueError(
            "baseline='leave_one_out' compares a rollout with the others of the batch, got a "
            "single one; collect at least two at once."
        )
    others = (rows.sum(0) - rows) / (len(rows) - 1)
    return (rows - others).reshape(returns.shape)


def unsqueeze_like(value: Tensor, like: Tensor) -> Tensor:
    """Give a scalar or ``(S,)`` the dimensions of what it is multiplied with."""
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))
