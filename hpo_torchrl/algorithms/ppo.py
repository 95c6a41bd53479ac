"""Proximal Policy Optimization: the model-free baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.objectives import ClipPPOLoss

from hpo_torchrl.algorithms.base import Metrics
from hpo_torchrl.algorithms.fused import FusedSteps
from hpo_torchrl.algorithms.learner import Learner, setting
from hpo_torchrl.collectors import RayCollector
from hpo_torchrl.collectors.collector import BatchCollector
from hpo_torchrl.core import ranks
from hpo_torchrl.core.categorical import all_fixed
from hpo_torchrl.core.checks import check_int
from hpo_torchrl.core.wrappers import plain
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.objectives import HybridLossModule

_ONE = (int, type(None))  # what a seed is, where there are not several
_FIRST_MULTIPLIER = 0.02  # of the learning rate of a policy's nets


@dataclass(kw_only=True, eq=False, repr=False)
class PassLearner(Learner):
    """A learner that makes passes over each batch until the policy has changed enough.

    Args:
        epochs: passes over a batch at most.
        num_minibatches: minibatches in a pass.
        target_kl: KL divergence beyond which no further pass is made.
    """

    trains_many_seeds = True
    trains_in_ranks = True
    fused_steps: Any = field(default=None, init=False)  # makes the steps of a pass by XLA

    epochs: int = setting(10, check_int, minimum=1)
    num_minibatches: int = setting(4, check_int, minimum=1)
    target_kl: float = setting(0.1, strict=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        # Multipliers begin small: where the observation has many entries, the same step of every
        # weight changes a policy much more than where it has few.
        for component in self.policy.parameter_groups():
            for group in self.optimization.param_groups(component):
                group["lr_multiplier"] = _FIRST_MULTIPLIER

    def passes(
        self,
        data: TensorDictBase,
        descend: Callable[[TensorDictBase, Tensor], dict[str, Tensor]],
        metrics: Mapping[str, Tensor],
        kl_after: Callable[[list[dict[str, Tensor]]], Tensor],
        fused: Callable[[TensorDictBase, Tensor, Tensor], dict[str, Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Make passes of minibatch steps over detached data until the policy has changed enough.

        A seed whose KL divergence is above its target makes no more steps and waits for the others.

        Args:
            data: the data, ``(*B, T)`` or ``(S, *B, T)``.
            descend: makes the step of one minibatch, for the seeds that are active, and returns its
                metrics.
            metrics: metrics before the first pass, among them the divergence ``"kl"``.
            kl_after: gives it after a pass, from the metrics of its steps.
            fused: makes all steps of a pass, of minibatches of one size ``(K, n)`` or
                ``(K, S, n)``, for the seeds that are active, and returns their metrics, ``(K,)`` or
                ``(K, S)``; ``None`` makes one after another.

        Returns:
            ``metrics`` with those of the last step, ``"kl"`` and ``"epochs"``, the passes made.
        """
        seeds: tuple[Any, ...] = ()
        if self.num_seeds is not None:
            seeds = (torch.arange(self.num_seeds, device=data.device).unsqueeze(-1),)
        # A memory reads whole sequences.
        time = () if self.policy.memory is None else (data.shape[-1],)
        data = data.reshape(*map(len, seeds), -1, *time)
        first, number = ranks.place(data.shape[len(seeds)])
        # All orders are drawn beforehand: stopping early leaves no trace in the random numbers.
        orders = [self.randomness.permutation(number, data.device) for _ in range(self.epochs)]
        known = dict(metrics)
        known["epochs"] = torch.zeros_like(known["kl"], dtype=torch.int64)
        for order in orders:
            active = known["kl"] <= self.target_kl
            if not bool(active.any()):
                break
            parts = order.chunk(self.num_minibatches, -1)
            even = number % self.num_minibatches == 0
            if fused is not None and even and not time and not ranks.active():
                made = fused(data, torch.stack(parts), active)
                steps = [
                    {key: value[at] for key, value in made.items()} for at in range(len(parts))
                ]
            elif ranks.active():
                steps = [descend(_own_rows(data, rows - first), active) for rows in parts]
            else:
                steps = [descend(data[(*seeds, rows)], active) for rows in parts]
            found = {**steps[-1], "kl": kl_after(steps), "epochs": known["epochs"] + 1}
            known |= {
                name: torch.where(active, value.detach(), known.get(name, value).detach())
                for name, value in found.items()
            }
        return known


