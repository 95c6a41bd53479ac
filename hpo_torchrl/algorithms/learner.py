"""The base of all algorithms that train networks: settings, reward units, advantages, passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.objectives import LossModule
from torchrl.objectives.value.functional import (
    generalized_advantage_estimate,
    vec_generalized_advantage_estimate,
)

from hpo_torchrl.algorithms.base import Algorithm, Metrics, SeedState
from hpo_torchrl.algorithms.diagnosis import check_lasting, explain
from hpo_torchrl.algorithms.fused import Evaluations
from hpo_torchrl.algorithms.imitation import imitate, rule_to_imitate
from hpo_torchrl.algorithms.optimization import Optimization, RewardScaler, stop_unless_finite
from hpo_torchrl.collectors import DifferentiableCollector, SampleCollector
from hpo_torchrl.collectors.collector import BatchCollector
from hpo_torchrl.collectors.compiling import ByXla, compiled_passes
from hpo_torchrl.core import ranks
from hpo_torchrl.core.categorical import ACTION_MASK, unsqueeze_like
from hpo_torchrl.core.checks import check_annotated, check_float, check_int
from hpo_torchrl.core.objective import choose_objective, endings
from hpo_torchrl.core.randomness import Randomness
from hpo_torchrl.core.wrappers import differentiable, plain
from hpo_torchrl.envs import RankEnv
from hpo_torchrl.modules import HybridPolicy
from hpo_torchrl.modules.scales import ObservationScale
from hpo_torchrl.objectives.base import values_where

_NETWORKS = ("env", "policy", "critic")
# Runs of so many updates spend the first few on finding where a policy leads.
_LONG, _SCOUTING = 200, 20
_ROLLOUT = 30  # steps of a rollout, at least


def setting(
    default: Any, check: Callable[..., Any] = check_float, *, minimum: float = 0, **limits: Any
) -> Any:
    """Return a field of an algorithm whose value is checked, unless it is a default of ``None``."""
    return field(default=default, metadata={"check": partial(check, minimum=minimum, **limits)})


@dataclass(kw_only=True, eq=False, repr=False)
class Learner(Algorithm):
    """An algorithm that trains networks by Adam on batches of rollouts.

    Several seeds are trained together, on a leading axis S of all data, by a policy and a critic of
    :func:`~hpo_torchrl.modules.replicate` in a :class:`~hpo_torchrl.envs.ReplicatedEnv`. Each seed
    keeps its own random numbers, reward scale, optimizer and learning-rate multipliers, and comes,
    up to rounding, to what it would come to alone.

    Ranks (:mod:`hpo_torchrl.core.ranks`) share a training: each simulates its part of the instances
    (:class:`~hpo_torchrl.envs.RankEnv`), random numbers are those of the whole batch, and every
    mean, extreme and gradient is over all ranks. They come, up to rounding, to what one process
    comes to. An algorithm of yours that sets ``trains_in_ranks`` keeps to that by :meth:`mean` and
    :class:`Optimization`.

    An algorithm is a dataclass: its settings are its fields, those of :func:`setting` are checked,
    and ``__post_init__`` builds what they say.

    Args:
        env: the training environment.
        policy: the hybrid policy.
        critic: the network beside it.
        seed: of the random numbers of a run; a sequence trains that many seeds together; ``None``
            uses torch's global generator.
        unroll_length: steps T of a rollout; ``None`` is the episode where one terminates, else 30,
            or two cycles of the environment (``cycle_length``) if that is more: what an action
            costs or earns within a rollout needs no critic.
        reset_at_each_iter: start every rollout from reset states; ``None`` does so where a rollout
            is a whole episode. Otherwise env instances run on from rollout to rollout.
        reset_fraction: fraction of env instances restarted at each rollout at the start of the run.
            An untrained policy drives instances out of bounds, many-dimensional ones fast; what is
            learned far out does not transfer to the normal operating range. ``None`` is all, and
            none of an environment that is not differentiable, whose episodes a restart would cut.
        reset_fraction_final: the same at the end, so that the states that a policy comes to are in
            the data, and rare ones too; ``None`` is half of them, likewise.
        reset_until: fraction of the run after which the one begins to become the other: by then the
            policy should hold instances where it found them.
        checkpoint_steps: steps of a rollout whose graph is kept at once, for long rollouts: less
            memory for more time; see :func:`differentiable_rollout`.
        compile: compile the rollout, what simulates discrete actions, losses and passes, see
            :class:`Rollout`; of PPO its passes, by XLA alone. It starts with a wait of some
            seconds, and pays in runs of 200 updates and more.
        objective: what is maximised: ``"average"`` (reward per step in the long run, where problems
            never end), ``"discounted"`` (the discounted return) or ``"return"`` (the sum of an
            episode). ``None`` is ``"discounted"`` where a discount below 1 is given,
            ``"return"`` where an episode terminates, ``"average"`` where none ever does, and
            ``"discounted"`` where the environment does not say (``horizon_terminates``).
        discount: gamma, also the factor on the gradient through each transition. ``None`` is 0.99
            for the discounted objective, 1 for a return, and for the average 1 with up to 4
            continuous coordinates or a limited range, else 0.99: an approximation, which keeps many
            of them from diverging.
        gae_lambda: lambda of the advantage estimator.
        learning_rate: Adam's step size at the start; the policy's nets have a multiplier on it.
        adam_betas: Adam's decay rates of the mean and the square of the gradient. An untrained
            policy's first gradients are many times the later ones; a second rate of 0.95 forgets
            them soon, 0.999 keeps the steps small for long.
        adam_eps: what Adam adds to the root of that square. Gradients far below it make small
            steps: 1e-5 calms a choice that nothing depends on; with many weights and many steps
            of which few count, as on the switched LQR, 1e-8 lets the nets learn at all.
        learning_rate_schedule: ``"constant"``, ``"linear"`` or ``"cosine"``.
        learning_rate_final: fraction of ``learning_rate`` that is left at the end.
        entropy_coeff: entropy bonus of the discrete choice at the start, in standard deviations
            of the advantage: so much that all discrete actions are tried until the continuous ones
            are right.
        entropy_final: entropy bonus at the end, in the same unit.
        entropy_until: fraction of the run by which the bonus has been annealed to its final value.
        max_grad_norm: gradient-norm clip of each component.
        imitate: a rule of the environment that the policy imitates before the run, see
            :func:`~hpo_torchrl.algorithms.imitation.imitate`; of several the first that there is;
            ``None`` begins untrained. The entropy bonus then is at once what is left at the end: a
            larger one would make the policy forget the rule.

    Attributes:
        optimization: the optimizers and their schedules, see :class:`Optimization`.
        scaler: the running scale of the rewards.
        entropy_bonus: the current bonus.
        rule: the rule that the policy imitates before the run, or ``None``.
        last_batch: actions, masks and observations of the last batch; ``None`` before the first;
            see :meth:`gather_last_batch`.

    Raises:
        ValueError: an argument is out of range, the policy does not fit the environment, or the
            objective fits neither the discount nor the environment.
    """

    trains_many_seeds = False
    trains_in_ranks = False
    compiles_passes = False  # whether passes are compiled where rollouts have no graph
    restarts = (1.0, 0.5)  # reset_fraction and its final value, where they may be chosen
    last_batch: TensorDictBase | None = field(default=None, init=False)
    evaluations: Any = field(default=None, init=False)  # evaluates networks by XLA

    env: EnvBase = field(kw_only=False)
    policy: HybridPolicy = field(kw_only=False)
    critic: TensorDictModule = field(kw_only=False)
    seed: int | Sequence[int] | None = None
    unroll_length: int = setting(None, check_int, minimum=1)
    reset_at_each_iter: bool | None = None
    reset_fraction: float = setting(None, maximum=1.0)
    reset_fraction_final: float = setting(None, maximum=1.0)
    reset_until: float = setting(0.5, maximum=1.0, strict=True)
    checkpoint_steps: int | None = None
    compile: bool | str = False
    objective: str | None = None
    discount: float = setting(None, maximum=1.0)
    gae_lambda: float = setting(0.95, maximum=1.0)
    learning_rate: float = setting(5e-3, strict=True)
    adam_betas: Sequence[float] = (0.9, 0.95)
    adam_eps: float = setting(1e-5, strict=True)
    learning_rate_schedule: str = "cosine"
    learning_rate_final: float = setting(0.01, maximum=1.0)
    entropy_coeff: float = setting(1.0)
    entropy_final: float = 0.0
    entropy_until: float = setting(0.6, maximum=1.0, strict=True)
    max_grad_norm: float = setting(0.5, strict=True)
    imitate: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_annotated(type(self), {name: getattr(self, name) for name in _NETWORKS})
        for known in fields(self):
            value = getattr(self, known.name)
            if "check" in known.metadata and (value, known.default) != (None, None):
                setattr(self, known.name, known.metadata["check"](known.name, value))
        check_float("entropy_final", self.entropy_final, minimum=0.0, maximum=self.entropy_coeff)
        env, own = self.env, plain(self.env)
        self.cost_units = getattr(own, "cost_units", 1.0)
        self.seeds = None if self.seed is None or isinstance(self.seed, int) else list(self.seed)
        self.num_seeds = None if self.seeds is None else len(self.seeds)
        self._check_seeds()
        ranks.check_joined()
        self._instances: Any = self._join_ranks() if ranks.active() else None
        episode, continuing = endings(env)
        if self.unroll_length is None:
            cycle = getattr(own, "cycle_length", 1)
            self.unroll_length = episode or max(_ROLLOUT, 2 * cycle)
        self.objective, self.discount = choose_objective(env, self.objective, self.discount)
        if self.reset_at_each_iter is None:
            self.reset_at_each_iter = self.unroll_length == episode
        first, final = self.restarts if differentiable(env) else (0.0, 0.0)
        if self.reset_fraction is None:
            self.reset_fraction = first
        if self.reset_fraction_final is None:
            self.reset_fraction_final = final
        # Where episodes may terminate, a constant taken off rewards changes what is best.
        self.centers_rewards = continuing or self.objective == "average"
        self.entropy_bonus = self.entropy_coeff
        self.randomness = Randomness(self.seed, env.device, self._instances)
        if ranks.active():
            state = self.randomness.state()
            state.load_state_dict(ranks.from_main(state.state_dict))
        self.scaler = RewardScaler(num_seeds=self.num_seeds).to(env.device or "cpu")
        self.collector = self._make_collector()
        compiled = self.collector.compiled
        if isinstance(compiled, ByXla) and self.policy.memory is None and not ranks.active():
            self.evaluations = Evaluations([self.policy, self.critic], compiled)
        self.optimization = Optimization(self)
        self.rule = rule_to_imitate(self)

    def _join_ranks(self) -> int:
        """Take this rank's instances and the weights of rank 0; return the number of all instances.

        Raises:
            TypeError: the environment's batch cannot be split.
            ValueError: ranks cannot share this training, or disagree about it.
        """
        name = type(self).__name__
        with ranks.agreeing():
            RankEnv.check(self.env)
            if not self.trains_in_ranks or self.num_seeds is not None:
                raise ValueError(
                    "Ranks share a training of HPO, PPO, GumbelSoftmax or Pathwise of one seed, "
                    f"got {name} with seed={self.seed}; train it in one process."
                )
        for known in fields(self):
            if known.init and known.name not in (*_NETWORKS, "loss"):
                value = repr(getattr(self, known.name))
                ranks.check_same(f"the setting {known.name} of {name}", value)
        ranks.check_same("the environment's batch size", tuple(self.env.batch_size))
        whole, self.env = self.env, RankEnv(self.env)
        for network in (self.policy, self.critic):
            network.load_state_dict(ranks.from_main(network.state_dict))
        return whole.batch_size[0]

    def _make_collector(self) -> BatchCollector:
        collecting: dict[str, Any] = {
            "frames_per_batch": self.unroll_length * self.env.batch_size.numel(),
            "reset_at_each_iter": self.reset_at_each_iter,
            "reset_fraction": self.reset_fraction,
            "randomness": self.randomness,
        }
        graph: dict[str, Any] = {"checkpoint_steps": self.checkpoint_steps, "compile": self.compile}
        if self.differentiable:
            graph |= {"temperature": getattr(self, "temperature", None), "discount": self.discount}
            return DifferentiableCollector(self.env, self.policy, **collecting, **graph)
        if self.compiles_passes:
            graph.pop("compile")
        if any(graph.values()):
            asked = ", ".join(f"{name}={value!r}" for name, value in graph.items() if value)
            raise ValueError(
                f"{type(self).__name__} rolls out without a graph: leave {asked} out, or choose an "
                "algorithm that uses the simulator's gradients."
            )
        collector = self._sample_collector(collecting)
        if self.compiles_passes:
            collector.compiled = compiled_passes(self.compile, self.env)
        return collector

    def _sample_collector(self, collecting: dict[str, Any]) -> BatchCollector:
        """Return the collector of an algorithm that uses no graph."""
        return SampleCollector(self.env, self.policy, **collecting)

    def anneal(self, progress: float) -> None:
        """Anneal learning rate, entropy bonus (of the losses too) and restarts."""

        def between(first: float, final: float, share: float) -> float:
            return final + (first - final) * min(1.0, max(0.0, share))

        self.optimization.anneal(progress)
        left = 1.0 - progress / self.entropy_until
        self.entropy_bonus = between(self.first_bonus(self.entropy_final), self.entropy_final, left)
        for loss in self.losses():
            if getattr(loss, "entropy_coeff", None) is not None:
                loss.entropy_coeff = self.entropy_bonus
        left = (1.0 - progress) / max(1.0 - self.reset_until, 1e-9)
        self.collector.reset_fraction = between(
            self.reset_fraction, self.reset_fraction_final, left
        )

    def first_bonus(self, final: float) -> float:
        """Return the first entropy bonus; of a policy that begins as a rule it is the final one."""
        return self.entropy_coeff if self.rule is None else final

    def losses(self) -> list[Any]:
        """Return the algorithm's losses: all attributes that are one."""
        return [value for value in vars(self).values() if isinstance(value, LossModule)]

    def iterate(self) -> Metrics | list[Metrics]:
        """Collect a batch and update.

        Raises:
            NonFiniteError: something became NaN or infinite; the message names what was the first.
        """
        batch = reward = None
        try:
            batch = self.collector.collect()
            reward = batch.get(("next", "reward")).detach()  # an update rescales it
            seen = {"action", ACTION_MASK, *(part.key for part in self._scaled())}
            self.last_batch = batch.select(*seen, strict=False).detach()
            found = self.with_events(self.update(batch))
            check_lasting(self)
        except ValueError as error:
            explain(self, error, batch, reward)
            raise
        return found

    def with_events(self, found: Metrics | list[Metrics]) -> Metrics | list[Metrics]:
        """Add what only some updates have: episodes that ended, by their mean, and compilation."""
        ended: Any = self.collector.ended
        rows = [found] if isinstance(found, dict) else found
        size = self.collector.batch_size.numel() // len(rows)
        for at, row in enumerate(rows):
            own = ended.instance // size == at
            sums = [ended.total[own].sum(), ended.steps[own].sum(), own.sum()]
            *sums, number = ranks.total(torch.stack([each.double() for each in sums])).tolist()
            if number:
                row["episode_return"], row["episode_length"] = (each / number for each in sums)
        if (seconds := self.collector.compile_seconds()) > 0:
            for row in rows:
                row["compile_seconds"] = seconds
        return found

    def scouting(self, num_updates: int) -> int:
        """Return the updates after which observations are measured, before a run begins."""
        return _SCOUTING if num_updates >= _LONG and self._scaled() else 0

    def imitate_rule(self) -> bool:
        """Let the policy imitate a rule, if one is asked for."""
        if self.rule is not None:
            imitate(self)
        return self.rule is not None

    def measure(self) -> None:
        """Let the networks scale observations by what those of the last batch were."""
        self.gather_last_batch()
        batch: Any = self.last_batch
        for part in self._scaled():
            part.measure(batch[part.key])

    def gather_last_batch(self) -> None:
        """Let :attr:`last_batch`, of this rank's instances, be that of all."""
        if ranks.active() and (own := self.last_batch) is not None:
            number = self._instances
            entries = ranks.gathered_all(dict(own.flatten_keys(".").items()), number)
            whole = TensorDict(entries, (number, *own.shape[1:]), device=own.device)
            self.last_batch = whole.unflatten_keys(".")

    def _scaled(self) -> list[ObservationScale]:
        """Return the layers that scale an observation and may find out how."""
        parts = (*self.policy.modules(), *self.critic.modules())
        return [part for part in parts if isinstance(part, ObservationScale) and part.key]

    # -- rewards, values, advantages -------------------------------------------------------------

    def prepare(self, batch: TensorDictBase) -> tuple[dict[str, Any], TensorDictBase]:
        """Add values, scaled rewards and advantages to a batch.

        Returns:
            Metrics, and the batch without its graph.
        """
        with torch.set_grad_enabled(self.differentiable and self.evaluations is None):
            self.add_values(batch)
        return self.rescale(batch), self.add_advantages(batch)

    def evaluated(
        self, function: Callable[..., Tensor], data: TensorDictBase, *given: Tensor
    ) -> Tensor:
        """Return a function of networks and data; where XLA takes the rollouts, it takes this too.

        Args:
            function: what is evaluated, see :class:`~hpo_torchrl.algorithms.fused.Evaluations`.
            data: all that it reads.
            given: further tensors.
        """
        if self.evaluations is None:
            return function(data, *given)
        return self.evaluations(function, data, *given)

    def rescale(self, batch: TensorDictBase) -> dict[str, Any]:
        """Bring the rewards of a batch to the scale of learning; return the cost that they meant.

        Raises:
            NonFiniteError: a reward, an action or the rewards' running scale is not finite.
        """
        reward = batch.get(("next", "reward"))
        # The argmax of NaN is 0: a batch may look well whose choices mean nothing.
        chosen = batch.select(("next", "reward"), "action", "discrete_log_prob", strict=False)
        with ranks.agreeing():
            stop_unless_finite(chosen.to_dict(), seeds=self.seeds, label="The batch's {}")
            if self.objective == "average" and bool(batch["next", "terminated"].any()):
                raise ValueError(
                    "objective='average' is of problems that never end, but an episode terminated: "
                    "choose objective='return', or 'discounted'."
                )
        self.scaler.observe(reward)
        stop_unless_finite(
            dict(self.scaler.named_buffers()), seeds=self.seeds, label="The rewards' {}"
        )
        scale, shift = (unsqueeze_like(unit, reward) for unit in self.reward_units(batch))
        batch.set(("next", "reward"), reward / scale - shift)
        cost = -self.mean(reward.detach()) / self.cost_units
        return {"cost": cost} | self.optimization.learning_rates()

    def reward_units(self, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Return the scale and shift by which a batch is learned: ``reward / scale - shift``."""
        reward = batch.get(("next", "reward")).detach()
        scale = self.scaler.scale.to(reward.dtype)
        if not self.centers_rewards:
            return scale, torch.zeros_like(scale)
        return scale, self._average_reward(batch, self.scaler(reward))

    @torch.no_grad()
    def _average_reward(self, batch: TensorDictBase, reward: Tensor) -> Tensor:
        """Constant to take off the rewards of an environment that never terminates.

        A constant reward rho adds rho / (1 - discount) to every value, which the critic would
        chase as the policy improves. Taking off the average temporal difference instead (Naik et
        al. 2024, value-based reward centering) leaves the critic its level, whatever that is. With
        discount 1 it is the average reward, whatever the states of the batch are drawn from:
        differential values have r - rho + V(s') - V(s) of mean 0 in every state.
        """
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

        known = self.evaluated(values, batch.select(*keys).detach())
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
        estimate: Any = vec_generalized_advantage_estimate
        if self.gae_lambda == 0.0:  # a convolution, which fails on a single step
            estimate = generalized_advantage_estimate
        advantage, target = estimate(
            self.discount,
            self.gae_lambda,
            data.get("state_value"),
            after.get("state_value"),
            after.get("reward"),
            done=after.get("done"),
            terminated=after.get("terminated"),
        )
        if self.objective == "average" and self.discount == 1.0:
            # Differential values are known but for a constant; held at mean 0, it cannot drift.
            target = target - unsqueeze_like(self.mean(target), target)
        for place in (batch, data):
            place.update({"advantage": advantage, "value_target": target})
        return data

    # -- metrics -------------------------------------------------------------------------------

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a batch's entry over all ranks, a scalar, with seeds ``(S,)``."""
        return ranks.mean(value) if self.num_seeds is None else value.flatten(1).mean(1)

    def numbers(self, found: Mapping[str, Any]) -> Metrics | list[Metrics]:
        """Return metrics, scalars or ``(S,)``, as numbers; the host waits for all of them once."""
        values = {name: torch.as_tensor(value).detach() for name, value in found.items()}
        columns = [value.double().expand(self.num_seeds or 1) for value in values.values()]
        far = [column for column in columns if column.device.type != "cpu"]
        fetched = iter(torch.stack(far).cpu() if far else ())
        columns = [c if c.device.type == "cpu" else next(fetched) for c in columns]
        rows = []
        for numbers in torch.stack(columns, -1).tolist():
            pairs = zip(values.items(), numbers, strict=True)
            rows.append({name: x if v.is_floating_point() else int(x) for (name, v), x in pairs})
        return rows[0] if self.num_seeds is None else rows

    # -- seeds and checkpoints -----------------------------------------------------------------

    def components(self, seed_index: int | None = None) -> dict[str, Any]:
        """Return policy, critic, optimizer, reward scale, collector and random numbers.

        Args:
            seed_index: which of the seeds; ``None`` in an ordinary run. The names and contents are
                those of an ordinary run of that seed.
        """
        policy, critic = self.members()[seed_index or 0]
        return {
            "policy": policy,
            "critic": critic,
            "optimizer": self.optimization.optimizers[seed_index or 0],
            "reward_scaler": SeedState(self.scaler, seed_index),
            "collector": self.collector.state(seed_index),
            "randomness": self.randomness.state(seed_index),
        }

    def members(self) -> list[tuple[Any, Any]]:
        """Return the policy and the critic of each seed; in an ordinary run, the one pair."""
        if self.num_seeds is None:
            return [(self.policy, self.critic)]
        networks: Any = (self.policy, self.critic)
        return list(zip(*(module.members for module in networks), strict=True))

    def _check_seeds(self) -> None:
        if self.seeds is not None and not self.trains_many_seeds:
            raise ValueError(
                f"{type(self).__name__} trains one seed at a time, got seed={self.seeds}; train "
                "them one after another, or use HPO or PPO."
            )
        for name in ("policy", "critic", "env"):
            found = getattr(plain(getattr(self, name)), "num_seeds", None)
            if found != self.num_seeds:
                raise ValueError(
                    f"seed={self.seeds} and {name} must be of the same seeds, but the {name} has "
                    f"num_seeds={found}. Several seeds need modules.replicate(policies), "
                    "modules.replicate(critics), ReplicatedEnv(envs) and as many seeds."
                )
