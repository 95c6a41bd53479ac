"""The data of a loss: its entries, its networks, and how it estimates advantages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor
from torchrl.objectives import LossModule, ValueEstimators
from torchrl.objectives.utils import dispatch_value_estimator
from torchrl.objectives.value.functional import reward2go

from hpo_torchrl.core.checks import check_choice, check_finite, check_float
from hpo_torchrl.core.data import entry
from hpo_torchrl.core.finite import vmapped
from hpo_torchrl.core.rolled import discount_of

_ESTIMATORS = ("TD0", "TD1", "TDLambda", "GAE")


def check_actor(actor: ProbabilisticTensorDictSequential, owner: str) -> None:
    """Raise a ``TypeError`` if an actor's distribution has no logits, as far as it says which.

    Args:
        actor: the actor.
        owner: who asks, for messages.
    """
    kind = getattr(actor[-1], "distribution_class", None)
    scores = any(hasattr(kind, name) for name in ("num_discrete", "logits"))
    if isinstance(kind, type) and not scores:
        raise TypeError(
            f"{owner} scores the discrete choice of a HybridDistribution, got an actor_network "
            f"with a {kind.__name__}, which has no logits and samples its continuous action "
            "without a gradient. Build the actor as HybridPolicy(network), whose network returns "
            "(logits, loc, scale), or as HybridPolicy.for_env(env)."
        )


class AdvantageLoss(LossModule):
    """A TorchRL loss with an actor and, optionally, a critic, which says what an action is worth.

    The arguments are those of :class:`HybridLossModule`.
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
            action_value: estimates of Q for every discrete action, float ``(*B, T, M)``, with heads
                ``(*B, T, H, M)``; optional.
            action_unit: the unit in which they are scored, float ``(*B, T, 1)``; optional.
            branched: whether ``action_value`` was estimated at a step, bool; where absent, it was.
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
        action_unit: NestedKey = "action_unit"
        branched: NestedKey = "branched"
        value_target: NestedKey = "value_target"
        value: NestedKey = "state_value"
        critic_value: NestedKey = "critic_value"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    default_value_estimator = ValueEstimators.GAE

    actor_network: ProbabilisticTensorDictSequential
    critic_network: TensorDictModule | None
    actor_network_params: TensorDictParams | None
    critic_network_params: TensorDictParams | None
    target_actor_network_params: TensorDictParams | None
    target_critic_network_params: TensorDictParams | None

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModule | None,
        baseline: str | None,
        functional: bool,
    ) -> None:
        super().__init__()
        check_actor(actor_network, type(self).__name__)
        for name, network in (("actor_network", actor_network), ("critic_network", critic_network)):
            if functional and network is not None:
                self.convert_to_functional(network, name)
            else:
                setattr(self, name, network)
                setattr(self, f"{name}_params", None)
        if baseline is not None and critic_network is not None:
            raise ValueError(
                f"baseline={baseline!r} takes the place of a critic; leave critic_network out."
            )
        if baseline is not None:
            check_choice("baseline", baseline, ["leave_one_out"])
        self.baseline = baseline
        self._monte_carlo_gamma: float | None = None
        self._set_in_keys()

    @property
    def functional(self) -> bool:
        """Whether parameters are kept apart from their modules."""
        return self.actor_network_params is not None

    def _set_in_keys(self) -> None:
        """Set the entries that the loss reads; TorchRL calls this where keys are renamed."""
        keys, networks = self.tensor_keys, list(self.actor_network.in_keys)
        if self.critic_network is not None:
            networks += [key for key in self.critic_network.in_keys if key not in networks]
        after = [*networks, keys.reward, keys.done, keys.terminated]
        after = [unravel_key(("next", key)) for key in after]
        self.in_keys = [*networks, keys.discrete_action, keys.sample_log_prob, *after]

    def entry(self, tensordict: TensorDictBase, key: NestedKey, *form: Any) -> Tensor:
        """Return an entry of the data, of a form: its shape behind the batch, and its dtype.

        Raises:
            KeyError: it is missing; the message names it, what is there, and the fix.
            ValueError: it has another form.
        """
        return entry(tensordict, key, type(self).__name__, *form)

    @contextlib.contextmanager
    def placed(self, name: str, data: TensorDictBase, detach: bool) -> Iterator[tuple[Any, Any]]:
        """Give a network whose parameters, detached or not, are in place, and what it reads."""
        network: Any = getattr(self, name)
        for key in network.in_keys:
            self.entry(data, key)
        given = data.select(*network.in_keys)
        if not self.functional and not detach:  # they are in place
            yield network, given
            return
        weights = self.weights(name)
        weights = weights.detach() if detach else weights
        # Not preserved: a module that keeps its parameters' requires_grad would attach them again.
        with weights.to_module(network, preserve_module_state=False):
            yield network, given

    def weights(self, name: str) -> TensorDictBase:
        """Return the parameters of a network, nested as its modules are."""
        params = getattr(self, f"{name}_params")
        return TensorDict.from_module(getattr(self, name)) if params is None else params

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> AdvantageLoss:
        """Choose how advantages are estimated; GAE by default.

        Args:
            value_type: a ``ValueEstimators`` entry, a value-estimator class or an instance.
            hyperparams: its arguments, for example ``gamma`` and ``lmbda``.

        Raises:
            TypeError: ``gamma`` or ``lmbda`` is no number.
            ValueError: it is not in [0, 1], or the loss has no critic and something else than
                ``gamma`` is given.
        """
        for name in ("gamma", "lmbda"):
            given = hyperparams.get(name, getattr(value_type, name, 1.0))
            given = given.item() if isinstance(given, Tensor) and given.numel() == 1 else given
            check_float(name, given, minimum=0.0, maximum=1.0)
        if self.critic_network is None:
            if value_type is not None or set(hyperparams) - {"gamma"}:
                raise ValueError(
                    f"{type(self).__name__} without a critic_network uses Monte-Carlo returns: "
                    f"make_value_estimator takes only gamma, got {value_type=}, {hyperparams}."
                )
            self._monte_carlo_gamma = hyperparams.get("gamma", 1.0)
            return self
        value_type, hyperparams = self._prepare_value_estimator_kwargs(value_type, **hyperparams)
        if hyperparams.get("lmbda") == 0.0:
            # TorchRL's fast estimator is a convolution, which fails on a single step.
            hyperparams = {"vectorized": False, **hyperparams}
        if value_type is not None:
            supported = [ValueEstimators[name] for name in _ESTIMATORS]
            dispatch_value_estimator(self, value_type, supported=supported, **hyperparams)
            self._forward_value_estimator_keys()
        return self

    @property
    def discount(self) -> float:
        """Discount of the value estimator, which the bootstrap of the pathwise term shares."""
        if self.critic_network is None:
            return 1.0 if self._monte_carlo_gamma is None else self._monte_carlo_gamma
        gamma = self.value_estimator.gamma
        if isinstance(gamma, Tensor) and vmapped(gamma):
            raise RuntimeError(
                f"{type(self).__name__} has one discount: leave buffers such as gamma out of vmap, "
                "and map over TensorDict.from_module(loss).select('actor_network_params')."
            )
        return float(gamma)

    def share_discount(self, tensordict: TensorDictBase) -> None:
        """Take the discount of the rollout, if none was chosen; refuse another one.

        Raises:
            RuntimeError: the rollout's graph is used up.
            ValueError: its discount is not that of the advantages.
        """
        reward = tensordict.get(("next", self.tensor_keys.reward), None)
        if reward is None or (found := discount_of(reward)) is None:
            return
        chosen = self._monte_carlo_gamma if self.critic_network is None else self._value_estimator
        if chosen is None:
            kind = None if self.critic_network is None else self.default_value_estimator
            self.make_value_estimator(kind, gamma=found)
        if abs(self.discount - found) > 1e-6:
            raise ValueError(
                f"The loss has gamma={self.discount:g} and the batch discount={found:g}: parts of "
                "the gradient would use different discounts. Give both the same: "
                f"make_value_estimator(gamma={found:g}, ...), or discount={self.discount:g} to the "
                "collector or rollout."
            )

    def advantages(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return a detached copy with advantages and value targets, computed where absent.

        Only ``critic_value``, if the data hold it, keeps its graph. Advantages that are there are
        taken as they are, and so are the numbers that they followed from.

        Raises:
            KeyError: an entry is missing.
            ValueError: an entry has another shape or dtype, holds NaN or infinity, or time is not
                the last axis.
        """
        keys, data = self.tensor_keys, tensordict.detach()
        if (known := tensordict.get(keys.critic_value, None)) is not None:
            data.set(keys.critic_value, known)
        if data.get(keys.advantage, None) is not None:
            return data
        data = data.copy()
        flag = ((1,), torch.bool)
        reward = self.entry(data, ("next", keys.reward), (1,))
        done, _ = (self.entry(data, ("next", key), *flag) for key in (keys.done, keys.terminated))
        self.check_order(data)
        for key in self.in_keys:
            if (value := data.get(key, None)) is not None:
                check_finite(f"{type(self).__name__}: the entry {key!r}", value)
        if self.critic_network is None:
            returns = reward2go(reward, done, self.discount)
            if self.baseline == "leave_one_out":
                returns = leave_one_out(returns)
            return data.set(keys.advantage, returns)
        for key in self.critic_network.in_keys:
            form = self.entry(data, ("next", key))
            self.entry(data, key, form.shape[data.ndim :], form.dtype)
        # Always by parameters: left to itself, the estimator would unfreeze what the user froze.
        params = self.weights("critic_network").detach()
        if any(map(vmapped, params.values(True, True))):
            raise RuntimeError(
                f"{type(self).__name__} under vmap needs data that hold {keys.advantage!r} and "
                f"{keys.value_target!r}, since TorchRL's estimators write in place: give it "
                "loss.advantages(data), made before vmap."
            )
        with torch.no_grad():
            self.value_estimator(data, params=params, target_params=params)
        return data

    def check_order(self, data: TensorDictBase) -> None:
        """Raise a ``ValueError`` if the last axis of the data is not time.

        Axes have names in TorchRL's rollouts. Without them, the states that steps lead to are
        compared with those that the next ones start from, along the first axis and the last.
        """
        wrong = data.ndim == 0 or "time" in data.names[:-1]
        if data.ndim > 0 and data.names[-1] is None and self.critic_network is not None:
            key = self.critic_network.in_keys[0]
            self.entry(data, ("next", key), self.entry(data, key).shape[data.ndim :])
            end = ("next", self.tensor_keys.done)
            known = data.ndim == 1 or follows(data, key, end, 0)
            wrong |= known and not follows(data, key, end, data.ndim - 1)
        if wrong:
            raise ValueError(
                f"{type(self).__name__} needs data of shape (*B, T), with the time axis last, got "
                f"{tuple(data.shape)} without time there; stack steps by torch.stack(steps, -1), "
                "or move the axis with data.permute(...). Single steps, as a replay buffer "
                "returns them, need their advantages: store loss.advantages(batch)."
            )

    def advantage(self, data: TensorDictBase) -> Tensor:
        """Return the advantages of :meth:`advantages`, ``(*B, T)``."""
        return self.entry(data, self.tensor_keys.advantage, (1,)).squeeze(-1)


def follows(data: TensorDictBase, key: NestedKey, end: NestedKey, axis: int) -> bool:
    """Whether steps along an axis start where the ones before lead to, unless an episode ends."""
    rest = (slice(None),) * axis
    before, after = data[(*rest, slice(-1))], data[(*rest, slice(1, None))].get(key)
    same = (before.get(("next", key)) == after).flatten(data.ndim).all(-1)
    return bool((same | before.get(end).squeeze(-1)).all())


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
