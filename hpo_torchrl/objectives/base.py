"""What the losses for hybrid policies share: TorchRL's conventions."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.func import functional_call
from torchrl.objectives import LossModule, ValueEstimators
from torchrl.objectives.utils import dispatch_value_estimator
from torchrl.objectives.value import ValueEstimatorBase
from torchrl.objectives.value.functional import reward2go

from hpo_torchrl.core.checks import check_choice, check_float

BASELINES = ("leave_one_out",)
_REDUCTIONS = ("none", "mean", "sum")


class HybridLossModule(LossModule):
    """A TorchRL loss with a hybrid actor and, optionally, a critic.

    It holds the networks (functional or not), names the entries, and estimates advantages. A
    subclass writes ``forward`` and ``out_keys``.

    Args:
        actor_network: a :class:`HybridPolicy`, or any module whose ``get_dist`` returns a
            :class:`HybridDistribution`.
        critic_network: maps the observation to ``"state_value"``; ``None`` uses Monte-Carlo
            returns.
        baseline: what is taken off Monte-Carlo returns: ``None``, or ``"leave_one_out"``, the mean
            return of the batch's other rollouts from the same step (Kool, van Hoof & Welling
            2019); it knows nothing of this rollout's options, so it adds no bias.
        functional: whether parameters are held as a ``TensorDictParams``.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
    """

    @dataclass
    class _AcceptedKeys:
        """The configurable entries of the input, with their defaults.

        Attributes:
            discrete_action: the options taken, int64 ``(*B, T)``.
            sample_log_prob: their log-probabilities when sampled; where absent, today's are used.
            advantage: the advantage; where absent, the value estimator computes it.
            action_value: estimates of Q for every option, float ``(*B, T, M)``; optional.
            value_target: the critic's target.
            value: the critic's output.
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

    actor_network: ProbabilisticTensorDictSequential
    critic_network: TensorDictModule | None
    actor_network_params: TensorDictParams
    critic_network_params: TensorDictParams | None
    target_actor_network_params: TensorDictParams
    target_critic_network_params: TensorDictParams | None

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModule | None = None,
        *,
        baseline: str | None = None,
        functional: bool = True,
        reduction: str | None = None,
    ) -> None:
        self._functional = functional
        self._in_keys: list[NestedKey] = []
        self._out_keys: list[NestedKey] = []
        super().__init__()
        if functional:
            self.convert_to_functional(actor_network, "actor_network")
        else:
            self.actor_network, self.actor_network_params = actor_network, None
        if functional and critic_network is not None:
            self.convert_to_functional(critic_network, "critic_network")
        else:
            self.critic_network = critic_network
            self.critic_network_params = self.target_critic_network_params = None
        self.reduction = check_choice("reduction", reduction or "mean", _REDUCTIONS)
        self.baseline = None if baseline is None else check_choice("baseline", baseline, BASELINES)
        if baseline is not None and critic_network is not None:
            raise ValueError(
                f"baseline={baseline!r} takes the place of a critic; leave critic_network out."
            )
        self._monte_carlo_gamma = 1.0

    @property
    def functional(self) -> bool:
        """Whether parameters are held apart from their modules."""
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
        networks = list(self.actor_network.in_keys)
        if self.critic_network is not None:
            networks += [key for key in self.critic_network.in_keys if key not in networks]
        after = [self.tensor_keys.reward, self.tensor_keys.done, self.tensor_keys.terminated]
        self._in_keys = [
            *networks,
            self.tensor_keys.discrete_action,
            self.tensor_keys.sample_log_prob,
            *(
                ("next", key) if isinstance(key, str) else ("next", *key)
                for key in networks + after
            ),
        ]

    def _forward_value_estimator_keys(self, **kwargs) -> None:
        if self._value_estimator is not None:
            self._value_estimator.set_keys(**self._value_estimator_keys())
        self._set_in_keys()

    def _value_estimator_keys(self) -> dict[str, NestedKey]:
        names = ("advantage", "value_target", "value", "reward", "done", "terminated")
        return {name: getattr(self.tensor_keys, name) for name in names} | {
            "sample_log_prob": self.tensor_keys.sample_log_prob
        }

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

    def add_advantage(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return a detached copy with advantages and value targets, computed where absent.

        Raises:
            KeyError: an entry is missing.
        """
        held = tensordict.detach()
        if held.get(self.tensor_keys.advantage, None) is not None:
            return held
        held = held.copy()
        keys = self.tensor_keys
        reward, done, _ = (
            self.entry(held, ("next", key)) for key in (keys.reward, keys.done, keys.terminated)
        )
        if self.critic_network is None:
            returns = reward2go(reward, done, self.discount)
            if self.baseline == "leave_one_out":
                returns = leave_one_out(returns)
            return held.set(keys.advantage, returns)
        for key in self.critic_network.in_keys:
            self.entry(held, key)
            self.entry(held, ("next", key))
        # Always by parameters: left to itself, the estimator would unfreeze what the user froze.
        params = self.critic_network_params
        if params is None:
            params = TensorDict.from_module(self.critic_network)
        with torch.no_grad():
            self.value_estimator(held, params=params.detach(), target_params=params.detach())
        return held

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

    def _value(self, tensordict: TensorDictBase, *, held: bool = False) -> Tensor:
        """The critic's values, ``(..., 1)``; ``held`` stops gradients to its parameters."""
        network: Any = self.critic_network
        for key in network.in_keys:
            self.entry(tensordict, key)
        if held and not self.functional:
            # TorchRL's hold_out_net would unfreeze what the user has frozen.
            parameters = {name: value.detach() for name, value in network.named_parameters()}
            inputs = tensordict.select(*network.in_keys)
            return functional_call(network, parameters, (inputs,)).get(self.tensor_keys.value)
        with self._parameters_of("critic", held=held):
            return network(tensordict.select(*network.in_keys)).get(self.tensor_keys.value)

    def _logits(self, tensordict: TensorDictBase, *, held: bool = False) -> Tensor:
        """Normalised log-probabilities of the options, ``(*B, T, M)``; ``held`` as above."""
        for key in self.actor_network.in_keys:
            self.entry(tensordict, key)
        if held and not self.functional:
            network: Any = _Logits(self.actor_network)
            parameters = {name: value.detach() for name, value in network.named_parameters()}
            return functional_call(network, parameters, (tensordict,))
        with self._parameters_of("actor", held=held):
            return _logits_of(self.actor_network, tensordict)

    def _actor_parameters(self) -> list[Tensor]:
        if not self.functional:
            return list(self.actor_network.parameters())
        return list(self.actor_network_params.values(True, True))

    def _parameters_of(self, name: str, *, held: bool = False) -> contextlib.AbstractContextManager:
        """Put a network's parameters in place; ``held`` stops gradients to them."""
        if not self.functional:
            return contextlib.nullcontext()
        network = getattr(self, f"{name}_network")
        params = getattr(
            self, f"target_{name}_network_params" if held else f"{name}_network_params"
        )
        return params.to_module(network, preserve_module_state=False)


class _Logits(nn.Module):
    """The log-probabilities of an actor as a module, for ``functional_call``."""

    def __init__(self, actor: ProbabilisticTensorDictSequential) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, tensordict: TensorDictBase) -> Tensor:
        return _logits_of(self.actor, tensordict)


def _logits_of(actor: Any, tensordict: TensorDictBase) -> Tensor:
    if hasattr(actor, "discrete_logits"):
        return actor.discrete_logits(tensordict)
    return actor.get_dist(tensordict.select(*actor.in_keys)).logits


def leave_one_out(returns: Tensor) -> Tensor:
    """Returns ``(*B, T, 1)`` less the mean of the other rollouts' at the same step."""
    rows = returns.reshape(-1, *returns.shape[-2:])
    if len(rows) < 2:
        raise ValueError(
            "baseline='leave_one_out' compares a rollout with the others of the batch, got a "
            "single one; collect at least two at once."
        )
    others = (rows.sum(0) - rows) / (len(rows) - 1)
    return (rows - others).reshape(returns.shape)
