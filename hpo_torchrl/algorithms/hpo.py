"""Hybrid Policy Optimization: collect differentiable windows, update by mixed gradients."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, set_skip_existing
from torch import Tensor
from torchrl.envs import EnvBase

from hpo_torchrl.algorithms.base import numbers
from hpo_torchrl.algorithms.learner import Learner
from hpo_torchrl.collectors import DifferentiableCollector
from hpo_torchrl.core.categorical import divergence_of, finite
from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.objectives import HPOLoss


class HPO(Learner):
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
        cross_term: whether continuous actions are credited for the later choices they cause:
            ``True``, ``False`` or ``"adaptive"``, see :class:`HPOLoss`.
        critic_coeff: weight of the critic's loss.
        clip_epsilon: clipping range of the ratio of discrete probabilities; ``None`` is off.
        epochs: passes over the detached data per update; 0 makes step 2 the whole update.
        num_minibatches: minibatches in a pass.
        target_kl: KL divergence of the options' probabilities that an update aims at. It stops
            early beyond it, and the discrete net's share of the learning rate follows it: where
            the observation has many entries, the same step moves the choice much further.
        target_move: root mean square move of the continuous action's mean, in action scales, that
            an update aims at; the continuous net's share of the learning rate follows it.
        checkpoint_steps: steps of a window whose graph is kept at once, for long windows: less
            memory for more time; see :func:`differentiable_rollout`.
        compile: roll out by :class:`CompiledRollout`: it starts with a wait of half a minute, and
            what it saves then is for runs of thousands of updates.
        learner: further arguments, of :class:`Learner`. Its ``discount`` is that of advantages
            and of gradients through transitions.

    Raises:
        ValueError: an argument is out of range, or the policy does not fit the environment.

    Examples:
        >>> from hpo_torchrl.algorithms import HPO
        >>> from hpo_torchrl.problems import InventoryEnv
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
        cross_term: bool | str = True,
        critic_coeff: float = 1.0,
        clip_epsilon: float | None = 0.2,
        epochs: int = 2,
        num_minibatches: int = 4,
        target_kl: float = 0.015,
        target_move: float = 0.1,
        checkpoint_steps: int | None = None,
        compile: bool = False,
        **learner,
    ) -> None:
        self.epochs = check_int("epochs", epochs, minimum=0)
        self.num_minibatches = check_int("num_minibatches", num_minibatches, minimum=1)
        self.target_kl = check_float("target_kl", target_kl, minimum=0.0, strict=True)
        self.target_move = check_float("target_move", target_move, minimum=0.0, strict=True)
        super().__init__(env, policy, critic, **learner)
        self.collector = DifferentiableCollector(
            env,
            policy,
            discount=self.discount,
            checkpoint_steps=checkpoint_steps,
            compile=compile,
            **self.collecting,
        )
        shared: dict[str, Any] = {
            "clip_epsilon": clip_epsilon,
            "entropy_coeff": self.entropy_bonus,
            "critic_coeff": critic_coeff,
            "functional": False,  # the nets themselves: nothing is swapped in and out
        }
        self.start_small()
        scale = getattr(env, "action_scale", None)
        self.action_scale = 1.0 if scale is None else scale
        self.loss = HPOLoss(policy, critic, cross_term=cross_term, **shared)
        self.detached_loss = HPOLoss(policy, critic, pathwise=False, cross_term=False, **shared)
        self.loss.make_value_estimator(gamma=self.discount, lmbda=self.gae_lambda)

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Do one update.

        The batch's graph is consumed, its rewards are rescaled, and advantages and value targets
        are added to it.
        """
        metrics, held, mean, terms, before = begin_update(self, batch)
        metrics |= self.step(terms)
        metrics |= numbers(terms)
        metrics |= self._minibatches(held, before)
        move = ((mean_action(self.policy, held) - mean) / self.action_scale).square().mean().sqrt()
        metrics["move"] = float(move)
        # A divergence grows with the square of a step.
        self.follow("discrete", (metrics["kl"] / self.target_kl) ** 0.5)
        self.follow("continuous", metrics["move"] / self.target_move)
        if (seconds := self.collector.compile_seconds()) > 0:
            metrics["compile_seconds"] = seconds
        return metrics

    def losses(self) -> list[HPOLoss]:
        """The loss of the differentiable step and that of the detached passes."""
        return [self.loss, self.detached_loss]

    def components(self) -> dict[str, Any]:
        """Return policy, critic, optimizer, reward scale, collector and cross-term weight."""
        weight = self.loss.cross_term_weight
        return super().components() | ({} if weight is None else {"cross_term_weight": weight})

    def _minibatches(self, held: TensorDictBase, before: Tensor) -> dict[str, float]:
        keys = self.detached_loss.tensor_keys
        needed: list[Any] = [*list(self.policy.in_keys), keys.discrete_action, keys.sample_log_prob]
        data = held.select(*needed, keys.advantage, keys.value_target).reshape(-1)
        passes, kl = 0, self._divergence(held, before)
        while passes < self.epochs and kl <= self.target_kl:
            order = torch.randperm(data.shape[0], device=data.device)
            for rows in order.chunk(self.num_minibatches):
                terms = self.detached_loss(data[rows])
                self.step(terms)
            kl = self._divergence(held, before)
            passes += 1
        metrics = {"kl": kl, "epochs": passes}
        if passes and self.detached_loss.clip_epsilon is not None:
            metrics["clip_fraction"] = float(terms["clip_fraction"])
        return metrics

    @torch.no_grad()
    def _log_probabilities(self, held: TensorDictBase) -> Tensor:
        return finite(self.policy.discrete_logits(held))

    def _divergence(self, held: TensorDictBase, before: Tensor) -> float:
        """Mean KL divergence of today's choice from that before the update."""
        after = self._log_probabilities(held)
        # Of equal choices rounding may leave less than nothing.
        return max(0.0, float(divergence_of(before, after, held.ndim).mean()))


def begin_update(
    learner: Any, batch: TensorDictBase
) -> tuple[Any, TensorDict, Tensor, Any, Tensor]:
    """Do what comes before the step on the graph, of one learner or of several as one.

    Args:
        learner: has ``policy``, ``loss``, ``add_values`` and ``rescale``.
        batch: its batch, to which values, advantages and value targets are added.

    Returns:
        What ``rescale`` does, the batch without its graph, the mean of the actions there, the
        terms of the loss, and the finite log-probabilities of all options.
    """
    value = learner.add_values(batch)
    metrics = learner.rescale(batch)
    with set_skip_existing(True):  # the values are there already
        held = learner.loss.add_advantage(batch)
    for key in ("advantage", "value_target"):
        batch.set(key, held.get(key))
    # A deterministic action is its own mean.
    taken = held.get(("action", "continuous"))
    mean = mean_action(learner.policy, held) if learner.policy.stochastic else taken
    terms, logits = learner.loss.evaluate(batch, held, value)
    return metrics, held, mean, terms, finite(logits.detach())


@torch.no_grad()
def mean_action(policy: HybridPolicy, held: TensorDictBase) -> Tensor:
    """Return the mean of the continuous actions at the options taken, ``(*B, T, n)``."""
    return policy.mean_action(held, held.get(("action", "discrete")))
