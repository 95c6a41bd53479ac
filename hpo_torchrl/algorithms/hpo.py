"""Hybrid Policy Optimization: collect differentiable windows, update by mixed gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.envs import EnvBase

from hpo_torchrl._checks import check_choice, check_float, check_int
from hpo_torchrl.algorithms.base import Algorithm, RewardScaler, check_finite, clip_gradients
from hpo_torchrl.collectors import DifferentiableCollector
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.objectives import HPOLoss

SCHEDULES = ("constant", "linear", "cosine")


class HPO(Algorithm):
    """Hybrid Policy Optimization (Alvo, Russo & Kanoria 2026, arXiv 2605.14297).

    An update of one batch of differentiable rollouts:

    1. rewards on one running scale; advantages and value targets by GAE on detached data;
    2. one full-batch step on pathwise + cross + score-function + critic + entropy: the graph is
       used exactly once;
    3. ``epochs`` of minibatches on detached data: clipped score function, critic and entropy,
       stopped early when the policy has moved by ``target_kl``.

    Args:
        env: the training environment: a :class:`DifferentiableEnv`, or any ``EnvBase`` whose step
            keeps the graph.
        policy: the hybrid policy.
        critic: the value network.
        window: steps T of a rollout; ``None`` is the episode where one terminates, else 30.
        reset_at_each_iter: start every window from fresh initial states; ``None`` does so where a
            window is a whole episode. Otherwise systems run on from window to window.
        reset_fraction: share of systems restarted at each window, so that rare states are seen.
        discount: gamma, of advantages and of gradients through transitions; ``None`` is 1 where
            an episode terminates, else 0.99.
        gae_lambda: lambda of the advantage estimator.
        cross_term: whether continuous actions are credited for the later choices they cause:
            ``True``, ``False`` or ``"adaptive"``, see :class:`HPOLoss`.
        learning_rate: Adam's step size at the start.
        adam_betas: Adam's decay rates of the mean and the square of the gradient. Where the first
            gradients are thousands of times the later ones (an untrained policy lets an unstable
            system grow), a second one of 0.95 forgets them soon; 0.999 holds the steps small.
        learning_rate_schedule: ``"constant"``, ``"linear"`` or ``"cosine"``.
        learning_rate_final: share of ``learning_rate`` that is left at the end.
        entropy_coeff: entropy bonus at the start, in standard deviations of the advantage.
        entropy_final: entropy bonus at the end, in the same unit.
        entropy_until: share of the run by which the bonus has been annealed to its final value.
        critic_coeff: weight of the critic's loss.
        clip_epsilon: clipping range of the ratio of discrete probabilities; ``None`` is off.
        epochs: passes over the detached data per update; 0 makes step 2 the whole update.
        num_minibatches: minibatches in a pass.
        target_kl: approximate KL divergence at which an update stops early.
        max_grad_norm: gradient-norm clip of each component.

    Raises:
        ValueError: an argument is out of range, or the policy does not fit the environment.

    Examples:
        >>> from hpo_torchrl.algorithms import HPO
        >>> from hpo_torchrl.envs import InventoryEnv
        >>> from hpo_torchrl.modules import HybridPolicy, make_value_network
        >>> env = InventoryEnv(batch_size=16, initial_state="random", seed=0)
        >>> hpo = HPO(env, HybridPolicy.for_env(env), make_value_network(env), window=20)
        >>> sorted(hpo.iterate())[:3]
        ['clip_fraction', 'cost', 'entropy']
    """

    def __init__(
        self,
        env: EnvBase,
        policy: HybridPolicy,
        critic: TensorDictModule,
        *,
        window: int | None = None,
        reset_at_each_iter: bool | None = None,
        reset_fraction: float = 0.1,
        discount: float | None = None,
        gae_lambda: float = 0.95,
        cross_term: bool | str = True,
        learning_rate: float = 2e-3,
        adam_betas: Sequence[float] = (0.9, 0.999),
        learning_rate_schedule: str = "cosine",
        learning_rate_final: float = 0.01,
        entropy_coeff: float = 0.3,
        entropy_final: float = 0.0,
        entropy_until: float = 0.6,
        critic_coeff: float = 1.0,
        clip_epsilon: float | None = 0.2,
        epochs: int = 2,
        num_minibatches: int = 4,
        target_kl: float = 0.015,
        max_grad_norm: float = 5.0,
    ) -> None:
        episode = _episode(env)
        if window is None:
            window = episode or 30
        check_int("window", window, minimum=1)
        if reset_at_each_iter is None:
            reset_at_each_iter = window == episode
        if discount is None:
            discount = 0.99 if episode is None else 1.0
        check_float("gae_lambda", gae_lambda, minimum=0.0, maximum=1.0)
        check_float("learning_rate", learning_rate, minimum=0.0, strict=True)
        check_choice("learning_rate_schedule", learning_rate_schedule, SCHEDULES)
        check_float("learning_rate_final", learning_rate_final, minimum=0.0, maximum=1.0)
        check_float("entropy_coeff", entropy_coeff, minimum=0.0)
        check_float("entropy_final", entropy_final, minimum=0.0, maximum=entropy_coeff)
        check_float("entropy_until", entropy_until, minimum=0.0, maximum=1.0, strict=True)
        check_int("epochs", epochs, minimum=0)
        check_int("num_minibatches", num_minibatches, minimum=1)
        check_float("target_kl", target_kl, minimum=0.0, strict=True)
        check_float("max_grad_norm", max_grad_norm, minimum=0.0, strict=True)
        self.env, self.policy, self.critic = env, policy, critic
        self.collector = DifferentiableCollector(
            env,
            policy,
            frames_per_batch=window * env.batch_size.numel(),
            reset_at_each_iter=reset_at_each_iter,
            reset_fraction=reset_fraction,
            discount=discount,
        )
        shared: dict[str, Any] = {
            "clip_epsilon": clip_epsilon,
            "entropy_coeff": entropy_coeff,
            "critic_coeff": critic_coeff,
        }
        self.loss = HPOLoss(policy, critic, cross_term=cross_term, **shared)
        self.detached_loss = HPOLoss(policy, critic, pathwise=False, cross_term=False, **shared)
        self.loss.make_value_estimator(gamma=discount, lmbda=gae_lambda)
        # Only a system known never to terminate may have a constant taken off its rewards.
        self.continuing = isinstance(env, DifferentiableEnv) and episode is None
        self.discount, self.gae_lambda = discount, gae_lambda
        self.scaler = RewardScaler().to(env.device or "cpu")
        self.groups = policy.parameter_groups() | {"critic": dict(critic.named_parameters())}
        self.optimizer = torch.optim.Adam(
            [{"params": list(named.values())} for named in self.groups.values()],
            lr=learning_rate,
            betas=_check_betas(adam_betas),
            eps=1e-5,
        )
        self.learning_rate, self.schedule = learning_rate, learning_rate_schedule
        self.learning_rate_final = learning_rate_final
        self.entropy_coeff, self.entropy_final = entropy_coeff, entropy_final
        self.entropy_until = entropy_until
        self.epochs, self.num_minibatches = epochs, num_minibatches
        self.target_kl, self.max_grad_norm = target_kl, max_grad_norm

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Do one update.

        The batch's graph is consumed, its rewards are rescaled, and advantages and value targets
        are added to it.
        """
        reward = batch.get(("next", "reward"))
        check_finite({"the reward ('next', 'reward')": reward})
        cost = -float(reward.detach().mean()) / getattr(self.env, "cost_units", 1.0)
        self.scaler.observe(reward)
        scale, shift = self.reward_units(batch)
        batch.set(("next", "reward"), reward / scale - shift)
        held = self.loss.add_advantage(batch)
        for key in ("advantage", "value_target"):
            batch.set(key, held.get(key))
        terms = self.loss(batch)
        norms = self._step(terms)
        metrics = {key: float(value) for key, value in terms.detach().items()}
        metrics |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
        metrics |= {"cost": cost, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        return metrics | self._minibatches(held)

    def reward_units(self, batch: TensorDictBase) -> tuple[Tensor, Tensor | float]:
        """Return the scale and shift by which a batch is learned: ``reward / scale - shift``."""
        reward = batch.get(("next", "reward")).detach()
        return self.scaler.scale.to(reward.dtype), self._average_reward(batch, self.scaler(reward))

    def anneal(self, progress: float) -> None:
        """Anneal learning rate and entropy bonus."""
        factor = {
            "constant": 1.0,
            "linear": 1.0 - progress,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        }[self.schedule]
        final = self.learning_rate_final
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * (final + (1.0 - final) * factor)
        left = max(0.0, 1.0 - progress / self.entropy_until)
        bonus = self.entropy_final + (self.entropy_coeff - self.entropy_final) * left
        self.loss.entropy_coeff.fill_(bonus)
        self.detached_loss.entropy_coeff.fill_(bonus)

    def components(self) -> dict[str, Any]:
        """Return policy, critic, optimizer, reward scale, collector and cross-term weight."""
        weight = self.loss.cross_term_weight
        return {
            "policy": self.policy,
            "critic": self.critic,
            "optimizer": self.optimizer,
            "reward_scaler": self.scaler,
            "collector": self.collector,
        } | ({} if weight is None else {"cross_term_weight": weight})

    @torch.no_grad()
    def _average_reward(self, batch: TensorDictBase, reward: Tensor) -> Tensor | float:
        """Constant to take off the rewards of a system that never terminates.

        A constant reward rho adds rho / (1 - discount) to every value, which the critic would
        chase as the policy improves. Taking off the average temporal difference instead (Naik et
        al. 2024, value-based reward centering) leaves the critic its level, whatever that is.
        """
        if not self.continuing or self.discount == 1.0:
            return 0.0
        value, after = (
            self.critic(data.select(*self.critic.in_keys).detach()).get("state_value").mean()
            for data in (batch, batch.get("next"))
        )
        return reward.mean() + self.discount * after - value

    def _minibatches(self, held: TensorDictBase) -> dict[str, float]:
        keys = self.detached_loss.tensor_keys
        needed: list[Any] = [*list(self.policy.in_keys), keys.discrete_action, keys.sample_log_prob]
        data = held.select(*needed, keys.advantage, keys.value_target).reshape(-1)
        passes, kl = 0, 0.0
        while passes < self.epochs and kl <= self.target_kl:
            order = torch.randperm(data.shape[0], device=data.device)
            kls = []
            for rows in order.chunk(self.num_minibatches):
                terms = self.detached_loss(data[rows])
                self._step(terms)
                kls.append(float(terms["kl_approx"]))
            kl = sum(kls) / len(kls)
            passes += 1
        if not passes:
            return {}
        clipped = terms.get("clip_fraction", torch.zeros(()))
        return {"kl": kl, "epochs": passes, "clip_fraction": float(clipped)}

    def _step(self, terms: TensorDictBase) -> dict[str, float]:
        losses = [value for key, value in terms.items() if key.startswith("loss_")]
        check_finite(terms)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        norms = clip_gradients(self.groups, self.max_grad_norm)
        self.optimizer.step()
        return norms


def _episode(env: EnvBase) -> int | None:
    """Length of episodes that end for good, or ``None``."""
    terminates = isinstance(env, DifferentiableEnv) and env.horizon_terminates
    return env.horizon if terminates else None


def _check_betas(betas: Sequence[float]) -> tuple[float, float]:
    if isinstance(betas, str) or not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"adam_betas must be two numbers such as [0.9, 0.95], got {betas!r}.")
    first, second = (
        check_float(f"adam_betas[{i}]", beta, minimum=0.0, maximum=0.9999)
        for i, beta in enumerate(betas)
    )
    return first, second
