"""Draw the gradients of all estimators from the states that an algorithm trains on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.envs.utils import set_exploration_type

from hpo_torchrl.collectors import DifferentiableCollector, differentiable_rollout
from hpo_torchrl.core.checks import check_choice, check_float, checked
from hpo_torchrl.diagnostics.estimators import ESTIMATORS, Draw, Estimator
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.modules.sampling import NORMAL
from hpo_torchrl.objectives import HPOLoss

Gradients = dict[str, Tensor]
# Deviation of u for the pure score function where the policy itself is deterministic, in units of
# the action scale.
_EXPLORATION = 0.1


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
    """

    @checked
    def __init__(
        self,
        collector: DifferentiableCollector,
        critic: TensorDictModule | None = None,
        *,
        gae_lambda: float = 0.95,
        reward_units: Callable[[TensorDictBase], tuple] | None = None,
    ) -> None:
        self.collector, self.critic, self.reward_units = collector, critic, reward_units
        self.policy = collector.policy
        self.gae_lambda = check_float("gae_lambda", gae_lambda, minimum=0.0, maximum=1.0)
        groups = {
            name: [p for p in named.values() if p.requires_grad]  # frozen ones have no gradient
            for name, named in self.policy.parameter_groups().items()
        }
        self.groups = {name: group for name, group in groups.items() if group}
        self.loss = self._loss(True, gae_lambda)
        self.returns = self._loss(True, 1.0)
        self.adaptive = self._loss("adaptive", gae_lambda)
        # Each batch by itself: a running mean over batches would make the draws depend.
        self.adaptive.cross_term_weight.decay = 0.0
        self.exploring = HybridPolicy(
            _Exploring(self.policy.network),
            observation_key=self.policy.observation_key,
            mask_key=self.policy.mask_key,
        )
        self._running = collector.carried

    def _loss(self, cross_term: bool | str, lmbda: float) -> Any:
        off: Any = dict.fromkeys(("clip_epsilon", "entropy_coeff", "critic_coeff"))
        loss = HPOLoss(self.policy, self.critic, cross_term=cross_term, **off)
        given = {} if self.critic is None else {"lmbda": lmbda}
        loss.make_value_estimator(gamma=self.collector.discount, **given)
        return loss

    @classmethod
    def of(cls, algorithm: Any) -> GradientSampler:
        """Return the sampler of an algorithm as it trains: its collector, critic and units.

        An untrained one has no scale of its rewards yet: a first batch gives it.

        Args:
            algorithm: an algorithm that is ``differentiable``, of a single seed.

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
        )

    @checked
    def sample(self, names: Collection[str] | None = None) -> dict[str, Gradients]:
        """Draw one gradient by each estimator, by parameter group.

        Estimators that need what a draw does not have are omitted: those that branch the simulator,
        where the environment is no :class:`DifferentiableEnv` or the policy reads a mask of
        another's, and those that compare rollouts, where there is one.

        Args:
            names: the estimators; ``None`` draws all.
        """
        asked = ESTIMATORS if names is None else names
        for name in asked:
            check_choice("names", name, ESTIMATORS)
        draw, found = Draw(self), {}
        for name in asked:
            loss = ESTIMATORS[name].loss(draw)
            if loss is not None:
                found[name] = self._gradient(loss)
        return found

    def _gradient(self, loss: Tensor) -> Gradients:
        """Return minus the gradient of a loss by parameter group, flat and in float64."""
        parameters = [p for group in self.groups.values() for p in group]
        parts: Any = [torch.zeros_like(p) for p in parameters]
        if loss.requires_grad:
            parts = torch.autograd.grad(
                -loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        flat = torch.cat([part.flatten().double() for part in parts])
        sizes = [sum(p.numel() for p in group) for group in self.groups.values()]
        return dict(zip(self.groups, flat.split(sizes), strict=True))

    def describe(self, name: str) -> Estimator:
        """Return an estimator with its bias as it is for this policy and critic."""
        known = ESTIMATORS[name]
        bias = known.bias
        if not self.policy.stochastic and known.bias_if_deterministic is not None:
            bias = known.bias_if_deterministic
        if self.critic is not None and bias.startswith("none"):
            by_lambda = name in ("mixed", "score function only")
            how = f"at lambda = {self.gae_lambda:g}" if by_lambda else "beyond the end of a rollout"
            bias += f", but for the critic's errors {how}"
        return replace(known, bias=bias)

    def start(self) -> TensorDictBase:
        """Draw where a rollout starts."""
        running, collector = self._running, self.collector
        if running is None or collector.reset_at_each_iter:
            return collector.env.reset()
        number = running.numel()
        drawn = collector.randomness.draw("uniform", (number,), device=running.device)
        rows = (number * drawn).long()
        return collector.restarted(running.reshape(-1)[rows].reshape(running.shape))

    def rollout(
        self,
        start: TensorDictBase,
        roll: Callable[..., TensorDictBase] = differentiable_rollout,
        *,
        policy: HybridPolicy | None = None,
        **options: Any,
    ) -> tuple[TensorDictBase, Tensor | float]:
        """Roll out as the collector does; rescale the rewards and add advantages.

        Args:
            start: where it starts.
            roll: what rolls out.
            policy: another policy than the collector's.
            options: further arguments of ``roll``.

        Returns:
            The batch, and what its rewards were divided by.
        """
        collector = self.collector
        with set_exploration_type(collector.exploration_type):
            batch = roll(
                collector.env,
                self.policy if policy is None else policy,
                collector.num_steps,
                tensordict=start,
                discount=collector.discount,
                randomness=collector.randomness,
                **options,
            )
        scale, shift = (1.0, 0.0) if self.reward_units is None else self.reward_units(batch)
        batch.set(("next", "reward"), batch.get(("next", "reward")) / scale - shift)
        advantages = self.loss.advantages(batch)
        batch.update(advantages.select("advantage", "value_target", strict=False))
        return batch, scale


class _Exploring(nn.Module):
    """A network whose continuous action is sampled, with the parameters of another."""

    stochastic = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.distribution = getattr(network, "distribution", NORMAL)
        self.num_heads = getattr(network, "num_heads", None)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, loc, scale = self.network(observation)
        if scale is None:
            scale = self.distribution.spread(torch.full_like(loc, _EXPLORATION))
        return logits, loc, scale
