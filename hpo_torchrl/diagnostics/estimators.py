"""One batch's gradient by each estimator, on the parts that training uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
from hpo_torchrl.collectors.inputs import is_functional
from hpo_torchrl.core.checks import check_float
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.objectives import CrossTermWeight, HPOLoss
from hpo_torchrl.objectives.base import leave_one_out

Gradients = dict[str, Tensor]


class Estimator(NamedTuple):
    """What is known of an estimator: a part of the gradient or all of it, and its bias."""

    name: str
    whole: bool
    bias: str


ESTIMATORS = {
    estimator.name: estimator
    for estimator in (
        Estimator("pathwise", False, "a term: lacks score function and cross term"),
        Estimator("score function", False, "a term: lacks pathwise and cross term"),
        Estimator("cross", False, "a term: lacks pathwise and score function"),
        Estimator("mixed", True, "none"),
        Estimator("mixed, adaptive cross", True, "lacks (1 - w) of the cross term"),
        Estimator("mixed, leave-one-out", True, "none"),
        Estimator("mixed, expected options", True, "none"),
        Estimator("Gumbel straight-through", True, "options treated as if they were continuous"),
        Estimator("score function only", True, "none for its own policy, which adds noise to u"),
    )
}


class GradientSampler:
    """Draw gradients of the expected return, estimator by estimator, from the same states.

    A gradient is that of the loss's objective, negated: the direction in which the return rises,
    per step. Each draw starts afresh from the systems that the collector has running, drawn with
    replacement, with its restarts; where it has none yet, from fresh initial states. So the draws
    are independent, and a policy that would drift away if it ran on is measured where it is now.
    All estimators of a draw start from the same states.

    Args:
        collector: where batches come from: its environment, policy, window and discount.
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
        self.policy, self.temperature = collector.policy, temperature
        groups = {
            name: [p for p in named.values() if p.requires_grad]  # frozen ones have no gradient
            for name, named in self.policy.parameter_groups().items()
        }
        self.groups = {name: group for name, group in groups.items() if group}
        self.gae_lambda = gae_lambda
        exact: dict[str, Any] = {"clip_epsilon": None, "entropy_coeff": None, "critic_coeff": None}
        self.loss, self.no_cross, self.adaptive = (
            HPOLoss(self.policy, critic, cross_term=cross, **exact)
            for cross in (True, False, "adaptive")
        )
        # Each batch by itself: a running mean over batches would make the draws depend.
        self.adaptive.cross_term_weight = CrossTermWeight(decay=0.0).to(
            collector.env.device or "cpu"
        )
        self.returns = HPOLoss(self.policy, critic, **exact)
        for loss, lmbda in ((self.loss, gae_lambda), (self.returns, 1.0)):
            estimator: dict[str, Any] = {} if critic is None else {"lmbda": lmbda}
            loss.make_value_estimator(gamma=collector.discount, **estimator)
        for loss in (self.no_cross, self.adaptive):
            loss.make_value_estimator(gamma=collector.discount)  # the bootstrap's discount
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
        """
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
        batch, _ = self._prepared(self._rollout(self._start(), None))
        terms = self.loss(batch)
        return self._gradients(terms["loss_pathwise"] + terms["loss_objective"])

    def sample(self) -> dict[str, Gradients]:
        """Draw one gradient by each estimator, by parameter group.

        Absent are: those that branch the simulator, where the environment is no
        :class:`DifferentiableEnv`, the policy reads a mask of another's or (expected options) the
        critic something else than the observation; and those that compare rollouts, where there is
        one.
        """
        start, env = self._start(), self.collector.env
        noise = (
            env.sample_noise(self.collector.num_steps, start)
            if isinstance(env, DifferentiableEnv)
            else None
        )
        batch, scale = self._prepared(self._rollout(start, noise))
        terms = self.loss(batch)
        pathwise = self._gradients(terms["loss_pathwise"])
        objective = self._gradients(terms["loss_objective"])
        score = self._objective(self.no_cross, batch)
        found = {
            "pathwise": pathwise,
            "score function": score,
            "cross": _combine(objective, score, -1.0),
            "mixed": _combine(pathwise, objective),
        }
        if batch.shape[:-1].numel() > 1:  # these two compare rollouts with one another
            adaptive = self._objective(self.adaptive, batch)
            found["mixed, adaptive cross"] = _combine(pathwise, adaptive)
            own = self._objective(self.loss, self._leave_one_out(batch))
            found["mixed, leave-one-out"] = _combine(pathwise, own)
        if noise is not None and is_functional(env, self.policy):
            if self.critic is None or list(self.critic.in_keys) == ["observation"]:
                found["mixed, expected options"] = self._expected_options(batch, noise, scale)
            found["Gumbel straight-through"] = self._straight_through(start, noise)
        found["score function only"] = self._score_function_only(start)
        return found

    def _start(self) -> TensorDictBase:
        running = self._running
        if running is not None:
            rows = torch.randint(running.numel(), (running.numel(),), device=running.device)
            running = running.reshape(-1)[rows].reshape(running.shape)
        return self.collector.start(running)

    def describe(self, name: str) -> Estimator:
        """Return what is known of an estimator, with this critic."""
        known = ESTIMATORS[name]
        if self.critic is None or not known.bias.startswith("none"):
            return known
        by_lambda = name in ("mixed", "score function only")
        how = f"at lambda = {self.gae_lambda:g}" if by_lambda else "beyond the window's end"
        return known._replace(bias=known.bias + f", but for the critic's errors {how}")

    def _rollout(self, start: TensorDictBase, noise: Tensor | None) -> TensorDictBase:
        with set_exploration_type(self.collector.exploration_type):
            return differentiable_rollout(
                self.collector.env,
                self.policy,
                self.collector.num_steps,
                tensordict=start,
                noise=noise,
                discount=self.collector.discount,
                route=self.collector.route,
            )

    def _prepared(self, batch: TensorDictBase) -> tuple[TensorDictBase, Tensor | float]:
        """Rescale the rewards in place and add advantages; return the scale as well."""
        scale, shift = (1.0, 0.0) if self.reward_units is None else self.reward_units(batch)
        batch.set(("next", "reward"), batch.get(("next", "reward")) / scale - shift)
        held = self.loss.add_advantage(batch)
        for key in ("advantage", "value_target"):
            if (value := held.get(key, None)) is not None:
                batch.set(key, value)
        return batch, scale

    def _leave_one_out(self, batch: TensorDictBase) -> TensorDictBase:
        """The batch with other advantages: returns less the mean return of the other rollouts."""
        held = self.returns.add_advantage(batch.exclude("advantage", "value_target"))
        returns = held.get("advantage" if self.critic is None else "value_target")
        return batch.copy().set("advantage", leave_one_out(returns))

    def _expected_options(
        self, batch: TensorDictBase, noise: Tensor, scale: Tensor | float
    ) -> Gradients:
        # The shift is the same for every option of a state, where only differences count.
        action_value = branched_returns(
            self.collector.env,
            self.policy,
            batch,
            noise,
            gamma=self.collector.discount,
            critic=None if self.critic is None else _Scaled(self.critic, scale),
        )
        terms = self.loss(batch.copy().set("action_value", action_value / scale))
        return self._gradients(terms["loss_pathwise"] + terms["loss_objective"])

    def _straight_through(self, start: TensorDictBase, noise: Tensor) -> Gradients:
        rollout = straight_through_rollout(
            self.collector.env,
            self.policy,
            self.collector.num_steps,
            tensordict=start,
            noise=noise,
            temperature=self.temperature,
            discount=self.collector.discount,
        )
        batch, _ = self._prepared(rollout)
        return self._gradients(self.loss(batch)["loss_pathwise"])

    def _score_function_only(self, start: TensorDictBase) -> Gradients:
        with torch.no_grad():
            rollout = differentiable_rollout(
                self.collector.env, self.exploring, self.collector.num_steps, tensordict=start
            )
            batch, _ = self._prepared(rollout)
        dist = self.exploring.get_dist(batch.select(*self.exploring.in_keys))
        log_prob = dist.log_prob(batch["action"])
        return self._gradients(-(log_prob * batch["advantage"].squeeze(-1)).mean())

    def _objective(self, loss: HPOLoss, batch: TensorDictBase) -> Gradients:
        return self._gradients(loss(batch)["loss_objective"])

    def _gradients(self, loss: Tensor) -> Gradients:
        parameters = [p for group in self.groups.values() for p in group]
        parts: Any = [None] * len(parameters)
        if loss.requires_grad:
            parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        filled = iter(
            (torch.zeros_like(p) if g is None else -g).flatten().double()
            for g, p in zip(parts, parameters, strict=True)
        )
        return {
            name: torch.cat([next(filled) for _ in group]) for name, group in self.groups.items()
        }


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


def _combine(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], by: float = 1.0
) -> Gradients:
    return {name: first[name] + by * second[name] for name in first}
