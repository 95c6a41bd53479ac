"""One batch's gradient by each estimator, on the parts that training uses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn
from torchrl.envs.utils import set_exploration_type

from hpo_torchrl.collectors import (
    DifferentiableCollector,
    branched_returns,
    differentiable_rollout,
    straight_through_rollout,
)
from hpo_torchrl.collectors.engine import is_functional
from hpo_torchrl.core.checks import check_float
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.objectives import CrossTermWeight, HPOLoss
from hpo_torchrl.objectives.base import leave_one_out

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Estimator:
    """An estimator of the gradient, as :func:`estimator` registers it.

    Attributes:
        name: its name.
        gradients: makes its gradients, by parameter group, of a draw.
        whole: whether it estimates the gradient, not one of its terms.
        bias: its known bias in words; ``"none"`` is certified by the tests.
        bias_if_deterministic: the same where the policy's continuous action is deterministic, if
            that is something else.
        applies: whether a draw has what it needs.
    """

    name: str
    gradients: Callable[[Draw], Gradients]
    whole: bool
    bias: str
    bias_if_deterministic: str
    applies: Callable[[Draw], bool]


ESTIMATORS: dict[str, Estimator] = {}


def estimator(
    name: str,
    *,
    whole: bool = True,
    bias: str = "none",
    bias_if_deterministic: str | None = None,
    applies: Callable[[Draw], bool] = lambda draw: True,
) -> Callable[[Callable[[Draw], Gradients]], Callable[[Draw], Gradients]]:
    """Register a function from a :class:`Draw` to gradients: all tools then know the estimator.

    :class:`GradientSampler` draws it, the gradient report and ``hpo-gradients`` measure it, and the
    certification test holds it against exact gradients if its bias is ``"none"``.

    Args:
        name: name of the estimator.
        whole: see :class:`Estimator`; so are the other arguments.
        bias: known bias.
        bias_if_deterministic: known bias for a deterministic continuous action; as ``bias`` by
            default.
        applies: whether a draw has what it needs.

    Examples:
        >>> from hpo_torchrl.diagnostics import ESTIMATORS, estimator
        >>> @estimator("twice pathwise", whole=False, bias="twice a term")
        ... def twice(draw):
        ...     return draw.gradients(2.0 * draw.terms["loss_pathwise"])
        >>> ESTIMATORS.pop("twice pathwise").whole
        False
    """

    def register(gradients: Callable[[Draw], Gradients]) -> Callable[[Draw], Gradients]:
        other = bias if bias_if_deterministic is None else bias_if_deterministic
        ESTIMATORS[name] = Estimator(name, gradients, whole, bias, other, applies)
        return gradients

    return register


class Draw:
    """One batch, and what estimators make of it.

    Attributes:
        sampler: the sampler, with its losses, policy, critic and collector.
        start: where all rollouts of the draw start.
        noise: the exogenous noise of a :class:`DifferentiableEnv`, else ``None``.
        batch: the differentiable rollout, with rescaled rewards and advantages.
        scale: what its rewards were divided by.
    """

    def __init__(self, sampler: GradientSampler) -> None:
        self.sampler, env = sampler, sampler.collector.env
        self.start, self.noise = sampler.start(), None
        if isinstance(env, DifferentiableEnv):
            self.noise = env.sample_noise(sampler.collector.num_steps, self.start)
        self.batch, self.scale = sampler.prepared(sampler.rollout(self.start, self.noise))

    @cached_property
    def terms(self) -> TensorDictBase:
        """The terms of the mixed loss."""
        return self.sampler.loss(self.batch)

    @cached_property
    def pathwise(self) -> Gradients:
        """The pathwise gradient, which several estimators share."""
        return self.gradients(self.terms["loss_pathwise"])

    @property
    def many(self) -> bool:
        """Whether there are rollouts to compare with one another."""
        return self.batch.shape[:-1].numel() > 1

    @property
    def branches(self) -> bool:
        """Whether the simulator can be branched: a functional environment and policy."""
        sampler = self.sampler
        return self.noise is not None and is_functional(sampler.collector.env, sampler.policy)

    def gradients(self, loss: Tensor) -> Gradients:
        """Return minus the gradient of a loss by parameter group, flat and in float64."""
        groups = self.sampler.groups
        parameters = [p for group in groups.values() for p in group]
        parts: Any = [None] * len(parameters)
        if loss.requires_grad:
            parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        filled = iter(
            (torch.zeros_like(p) if g is None else -g).flatten().double()
            for g, p in zip(parts, parameters, strict=True)
        )
        return {name: torch.cat([next(filled) for _ in group]) for name, group in groups.items()}


@estimator("pathwise", whole=False, bias="a term: lacks score function and cross term")
def _pathwise(draw: Draw) -> Gradients:
    return draw.pathwise


@estimator("score function", whole=False, bias="a term: lacks pathwise and cross term")
def _score_function(draw: Draw) -> Gradients:
    loss = draw.sampler.loss
    data = loss.advantages(draw.batch)
    return draw.gradients(-loss.score_function_term(data, loss.logits(data)).mean())


@estimator("cross", whole=False, bias="a term: lacks pathwise and score function")
def _cross(draw: Draw) -> Gradients:
    loss = draw.sampler.loss
    return draw.gradients(-loss.cross_term(draw.batch, loss.advantages(draw.batch)).mean())


@estimator("mixed")
def _mixed(draw: Draw) -> Gradients:
    return _sum(draw.pathwise, draw.gradients(draw.terms["loss_objective"]))


@estimator(
    "mixed, adaptive cross", bias="lacks (1 - w) of the cross term", applies=lambda draw: draw.many
)
def _adaptive(draw: Draw) -> Gradients:
    terms = draw.sampler.adaptive(draw.batch)
    return _sum(draw.pathwise, draw.gradients(terms["loss_objective"]))


@estimator("mixed, leave-one-out", applies=lambda draw: draw.many)
def _leave_one_out(draw: Draw) -> Gradients:
    # Other advantages: returns less the mean return of the other rollouts.
    sampler = draw.sampler
    data = sampler.returns.advantages(draw.batch.exclude("advantage", "value_target"))
    returns = data.get("advantage" if sampler.critic is None else "value_target")
    terms = sampler.loss(draw.batch.copy().set("advantage", leave_one_out(returns)))
    return _sum(draw.pathwise, draw.gradients(terms["loss_objective"]))


@estimator(
    "mixed, expected options",
    applies=lambda draw: draw.branches and draw.sampler.critic_sees_observation,
)
def _expected(draw: Draw) -> Gradients:
    # The shift is the same for every discrete action of a state, where only differences count.
    sampler = draw.sampler
    critic = None if sampler.critic is None else _Scaled(sampler.critic, draw.scale)
    noise: Any = draw.noise
    action_value = branched_returns(
        sampler.collector.env,
        sampler.policy,
        draw.batch,
        noise,
        gamma=sampler.collector.discount,
        critic=critic,
    )
    terms = sampler.loss(draw.batch.copy().set("action_value", action_value / draw.scale))
    return _sum(draw.pathwise, draw.gradients(terms["loss_objective"]))


@estimator(
    "Gumbel straight-through",
    bias="discrete actions treated as if they were continuous",
    applies=lambda draw: draw.branches,
)
def _straight_through(draw: Draw) -> Gradients:
    sampler = draw.sampler
    rollout = straight_through_rollout(
        sampler.collector.env,
        sampler.policy,
        sampler.collector.num_steps,
        tensordict=draw.start,
        noise=draw.noise,
        temperature=sampler.temperature,
        discount=sampler.collector.discount,
        randomness=sampler.collector.randomness,
    )
    batch, _ = sampler.prepared(rollout)
    return draw.gradients(sampler.loss(batch)["loss_pathwise"])


@estimator(
    "score function only",
    bias_if_deterministic="none for its own policy, which adds noise to u",
)
def _score_function_only(draw: Draw) -> Gradients:
    sampler = draw.sampler
    policy, collector = sampler.exploring, sampler.collector
    with torch.no_grad():
        rollout = differentiable_rollout(
            collector.env,
            policy,
            collector.num_steps,
            tensordict=draw.start,
            randomness=collector.randomness,
        )
        batch, _ = sampler.prepared(rollout)
    log_prob = policy.get_dist(batch.select(*policy.in_keys)).log_prob(batch["action"])
    return draw.gradients(-(log_prob * batch["advantage"].squeeze(-1)).mean())


class GradientSampler:
    """Draw gradients of the expected return, estimator by estimator, from the same states.

    A gradient is that of the loss's objective, negated: the direction in which the return rises,
    per step. Each draw starts from the env instances that the collector has running, drawn with
    replacement, with its restarts; where it has none yet, from reset states. So the draws
    are independent, and a policy that would drift away if it ran on is measured where it is now.
    All estimators of a draw start from the same states.

    Args:
        collector: where batches come from: its environment, policy, unroll length and discount.
        critic: the value network; ``None`` uses Monte-Carlo returns.
        gae_lambda: lambda of the advantages; with a critic only.
        reward_units: gives a batch's scale and shift, with which its rewards are learned as
            ``reward / scale - shift`` (:meth:`HPO.reward_units`); ``None`` takes them as they are.
        temperature: of the Gumbel-softmax.
        exploration_scale: standard deviation of u for the pure score function, in units of the
            action scale, where the policy itself is deterministic.
    """

    def __init__(
        self,
        collector: DifferentiableCollector,
        critic: TensorDictModule | None = None,
        *,
        gae_lambda: float = 0.95,
        reward_units: Callable[[TensorDictBase], tuple] | None = None,
        temperature: float = 0.5,
        exploration_scale: float = 0.1,
    ) -> None:
        check_float("exploration_scale", exploration_scale, minimum=0.0, strict=True)
        self.collector, self.critic, self.reward_units = collector, critic, reward_units
        self.policy, self.temperature, self.gae_lambda = collector.policy, temperature, gae_lambda
        groups = {
            name: [p for p in named.values() if p.requires_grad]  # frozen ones have no gradient
            for name, named in self.policy.parameter_groups().items()
        }
        self.groups = {name: group for name, group in groups.items() if group}
        exact: dict[str, Any] = {"clip_epsilon": None, "entropy_coeff": None, "critic_coeff": None}
        self.loss, self.adaptive, self.returns = (
            HPOLoss(self.policy, critic, cross_term=cross, **exact)
            for cross in (True, "adaptive", True)
        )
        # Each batch by itself: a running mean over batches would make the draws depend.
        self.adaptive.cross_term_weight = CrossTermWeight(decay=0.0).to(
            collector.env.device or "cpu"
        )
        for loss in (self.loss, self.adaptive, self.returns):
            lmbda = 1.0 if loss is self.returns else gae_lambda
            given: dict[str, Any] = {} if critic is None else {"lmbda": lmbda}
            loss.make_value_estimator(gamma=collector.discount, **given)
        self.exploring = HybridPolicy(
            _Exploring(self.policy.network, exploration_scale),
            observation_key=self.policy.observation_key,
            mask_key=self.policy.mask_key,
        )
        self._running = collector.carried

    @classmethod
    def of(cls, algorithm: Any, **kwargs: Any) -> GradientSampler:
        """Return the sampler of an algorithm as it trains: its collector, critic and units.

        An untrained one has no scale of its rewards yet: a first batch gives it.

        Args:
            algorithm: an algorithm that is ``differentiable``, of a single seed.
            kwargs: further arguments.

        Raises:
            ValueError: the algorithm rolls out without a graph, or trains several seeds.
        """
        if not algorithm.differentiable or algorithm.num_seeds is not None:
            raise ValueError(
                "Gradients are measured of an algorithm that rolls out differentiably, such as HPO "
                f"or GumbelSoftmax, for one seed; got {type(algorithm).__name__} with "
                f"differentiable={algorithm.differentiable}, num_seeds={algorithm.num_seeds}."
            )
        if not algorithm.scaler.weight:
            algorithm.scaler.observe(algorithm.collector.collect().get(("next", "reward")))
            algorithm.collector.reset()
        return cls(
            algorithm.collector,
            algorithm.critic,
            gae_lambda=algorithm.gae_lambda,
            reward_units=algorithm.reward_units,
            **kwargs,
        )

    def sample_mixed(self) -> Gradients:
        """Draw the mixed gradient alone, by parameter group."""
        draw = Draw(self)
        return draw.gradients(draw.terms["loss_pathwise"] + draw.terms["loss_objective"])

    def sample(self, names: Collection[str] | None = None) -> dict[str, Gradients]:
        """Draw one gradient by each estimator, by parameter group.

        Estimators that need what a draw does not have are omitted: those that branch the simulator,
        where the environment is no :class:`DifferentiableEnv` or the policy reads a mask of
        another's, and those that compare rollouts, where there is one.

        Args:
            names: the estimators; ``None`` draws all.
        """
        draw = Draw(self)
        return {
            name: known.gradients(draw)
            for name, known in ESTIMATORS.items()
            if (names is None or name in names) and known.applies(draw)
        }

    def describe(self, name: str) -> Estimator:
        """Return an estimator with its bias as it is for this policy and critic."""
        known = ESTIMATORS[name]
        if not self.policy.stochastic:
            known = replace(known, bias=known.bias_if_deterministic)
        if self.critic is None or not known.bias.startswith("none"):
            return known
        by_lambda = name in ("mixed", "score function only")
        how = f"at lambda = {self.gae_lambda:g}" if by_lambda else "beyond the end of a rollout"
        return replace(known, bias=known.bias + f", but for the critic's errors {how}")

    @property
    def critic_sees_observation(self) -> bool:
        """Whether the critic reads nothing but the observation, or there is none."""
        return self.critic is None or list(self.critic.in_keys) == ["observation"]

    def start(self) -> TensorDictBase:
        """Draw where a rollout starts."""
        running, collector = self._running, self.collector
        if running is None or collector.reset_at_each_iter:
            return collector.env.reset()
        number = running.numel()
        rows = (number * collector.randomness.uniform((number,), device=running.device)).long()
        return collector.restarted(running.reshape(-1)[rows].reshape(running.shape))

    def rollout(self, start: TensorDictBase, noise: Tensor | None) -> TensorDictBase:
        """Roll the policy out as the collector does."""
        with set_exploration_type(self.collector.exploration_type):
            return differentiable_rollout(
                self.collector.env,
                self.policy,
                self.collector.num_steps,
                tensordict=start,
                noise=noise,
                discount=self.collector.discount,
                route=self.collector.route,
                randomness=self.collector.randomness,
            )

    def prepared(self, batch: TensorDictBase) -> tuple[TensorDictBase, Tensor | float]:
        """Rescale the rewards in place and add advantages; return the scale as well."""
        scale, shift = (1.0, 0.0) if self.reward_units is None else self.reward_units(batch)
        batch.set(("next", "reward"), batch.get(("next", "reward")) / scale - shift)
        data = self.loss.advantages(batch)
        for key in ("advantage", "value_target"):
            if (value := data.get(key, None)) is not None:
                batch.set(key, value)
        return batch, scale


class _Exploring(nn.Module):
    """A network whose continuous action is Gaussian, with the parameters of another."""

    stochastic = True

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, loc, scale = self.network(observation)
        if scale is None:
            unit = getattr(self.network, "action_scale", torch.ones_like(loc[0]))
            scale = (self.scale * unit).expand_as(loc)
        return logits, loc, scale


class _Scaled(TensorDictModuleBase):
    """A critic in the units of the raw reward."""

    def __init__(self, critic: TensorDictModule, scale: Tensor | float) -> None:
        super().__init__()
        self.critic, self.scale = critic, scale
        self.in_keys, self.out_keys = list(critic.in_keys), ["state_value"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        value = self.critic(tensordict).get("state_value")
        return tensordict.set("state_value", value * self.scale)


def _sum(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Gradients:
    return {name: first[name] + second[name] for name in first}
