"""What all algorithms that train networks share: one optimizer, its schedules, reward units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.envs import EnvBase

from hpo_torchrl.algorithms.base import Algorithm, RewardScaler, check_finite, clip_gradients
from hpo_torchrl.core.checks import check_choice, check_float, check_int
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy

SCHEDULES = ("constant", "linear", "cosine")
# The share of the learning rate that a policy's nets start with, and how it may change.
_FIRST_SHARE, _LEAST_SHARE, _FACTOR = 0.02, 1e-3, 1.5


class Learner(Algorithm):
    """An algorithm that trains networks by Adam on batches of rollouts.

    Args:
        env: the training environment.
        policy: the hybrid policy.
        critic: the network beside it.
        window: steps T of a rollout; ``None`` is the episode where one terminates, else 30.
        reset_at_each_iter: start every window from fresh initial states; ``None`` does so where a
            window is a whole episode. Otherwise systems run on from window to window.
        reset_fraction: share of systems restarted at each window at the start of the run. An
            untrained policy drives systems out of bounds, many-dimensional ones fast; what is
            learned far out is wrong at home.
        reset_fraction_final: the same later on, so that rare states stay in the data.
        reset_until: share of the run by which the one has become the other.
        discount: gamma; ``None`` is 1 where an episode terminates, else 0.99.
        gae_lambda: lambda of the advantage estimator.
        learning_rate: Adam's step size at the start; the policy's nets may take a share of it.
        adam_betas: Adam's decay rates of the mean and the square of the gradient. An untrained
            policy's first gradients are many times the later ones; a second rate of 0.95 forgets
            them soon, 0.999 holds the steps small for long.
        learning_rate_schedule: ``"constant"``, ``"linear"`` or ``"cosine"``.
        learning_rate_final: share of ``learning_rate`` that is left at the end.
        entropy_coeff: entropy bonus of the discrete choice at the start, in standard deviations
            of the advantage: so much that all options are tried until the continuous actions are
            right.
        entropy_final: entropy bonus at the end, in the same unit.
        entropy_until: share of the run by which the bonus has been annealed to its final value.
        max_grad_norm: gradient-norm clip of each component.

    Attributes:
        groups: parameters by name, by component.
        entropy_bonus: the bonus of now.
        rate: what the schedule leaves of the learning rate now.
        collecting: what every collector of its batches is told.

    Raises:
        ValueError: an argument is out of range, or the policy does not fit the environment.
    """

    def __init__(
        self,
        env: EnvBase,
        policy: HybridPolicy,
        critic: TensorDictModule,
        *,
        window: int | None = None,
        reset_at_each_iter: bool | None = None,
        reset_fraction: float = 1.0,
        reset_fraction_final: float = 0.5,
        reset_until: float = 0.5,
        discount: float | None = None,
        gae_lambda: float = 0.95,
        learning_rate: float = 5e-3,
        adam_betas: Sequence[float] = (0.9, 0.95),
        learning_rate_schedule: str = "cosine",
        learning_rate_final: float = 0.01,
        entropy_coeff: float = 1.0,
        entropy_final: float = 0.0,
        entropy_until: float = 0.6,
        max_grad_norm: float = 0.5,
    ) -> None:
        self.env, self.policy, self.critic = env, policy, critic
        episode = _episode(env)
        if window is None:
            window = episode or 30
        self.window = check_int("window", window, minimum=1)
        if reset_at_each_iter is None:
            reset_at_each_iter = self.window == episode
        if discount is None:
            discount = 0.99 if episode is None else 1.0
        self.discount = check_float("discount", discount, minimum=0.0, maximum=1.0)
        self.gae_lambda = check_float("gae_lambda", gae_lambda, minimum=0.0, maximum=1.0)
        # Only a system known never to terminate may have a constant taken off its rewards.
        self.continuing = isinstance(env, DifferentiableEnv) and episode is None
        check_float("learning_rate", learning_rate, minimum=0.0, strict=True)
        check_choice("learning_rate_schedule", learning_rate_schedule, SCHEDULES)
        check_float("learning_rate_final", learning_rate_final, minimum=0.0, maximum=1.0)
        check_float("entropy_coeff", entropy_coeff, minimum=0.0)
        check_float("entropy_final", entropy_final, minimum=0.0, maximum=entropy_coeff)
        check_float("entropy_until", entropy_until, minimum=0.0, maximum=1.0, strict=True)
        check_float("reset_fraction", reset_fraction, minimum=0.0, maximum=1.0)
        check_float("reset_fraction_final", reset_fraction_final, minimum=0.0, maximum=1.0)
        check_float("reset_until", reset_until, minimum=0.0, maximum=1.0, strict=True)
        check_float("max_grad_norm", max_grad_norm, minimum=0.0, strict=True)
        policy.check_env(env)
        self.scaler = RewardScaler().to(env.device or "cpu")
        self.groups = policy.parameter_groups() | {"critic": dict(critic.named_parameters())}
        self.optimizer = torch.optim.Adam(
            # The share of the learning rate stands in the group, so that a checkpoint holds it.
            [{"params": list(named.values()), "share": 1.0} for named in self.groups.values()],
            lr=learning_rate,
            betas=_check_betas(adam_betas),
            eps=1e-5,
            fused=True,
        )
        self.learning_rate, self.schedule = learning_rate, learning_rate_schedule
        self.rate = 1.0
        self.learning_rate_final = learning_rate_final
        self.entropy_coeff, self.entropy_final = entropy_coeff, entropy_final
        self.entropy_until, self.entropy_bonus = entropy_until, entropy_coeff
        self.reset_fraction, self.reset_fraction_final = reset_fraction, reset_fraction_final
        self.reset_until, self.max_grad_norm = reset_until, max_grad_norm
        self.collecting: dict[str, Any] = {
            "frames_per_batch": self.window * env.batch_size.numel(),
            "reset_at_each_iter": reset_at_each_iter,
            "reset_fraction": reset_fraction,
        }

    def anneal(self, progress: float) -> None:
        """Anneal learning rate, entropy bonus (of the losses too) and restarts."""
        factor = {
            "constant": 1.0,
            "linear": 1.0 - progress,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        }[self.schedule]
        final = self.learning_rate_final
        self.rate = final + (1.0 - final) * factor
        for group in self.optimizer.param_groups:
            group["lr"] = group["share"] * self.learning_rate * self.rate
        self.entropy_bonus = _anneal(
            self.entropy_coeff, self.entropy_final, progress / self.entropy_until
        )
        for loss in self.losses():
            loss.entropy_coeff.fill_(self.entropy_bonus)
        self.collector.reset_fraction = _anneal(
            self.reset_fraction, self.reset_fraction_final, progress / self.reset_until
        )

    def losses(self) -> list[Any]:
        """Losses whose ``entropy_coeff`` is annealed."""
        return []

    def share(self, component: str, value: float | None = None) -> float:
        """Return a component's share of the learning rate, after setting it if one is given."""
        group = self.optimizer.param_groups[list(self.groups).index(component)]
        if value is not None:
            group["share"] = value
        return group["share"]

    def start_small(self) -> None:
        """Let the policy's nets begin with a small share of the learning rate.

        Where the observation has many entries, the same step of every weight moves a policy much
        further than where it has few.
        """
        for component in self.policy.parameter_groups():
            self.share(component, _FIRST_SHARE)

    def follow(self, component: str, moved: float) -> None:
        """Let a component's share of the learning rate follow how far it moved the policy.

        Args:
            component: its name in :attr:`groups`.
            moved: how far an update moved it, in units of what is aimed at by a full step. Beyond
                twice the aim the share falls, below half of it it grows, up to all of the learning
                rate. The aim shrinks with the schedule of the learning rate: the share would undo
                that one otherwise.
        """
        if component not in self.groups:  # a network of the user's own may have no such part
            return
        share, moved = self.share(component), moved / self.rate
        if moved > 2.0:
            share /= _FACTOR
        elif moved < 0.5:
            share *= _FACTOR
        self.share(component, min(1.0, max(_LEAST_SHARE, share)))

    def components(self) -> dict[str, Any]:
        """Return policy, critic, optimizer, reward scale and collector."""
        return {
            "policy": self.policy,
            "critic": self.critic,
            "optimizer": self.optimizer,
            "reward_scaler": self.scaler,
            "collector": self.collector,
        }

    def rescale(self, batch: TensorDictBase) -> dict[str, float]:
        """Bring the rewards of a batch to the scale of learning; return the cost that they meant.

        Raises:
            NonFiniteError: a reward is not finite.
        """
        reward = batch.get(("next", "reward"))
        check_finite({"the reward ('next', 'reward')": reward})
        self.scaler.observe(reward)
        scale, shift = self.reward_units(batch)
        batch.set(("next", "reward"), reward / scale - shift)
        cost = -float(reward.detach().mean()) / getattr(self.env, "cost_units", 1.0)
        return {"cost": cost} | self.learning_rates()

    def learning_rates(self) -> dict[str, float]:
        """Return each component's learning rate of now, by its name in the log."""
        groups = zip(self.groups, self.optimizer.param_groups, strict=True)
        return {f"learning_rate/{name}": group["lr"] for name, group in groups}

    def reward_units(self, batch: TensorDictBase) -> tuple[Tensor, Tensor | float]:
        """Return the scale and shift by which a batch is learned: ``reward / scale - shift``."""
        reward = batch.get(("next", "reward")).detach()
        return self.scaler.scale.to(reward.dtype), self._average_reward(batch, self.scaler(reward))

    @torch.no_grad()
    def _average_reward(self, batch: TensorDictBase, reward: Tensor) -> Tensor | float:
        """Constant to take off the rewards of a system that never terminates.

        A constant reward rho adds rho / (1 - discount) to every value, which the critic would
        chase as the policy improves. Taking off the average temporal difference instead (Naik et
        al. 2024, value-based reward centering) leaves the critic its level, whatever that is.
        """
        if not self.continuing or self.discount == 1.0:
            return 0.0
        if batch.get(("next", "state_value"), None) is None:
            batch = batch.copy()
            self.add_values(batch)
        value, after = batch.get("state_value"), batch.get(("next", "state_value"))
        return reward.mean() + self.discount * after.mean() - value.mean()

    def add_values(self, batch: TensorDictBase) -> Tensor:
        """Add the critic's values before and after each step to a batch, without a graph.

        They are ``"state_value"`` and ``("next", "state_value")``, ``(*B, T, 1)``, for all who need
        them. What comes after a step is what the next one starts from, unless a system was reset
        between them: only the ends are evaluated on their own.

        Returns:
            The values before each step, with a graph that ends at the critic's parameters.
        """
        keys, after = self.critic.in_keys, batch.get("next")
        value = self.critic(batch.select(*keys).detach()).get("state_value")
        held = value.detach()
        ends = after.get("done").squeeze(-1).clone()
        ends[..., -1] = True
        with torch.no_grad():
            last = self.critic(after.select(*keys)[ends].detach()).get("state_value")
        after.set("state_value", held.roll(-1, -2).masked_scatter(ends.unsqueeze(-1), last))
        batch.set("state_value", held)
        return value

    def step(self, terms: TensorDictBase | Mapping[str, Tensor]) -> dict[str, float]:
        """Descend the sum of the ``loss_*`` terms once; return the gradient norms by component.

        Raises:
            NonFiniteError: a term or a gradient is not finite; no parameter has changed.
        """
        losses = [value for key, value in terms.items() if key.startswith("loss_")]
        check_finite(terms)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        norms = clip_gradients(self.groups, self.max_grad_norm)
        self.optimizer.step()
        return {f"grad_norm/{name}": norm for name, norm in norms.items()}


def _anneal(first: float, last: float, progress: float) -> float:
    """Go linearly from one value to another as ``progress`` goes from 0 to 1, and stay there."""
    return last + (first - last) * max(0.0, 1.0 - progress)


def _episode(env: EnvBase) -> int | None:
    """Length of episodes that end for good, or ``None``."""
    # By attribute, so that an environment behind TorchRL's transforms is found too.
    return env.horizon if getattr(env, "horizon_terminates", False) else None


def _check_betas(betas: Sequence[float]) -> tuple[float, float]:
    if isinstance(betas, str) or not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"adam_betas must be two numbers such as [0.9, 0.95], got {betas!r}.")
    first, second = (
        check_float(f"adam_betas[{i}]", beta, minimum=0.0, maximum=0.9999)
        for i, beta in enumerate(betas)
    )
    return first, second
