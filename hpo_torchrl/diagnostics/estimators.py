"""One batch's gradient by each estimator, on the parts that training uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor

from hpo_torchrl.collectors import (
    branched_returns,
    differentiable_rollout,
    straight_through_rollout,
)
from hpo_torchrl.collectors.inputs import is_functional
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.objectives.advantages import leave_one_out

if TYPE_CHECKING:
    from hpo_torchrl.diagnostics.sampler import GradientSampler

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