def _own_rows(data: TensorDictBase, rows: Tensor) -> TensorDictBase:
    """Return those rows of a minibatch that this rank has: one that does not count if it has none.

    Args:
        data: this rank's data, ``(N,)``, of a memory ``(N, T)``.
        rows: the minibatch's rows; those of other ranks are below 0, or N and above.
    """
    own = rows[(rows >= 0) & (rows < len(data))]
    if len(own):
        return data[own]
    part = data[:1]
    mask = torch.zeros(part.shape, dtype=torch.bool, device=rows.device)
    return part.set(("collector", "mask"), mask)


@dataclass(kw_only=True, eq=False, repr=False)
class PPO(PassLearner):
    r"""PPO (Schulman et al. 2017, arXiv 1707.06347) on the joint log-probability of hybrid actions.

    Everything that decides is TorchRL's: its ``Collector`` gathers the rollouts, its GAE gives the
    advantages, its ``ClipPPOLoss`` clips the ratio of
    :math:`\log \mathrm{Cat}(d) + \log \mathcal N(u \mid d)`. No gradient of the simulator is used.
    The steps of :class:`HPO` besides its gradient (one reward scale, restarts, annealing, gradient
    clipping, learning-rate multipliers that follow the KL divergence, many seeds) are the same
    here, so that a comparison of the two compares gradients.

    The entropy bonus is that of the discrete choice; the standard deviation of u has a bonus of
    its own, in the same unit per dimension.

    Args:
        env: the training environment: any ``EnvBase`` with hybrid actions; with ``ray_workers``
            that of one worker.
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
        reset_fraction_final: fraction of env instances restarted at each rollout at the end;
            ``None`` is all of them, because a choice that is still random lets instances run away,
            and none of an environment that is not differentiable.
        ray_workers: number of processes of Ray that collect, each in a copy of the environment, see
            :class:`~hpo_torchrl.collectors.RayCollector`; ``None`` collects in this process.
        learner: further arguments, of :class:`Learner`.

    Raises:
        ValueError: an argument is out of range, u is deterministic, the policy does not fit the
            environment, or workers of Ray are asked for in ranks or with several seeds.

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

    restarts = (1.0, 1.0)
    compiles_passes = True
    critic_coeff: float = setting(1.0)
    clip_epsilon: float = setting(0.2, maximum=1.0, strict=True)
    scale_entropy_coeff: float = setting(0.0)
    learning_rate: float = setting(1e-3, strict=True)
    entropy_coeff: float = setting(0.1)
    ray_workers: int = setting(None, check_int, minimum=1)

    def __post_init__(self) -> None:
        fixed = all_fixed(getattr(plain(self.env), "branch_bounds", None))
        if not fixed and not getattr(self.policy, "stochastic", True):
            raise ValueError(
                "algorithm=ppo needs a stochastic continuous action, got policy.scale=0: a score "
                "function has nothing to score. Set policy.scale, for example to 0.3."
            )
        if self.ray_workers is not None and (ranks.active() or not isinstance(self.seed, _ONE)):
            shared = "ranks" if ranks.active() else f"num_seeds (seed={self.seed!r})"
            raise ValueError(
                f"ray_workers={self.ray_workers!r} cannot be combined with {shared}: train one "
                "seed in one process, or leave ray_workers out."
            )
        super().__post_init__()
        names = ("clip_epsilon", "critic_coeff", "entropy_coeff", "scale_entropy_coeff")
        chosen = {name: getattr(self, name) for name in names}
        self.loss = PPOLoss(self.policy, self.critic, **chosen)
        if self.evaluations is not None:
            self.fused_steps = FusedSteps(self, self.loss, self.collector.compiled)

    def _sample_collector(self, collecting: dict[str, Any]) -> BatchCollector:
        if self.ray_workers is None:
            return super()._sample_collector(collecting)
        collecting["frames_per_batch"] *= self.ray_workers
        return RayCollector(self.env, self.policy, workers=self.ray_workers, **collecting)

    def release(self) -> None:
        """End the workers of Ray."""
        if isinstance(self.collector, RayCollector):
            self.collector.stop()

    def update(self, batch: TensorDictBase) -> Metrics | list[Metrics]:
        """Do one update; the batch's rewards are rescaled, and advantages are added to it."""
        metrics, data = self.prepare(batch)
        fused = self.fused_steps
        metrics |= self.passes(
            data.exclude("next"),
            lambda part, active: self.optimization.step(self.loss(part), active),
            {"kl": torch.zeros_like(metrics["cost"])},
            lambda steps: torch.stack([step["kl_approx"] for step in steps]).mean(0),
            None if fused is None or fused.remembers(data) else fused,
        )
        # A divergence grows with the square of a step.
        change = (metrics["kl"].clamp_min(0.0) / self.target_kl).sqrt()
        for component in self.policy.parameter_groups():
            self.optimization.adapt_lr(component, change)
        return self.numbers(metrics)


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

    own_keys = ("loss_objective", "kl_approx", "clip_fraction", "ESS")

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
        self.in_keys = [*self.in_keys, *(k for k in self.clipped.in_keys if k not in self.in_keys)]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the terms on detached data that hold advantages, ``(N,)`` or ``(S, N)``."""
        data = tensordict.detach()
        clipped = self.clipped(data)
        terms, metrics = self.shared_terms(data, self.clipped.dist.logits)
        terms["loss_objective"] = clipped["loss_objective"].reshape(data.shape)
        if self.scale_entropy_coeff > 0.0 and "loss_entropy" in terms:
            dist = self.clipped.dist
            spread = dist.entropy() - dist.entropy_discrete()
            terms["loss_entropy"] = terms["loss_entropy"] - self.scale_entropy_coeff * spread
        log_ratio = self.clipped.log_ratio.reshape(data.shape)
        ratio = log_ratio.exp()
        effective = self.mean(ratio, data) ** 2 / self.mean(ratio**2, data)
        beyond = (ratio - 1.0).abs() > self.clip_epsilon
        metrics |= {
            "kl_approx": -self.mean(log_ratio, data),
            "clip_fraction": self.mean(beyond.to(log_ratio.dtype), data),
            "ESS": effective,
        }
        return self.reduce(terms, metrics, data)


class _ClippedRatio(ClipPPOLoss):
    """``ClipPPOLoss`` that remembers its distribution and ratio, whose means it only reports."""

    dist: Any
    log_ratio: Tensor

    def _maybe_normalize_advantage(
        self, advantage: Tensor, tensordict: TensorDictBase, **how: Any
    ) -> Tensor:
        if not ranks.active():
            return super()._maybe_normalize_advantage(advantage, tensordict, **how)
        # As TorchRL does it, a single one as it is, by the moments of the whole minibatch.
        counts = self._reduce_loss(torch.ones_like(advantage), tensordict, reduction="none")
        number, mean, variance = ranks.moments(advantage, counts)
        if number < 2:
            return advantage
        return (advantage - mean) / (variance * number / (number - 1)).sqrt().clamp_min(1e-6)

    def _log_weight(self, tensordict: TensorDictBase, adv_shape: torch.Size) -> Any:
        found = super()._log_weight(tensordict, adv_shape)
        self.log_ratio, self.dist = found[0].detach().squeeze(-1), found[1]
        return found
