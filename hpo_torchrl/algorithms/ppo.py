"""Proximal Policy Optimization: the model-free baseline."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.objectives import ClipPPOLoss

from hpo_torchrl.algorithms.base import Metrics
from hpo_torchrl.algorithms.learner import Learner
from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.objectives import HybridLossModule


class PPO(Learner):
    r"""PPO (Schulman et al. 2017, arXiv 1707.06347) on the joint log-probability of hybrid actions.

    Everything that decides is TorchRL's: its ``Collector`` gathers the rollouts, its GAE gives the
    advantages, its ``ClipPPOLoss`` clips the ratio of
    :math:`\log \mathrm{Cat}(d) + \log \mathcal N(u \mid d)`. No gradient of the simulator is used.
    What :class:`HPO` does besides its gradient (one reward scale, restarts, annealing, gradient
    clipping, learning-rate multipliers that follow the KL divergence, many seeds) is the same here,
    so that a comparison of the two compares gradients.

    The entropy bonus is that of the discrete choice; the standard deviation of u has a bonus of
    its own, in the same unit per dimension.

    Args:
        env: the training environment: any ``EnvBase`` with hybrid actions.
        policy: the hybrid policy, with a stochastic u: ``policy.scale`` above 0.
        critic: the value network.
        critic_coeff: weight of the critic's loss.
        clip_epsilon: clipping range of the ratio of joint probabilities.
        scale_entropy_coeff: bonus for the entropy of u, in standard deviations of the advantage
            per dimension; it matters where the scale is learned.
        epochs: passes over a batch.
        num_minibatches: minibatches in a pass.
        target_kl: approximate KL divergence of the joint probability, its mean over a pass, that an
            update aims at: beyond it no further pass is made, and the policy's learning-rate
            multiplier follows it.
        learning_rate: Adam's step size at the start.
        entropy_coeff: entropy bonus of the discrete choice at the start, in standard deviations
            of the advantage.
        reset_fraction_final: fraction of env instances restarted at each rollout later in the run;
            all of them, because a choice that is still random lets instances run away.
        learner: further arguments, of :class:`Learner`.

    Raises:
        ValueError: an argument is out of range, u is deterministic, or the policy does not fit
            the environment.

    Examples:
        >>> from hpo_torchrl.algorithms import PPO
        >>> from hpo_torchrl.problems import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy, make_value_network
        >>> env = InventoryEnv(batch_size=16, initial_state="random", seed=0)
        >>> policy = HybridPolicy.for_env(env, scale=0.1, learn_scale=True)
        >>> ppo = PPO(env, policy, make_value_network(env), unroll_length=20)
        >>> sorted(ppo.iterate())[:3]
        ['ESS', 'clip_fraction', 'cost']
    """

    trains_many_seeds = True

    def __init__(
        self,
        env: EnvBase,
        policy: HybridPolicy,
        critic: TensorDictModule,
        *,
        critic_coeff: float = 1.0,
        clip_epsilon: float = 0.2,
        scale_entropy_coeff: float = 0.0,
        epochs: int = 10,
        num_minibatches: int = 4,
        target_kl: float = 0.1,
        learning_rate: float = 1e-3,
        entropy_coeff: float = 0.1,
        reset_fraction_final: float = 1.0,
        **learner,
    ) -> None:
        self.epochs = check_int("epochs", epochs, minimum=1)
        self.num_minibatches = check_int("num_minibatches", num_minibatches, minimum=1)
        self.target_kl = check_float("target_kl", target_kl, minimum=0.0, strict=True)
        check_float("scale_entropy_coeff", scale_entropy_coeff, minimum=0.0)
        check_float("clip_epsilon", clip_epsilon, minimum=0.0, maximum=1.0, strict=True)
        if not policy.stochastic:
            raise ValueError(
                "algorithm=ppo needs a stochastic continuous action, got policy.scale=0: a score "
                "function has nothing to score. Set policy.scale, for example to 0.3."
            )
        learner |= {"learning_rate": learning_rate, "entropy_coeff": entropy_coeff}
        super().__init__(env, policy, critic, reset_fraction_final=reset_fraction_final, **learner)
        self.optimization.warm_up()
        self.loss = PPOLoss(
            policy,
            critic,
            clip_epsilon=clip_epsilon,
            critic_coeff=critic_coeff,
            entropy_coeff=self.entropy_bonus,
            scale_entropy_coeff=scale_entropy_coeff,
        )

    def update(self, batch: TensorDictBase) -> Metrics | list[Metrics]:
        """Do one update; the batch's rewards are rescaled, and advantages are added to it."""
        with torch.no_grad():
            self.add_values(batch)
        metrics = self.rescale(batch)
        data = self.add_advantages(batch)

        def descend(part: TensorDictBase, active: Tensor) -> dict[str, Tensor]:
            terms = self.loss(part)
            norms = self.optimization.step(terms, active)
            return {key: value.detach() for key, value in terms.items()} | norms

        metrics |= self.passes(
            self.flat(data.exclude("next")),
            descend,
            epochs=self.epochs,
            num_minibatches=self.num_minibatches,
            target_kl=self.target_kl,
            metrics={"kl": torch.zeros_like(metrics["cost"])},
            kl_after=lambda steps: torch.stack([step["kl_approx"] for step in steps]).mean(0),
        )
        for component in self.policy.parameter_groups():
            # A divergence grows with the square of a step.
            self.optimization.adapt_lr(
                component, (metrics["kl"].clamp_min(0.0) / self.target_kl).sqrt()
            )
        return self.numbers(metrics)

    def losses(self) -> list[HybridLossModule]:
        """The one loss."""
        return [self.loss]


