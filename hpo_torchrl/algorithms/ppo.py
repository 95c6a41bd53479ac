"""Proximal Policy Optimization: the model-free line to beat."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, set_skip_existing
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from hpo_torchrl.algorithms.base import numbers
from hpo_torchrl.algorithms.learner import Learner
from hpo_torchrl.collectors import SampleCollector
from hpo_torchrl.core.categorical import entropy_of, over_heads
from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.modules import HybridPolicy


class PPO(Learner):
    r"""PPO (Schulman et al. 2017, arXiv 1707.06347) on the joint log-probability of hybrid actions.

    Everything that decides is TorchRL's: its ``Collector`` gathers the rollouts, its ``GAE`` the
    advantages, its ``ClipPPOLoss`` clips the ratio of
    :math:`\log \mathrm{Cat}(d) + \log \mathcal N(u \mid d)`. No gradient of the simulator is used.
    What :class:`HPO` does besides its gradient (one reward scale, restarts, annealing, the unit of
    the entropy bonus, gradient clipping, steps that follow how far they move the policy) is the
    same here, so that a comparison of the two compares gradients.

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
            update aims at: beyond it no further pass is made, and the policy's share of the
            learning rate follows it.
        learning_rate: Adam's step size at the start.
        entropy_coeff: entropy bonus of the discrete choice at the start, in standard deviations
            of the advantage.
        reset_fraction_final: share of the systems restarted at each window later in the run; all
            of them, because a choice that is still random lets systems run away.
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
        >>> ppo = PPO(env, policy, make_value_network(env), window=20)
        >>> sorted(ppo.iterate())[:3]
        ['ESS', 'clip_fraction', 'cost']
    """

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
        self.scale_entropy_coeff = check_float(
            "scale_entropy_coeff", scale_entropy_coeff, minimum=0.0
        )
        check_float("critic_coeff", critic_coeff, minimum=0.0)
        check_float("clip_epsilon", clip_epsilon, minimum=0.0, maximum=1.0, strict=True)
        if not getattr(policy.network, "stochastic", True):
            raise ValueError(
                "algorithm=ppo needs a stochastic continuous action, got policy.scale=0: a score "
                "function has nothing to score. Set policy.scale, for example to 0.3."
            )
        super().__init__(
            env,
            policy,
            critic,
            learning_rate=learning_rate,
            entropy_coeff=entropy_coeff,
            reset_fraction_final=reset_fraction_final,
            **learner,
        )
        self.collector = SampleCollector(
            env,
            policy,
            **self.collecting,
        )
        self.start_small()
        self.advantage = GAE(gamma=self.discount, lmbda=self.gae_lambda, value_network=critic)
        self.loss = ClipPPOLoss(
            policy,
            critic,
            clip_epsilon=clip_epsilon,
            entropy_bonus=False,
            critic_coeff=critic_coeff,
            loss_critic_type="l2",
            normalize_advantage=True,
        )

    def update(self, batch: TensorDictBase) -> dict[str, float]:
        """Do one update; the batch's rewards are rescaled, and advantages are added to it."""
        with torch.no_grad():
            self.add_values(batch)
        metrics = self.rescale(batch)
        with torch.no_grad(), set_skip_existing(True):  # the values are there already
            self.advantage(batch)
        data = batch.reshape(-1)
        passes, kl, logged = 0, 0.0, {}
        while passes < self.epochs and kl <= self.target_kl:
            order = torch.randperm(data.shape[0], device=data.device)
            kls = []
            for rows in order.chunk(self.num_minibatches):
                part = data[rows]
                terms = self.loss(part)
                entropy, bonus = self._entropy(part)
                terms.set("loss_entropy", -bonus)
                metrics |= self.step(terms)
                kls.append(float(terms["kl_approx"]))
                logged = numbers(terms)
                logged["entropy"] = float(entropy)
            kl = sum(kls) / len(kls)
            passes += 1
        for component in self.policy.parameter_groups():
            # A divergence grows with the square of a step.
            self.follow(component, (max(kl, 0.0) / self.target_kl) ** 0.5)
        return metrics | logged | {"kl": kl, "epochs": passes}

    def _entropy(self, part: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Mean entropy of the discrete choice, and the bonus."""
        if self.scale_entropy_coeff == 0.0:
            logits = self.policy.discrete_logits(part)
            entropy = over_heads(entropy_of(logits), part.ndim)
            return entropy.mean().detach(), self.entropy_bonus * entropy.mean()
        dist = self.policy.get_dist(part)
        entropy = dist.entropy_discrete().mean()
        spread = (dist.entropy() - dist.entropy_discrete()).mean()
        return entropy.detach(), self.entropy_bonus * entropy + self.scale_entropy_coeff * spread
