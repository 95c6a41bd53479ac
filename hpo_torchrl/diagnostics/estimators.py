"""One batch's gradient by each estimator, on the parts that training uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor

from hpo_torchrl.collectors import branched_returns, straight_through_rollout
from hpo_torchrl.collectors.inputs import is_functional
from hpo_torchrl.core.checks import checked
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.objectives.advantages import leave_one_out

if TYPE_CHECKING:
    from hpo_torchrl.diagnostics.sampler import GradientSampler

_TEMPERATURE = 0.5  # of the Gumbel-softmax


@dataclass(frozen=True)
class Estimator:
    """An estimator of the gradient, as :func:`estimator` registers it.

    Attributes:
        loss: makes of a draw the scalar whose gradient, negated, is the estimate; ``None`` where
            the draw lacks what it needs.
        whole: whether it estimates the gradient, not one of its terms.
        bias: its known bias in words; ``"none"`` is certified by the tests.
        bias_if_deterministic: the same where the policy's continuous action is deterministic, if
            that is something else.
    """

    loss: Callable[[Draw], Tensor | None]
    whole: bool = True
    bias: str = "none"
    bias_if_deterministic: str | None = None


ESTIMATORS: dict[str, Estimator] = {}


@checked
def estimator(name: str, **facts: Any) -> Callable:
    """Register a function from a :class:`Draw` to a loss: all tools then know the estimator.

    :class:`GradientSampler` draws it, the gradient report and ``hpo-gradients`` measure it, and the
    certification test holds it against exact gradients if its bias is ``"none"``.

    Args:
        name: name of the estimator.
        facts: the other attributes of an :class:`Estimator`: ``whole``, ``bias``,
            ``bias_if_deterministic``.

    Examples:
        >>> from hpo_torchrl.diagnostics import ESTIMATORS, estimator
        >>> @estimator("twice pathwise", whole=False, bias="twice a term")
        ... def twice(draw):
        ...     return 2.0 * draw.terms["loss_pathwise"]
        >>> ESTIMATORS.pop("twice pathwise").whole
        False
    """

    def register(loss: Callable[[Draw], Tensor | None]) -> Callable:
        ESTIMATORS[name] = Estimator(loss, **facts)
        return loss

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
        self.start = sampler.start()
        self.noise: Any = None
        if isinstance(env, DifferentiableEnv):
            self.noise = env.sample_noise(sampler.collector.num_steps, self.start)
        self.batch, self.scale = sampler.rollout(
            self.start, noise=self.noise, route=sampler.collector.route
        )

    @cached_property
    def terms(self) -> TensorDictBase:
        """The terms of the mixed loss."""
        return self.sampler.loss(self.batch)

    @property
    def many(self) -> bool:
        """Whether there are rollouts to compare with one another."""
        return self.batch.shape[:-1].numel() > 1

    @property
    def branches(self) -> bool:
        """Whether the simulator can be branched: a functional environment and policy."""
        return is_functional(self.sampler.collector.env, self.sampler.policy)


@estimator("pathwise", whole=False, bias="a term: lacks score function and cross term")
def _pathwise(draw: Draw) -> Tensor:
    return draw.terms["loss_pathwise"]


@estimator("score function", whole=False, bias="a term: lacks pathwise and cross term")
def _score_function(draw: Draw) -> Tensor:
    loss = draw.sampler.loss
    data = loss.advantages(draw.batch)
    return -loss.score_function_term(data, loss.logits(data)).mean()


@estimator("cross", whole=False, bias="a term: lacks pathwise and score function")
def _cross(draw: Draw) -> Tensor:
    loss = draw.sampler.loss
    return -loss.cross_term(draw.batch, loss.advantages(draw.batch)).mean()


@estimator("mixed")
def _mixed(draw: Draw) -> Tensor:
    return _both(draw.terms)


@estimator("mixed, adaptive cross", bias="lacks (1 - w) of the cross term")
def _adaptive(draw: Draw) -> Tensor | None:
    return _both(draw.sampler.adaptive(draw.batch)) if draw.many else None


@estimator("mixed, leave-one-out")
def _leave_one_out(draw: Draw) -> Tensor | None:
    if not draw.many:
        return None
    # Other advantages: returns less the mean return of the other rollouts.
    sampler = draw.sampler
    data = sampler.returns.advantages(draw.batch.exclude("advantage", "value_target"))
    returns = data.get("advantage" if sampler.critic is None else "value_target")
    return _both(sampler.loss(draw.batch.copy().set("advantage", leave_one_out(returns))))


@estimator("mixed, all discrete actions")
def _expected(draw: Draw) -> Tensor | None:
    sampler, critic = draw.sampler, draw.sampler.critic
    if not draw.branches or (critic is not None and list(critic.in_keys) != ["observation"]):
        return None
    if critic is not None:  # in the units of the raw reward
        key = ["state_value"]
        rescaled = TensorDictModule(lambda value: value * draw.scale, in_keys=key, out_keys=key)
        critic = TensorDictSequential(critic, rescaled)
    action_value = branched_returns(
        sampler.collector.env,
        sampler.policy,
        draw.batch,
        draw.noise,
        gamma=sampler.collector.discount,
        critic=critic,
    )
    # The shift is the same for every discrete action of a state, where only differences count.
    batch = draw.batch.copy().set("action_value", action_value / draw.scale)
    return _both(sampler.loss(batch))


@estimator("Gumbel straight-through", bias="discrete actions treated as if they were continuous")
def _straight_through(draw: Draw) -> Tensor | None:
    if not draw.branches:
        return None
    batch, _ = draw.sampler.rollout(
        draw.start,
        straight_through_rollout,
        noise=draw.noise,
        temperature=_TEMPERATURE,
    )
    return draw.sampler.loss(batch)["loss_pathwise"]


@estimator(
    "score function only", bias_if_deterministic="none for its own policy, which adds noise to u"
)
def _score_function_only(draw: Draw) -> Tensor:
    policy = draw.sampler.exploring
    with torch.no_grad():
        batch, _ = draw.sampler.rollout(draw.start, policy=policy)
    log_prob = policy.get_dist(batch.select(*policy.in_keys)).log_prob(batch["action"])
    return -(log_prob * batch["advantage"].squeeze(-1)).mean()


def _both(terms: TensorDictBase) -> Tensor:
    return terms["loss_pathwise"] + terms["loss_objective"]