class PPOLoss(HybridLossModule):
    """TorchRL's ``ClipPPOLoss`` beside the critic and entropy terms of all losses here.

    The means, the ratio's diagnostics and the normalisation of advantages are each seed's own.

    Args:
        actor_network: the hybrid policy, with a stochastic u.
        critic_network: the value network.
        clip_epsilon: clipping range of the ratio of joint probabilities.
        scale_entropy_coeff: bonus for the entropy of u.
        shared: further arguments, of :class:`HybridLossModule`.
    """

    own_keys = ("loss_objective", "kl_approx", "clip_fraction", "ESS", "max_ratio", "mean_ratio")

    def __init__(
        self,
        actor_network: HybridPolicy,
        critic_network: TensorDictModule,
        *,
        clip_epsilon: float = 0.2,
        scale_entropy_coeff: float = 0.0,
        **shared: Any,
    ) -> None:
        shared = {"entropy_in_advantage_units": False, "functional": False} | shared
        super().__init__(actor_network, critic_network, **shared)
        self.clip_epsilon, self.scale_entropy_coeff = clip_epsilon, scale_entropy_coeff
        self.clipped = _ClippedRatio(
            actor_network,
            None,
            functional=False,
            clip_epsilon=clip_epsilon,
            entropy_bonus=False,
            normalize_advantage=True,
            normalize_advantage_exclude_dims=() if self.num_seeds is None else (0,),
            reduction="none",
        )

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the terms on detached data that hold advantages, ``(N,)`` or ``(S, N)``."""
        data = tensordict.detach()
        clipped = self.clipped(data)
        terms, metrics = self.shared_terms(data, self.clipped.dist.logits)
        terms["loss_objective"] = clipped["loss_objective"].squeeze(-1)
        if self.scale_entropy_coeff > 0.0 and "loss_entropy" in terms:
            dist = self.clipped.dist
            spread = dist.entropy() - dist.entropy_discrete()
            terms["loss_entropy"] = terms["loss_entropy"] - self.scale_entropy_coeff * spread
        return self.reduce(terms, metrics | self._ratio_metrics(data), data)

    @torch.no_grad()
    def _ratio_metrics(self, data: TensorDictBase) -> dict[str, Tensor]:
        log_ratio = self.clipped.log_ratio
        ratio = log_ratio.exp()
        size = log_ratio.shape[-1]
        effective = 2 * log_ratio.logsumexp(-1) - (2 * log_ratio).logsumexp(-1)
        beyond = (ratio - 1.0).abs() > self.clip_epsilon
        return {
            "kl_approx": -self.mean(log_ratio, data),
            "clip_fraction": self.mean(beyond.to(ratio.dtype), data),
            "ESS": effective.exp() / size,
            "max_ratio": ratio.amax(-1),
            "mean_ratio": self.mean(ratio, data),
        }


class _ClippedRatio(ClipPPOLoss):
    """``ClipPPOLoss`` that remembers its distribution and ratio, whose means it only reports."""

    dist: Any
    log_ratio: Tensor

    def _log_weight(self, tensordict: TensorDictBase, adv_shape: torch.Size) -> Any:
        found = super()._log_weight(tensordict, adv_shape)
        self.log_ratio, self.dist = found[0].detach().squeeze(-1), found[1]
        return found
