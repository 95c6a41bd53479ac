"""What all algorithms that train networks share: optimizers, schedules, reward units, passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.objectives.value.functional import vec_generalized_advantage_estimate

from hpo_torchrl.algorithms.base import Algorithm, Metrics, SeedState
from hpo_torchrl.algorithms.optimization import Optimization, check_finite
from hpo_torchrl.algorithms.reward_scale import RewardScaler
from hpo_torchrl.collectors import DifferentiableCollector, SampleCollector
from hpo_torchrl.core.checks import check_float, check_int
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.envs import DifferentiableEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.objectives.base import unsqueeze_like, values_where


class Learner(Algorithm):
    """An algorithm that trains networks by Adam on batches of rollouts.

    Several seeds are trained together, on a leading axis S of all data, by a policy and a critic of
    :func:`~hpo_torchrl.modules.replicate` in a :class:`~hpo_torchrl.envs.ReplicatedEnv`. Each seed
    keeps its own random numbers, reward scale, optimizer and learning-rate multipliers, and comes,
    up to rounding, to what it would come to alone.

    Args:
        env: the training environment.
        policy: the hybrid policy.
        critic: the network beside it.
        seed: of the random numbers of a run; a sequence trains that many seeds together; ``None``
            uses torch's global generator.
        unroll_length: steps T of a rollout; ``None`` is the episode where one terminates, else 30.
        reset_at_each_iter: start every rollout from reset states; ``None`` does so where a rollout
            is a whole episode. Otherwise env instances run on from rollout to rollout.
        reset_fraction: fraction of env instances restarted at each rollout at the start of the run.
            An untrained policy drives instances out of bounds, many-dimensional ones fast; what is
            learned far out does not transfer to the normal operating range.
        reset_fraction_final: the same later on, so that rare states stay in the data.
        reset_until: fraction of the run by which the one has become the other.
        checkpoint_steps: steps of a rollout whose graph is kept at once, for long rollouts: less
            memory for more time; see :func:`differentiable_rollout`.
        compile: compile the rollout: it starts with a wait of half a minute, and pays in runs of
            thousands of updates.
        discount: gamma; ``None`` is 1 where an episode terminates, else 0.99. It is also the factor
            on the gradient through each transition.
        gae_lambda: lambda of the advantage estimator.
        learning_rate: Adam's step size at the start; the policy's nets have a multiplier on it.
        adam_betas: Adam's decay rates of the mean and the square of the gradient. An untrained
            policy's first gradients are many times the later ones; a second rate of 0.95 forgets
            them soon, 0.999 keeps the steps small for long.
        learning_rate_schedule: ``"constant"``, ``"linear"`` or ``"cosine"``.
        learning_rate_final: fraction of ``learning_rate`` that is left at the end.
        entropy_coeff: entropy bonus of the discrete choice at the start, in standard deviations
            of the advantage: so much that all discrete actions are tried until the continuous ones
            are right.
        entropy_final: entropy bonus at the end, in the same unit.
        entropy_until: fraction of the run by which the bonus has been annealed to its final value.
        max_grad_norm: gradient-norm clip of each component.

    Attributes:
        optimization: the optimizers and their schedules, see :class:`Optimization`.
        scaler: the running scale of the rewards.
        entropy_bonus: the current bonus.

    Raises:
        ValueError: an argument is out of range, or the policy does not fit the environment.
    """

    trains_many_seeds = False
    temperature: float | None = None  # of straight-through rollouts

    def __init__(
        self,
        env: EnvBase,
        policy: HybridPolicy,
        critic: TensorDictModule,
        *,
        seed: int | Sequence[int] | None = None,
        unroll_length: int | None = None,
        reset_at_each_iter: bool | None = None,
        reset_fraction: float = 1.0,
        reset_fraction_final: float = 0.5,
        reset_until: float = 0.5,
        checkpoint_steps: int | None = None,
        compile: bool = False,
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
        self.seeds = None if seed is None or isinstance(seed, int) else list(seed)
        self._check_seeds()
        self.num_seeds = None if self.seeds is None else len(self.seeds)
        episode = _episode(env)
        unroll_length = (episode or 30) if unroll_length is None else unroll_length
        self.unroll_length = check_int("unroll_length", unroll_length, minimum=1)
        discount = (0.99 if episode is None else 1.0) if discount is None else discount
        self.discount = check_float("discount", discount, minimum=0.0, maximum=1.0)
        self.gae_lambda = check_float("gae_lambda", gae_lambda, minimum=0.0, maximum=1.0)
        # Only an environment known never to terminate may have a constant taken off its rewards.
        self.continuing = isinstance(env, DifferentiableEnv) and episode is None
        check_float("entropy_coeff", entropy_coeff, minimum=0.0)
        check_float("entropy_final", entropy_final, minimum=0.0, maximum=entropy_coeff)
        self._entropy = _Annealed("entropy_until", entropy_coeff, entropy_final, entropy_until)
        for name, value in {"": reset_fraction, "_final": reset_fraction_final}.items():
            check_float(f"reset_fraction{name}", value, minimum=0.0, maximum=1.0)
        self._resets = _Annealed("reset_until", reset_fraction, reset_fraction_final, reset_until)
        policy.check_env(env)
        self.randomness = Randomness(seed if self.seeds is None else self.seeds, env.device)
        self.scaler = RewardScaler(num_seeds=self.num_seeds).to(env.device or "cpu")
        self.optimization = Optimization(
            self._members(),
            policy,
            critic,
            seeds=self.seeds,
            learning_rate=learning_rate,
            adam_betas=adam_betas,
            schedule=learning_rate_schedule,
            final=learning_rate_final,
            max_grad_norm=max_grad_norm,
        )
        self.entropy_bonus = entropy_coeff
        collecting: dict[str, Any] = {
            "frames_per_batch": self.unroll_length * env.batch_size.numel(),
            "reset_at_each_iter": self.unroll_length == episode
            if reset_at_each_iter is None
            else reset_at_each_iter,
            "reset_fraction": reset_fraction,
            "randomness": self.randomness,
        }
        graph = {"checkpoint_steps": checkpoint_steps, "compile": compile}
        self.collector: Any
        if self.differentiable:
            collecting |= graph | {"discount": self.discount, "temperature": self.temperature}
            self.collector = DifferentiableCollector(env, policy, **collecting)
        else:
            for name, asked in graph.items():
                if asked:
                    raise ValueError(
                        f"{type(self).__name__} rolls out without a graph: leave {name}={asked!r} "
                        "out, or choose an algorithm that uses the simulator's gradients."
                    )
            self.collector = SampleCollector(env, policy, **collecting)

    # -- schedules -----------------------------------------------------------------------------

    def anneal(self, progress: float) -> None:
        """Anneal learning rate, entropy bonus (of the losses too) and restarts."""
        self.optimization.anneal(progress)
        self.entropy_bonus = self._entropy.at(progress)
        for loss in self.losses():
            if getattr(loss, "entropy_coeff", None) is not None:
                loss.entropy_coeff = self.entropy_bonus
        self.collector.reset_fraction = self._resets.at(progress)

    def losses(self) -> list[Any]:
        """Losses whose ``entropy_coeff`` is annealed."""
        return []

    # -- rewards, values, advantages -------------------------------------------------------------

    def rescale(self, batch: TensorDictBase) -> dict[str, Any]:
        """Bring the rewards of a batch to the scale of learning; return the cost that they meant.

        Raises:
            NonFiniteError: a reward is not finite.
        """
        reward = batch.get(("next", "reward"))
        check_finite({"the reward ('next', 'reward')": reward}, seeds=self.seeds)
        self.scaler.observe(reward)
        scale, shift = (unsqueeze_like(unit, reward) for unit in self.reward_units(batch))
        batch.set(("next", "reward"), reward / scale - shift)
        cost = -self.mean(reward.detach()) / getattr(self.env, "cost_units", 1.0)
        return {"cost": cost} | self.optimization.learning_rates()

    def reward_units(self, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Return the scale and shift by which a batch is learned: ``reward / scale - shift``."""
        reward = batch.get(("next", "reward")).detach()
        return self.scaler.scale.to(reward.dtype), self._average_reward(batch, self.scaler(reward))

    @torch.no_grad()
    def _average_reward(self, batch: TensorDictBase, reward: Tensor) -> Tensor:
        """Constant to take off the rewards of an environment that never terminates.

        A constant reward rho adds rho / (1 - discount) to every value, which the critic would
        chase as the policy improves. Taking off the average temporal difference instead (Naik et
        al. 2024, value-based reward centering) leaves the critic its level, whatever that is.
        """
        if not self.continuing or self.discount == 1.0:
            return torch.zeros_like(self.mean(reward))
        if batch.get(("next", "state_value"), None) is None:
            batch = batch.copy()
            self.add_values(batch)
        value, after = batch.get("state_value"), batch.get(("next", "state_value"))
        return self.mean(reward) + self.discount * self.mean(after) - self.mean(value)

    def add_values(self, batch: TensorDictBase) -> None:
        """Add the critic's values before and after each step to a batch.

        They are ``"state_value"`` and ``("next", "state_value")``, ``(*B, T, 1)``, without a graph.
        ``"critic_value"`` is the former with a graph that ends at the critic's parameters. The
        state after a step is the one before the next, unless the instance was reset between them:
        only the ends are evaluated on their own.
        """
        keys, after = self.critic.in_keys, batch.get("next")

        def values(states: TensorDictBase) -> Tensor:
            return self.critic(states.select(*keys).detach()).get("state_value")

        known = values(batch)
        value = known.detach()
        ends = after.get("done").squeeze(-1).clone()
        ends[..., -1] = True
        with torch.no_grad():
            last = values_where(values, ends, after).unsqueeze(-1)
        after.set("state_value", torch.where(ends.unsqueeze(-1), last, value.roll(-1, -2)))
        batch.update({"state_value": value, "critic_value": known})

    @torch.no_grad()
    def add_advantages(self, batch: TensorDictBase) -> TensorDictBase:
        """Add ``"advantage"`` and ``"value_target"`` (GAE) to a batch that holds values.

        Returns:
            The batch without its graph.
        """
        data = batch.exclude("critic_value").detach()
        after = data.get("next")
        advantage, target = vec_generalized_advantage_estimate(
            self.discount,
            self.gae_lambda,
            data.get("state_value"),
            after.get("state_value"),
            after.get("reward"),
            done=after.get("done"),
            terminated=after.get("terminated"),
        )
        for place in (batch, data):
            place.update({"advantage": advantage, "value_target": target})
        return data

    # -- steps ---------------------------------------------------------------------------------

    def passes(
        self,
        data: TensorDictBase,
        descend: Callable[[TensorDictBase, Tensor], dict[str, Tensor]],
        *,
        epochs: int,
        num_minibatches: int,
        target_kl: float,
        metrics: Mapping[str, Tensor],
        kl_after: Callable[[list[dict[str, Tensor]]], Tensor],
    ) -> dict[str, Tensor]:
        """Make passes of minibatch steps over detached data until the policy has changed enough.

        A seed whose KL divergence is above its target makes no more steps and waits for the others.

        Args:
            data: the data, ``(N,)`` or ``(S, N)``.
            descend: makes the step of one minibatch, for the seeds that are active, and returns its
                metrics.
            epochs: passes at most.
            num_minibatches: minibatches in a pass.
            target_kl: KL divergence beyond which no further pass is made.
            metrics: metrics before the first pass, among them the divergence ``"kl"``.
            kl_after: gives it after a pass, from the metrics of its steps.

        Returns:
            ``metrics`` with those of the last step, ``"kl"`` and ``"epochs"``, the passes made.
        """
        # All orders are drawn beforehand: stopping early leaves no trace in the random numbers.
        orders = [self.randomness.permutation(data.shape[-1], data.device) for _ in range(epochs)]
        known = dict(metrics)
        known["epochs"] = torch.zeros_like(known["kl"], dtype=torch.int64)
        for order in orders:
            active = known["kl"] <= target_kl
            if not bool(active.any()):
                break
            steps = [
                descend(self._select(data, rows), active)
                for rows in order.chunk(num_minibatches, -1)
            ]
            found = {**steps[-1], "kl": kl_after(steps), "epochs": known["epochs"] + 1}
            known |= {
                name: torch.where(active, value.detach(), known.get(name, value).detach())
                for name, value in found.items()
            }
        return known

    def _select(self, data: TensorDictBase, rows: Tensor) -> TensorDictBase:
        if self.seeds is None:
            return data[rows]
        return data[torch.arange(len(rows), device=rows.device).unsqueeze(-1), rows]

    def flat(self, data: TensorDictBase) -> TensorDictBase:
        """Return the steps of a batch in one row, ``(N,)``, with seeds ``(S, N)``."""
        return data.reshape(-1) if self.num_seeds is None else data.reshape(self.num_seeds, -1)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a batch's entry, a scalar, with seeds ``(S,)``."""
        return value.mean() if self.num_seeds is None else value.flatten(1).mean(1)

    def numbers(self, found: Mapping[str, Any]) -> Metrics | list[Metrics]:
        """Return metrics, scalars or ``(S,)``, as numbers; the host waits for all of them once."""
        lead = () if self.num_seeds is None else (self.num_seeds,)
        values = [
            torch.as_tensor(value).detach().double().cpu().expand(lead) for value in found.values()
        ]
        rows = torch.stack(values).reshape(len(values), -1).T.tolist()
        counts = [
            name for name, v in found.items() if isinstance(v, Tensor) and not v.is_floating_point()
        ]
        named = [dict(zip(found, row, strict=True)) for row in rows]
        named = [row | {name: int(row[name]) for name in counts} for row in named]
        return named[0] if self.num_seeds is None else named

    # -- seeds and checkpoints -----------------------------------------------------------------

    def components(self, seed_index: int | None = None) -> dict[str, Any]:
        """Return policy, critic, optimizer, reward scale, collector and random numbers.

        Args:
            seed_index: which of the seeds; ``None`` in an ordinary run. The names and contents are
                those of an ordinary run of that seed.
        """
        at = seed_index or 0
        many = self.num_seeds is not None
        policy, critic = self._members()[at]
        return {
            "policy": policy,
            "critic": critic,
            "optimizer": self.optimization.optimizers[at],
            "reward_scaler": SeedState(self.scaler, at) if many else self.scaler,
            "collector": self.collector.state(at) if many else self.collector,
            "randomness": self.randomness.state(seed_index),
        }

    def _members(self) -> list[tuple[Any, Any]]:
        if self.num_seeds is None:
            return [(self.policy, self.critic)]
        networks: Any = (self.policy, self.critic)
        return list(zip(*(module.members for module in networks), strict=True))

    def _check_seeds(self) -> None:
        expected = None if self.seeds is None else len(self.seeds)
        if expected is not None and not self.trains_many_seeds:
            raise ValueError(
                f"{type(self).__name__} trains one seed at a time, got seed={self.seeds}; train "
                "them one after another, or use HPO or PPO."
            )
        for name in ("policy", "critic", "env"):
            found = getattr(getattr(self, name), "num_seeds", None)
            if found != expected:
                raise ValueError(
                    f"seed={self.seeds} and {name} must be of the same seeds, but the {name} has "
                    f"num_seeds={found}. Several seeds need modules.replicate(policies), "
                    "modules.replicate(critics), ReplicatedEnv(envs) and as many seeds."
                )


@dataclass(frozen=True)
class _Annealed:
    """A value that goes linearly from one number to another and stays there."""

    name: str
    first: float
    final: float
    until: float

    def __post_init__(self) -> None:
        check_float(self.name, self.until, minimum=0.0, maximum=1.0, strict=True)

    def at(self, progress: float) -> float:
        return self.final + (self.first - self.final) * max(0.0, 1.0 - progress / self.until)


def _episode(env: EnvBase) -> int | None:
    """Length of episodes that end for good, or ``None``."""
    # By attribute, so that an environment behind TorchRL's transforms is found too.
    return env.horizon if getattr(env, "horizon_terminates", False) else None
